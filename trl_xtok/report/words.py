"""How numbers and kinds of completions are written."""

_MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"


def number(value: float) -> str:
    """A number to read.

    Example:
        >>> number(0.12345), number(20000.0), number(3e8)
        ('0.1235', '20,000', '3e8')
    """
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        digits, _, power = f"{value:.3g}".partition("e")
        shown = f"{digits}e{int(power)}" if power else digits
    else:
        shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return shown.replace("-", _MINUS)


def signed(value: float | None) -> str:
    """A number with its sign; a dash for what is not known.

    Example:
        >>> signed(0.5)
        '+0.500'
    """
    return UNKNOWN if value is None else f"{value:+.3f}".replace("-", _MINUS)


def kind_name(kind: str) -> str:
    """What completions are of, by what the names of their metrics begin with.

    Example:
        >>> kind_name(""), kind_name("eval_"), kind_name("eval_maths")
        ('training', 'evaluation', 'evaluation of maths')
    """
    kind = kind.removesuffix("_")
    if not kind:
        return "training"
    return "evaluation" if kind == "eval" else f"evaluation of {kind.removeprefix('eval_')}"
