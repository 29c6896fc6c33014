"""Which benchmarks have their data here, told before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmkit.errors import ConfigError, VlmkitError

if TYPE_CHECKING:
    from vlmkit.evaluation.benchmark import Benchmark

_log = logging.getLogger(__name__)


def with_data(benchmarks: Sequence[Benchmark], *, asked_for_all: bool) -> list[Benchmark]:
    """The benchmarks whose data can be opened.

    Args:
        benchmarks: As asked for.
        asked_for_all: By `benchmarks=all`: what is missing is told, benchmark by benchmark, and left out.

    Raises:
        ConfigError: the data of a benchmark that was named is not there, or of none; every one is told.
        VlmkitError: as opening it says, where there is but one.
    """
    found: list[Benchmark] = []
    missing: dict[str, VlmkitError] = {}
    for benchmark in benchmarks:
        try:
            len(benchmark)
        except VlmkitError as error:
            missing[benchmark.name] = error
        else:
            found.append(benchmark)
    if not missing:
        return found
    if len(benchmarks) == 1:
        raise next(iter(missing.values()))
    lines = "".join(f"\n  {_as_told(name, str(error))}" for name, error in missing.items())
    there = ",".join(one.name for one in found)
    if not asked_for_all or not found:
        raise ConfigError(
            f"{len(missing)} of {len(benchmarks)} benchmarks cannot be asked. Download their data, or leave them out by "
            f"benchmarks=[{there}].{lines}"
        )
    _log.warning(
        "%d of %d benchmarks cannot be asked and are left out; asked are %s.%s",
        len(missing),
        len(benchmarks),
        there,
        lines,
    )
    return found


def _as_told(name: str, error: str) -> str:
    """A line of the list: the benchmark, and what is missing without its name before it."""
    return f"{name}: {error.removeprefix('benchmarks: ').removeprefix(f'{name}: ')}"
