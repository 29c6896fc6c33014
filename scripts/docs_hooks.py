"""What mkdocs runs while it builds: pages that are made, and sections that are taken from the README.

A page says `<!-- include README.md "Your data" -->` where a section of another file of the repository belongs: from its
heading to the next of its level, the heading left out, headings below it raised by as many levels as the page needs. So
nothing is written twice, and a section that is renamed breaks the build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import nbformat

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "scripts")]

import notebooks  # noqa: E402

from vlmkit.cli.options import options_table  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_INCLUDE = re.compile(r'^<!-- include (?P<file>\S+)(?: "(?P<heading>[^"]+)")? -->$', flags=re.MULTILINE)
_SCRIPT = re.compile(r"^<!-- script (?P<file>\S+) -->$", flags=re.MULTILINE)
_HEADING = re.compile(r"^(?P<marks>#+) +(?P<title>.*?) *$")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
_PATH_AS_LABEL = re.compile(r"\[([\w/]+\.md)\]\((?=\1)")
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "bench/gpu.md": "gpu.md",
    "bench/README.md": "gpu.md",
    "scripts/slurm.sh": "recipes/slurm.md",
}
"""Files of the repository that a link may lead to, and the page that shows them."""


def section(file: str, heading: str | None) -> str:
    """The text of a Markdown file, or what stands under one of its headings.

    Raises:
        LookupError: there is no such heading.
    """
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    if heading is None:
        return "\n".join(lines)
    begin = depth = None
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith("```")
        match = None if fenced else _HEADING.match(line)
        if match is None:
            continue
        if begin is not None and len(match["marks"]) <= (depth or 0):
            return "\n".join(lines[begin:number]).strip()
        if begin is None and match["title"] == heading:
            begin, depth = number + 1, len(match["marks"])
    if begin is None:
        raise LookupError(f"{file} has no heading {heading!r}, which a page of the documentation includes.")
    return "\n".join(lines[begin:]).strip()


def with_sections(text: str, page: str) -> str:
    """The text of a page with what it includes, links led to where those files are shown.

    Args:
        text: Markdown.
        page: Its path under docs/.
    """

    def included(match: re.Match[str]) -> str:
        return _relinked(section(match["file"], match["heading"]), match["file"], page)

    return _INCLUDE.sub(included, text)


def _relinked(text: str, file: str, page: str) -> str:
    def led(match: re.Match[str]) -> str:
        target = str(PurePosixPath(file).parent / match[1]).removeprefix("./")
        parts: list[str] = []
        for part in target.split("/"):
            parts = parts[:-1] if part == ".." else [*parts, part]
        target = "/".join(parts)
        shown = PLACES.get(target, target.removeprefix("docs/"))
        return f"]({'../' * page.count('/')}{shown}{match[2] or ''})"

    return _LINK.sub(led, _PATH_AS_LABEL.sub(lambda match: f"[{_title(match[1], file)}](", text))


def _title(path: str, file: str) -> str:
    """The heading of the page that a link leads to; the path itself where it has none."""
    place = (REPOSITORY / file).parent / path
    lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path)


def made_pages() -> dict[str, str | bytes]:
    """Pages (and pictures) that stand in no file: path under docs/ and content."""
    options = (
        "# Every setting\n\n" + section("README.md", "Options").split("<!-- options", 1)[0] + "\n" + options_table()
    )
    options = re.sub(
        r"^\*\*(.+?)\*\*(.*)$",
        lambda m: f"## {m[1]}" + (f"\n\n{m[1]}{m[2]}" if m[2] else ""),
        options,
        flags=re.MULTILINE,
    )
    found: dict[str, str | bytes] = {
        "options.md": re.sub(r"^(## .*)$", lambda match: match[1].replace("`", ""), options, flags=re.MULTILINE),
        "changes.md": section("CHANGELOG.md", None),
        "contributing.md": with_sections("<!-- include CONTRIBUTING.md -->", "contributing.md"),
        "gpu.md": with_sections("<!-- include bench/gpu.md -->", "gpu.md"),
    }
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        found |= _notebook(path)
    return found


def _notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as it ran last (`scripts/notebooks.py`), else without outputs."""
    ran = notebooks.PAGES / f"{path.stem}.md"
    if ran.is_file():
        pictures = {f"notebooks/{one.name}": one.read_bytes() for one in notebooks.PAGES.glob(f"{path.stem}-*.png")}
        return {f"notebooks/{path.stem}.md": ran.read_text(encoding="utf-8"), **pictures}
    text, _ = notebooks.as_markdown(nbformat.read(path, as_version=4), path.stem)
    return {f"notebooks/{path.stem}.md": text}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for path, content in made_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the sections that the page includes."""
    del config, files
    return with_sections(_SCRIPT.sub(_shown, markdown), page.file.src_uri)


def _shown(match: re.Match[str]) -> str:
    """A script of the repository as a block of code."""
    return f"```bash\n{(REPOSITORY / match['file']).read_text(encoding='utf-8').rstrip()}\n```"
