"""The picture of credit as HTML: both tokenizations above one another, each student token in its colour."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from .credit import Chunk, Credited, Scale, Token, scale_of
from .page import template, visible_text, visible_token
from .words import kind_name, number, signed


def credit_html(completions: Sequence[Credited]) -> Markup:
    """The pictures of completions, with one scale of colours for all of them."""
    tokens = [token for one in completions for chunk in one.chunks for token in chunk.student]
    advantages = [token.advantage for token in tokens if token.advantage is not None]
    shares = [share for one in completions for chunk in one.chunks if (share := _share(chunk)) is not None]
    scales = {"advantage": scale_of(advantages) if advantages else None, "ratio": scale_of(shares)}
    pictures = [
        {
            "title": f"Step {one.step}, {kind_name(one.kind)}",
            "prompt": visible_text(one.prompt),
            "columns": [_column(chunk, scales) for chunk in one.chunks],
            "left_out": one.left_out,
        }
        for one in completions
    ]
    return Markup(
        template("credit.html").render(
            pictures=pictures,
            has_advantages=bool(advantages),
            limits={name: number(scale.limit) if scale else "" for name, scale in scales.items()},
            levels=range(-4, 5),
            classes=_class,
        )
    )


def _column(chunk: Chunk, scales: dict[str, Scale | None]) -> dict[str, Any]:
    share = _share(chunk)
    return {
        "number": str(chunk.number + 1) if chunk.number >= 0 else "",
        "student_logp": signed(chunk.student_logp),
        "teacher_logp": signed(chunk.teacher_logp),
        "difference": signed(chunk.difference),
        "student": [_student_token(token, share, scales) for token in chunk.student],
        "teacher": [_token(token) for token in chunk.teacher],
        "dropped": sorted({_words(token.dropped) for token in chunk.student if token.dropped}),
        "ends_line": any(token.spelled is not None and b"\n" in token.spelled for token in chunk.student),
    }


def _student_token(token: Token, share: float | None, scales: dict[str, Scale | None]) -> dict[str, Any]:
    return {
        **_token(token),
        "advantage": signed(token.advantage),
        "dropped": _words(token.dropped or ""),
        "leaves": token.leaves,
        "classes": f"a-{_level(scales['advantage'], token.advantage)} r-{_level(scales['ratio'], share)}",
    }


def _token(token: Token) -> dict[str, Any]:
    text = "⟨unknown⟩" if token.spelled is None else visible_token(token.spelled) or "⟨empty⟩"
    return {"text": text, "id": token.token_id, "logp": signed(token.logp)}


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _share(chunk: Chunk) -> float | None:
    """What of the chunk's log-ratio would fall on each student token in equal parts."""
    return None if chunk.difference is None or not chunk.student else chunk.difference / len(chunk.student)


def _level(scale: Scale | None, value: float | None) -> str:
    return _class(scale.level(value)) if scale is not None and value is not None else "none"


def _class(level: int) -> str:
    return f"n{-level}" if level < 0 else f"p{level}" if level else "zero"
