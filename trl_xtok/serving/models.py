"""What a server says of itself: the models that it serves, and the ids that its tokenizer makes of a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ServerError
from .server import VLLMServer, excerpt


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: As it is served.
        root: Where the server read it from; empty if it does not say.
        max_model_len: Longest sequence that it takes, with at least one token that it writes; `None` if it does not
            say.
    """

    name: str
    root: str = ""
    max_model_len: int | None = None


def find_model(server: VLLMServer, name: str | None = None) -> ServedModel:
    """The model of this name; without one the only model that is served.

    Raises:
        ServerError: If there is none, or no telling which.
    """
    reply = server.get("/v1/models")
    listed = reply.get("data") if isinstance(reply, dict) else None
    models = [_read(entry) for entry in listed] if isinstance(listed, list) else []
    if not models or None in models:
        raise ServerError(f"{server.url}/v1/models does not list models by their `id`: {excerpt(reply)}")
    found = [model for model in models if model is not None and name in (None, model.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(excerpt(model.name) for model in models if model is not None)
    raise ServerError(
        f"The server {server.url} serves {names}, so it is not known which of them is meant. Name it."
        if name is None
        else f"The server {server.url} does not serve the model {name!r}, but {names}."
    )


def find_replicas(servers: Sequence[VLLMServer], name: str | None = None) -> ServedModel:
    """The model that all servers serve; the shortest of their lengths.

    Raises:
        ServerError: If they do not serve one and the same.
    """
    models = [find_model(server, name) for server in servers]
    for server, model in zip(servers, models, strict=True):
        if (model.name, model.root) != (models[0].name, models[0].root):
            raise ServerError(
                f"The server {servers[0].url} serves {excerpt(models[0].name)} from {excerpt(models[0].root)} and "
                f"{server.url} {excerpt(model.name)} from {excerpt(model.root)}, but several servers must be "
                "replicas of one model."
            )
    lengths = [model.max_model_len for model in models if model.max_model_len is not None]
    return ServedModel(models[0].name, models[0].root, min(lengths, default=None))


def tokenize(server: VLLMServer, model: str, text: str) -> list[int] | None:
    """The ids that the server makes of a text, without special tokens; `None` if it does not offer that.

    Raises:
        ServerError: If the answer has no ids.
    """
    try:
        reply = server.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
    except ServerError as error:
        if error.status in (404, 405, 501):
            return None
        raise
    ids = reply.get("tokens") if isinstance(reply, dict) else None
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ServerError(f"{server.url}/tokenize does not answer with ids: {excerpt(reply)}")
    return ids


def _read(entry: Any) -> ServedModel | None:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("id"), str):
        return None
    root, length = entry.get("root"), entry.get("max_model_len")
    return ServedModel(
        name, root if isinstance(root, str) else "", length if type(length) is int and length > 1 else None
    )
