"""One HTML file out of a body, styles, a script and data: it fetches nothing, and no text in it can run.

Data stand in blocks of JSON that a browser does not execute, and the script writes them as text, never as markup. A
content security policy names the one script and the one style sheet by their hashes, so that even markup that got in
would stay dead (W3C, Content Security Policy Level 3, section 8.4).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from vlmkit import __version__

_ASSETS = files("vlmkit.pages") / "assets"
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def make_document(
    *,
    name: str,
    title: str,
    heading: str,
    data: Mapping[str, object],
    parts: Sequence[str] = (),
    files_too: bool = False,
    asks: bool = False,
) -> str:
    """The page as one HTML text.

    Args:
        name: Of its assets: `<name>.html` is the body, `<name>.css` and `<name>.js` come after the shared ones.
        title: Of the browser's window.
        heading: At the top of the page.
        data: Blocks of JSON by name; the script reads them by `readData(name)`.
        parts: Names of further shared styles and scripts, before the page's own.
        files_too: Whether pictures may also be files beside the page; else they stand in the data.
        asks: Whether its script may ask the server that the page came from.
    """
    style = "\n".join(_texts("base", *parts, name, suffix="css"))
    script = "\n".join(_texts("base", *parts, name, suffix="js"))
    pictures = "data: file: 'self'" if files_too else "data:"
    connects = "connect-src 'self'; " if asks else ""
    slots = {
        "policy": f"default-src 'none'; img-src {pictures}; {connects}style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "generator": f"vlmkit {__version__}",
        "title": html.escape(title),
        "heading": html.escape(heading),
        "style": style,
        "script": script,
        "body": _text(f"{name}.html"),
        "data": "\n".join(_block(key, value) for key, value in data.items()),
    }
    return _SLOT.sub(lambda found: slots[found[1]], _text("page.html"))


def write_document(path: Path, text: str) -> Path:
    """Write a page, its directory too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _block(name: str, content: object) -> str:
    """A block of JSON; pure ASCII, and without a character that could end it."""
    told = json.dumps(content, separators=(",", ":"), allow_nan=False, default=str)
    escaped = re.sub("[<>&]", lambda found: _IN_SCRIPT[found[0]], told)
    return f'<script type="application/json" id="data-{name}">{escaped}</script>'


def _texts(*names: str, suffix: str) -> list[str]:
    return [_text(f"{name}.{suffix}") for name in names]


def _text(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
