"""`protocol=`: the preset or reference that all benchmarks follow, and how a report names what was followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlmkit.cli.benchmarks import class_of
from vlmkit.errors import ConfigError

if TYPE_CHECKING:
    from vlmkit.evaluation.benchmark import Benchmark

HOUSE, PAPER = "house", "paper"
REFERENCES = ("lmms-eval", "vlmevalkit")
_PLACES = ("data_root", "hub_id", "split", "config", "revision", "path", "root")
"""Options that choose the data, and not how it is asked or scored."""


def apply_protocol(node: DictConfig, config: DictConfig, given: Mapping[str, Any]) -> None:
    """Lay the chosen preset or reference over the file of a benchmark; its own options, `given`, win.

    `house` is the file as it stands. `paper` sets what the class names as `paper`: a reference evaluator throughout. A
    reference that the benchmark does not know changes nothing.

    Raises:
        ConfigError: `protocol` is none of these.
    """
    protocol = config.protocol or HOUSE
    if protocol not in (HOUSE, PAPER, *REFERENCES):
        raise ConfigError(f"protocol={protocol}: choose {HOUSE}, {PAPER}, {' or '.join(REFERENCES)}.")
    made = class_of(node._target_)
    told: Mapping[str, Any] = {}
    if protocol == PAPER:
        told = getattr(made, "paper", {})
    elif protocol in getattr(made, "protocols", ()):
        told = {"protocol": protocol}
    for key, value in told.items():
        if key in node and key not in given:
            node[key] = value


def preset_of(benchmark: Benchmark, config: DictConfig) -> str:
    """What a report calls the way a benchmark was asked and scored.

    `house`, `paper` or a reference's name, with the options that were changed on top: `house, changed: prompt_suffix`.
    """
    chosen = str(config.protocol or HOUSE)
    if chosen in REFERENCES and chosen not in getattr(benchmark, "protocols", ()):
        chosen = HOUSE
    options = config.benchmark_options.get(benchmark.name) or {}
    changed = {str(key) for key in options if key not in _PLACES}
    if config.prompt_suffix is not None:
        changed.add("prompt_suffix")
    return f"{chosen}, changed: {', '.join(sorted(changed))}" if changed else chosen
