"""The training arguments for a teacher behind a server, and what they refuse."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..serving.server import check_url


_HIDDEN_STATES = ("exact_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd")
_OF_A_SERVER = (
    "teacher_server_model",
    "teacher_server_timeout",
    "teacher_server_max_concurrency",
    "teacher_score_cache",
)
# What of the arguments for loading is about the tokenizer and the configuration, too.
_SOURCE = {"revision", "gguf_file", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code"}


@dataclass
class TeacherServerArguments:
    """
    The arguments of [`CrossTokenizerGKDConfig`] for a teacher behind a server, and for several teachers, which
    `teacher_model_name_or_path` may have in a dictionary, too, as the trainer's `teacher_model` has them.

    Args:
        teacher_server_url (`list[str]`, *optional*):
            Address of a vLLM server that has the teacher, for example `"http://127.0.0.1:8000"`, or several addresses
            of replicas. Each request then goes to the one that has least to do, past those that are away. Nothing but
            the teacher's tokenizer and configuration is loaded here, from `teacher_model_name_or_path`. An API key is
            read from the environment variable `VLLM_API_KEY`. With several teachers, a dictionary with the addresses
            of those that are served; the key of one of them may be in `VLLM_API_KEY_` and its name in upper case.
        teacher_server_model (`str` or `dict`, *optional*):
            Name under which the teacher is served. `None` is the only model of the server. With several teachers, a
            dictionary, or one name for all.
        teacher_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for a server that does not answer, at the start and in the middle of a run. A request that
            takes longer than half of it is sent again. With replicas, seconds to wait until any of them answers.
        teacher_server_max_concurrency (`int`, *optional*, defaults to `8`):
            Requests of one process that are under way at the same time, over all servers of a teacher. Each has up to
            eight completions.
        teacher_score_cache (`str`, *optional*):
            File in which the teacher's scores are kept, so that later epochs, runs and processes need not ask for them
            again.
        teacher_weights (`dict`, *optional*):
            With several teachers, the weight of the loss on the rows of each, by name; 1.0 for those it leaves out.
    """

    teacher_model_name_or_path: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The teacher: a name on the Hub, or the path of a folder or an adapter; several in a dictionary."
        },
    )
    # Annotated as a list since the command-line parser takes one type per argument; one address and a dictionary of
    # addresses are accepted, too.
    teacher_server_url: list[str] | None = field(
        default=None, metadata={"help": "Address of a vLLM server that has the teacher, or of several replicas."}
    )
    teacher_server_model: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Name under which the teacher is served. None is the only one of the server."}
    )
    teacher_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait for a server of the teacher that does not answer."}
    )
    teacher_server_max_concurrency: int = field(
        default=8, metadata={"help": "Requests of one process to the teacher's servers at the same time."}
    )
    teacher_score_cache: str | None = field(
        default=None, metadata={"help": "File in which the scores of a served teacher are kept."}
    )
    teacher_weights: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "With several teachers, the weight of the loss on the rows of each, by name."}
    )


def take_addresses(args: Any) -> None:
    """Make a list of one address, and refuse what is none.

    Raises:
        ConfigError: If there is none, or one that no request can be sent to.
    """
    urls = args.teacher_server_url
    if urls is None:
        return
    # By name for several teachers.
    if urls and isinstance(urls, Mapping):
        args.teacher_server_url = {key: _addresses(value) for key, value in urls.items()}
    else:
        args.teacher_server_url = _addresses(urls)


def _addresses(urls: Any) -> list[str]:
    urls = [urls] if isinstance(urls, str) else urls
    if not isinstance(urls, list | tuple) or not urls:
        raise ConfigError(f"`teacher_server_url` must be an address or a list of addresses, got {urls!r}.")
    return [check_url(url) for url in urls]


def check_served(args: Any) -> None:
    """Refuse what a server cannot do, and what has no effect without one.

    Raises:
        ConfigError: Naming the argument.
    """
    _check_names("teacher_model_name_or_path", args.teacher_model_name_or_path)
    for name, weight in (args.teacher_weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"`teacher_weights` has {weight!r} for {name!r}, which must be finite and at least 0.")
    if args.teacher_server_url is None:
        for name in _OF_A_SERVER:
            if (value := getattr(args, name)) != type(args).__dataclass_fields__[name].default:
                raise ConfigError(
                    f"`{name}={value!r}` has no effect without `teacher_server_url`. Set that, or leave it out."
                )
        return
    _check_ranges(args)
    refused = {
        "objective": args.objective in _HIDDEN_STATES and "needs whole distributions of the teacher",
        "advantage_baseline": args.advantage_baseline == "position" and "needs whole distributions of the teacher",
        "seq_kd": args.seq_kd and "has the teacher write",
        "offload_teacher": args.offload_teacher and "moves a teacher that is loaded here",
    }
    _refuse(args, refused)
    # Of several teachers, some may be loaded here.
    if not isinstance(args.teacher_server_url, Mapping):
        refuse_loading(args)
    if (temperature := args.scoring["temperature"]) != 1:
        name = "temperature" if args.scoring_temperature is None else "scoring_temperature"
        raise ConfigError(
            f"`{name}={temperature}` is the temperature that both models are scored at, but a vLLM server scores a "
            f"given text at temperature 1 whatever it is asked. Set `temperature=1.0`, or `scoring_temperature=1.0` "
            "with an objective that does not credit samples, such as 'chunk_jsd'."
        )


def refuse_loading(args: Any) -> None:
    """Refuse what is about loading a teacher's weights, where none are loaded.

    Raises:
        ConfigError: Naming the argument.
    """
    refused = {
        name: getattr(args, name) and "quantizes a teacher that is loaded here"
        for name in ("load_teacher_in_4bit", "teacher_quantization_config")
    }
    _refuse(args, refused)
    if lost := sorted((args.teacher_model_init_kwargs or {}).keys() - _SOURCE):
        raise ConfigError(
            f"`teacher_model_init_kwargs` has {lost[0]!r}, which is about loading the teacher's weights, but with "
            "`teacher_server_url` only its tokenizer and configuration are read. Leave it to the server."
        )


def _check_names(argument: str, values: Any) -> None:
    """Refuse a dictionary for several teachers with what is no name."""
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if value is not None and not (isinstance(value, str) and value):
            raise ConfigError(f"`{argument}` has {value!r} for {key!r}, which must be one name as text.")


def _refuse(args: Any, refused: Mapping[str, str | bool | None]) -> None:
    for name, reason in refused.items():
        if reason:
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` {reason}, but with `teacher_server_url` the teacher is behind a "
                "server, which says one log-prob per token. Use 'chunk_rkl' or 'chunk_jsd' and leave the rest to the "
                "server, or load the teacher here."
            )


def _check_ranges(args: Any) -> None:
    models, urls = args.teacher_server_model, args.teacher_server_url
    if isinstance(models, Mapping):
        _check_names("teacher_server_model", models)
        if not isinstance(urls, Mapping) or not models.keys() <= urls.keys():
            of = f"has addresses for {', '.join(urls)}" if isinstance(urls, Mapping) else "is for one teacher"
            raise ConfigError(
                f"`teacher_server_model` is a dictionary with {', '.join(map(repr, models))}, but "
                f"`teacher_server_url` {of}. Use the names of teachers in both, or give one name under which all are "
                "served."
            )
    elif models is not None and not (isinstance(models, str) and models):
        raise ConfigError(
            f"`teacher_server_model` must be the name under which the teacher is served, or a dictionary of such "
            f"names by teacher, got {models!r}."
        )
    timeout, most = args.teacher_server_timeout, args.teacher_server_max_concurrency
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout < math.inf:
        raise ConfigError(f"`teacher_server_timeout` must be a positive number of seconds, got {timeout!r}.")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"`teacher_server_max_concurrency` must be a whole number of at least 1, got {most!r}.")
