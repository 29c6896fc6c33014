"""Run the notebooks and write each as a page with its outputs: `python scripts/notebooks.py [NAME ...]`.

Git holds notebooks without outputs; the documentation shows them with. A notebook runs in a directory of its own, with the
console scripts of this checkout on its path, and the first cell that fails ends everything.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = REPOSITORY / "notebooks"
PAGES = REPOSITORY / "build" / "notebooks"
_NOISE = re.compile(r"\d+%\|.*\||\d+ rows \[\d|TqdmWarning|notebook_tqdm")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def write_commands(directory: Path) -> Path:
    """Write a script for each console command, which runs this checkout; their directory."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    directory.mkdir(parents=True, exist_ok=True)
    for name, target in scripts.items():
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {target.partition(":")[0]} "$@"\n')
        path.chmod(0o755)
    return directory


def environment(commands: Path) -> dict[str, str]:
    """For whatever runs the console scripts of `write_commands`."""
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "COLUMNS": "100",
    }


def run(path: Path, directory: Path, *, timeout_seconds: int = 900) -> nbformat.NotebookNode:
    """Execute a notebook in a directory; the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = with_checks(nbformat.read(path, as_version=4))
    commands = write_commands(directory / "bin")
    client = NotebookClient(
        notebook,
        timeout=timeout_seconds,
        startup_timeout=300,  # a busy machine starts a kernel slowly
        kernel_name="python3",
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute(env=environment(commands), cwd=str(directory))
    return notebook


def with_checks(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with a check after each shell command: IPython goes on where one fails.

    A cell whose command is meant to fail has the tag `exits-1`.
    """
    cells: list[nbformat.NotebookNode] = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and cell.source.startswith("!"):
            wanted = 1 if "exits-1" in cell.metadata.get("tags", []) else 0
            told = f"assert _exit_code == {wanted}, 'exit status ' + str(_exit_code)"
            cells.append(nbformat.v4.new_code_cell(told, metadata={"check": True}))
    notebook.cells = cells
    return notebook


def as_markdown(
    notebook: nbformat.NotebookNode, name: str, directory: Path | None = None
) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name.

    Args:
        notebook: With outputs, or without.
        name: Of the page; pictures are named by it.
        directory: Where it ran; left out of the paths that were printed.
    """
    pictures: dict[str, bytes] = {}
    pieces: list[str] = []
    for cell in notebook.cells:
        if cell.metadata.get("check"):
            continue
        if cell.cell_type == "markdown":
            pieces.append(cell.source)
            continue
        shell = cell.source.startswith("!")
        source = re.sub(r"^!", "", cell.source, flags=re.MULTILINE) if shell else cell.source
        pieces.append(f"```{'bash' if shell else 'python'}\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                printed += output.text
            else:
                pieces += [_text(printed, directory), _shown(output, name, pictures, directory)]
                printed = ""
        pieces.append(_text(printed, directory))
    return "\n\n".join(piece for piece in pieces if piece) + "\n", pictures


def _shown(output: Any, name: str, pictures: dict[str, bytes], directory: Path | None) -> str:
    """What a cell shows rather than prints: a picture, a table, a value."""
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode(data["image/png"])
        return f"![output]({file})"
    if "text/html" in data:
        table = re.sub(r"<style scoped>.*?</style>", "", str(data["text/html"]), flags=re.DOTALL)
        return re.sub(r"\n\s*\n", "\n", table).strip()
    return _text(data.get("text/plain", ""), directory)


def _text(text: str, directory: Path | None) -> str:
    """A block of plain text: without colours, progress bars and where the notebook ran."""
    if directory is not None:
        text = text.replace(f"{directory}/", "")
    text = text.replace(f"{Path.home()}/", "~/")
    lines = [line.rpartition("\r")[2].rstrip() for line in _ANSI.sub("", text).strip("\r\n").splitlines()]
    lines = [line for line in lines if not _NOISE.search(line)]
    return "```text\n" + "\n".join(lines) + "\n```" if any(lines) else ""


def main(names: list[str]) -> None:
    """Run these notebooks, or all, and write their pages."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as directory:
            page, pictures = as_markdown(run(path, Path(directory)), path.stem, Path(directory))
        (PAGES / f"{path.stem}.md").write_text(page, encoding="utf-8")
        for file, content in pictures.items():
            (PAGES / file).write_bytes(content)
        print(f"{path.stem}: {len(pictures)} pictures")


if __name__ == "__main__":
    main(sys.argv[1:])
