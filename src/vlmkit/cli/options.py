"""`python -m vlmkit.cli.options`: the table of every option, from the comments in the yaml files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vlmkit.config import conf_dir

GROUPS = ("model", "data", "freeze", "optim", "trainer", "logger", "callbacks", "stage", "backend", "eval")
COMMANDS = ("train", "assemble", "eval")
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w@/]+):(?P<value>[^#]*?)(?:\s+#\s*(?P<meaning>.*))?$")


def options_table() -> str:
    """Markdown: the options of each command, then the choices and settings of each group."""
    lines: list[str] = []
    for command in COMMANDS:
        lines += [f"**`vlmkit-{command}`**", "", *_rows(conf_dir() / f"{command}.yaml", prefix=""), ""]
    for group in GROUPS:
        files = sorted((conf_dir() / group).glob("*.yaml"))
        lines += [f"**`{group}=`** " + "; ".join(f"`{path.stem}` {_title(path)}".strip() for path in files), ""]
        rows = [row for row in _settings(group, files) if row]
        if rows:
            lines += [*_HEAD, *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


_HEAD = ["| option | default | meaning |", "| --- | --- | --- |"]


def _rows(path: Path, *, prefix: str) -> list[str]:
    return [*_HEAD, *(f"| `{prefix}{key}` | `{value}` | {meaning} |" for key, value, meaning in _options(path))]


def _settings(group: str, files: list[Path]) -> Iterator[str]:
    """Each setting once, by the first file that explains it."""
    seen: set[str] = set()
    prefix = "benchmark_options.<name>." if group == "eval" else f"{group}."
    for path in files:
        for key, value, meaning in _options(path):
            name = key if key.startswith(f"{group}.") else f"{prefix}{key}"
            if meaning and name not in seen and not key.startswith("optim."):
                seen.add(name)
                yield f"| `{name}` | `{value}` | {meaning} |"


def _options(path: Path) -> Iterator[tuple[str, str, str]]:
    """Dotted key, default and meaning of each explained line."""
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if match is None or match["key"] in ("defaults", "hydra", "_target_"):
            continue
        indent = len(match["indent"])
        parents = [(depth, key) for depth, key in parents if depth < indent]
        key = ".".join([*(key for _, key in parents), match["key"]])
        value = match["value"].strip()
        if not value:
            parents.append((indent, match["key"]))
        elif match["meaning"]:
            yield key, value.replace("|", "\\|"), match["meaning"].replace("|", "\\|")


def _title(path: Path) -> str:
    """The comment at the head of a file."""
    first = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told = [line for line in first if not line.startswith("@package")]
    return f"({told[0].rstrip('.')})" if told else ""


if __name__ == "__main__":
    print(options_table(), end="")
