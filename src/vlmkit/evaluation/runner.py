"""Cases through a backend to records, and records through the scorer: two passes, the second without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.benchmark import BadCase, Benchmark, Case
from vlmkit.evaluation.records import (
    SCHEMA,
    Record,
    append_records,
    read_records,
    record_key,
    replace_records,
    set_aside,
)
from vlmkit.evaluation.score import failed
from vlmkit.generation.backend import Generation, GenerationBackend, GenerationParams

_log = logging.getLogger(__name__)
_WINDOW_BATCHES = 4
"""Batches that are sorted by length together; after each window records are on the disk."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a benchmark is run.

    Attributes:
        output_dir: Records go to `<output_dir>/<benchmark>/records.jsonl`.
        max_samples: Only the first so many cases, in the order of the data; None: all.
        params: How answers are decoded.
        verbose: Print question, expected and given answer as they come.
        progress: Show a bar.
    """

    output_dir: Path
    max_samples: int | None
    params: GenerationParams
    verbose: bool
    progress: bool

    def path(self, benchmark: Benchmark) -> Path:
        """Where the records of a benchmark lie."""
        return self.output_dir / benchmark.name / "records.jsonl"


def run_benchmark(benchmark: Benchmark, backend: GenerationBackend, settings: RunSettings) -> list[Record]:
    """Answer what is not answered yet, then score everything.

    Returns:
        The records, in the order of the data.
    """
    path = settings.path(benchmark)
    key = record_key(
        identity=backend.identity, benchmark=_task(benchmark), decoding=vars(settings.params) | {"batch_size": None}
    )
    done = read_records(path)
    if done and done[0]["key"] != key:
        old = set_aside(path)
        _log.warning("%s: answers of another model, prompt or decoding are not used again; they lie in %s.", path, old)
        done = []
    answered = {record["id"] for record in done}
    cases = list(islice(benchmark.cases(), settings.max_samples))
    missing = [case for case in cases if case.id not in answered]
    with tqdm(
        total=len(cases),
        initial=len(cases) - len(missing),
        desc=benchmark.name,
        unit="case",
        disable=not settings.progress,
    ) as bar:
        for window in _windows(missing, settings.params.batch_size * _WINDOW_BATCHES):
            records = _answer(benchmark, backend, window, settings, key)
            append_records(path, records)
            bar.update(len(records))
    return score_records(benchmark, settings)


def score_records(benchmark: Benchmark, settings: RunSettings) -> list[Record]:
    """Score the records that are there, again or for the first time; needs no model.

    Raises:
        VlmkitError: there are none.
    """
    path = settings.path(benchmark)
    by_id = {record["id"]: record for record in read_records(path)}
    if not by_id:
        raise VlmkitError(f"{path}: no records to score. Run the evaluation without rescore=true first.")
    scored: list[Record] = []
    for case in islice(benchmark.cases(), settings.max_samples):
        if (record := by_id.get(case.id)) is None:
            continue
        score = (
            failed() if isinstance(case, BadCase) or record.get("error") else benchmark.score(case, record["answer"])
        )
        scored.append(record | {"extracted": score.extracted, "score": score.value, "outcome": score.outcome})
    replace_records(path, scored)
    return scored


def _task(benchmark: Benchmark) -> dict[str, Any]:
    """What identifies the questions: the benchmark's plain settings."""
    return {name: str(value) for name, value in sorted(vars(benchmark).items()) if not name.startswith("_")}


def _windows(cases: Sequence[Case | BadCase], size: int) -> Iterator[Sequence[Case | BadCase]]:
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def _answer(
    benchmark: Benchmark, backend: GenerationBackend, window: Sequence[Case | BadCase], settings: RunSettings, key: str
) -> list[Record]:
    asked = [case for case in window if isinstance(case, Case)]
    answers = iter(backend.generate([case.conversation for case in asked], settings.params))
    records: list[Record] = []
    for case in window:
        answer = (
            next(answers)
            if isinstance(case, Case)
            else Generation(text="", num_tokens=0, seconds=0.0, error=case.reason)
        )
        records.append(_record(benchmark, case, answer, key))
        if settings.verbose:
            _show(records[-1])
    return records


def _record(benchmark: Benchmark, case: Case | BadCase, answer: Generation, key: str) -> Record:
    asked = isinstance(case, Case)
    score = benchmark.score(case, answer.text) if asked and answer.error is None else failed()
    record: Record = {
        "schema": SCHEMA,
        "key": key,
        "id": case.id,
        "benchmark": benchmark.name,
        "prompt": case.prompt if asked else "",
        "media": list(case.media) if asked else [],
        "answer": answer.text,
        "extracted": score.extracted,
        "expected": case.expected if asked else None,
        "score": score.value,
        "outcome": score.outcome,
        "tokens": answer.num_tokens,
        "seconds": round(answer.seconds, 4),
        "category": case.category,
    }
    return record | ({"error": answer.error} if answer.error is not None else {})


def _show(record: Record) -> None:
    asked = record["prompt"].strip().replace("\n", " ")
    tqdm.write(
        f"{record['id']}: {asked}\n  expected {record['expected']!r}, answered {record['answer']!r}: {record['outcome']}"
    )
