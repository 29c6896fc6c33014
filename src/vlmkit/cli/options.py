"""`python -m vlmkit.cli.options`: the table of every option, from the yaml files and the comments in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from vlmkit.config import conf_dir

COMMANDS = ("train", "check", "inspect", "assemble", "eval", "compare", "convert", "chat", "doctor", "export")
LIKE_TRAIN = ("check", "inspect")
"""Commands whose yaml composes that of `vlmkit-train` and adds to it."""
GROUPS = (
    "model", "data", "freeze", "stage", "optim", "trainer", "logger", "callbacks", "experiment", "hydra/sweeper",
    "hydra/launcher", "backend", "eval",
)  # fmt: skip
_HEAD = ["| option | default | meaning |", "| --- | --- | --- |"]
_LINE = re.compile(r'^(?P<indent> *)"?(?P<key>[\w@/]+)"?:(?P<value>[^#]*?)(?:\s+#\s*(?P<meaning>.*))?$')
_CHOICE = re.compile(r"^  - (?P<group>\w+): (?P<option>\w+)(?:\s+#\s*(?P<meaning>.*))?$", flags=re.MULTILINE)
_SWEEPS = re.compile(r"^  - override /(?P<group>hydra/\w+): (?P<option>\w+)", flags=re.MULTILINE)
_FEW = 6
"""So many values of one setting stand in its row; where choices have more, each says so at its head."""
_NOT_SETTINGS = ("defaults", "hydra", "_target_", "_recursive_")


@dataclass
class Setting:
    """One option as the yaml files have it.

    Attributes:
        name: As written on a command line.
        meaning: The comment beside it; empty where no file has one.
        values: Its value by the file (stem) that gives one, as in the yaml.
    """

    name: str
    meaning: str = ""
    values: dict[str, str] = field(default_factory=dict[str, str])


def options_table() -> str:
    """Markdown: the options of each command, then the choices and settings of each group."""
    lines: list[str] = []
    for command in COMMANDS:
        like = ": all that `vlmkit-train` takes, and" if command in LIKE_TRAIN else ""
        rows = _rows(_collect([conf_dir() / f"{command}.yaml"], prefix=""), first=command)
        lines += [f"**`vlmkit-{command}`**{like}", "", *rows, ""]
    for group in GROUPS:
        lines += [*_group(group), ""]
    return "\n".join(lines).rstrip() + "\n"


def settings() -> list[Setting]:
    """Every option of every command and group."""
    found: list[Setting] = []
    for command in COMMANDS:
        found += _collect([conf_dir() / f"{command}.yaml"], prefix="")
    for group in GROUPS:
        found += _collect(_files(group), prefix=_prefix(group))
    return found


def _group(group: str) -> Iterator[str]:
    """Heading, a line for each choice, and the table of a group."""
    first, commands = _default_choice(group)
    if group == "eval":
        yield "**Benchmarks**, the names in `benchmarks=[...]`; their settings are `benchmark_options.<name>.<key>`"
    else:
        yield f"**`{group}=`** of {', '.join(f'`vlmkit-{command}`' for command in commands)}; `{first}` by default"
    yield ""
    for path in (path for path in _files(group) if not path.stem.startswith("_")):
        also = [f"`{key}: {value}`" for key, value in _elsewhere(path, group)]
        yield f"- `{path.stem}`: {_title(path)}" + (f" It sets {', '.join(also)}." if also else "")
    if rows := _collect(_files(group), prefix=_prefix(group)):
        yield ""
        yield from _rows(rows, first=first)


def _prefix(group: str) -> str:
    return "benchmark_options.<name>." if group == "eval" else f"{group.replace('/', '.')}."


def _files(group: str) -> list[Path]:
    return sorted((conf_dir() / group).glob("*.yaml"))


def _default_choice(group: str) -> tuple[str, list[str]]:
    """Which option of a group stands in the defaults, and the commands that use the group."""
    if group.startswith("hydra/"):
        text = (conf_dir() / "hydra" / "sweeps.yaml").read_text(encoding="utf-8")
        return next(match["option"] for match in _SWEEPS.finditer(text) if match["group"] == group), ["train"]
    first, commands = "", list[str]()
    for command in COMMANDS:
        for match in _CHOICE.finditer(_with_included(command)):
            if match["group"] == group and not (match["meaning"] or "").startswith("not used"):
                first = match["option"]
                commands.append(command)
    return first, commands


def _with_included(command: str) -> str:
    """The text of a command's yaml, and of the one that it begins with (`- train`)."""
    text = (conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")
    included = re.search(r"^  - ([a-z]+)\s*(?:#.*)?$", text, flags=re.MULTILINE)
    return f"{text}\n{_with_included(included[1])}" if included else text


def _rows(found: list[Setting], *, first: str) -> list[str]:
    return [
        *_HEAD,
        *(f"| `{one.name}` | {_default(one, first)} | {_escape(one.meaning).replace('<', '&lt;')} |" for one in found),
    ]


def _default(setting: Setting, first: str) -> str:
    """The value of the default choice, or of most choices; beside it those that have another, where they are few."""
    told: dict[str, list[str]] = {}
    for choice, value in setting.values.items():
        told.setdefault(value, []).append(choice)
    most = max(told, key=lambda value: len(told[value]))
    usual = setting.values.get(first, most if 2 * len(told[most]) > len(setting.values) > _FEW else None)
    if len(told) > _FEW:
        own = "each choice has its own" if usual is None else f"`{usual}`; some choices have their own"
        return _escape(own)
    others = [
        f"{', '.join(f'`{choice}`' for choice in choices)}: `{value}`"
        for value, choices in told.items()
        if value != usual
    ]
    return _escape("; ".join([f"`{usual}`", *others] if usual is not None else others))


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def _collect(files: list[Path], *, prefix: str) -> list[Setting]:
    """Each setting of these files once, with the meaning that most of them give, of equals the fullest."""
    found: dict[str, Setting] = {}
    told: dict[str, Counter[str]] = {}
    for path in files:
        meanings = _meanings(path)
        for key, value in _values(path):
            name = key if _is_global(path) else f"{prefix}{key}"
            if not name.startswith(prefix):
                continue
            setting = found.setdefault(name, Setting(name=name))
            setting.values[path.stem.lstrip("_")] = value  # what choices share is told as the one it is named after
            if meaning := meanings.get(key) or meanings.get(key.rpartition(".")[0], ""):
                told.setdefault(name, Counter())[meaning] += 1
    for name, counts in told.items():
        found[name].meaning = max(counts, key=lambda meaning: (counts[meaning], len(meaning)))
    return list(found.values())


def _elsewhere(path: Path, group: str) -> list[tuple[str, str]]:
    """What a file sets outside its own group, choices of other groups too."""
    if not _is_global(path):
        return []
    content = cast("dict[str, object]", yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    chosen = [
        (key.removeprefix("override /"), str(value))
        for entry in cast("list[object]", content.get("defaults", []))
        if isinstance(entry, dict)
        for key, value in cast("dict[str, str]", entry).items()
    ]
    return [*chosen, *((key, value) for key, value in _values(path) if not key.startswith(f"{group}."))]


def _is_global(path: Path) -> bool:
    return "# @package _global_" in path.read_text(encoding="utf-8")


def _values(path: Path) -> list[tuple[str, str]]:
    """Dotted key and value, as yaml writes it, of each setting of a file."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    return list(_flat(cast("dict[str, object]", content)))


def _flat(node: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, dict) and value:
            yield from _flat(cast("dict[str, object]", value), f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", f"[{', '.join(map(str, cast('list[object]', value)))}]"
        else:
            yield f"{prefix}{key}", str(value) or '""'


def _meanings(path: Path) -> dict[str, str]:
    """The comment beside each key of a file, by dotted key."""
    parents: list[tuple[int, str]] = []
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        indent = len(match["indent"])
        parents = [(depth, key) for depth, key in parents if depth < indent]
        if match["meaning"]:
            found[".".join([*(key for _, key in parents), match["key"]])] = match["meaning"]
        if not match["value"].strip():
            parents.append((indent, match["key"]))
    return found


def _title(path: Path) -> str:
    """The comment at the head of a file, as sentences."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line[1:].strip().rstrip(".") + "."
    return ""


if __name__ == "__main__":
    print(options_table(), end="")
