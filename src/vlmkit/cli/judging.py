"""The judge of an evaluation: made from the config, refused or asked for before anything runs, its share of the reports."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vlmkit.config import build
from vlmkit.errors import ConfigError

if TYPE_CHECKING:
    from vlmkit.evaluation.benchmark import Benchmark
    from vlmkit.evaluation.judge import Judge
    from vlmkit.evaluation.records import Record
    from vlmkit.evaluation.runner import RunSettings

_log = logging.getLogger(__name__)
LATER = "later"


def make_judge(config: DictConfig) -> Judge | None:
    """The judge, where one is asked for.

    Raises:
        ConfigError: `use_llm_judge` is no such word, or the judge's settings lack something.
    """
    if config.use_llm_judge not in (True, False, LATER):
        raise ConfigError(f"use_llm_judge={config.use_llm_judge}: choose true, false or {LATER}.")
    if config.use_llm_judge is not True:
        return None
    from vlmkit.evaluation.judge import Judge

    return build(config.judge, Judge)


def without_unscorable(benchmarks: Sequence[Benchmark], config: DictConfig) -> list[Benchmark]:
    """The benchmarks to ask: without a judge, those of `benchmarks=all` that nobody could score are left out, and told.

    Raises:
        ConfigError: one that was named cannot be scored.
    """
    stuck = [one.name for one in benchmarks if one.judge == "required"]
    if config.use_llm_judge or not stuck:
        return list(benchmarks)
    told = f"{', '.join(stuck)}: no score without a judge"
    if config.benchmarks == "all":
        _log.warning("%s; left out. Set use_llm_judge=true, judge.base_url and judge.model.", told)
        return [one for one in benchmarks if one.name not in stuck]
    raise ConfigError(
        f"benchmarks: {told}. Set use_llm_judge=true, judge.base_url and judge.model; or use_llm_judge={LATER} to answer "
        "now, and judge the answers later with rescore=true."
    )


def judged(
    benchmarks: Sequence[Benchmark],
    found: Mapping[str, Sequence[Record]],
    *,
    judge: Judge | None,
    settings: RunSettings,
) -> tuple[list[Benchmark], dict[str, Sequence[Record]], dict[str, dict[str, Any]]]:
    """Let the judge score what it has a say in; without one, leave out what has no score.

    Args:
        benchmarks: What was asked.
        found: Their records, scored by rule.
        judge: Who judges; None: nobody.
        settings: Of the run.

    Returns:
        The benchmarks as they are reported, their records, and what is told of the judge in the figures of each.
    """
    if judge is None:
        shown, kept = _scored_by_rule(benchmarks, found)
        return shown, kept, {}
    from vlmkit.evaluation.judge import judge_records
    from vlmkit.evaluation.judging import Judgeable, JudgedBenchmark

    told: dict[str, dict[str, Any]] = {}
    shown = []
    records = dict(found)
    for one in benchmarks:
        if isinstance(one, Judgeable) and one.uses_judge:
            view = JudgedBenchmark(one)
            records[one.name] = judge_records(view, judge, settings)
            told[one.name] = judge.figures(view, records[one.name])
            shown.append(view)
        else:
            shown.append(one)
    if by_rule := [one.name for one in benchmarks if one.name not in told]:
        _log.info("Scored by rule, where a judge has no say: %s.", ", ".join(by_rule))
    return shown, records, told


def _scored_by_rule(
    benchmarks: Sequence[Benchmark], found: Mapping[str, Sequence[Record]]
) -> tuple[list[Benchmark], dict[str, Sequence[Record]]]:
    shown = [one for one in benchmarks if one.judge != "required"]
    for one in benchmarks:
        if one.judge == "required":
            _log.warning(
                "%s: %d answers are kept, and have no score yet. Judge them with rescore=true use_llm_judge=true.",
                one.name,
                len(found[one.name]),
            )
    return shown, {one.name: found[one.name] for one in shown}
