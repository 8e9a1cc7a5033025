"""The shell of a self-contained HTML page: one file, no request to the network, light and dark, usable by keyboard.

Everything that is not `Markup` is escaped. The page's own style and script are named by their hashes in its content
security policy, so nothing else on it can run or be loaded, whatever a model wrote. Style attributes are forbidden
with them: use classes.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


# Direction marks, which would reorder the text around them.
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page, with a heading and an entry in the page's navigation.

    Attributes:
        title: The heading.
        body: What stands below it; text that is not `Markup` is escaped.
    """

    title: str
    body: Markup | str

    @property
    def anchor(self) -> str:
        """The name by which links find the section."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_page(
    title: str, sections: Sequence[Section], *, lead: Markup | str = "", style: str = "", script: str = ""
) -> str:
    """The HTML of a page.

    Args:
        title: The heading, and the title of the window.
        sections: What stands on it, from top to bottom.
        lead: What stands below the heading.
        style: CSS that is added to `templates/page.css`.
        script: JavaScript that is added at the end of the page, as a module.
    """
    style = resource("page.css") + style
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'" if script else "script-src 'none'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return template("page.html").render(
        title=title, sections=sections, lead=lead, style=Markup(style), script=Markup(script), policy=policy
    )


def visible_text(text: str) -> str:
    """A text with what cannot be seen spelled out, except spaces, tabs and line ends.

    Control characters and half characters become symbols. So do direction marks, which could make a text read
    otherwise than it was written.

    Example:
        >>> visible_text("a\\x00b")
        'a␀b'
    """
    text = _CONTROL.sub(lambda found: _picture(found[0]), text.replace("\r\n", "\n"))
    return _SURROGATE.sub("\ufffd", _DIRECTION.sub(lambda found: _code(found[0]), text))


def visible_token(spelled: bytes) -> str:
    """What a token spells, with all of its white space visible; its bytes where it splits a character.

    Example:
        >>> visible_token(b" a\\n"), visible_token("é".encode()[:1])
        ('␣a⏎', '⟨C3⟩')
    """
    try:
        text = spelled.decode()
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in spelled)
    shown = "".join(map(_visible_character, text))
    # A mark that combines with the letter before it would leave the token.
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def resource(name: str) -> str:
    """The text of a file in `templates/`."""
    return files("trl_xtok.report").joinpath("templates", name).read_text(encoding="utf-8")


def template(name: str) -> Template:
    """A template in `templates/`; what it is given is escaped."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    loader = PackageLoader("trl_xtok.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _visible_character(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    category = unicodedata.category(character)
    if category == "Cc":
        return _picture(character)
    return _code(character) if category in ("Cf", "Cn", "Co", "Zl", "Zp", "Zs") else character


def _picture(control: str) -> str:
    if control == "\x7f":
        return "␡"
    return chr(0x2400 + ord(control)) if control < " " else _code(control)


def _code(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
