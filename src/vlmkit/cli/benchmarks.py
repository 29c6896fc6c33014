"""`python -m vlmkit.cli.benchmarks`: the table of every benchmark, from the yaml files and the classes they name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, get_type_hints

import yaml

from vlmkit.config import conf_dir, options_of

HEAD = ("name", "source", "split", "metric", "protocol", "judge")


def rows() -> Iterator[tuple[str, ...]]:
    """Name, source, split, metric, protocols (default first) and use of a judge, a benchmark a row."""
    for name in options_of("eval"):
        node: dict[str, Any] = yaml.safe_load((conf_dir() / "eval" / f"{name}.yaml").read_text(encoding="utf-8"))
        made = class_of(node["_target_"])
        protocols = [node["protocol"]] if "protocol" in node else [made.protocol]
        protocols += [one for one in getattr(made, "protocols", ()) if one not in protocols]
        metric = str(getattr(made, "metric", "") or node.get("rule", "exact_match"))
        yield name, _source(node), str(node.get("split", "")), metric, ", ".join(protocols), str(made.judge)


def markdown() -> str:
    """The table of the README."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, *rows())]
    return "\n".join([lines[0], "|" + " --- |" * len(HEAD), *lines[1:]]) + "\n"


def text() -> str:
    """The table for a terminal."""
    told = [HEAD, *rows()]
    widths = [max(len(cells[column]) for cells in told) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in told)


def _source(node: dict[str, Any]) -> str:
    if "hub_id" not in node:
        return "drawn in place"
    return node["hub_id"] + (f" ({node['config']})" if node.get("config") else "")


def class_of(target: str) -> Any:
    """The class that a `_target_` names, or the one that the function it names makes."""
    module, _, name = target.rpartition(".")
    found: Any = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) else get_type_hints(found)["return"]


if __name__ == "__main__":
    print(markdown(), end="")
