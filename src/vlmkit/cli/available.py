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
    """
    found: list[Benchmark] = []
    missing: list[str] = []
    for benchmark in benchmarks:
        try:
            len(benchmark)
        except VlmkitError as error:
            missing.append(_as_told(benchmark.name, str(error)))
        else:
            found.append(benchmark)
    if not missing:
        return found
    told = f"{len(missing)} of {len(benchmarks)} benchmarks cannot be asked:\n  " + "\n  ".join(missing)
    if not asked_for_all or not found:
        raise ConfigError(missing[0].partition(": ")[2] if len(benchmarks) == 1 else told)
    _log.warning("%s\nLeft out; asked are: %s.", told, ", ".join(one.name for one in found))
    return found


def _as_told(name: str, error: str) -> str:
    """A line of the list: the benchmark, and what is missing without its name before it."""
    return f"{name}: {error.removeprefix('benchmarks: ').removeprefix(f'{name}: ')}"
