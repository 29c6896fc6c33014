"""Writes what is generated anew: the README's tables of options and benchmarks, and `docs/errors.md`.

Tests compare them with the code; after a change of a yaml file or of an error's text, `make tables` makes them equal again.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

from vlmkit.cli import benchmarks, errors, options  # noqa: E402


def put_between(text: str, start: str, end: str, inside: str) -> str:
    """A text with what stands between two markers replaced; `start` is the beginning of a comment."""
    before, rest = text.split(start, 1)
    comment, rest = rest.split("-->\n", 1)
    return f"{before}{start}{comment}-->\n\n{inside.strip()}\n\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    """Write them."""
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = put_between(text, "<!-- options:", "<!-- end of options -->", options.options_table())
    text = put_between(text, "<!-- benchmarks:", "<!-- end of benchmarks -->", benchmarks.markdown())
    readme.write_text(text, encoding="utf-8")
    (REPOSITORY / "docs" / "errors.md").write_text(errors.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
