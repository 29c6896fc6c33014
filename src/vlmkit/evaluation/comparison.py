"""Two evaluations against each other: differences over the same cases, and how surely they are no accident.

Both models answered the same questions, so differences are taken case by case; what is hard for both cancels out
(E. Miller, "Adding Error Bars to Evals", 2024, sections 2.2 and 3.1: paired differences, clustered standard errors).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.records import Record
from vlmkit.evaluation.report import SCHEMA

MCNEMAR, SIGN_FLIPS = "exact McNemar", "sign flips"
_SAME = ("protocol", "metric", "unit", "judge")
_NORMAL_95 = 1.959964
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571)
"""Two-sided 95 % points of Student's t for 1 to 5 degrees of freedom."""
_EXACT_CLUSTERS = 14
"""With so few clusters every choice of signs is tried; with more, some are drawn."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation directory holds.

    Attributes:
        directory: Where it lies.
        checkpoint: Path and hashes of what was evaluated.
        figures: Of each benchmark, as in `summary.json`.
        records: Of each benchmark, by case id.
    """

    directory: Path
    checkpoint: Mapping[str, str]
    figures: Mapping[str, Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Record]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second evaluation less the first, on one benchmark, over the cases that both have.

    Attributes:
        benchmark, metric, protocol, unit: What was measured.
        n: Cases of both; `only_first` and `only_second` are in one alone and do not count.
        num_clusters: Groups of cases that show the same media; they are not independent.
        first, second: Mean scores over the `n` cases, in the unit.
        difference: `second - first`.
        stderr: Standard error of the difference; None for fewer than two clusters.
        better, worse: Cases in which the second has the higher, or the lower, score.
        other_prompts: Cases that were asked in other words.
        test: How `p` was found.
        p: Chance of a difference at least this large if the two were alike; two-sided.
        p_holm: The same, adjusted for the number of benchmarks compared (S. Holm, 1979).
    """

    benchmark: str
    metric: str
    protocol: str
    unit: str
    n: int
    only_first: int
    only_second: int
    num_clusters: int
    first: float
    second: float
    difference: float
    stderr: float | None
    better: int
    worse: int
    other_prompts: int
    test: str
    p: float
    p_holm: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the difference; None where there is no standard error, or it is 0."""
        if not self.stderr:
            return None
        spread = student_95(self.num_clusters - 1) * self.stderr
        return self.difference - spread, self.difference + spread

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 5 %, all benchmarks together."""
        return self.p_holm < 0.05


def read_evaluation(directory: Path) -> Evaluation:
    """Read an evaluation directory, or the one that `vlmkit-eval` has put into a run's.

    Raises:
        VlmkitError: it is none, is of an unknown version, or its records are torn or gone.
    """
    if not (directory / "summary.json").is_file() and (directory / "eval" / "summary.json").is_file():
        directory /= "eval"
    path = directory / "summary.json"
    if not path.is_file():
        raise VlmkitError(
            f"{directory}: no summary.json, so it is no evaluation directory. Evaluate first, or name the output_dir of an evaluation."
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary.get("schema") != SCHEMA:
        raise VlmkitError(f"{path}: schema {summary.get('schema')!r}, wanted {SCHEMA!r}. Evaluate again, or rescore.")
    figures = summary["benchmarks"]
    return Evaluation(
        directory=directory,
        checkpoint=summary["checkpoint"],
        figures=figures,
        records={name: _read_records(directory / name / "records.jsonl") for name in figures},
    )


def compare(first: Evaluation, second: Evaluation, *, seed: int) -> list[Difference]:
    """Compare two evaluations on the benchmarks that both have.

    Args:
        first: What is compared against.
        second: What is compared.
        seed: Of the signs that are drawn.

    Raises:
        VlmkitError: no benchmark in common, or one that was scored in two ways or on other data.
    """
    common = [name for name in first.figures if name in second.figures]
    if not common:
        raise VlmkitError(
            f"Nothing to compare: {first.directory} has {', '.join(first.figures) or 'no benchmark'}, "
            f"{second.directory} has {', '.join(second.figures) or 'none'}. "
            "Evaluate both on one benchmark."
        )
    if told := [line for name in common for line in _clashes(first, second, name)]:
        listed = "\n".join(f"  {line}" for line in told)
        raise VlmkitError(
            f"These evaluations cannot be compared:\n{listed}\nEvaluate both in one way, or compare others."
        )
    found = [_difference(first, second, name, seed=seed) for name in common]
    adjusted = holm([one["p"] for one in found])
    return [Difference(**one, p_holm=p) for one, p in zip(found, adjusted, strict=True)]


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of `better` against `worse` among cases that changed (Q. McNemar, 1947: a fair coin)."""
    n, least = better + worse, min(better, worse)
    ways = term = 1
    for k in range(1, least + 1):
        term = term * (n - k + 1) // k
        ways += term
    return min(1.0, 2 * ways / 2**n) if n else 1.0


def sign_flips(sums: NDArray[np.float64], *, seed: int, num_draws: int = 10_000) -> float:
    """Two-sided p of the total of some sums, if each had as well come out with the other sign (R. A. Fisher, 1935).

    Args:
        sums: Difference of each cluster, summed over its cases.
        seed: Of the signs, where they are too many to try all.
        num_draws: How many are drawn then; the observed one counts as one more (Phipson and Smyth, 2010).
    """
    moved = sums[sums != 0]
    total = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
    if len(moved) <= _EXACT_CLUSTERS:
        bits = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))
        return float(np.mean(np.abs((1 - 2 * (bits & 1)) @ moved) >= total))
    generator = np.random.default_rng(seed)
    as_large = 0
    for _ in range(num_draws // 100):
        signs = generator.integers(0, 2, (100, len(moved)), dtype=np.int8)
        as_large += int(np.count_nonzero(np.abs((1 - 2 * signs) @ moved) >= total))
    return (1 + as_large) / (1 + num_draws // 100 * 100)


def holm(values: Sequence[float], *, num_tests: int | None = None) -> list[float]:
    """Holm's step-down adjustment of several p.

    Args:
        values: The p.
        num_tests: How many tests there are, where `values` are of some of them; the adjusted p are upper bounds then.
            None: those of `values`.
    """
    total = len(values) if num_tests is None else num_tests
    adjusted = [1.0] * len(values)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        highest = max(highest, min(1.0, (total - place) * values[number]))
        adjusted[number] = highest
    return adjusted


def clustered_stderr(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> float | None:
    """Standard error of a mean over cases that come in clusters; s / sqrt(n) where each is its own.

    The square root of the sum, over clusters, of the squared sum of deviations, over n; times sqrt(C / (C - 1)) for C
    clusters (Miller, 2024, section 2.2; the factor as in Cameron and Miller, 2015, section II.B).
    """
    num_clusters = int(clusters.max(initial=-1)) + 1
    if num_clusters < 2:
        return None
    sums = np.bincount(clusters, values - values.mean(), num_clusters)
    return float(np.sqrt((sums**2).sum() * num_clusters / (num_clusters - 1)) / len(values))


def student_95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t, within 0.002 (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _NORMAL_95
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (place + 1) for place, term in enumerate(terms))


def table(differences: Sequence[Difference]) -> str:
    """The comparison for a terminal."""
    rows = [_HEAD, *(_row(one) for one in differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *_notes(differences)])


_HEAD = ("benchmark", "first", "second", "difference", "95 % interval", "n", "better", "worse", "p", "p (Holm)", "")


def _row(one: Difference) -> tuple[str, ...]:
    interval = "-" if one.interval is None else f"{one.interval[0]:+.2f} to {one.interval[1]:+.2f}"
    scores = (f"{one.first:.2f}", f"{one.second:.2f}", f"{one.difference:+.2f}", interval)
    mark = "significant" if one.significant else ""
    return (
        one.benchmark,
        *scores,
        str(one.n),
        str(one.better),
        str(one.worse),
        f"{one.p:.4f}",
        f"{one.p_holm:.4f}",
        mark,
    )


def _notes(differences: Sequence[Difference]) -> list[str]:
    """What to know before the figures are quoted."""
    notes: list[str] = []
    for one in differences:
        if one.only_first or one.only_second:
            notes.append(
                f"{one.benchmark}: {one.only_first} cases of the first alone and {one.only_second} of the second are left out."
            )
        if one.other_prompts:
            notes.append(f"{one.benchmark}: {one.other_prompts} cases were asked in other words.")
    tests = ", ".join(dict.fromkeys(f"{one.benchmark}: {one.test}" for one in differences))
    return [*notes, f"p by {tests}. Significant: p (Holm) below 0.05."]


def _read_records(path: Path) -> dict[str, Record]:
    if not path.is_file():
        raise VlmkitError(f"{path}: not there, though the summary names it. Evaluate again.")
    found: dict[str, Record] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                found[str(record["id"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise VlmkitError(
                    f"{path}:{number}: no record ({error}). Run the evaluation again: it mends the file."
                ) from error
    return found


def _clashes(first: Evaluation, second: Evaluation, name: str) -> list[str]:
    """Why a benchmark cannot be compared, in words."""
    one, other = first.figures[name], second.figures[name]
    told = [
        f"{name}: {key} is {one.get(key)!r} in {first.directory} and {other.get(key)!r} in {second.directory}."
        + (" Score one again: vlmkit-eval rescore=true with the other's protocol." if key == "protocol" else "")
        for key in _SAME
        if one.get(key) != other.get(key)
    ]
    pairs = _pairs(first, second, name)
    if not pairs:
        told.append(f"{name}: no case is in both.")
    changed = [
        a["id"]
        for a, b in pairs
        if a.get("expected") is not None and b.get("expected") is not None and a["expected"] != b["expected"]
    ]
    if changed:
        told.append(f"{name}: {len(changed)} cases expect another answer ({changed[0]} the first): the data differ.")
    return told


def _pairs(first: Evaluation, second: Evaluation, name: str) -> list[tuple[Record, Record]]:
    others = second.records[name]
    return [(record, others[case]) for case, record in first.records[name].items() if case in others]


def _difference(first: Evaluation, second: Evaluation, name: str, *, seed: int) -> dict[str, Any]:
    """The fields of a `Difference`, but for `p_holm`."""
    pairs = _pairs(first, second, name)
    figures = first.figures[name]
    scale = 100 if figures.get("unit") == "percent" else 1
    scores = np.array([(float(a["score"]), float(b["score"])) for a, b in pairs])
    change = scores[:, 1] - scores[:, 0]
    clusters = _clusters([a for a, _ in pairs])
    num_clusters = int(clusters.max()) + 1
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    simple = num_clusters == len(pairs) and bool(np.isin(scores, (0.0, 1.0)).all())
    sums = np.asarray(np.bincount(clusters, change, num_clusters), dtype=np.float64)
    stderr = clustered_stderr(change, clusters)
    return {
        "benchmark": name,
        "metric": str(figures.get("metric")),
        "protocol": str(figures.get("protocol")),
        "unit": str(figures.get("unit")),
        "n": len(pairs),
        "only_first": len(first.records[name]) - len(pairs),
        "only_second": len(second.records[name]) - len(pairs),
        "num_clusters": num_clusters,
        "first": scale * float(scores[:, 0].mean()),
        "second": scale * float(scores[:, 1].mean()),
        "difference": scale * float(change.mean()),
        "stderr": None if stderr is None else scale * stderr,
        "better": better,
        "worse": worse,
        "other_prompts": sum(a.get("prompt") != b.get("prompt") for a, b in pairs),
        "test": MCNEMAR
        if simple
        else SIGN_FLIPS + ("" if num_clusters == len(pairs) else f" of {num_clusters} clusters"),
        "p": mcnemar(better, worse) if simple else sign_flips(sums, seed=seed),
    }


def _clusters(records: Sequence[Record]) -> NDArray[np.int64]:
    """A number for each case, the same for those of one cluster, or else of the same media; others are their own."""
    numbers: dict[object, int] = defaultdict(lambda: len(numbers))
    return np.array([numbers[_shown(record, place)] for place, record in enumerate(records)], dtype=np.int64)


def _shown(record: Record, place: int) -> object:
    media = tuple(map(str, record.get("media") or ()))
    return str(record.get("cluster") or "") or media or place
