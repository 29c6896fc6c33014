"""Cases through a backend to records, and records through the scorer: two passes, the second without a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.answered import FileAnswers
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
UNSCORED = "cannot be scored: "
"""How the error of a record begins that has an answer, but one that its scorer refuses."""
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

    def answer(cases: Sequence[Case]) -> Iterable[Generation]:
        return backend.generate([case.conversation for case in cases], settings.params)

    key = record_key(
        identity=backend.identity, benchmark=_task(benchmark), decoding=vars(settings.params) | {"batch_size": None}
    )
    return _run(benchmark, answer, key, settings)


def run_answers(benchmark: Benchmark, answers: FileAnswers, settings: RunSettings) -> list[Record]:
    """Record and score answers made elsewhere; a case that the file does not answer is recorded as failed.

    Raises:
        ConfigError: the file answers not one case.
    """
    identifiers = [case.id for case in islice(benchmark.cases(), settings.max_samples)]
    answers.check(benchmark.name, identifiers)
    key = record_key(identity=answers.identity, benchmark=_task(benchmark), decoding={})
    return _run(benchmark, answers.answer, key, settings)


_Answer = Callable[[Sequence[Case]], Iterable[Generation]]


def _run(benchmark: Benchmark, answer: _Answer, key: str, settings: RunSettings) -> list[Record]:
    path = settings.path(benchmark)
    done = read_records(path)
    if any(record["key"] != key for record in done):
        old = set_aside(path)
        _log.warning("%s: answers of another model, prompt or decoding are not used again; they lie in %s.", path, old)
        done = []
    answered = {record["id"] for record in done if not record.get("transient")}
    total = min(len(benchmark), settings.max_samples or len(benchmark))
    with tqdm(total=total, desc=benchmark.name, unit="case", disable=not settings.progress) as bar:
        cases = islice(benchmark.cases(), settings.max_samples)
        missing = _not_yet(cases, answered, bar)
        for window in _windows(missing, settings.params.batch_size * _WINDOW_BATCHES):
            records = _answer(benchmark, answer, window, settings, key)
            append_records(path, records)
            bar.update(len(records))
    return score_records(benchmark, settings)


def score_records(benchmark: Benchmark, settings: RunSettings) -> list[Record]:
    """Score the records that are there, again or for the first time; needs no model.

    Records beyond `max_samples`, or of cases that the data no longer has, stay in the file as they are.

    Returns:
        The scored records, in the order of the data.

    Raises:
        VlmkitError: there are none.
    """
    path = settings.path(benchmark)
    by_id = {record["id"]: record for record in read_records(path)}
    if not by_id:
        raise VlmkitError(f"{path}: no records to score. Run the evaluation without rescore=true first.")
    scored: list[Record] = []
    for case in islice(benchmark.cases(), settings.max_samples):
        if (record := by_id.pop(case.id, None)) is not None:
            scored.append(_unjudged(record) | _graded(benchmark, case, record))
    replace_records(path, [*scored, *by_id.values()])
    return scored


def _unjudged(record: Record) -> Record:
    """Without what a judge has said: a rule scores now."""
    return {name: value for name, value in record.items() if name != "judgement"}


def _graded(benchmark: Benchmark, case: Case | BadCase, record: Record) -> Record:
    """What scoring says of a record; an error of an earlier scoring is forgotten, one of the answer is not."""
    error = str(record.get("error") or "")
    score, told = failed(), {"error": None} if error.startswith(UNSCORED) else {}
    if isinstance(case, Case) and (not error or error.startswith(UNSCORED)):
        try:
            score = benchmark.score(case, record["answer"])
        except ValueError as fault:
            told = {"error": f"{UNSCORED}{fault}"}
            _log.warning("%s: case %s cannot be scored (%s); it is recorded as failed.", benchmark.name, case.id, fault)
    return {"extracted": score.extracted, "score": score.value, "outcome": score.outcome, **told}


def _not_yet(
    cases: Iterable[Case | BadCase], answered: Container[str], bar: tqdm[NoReturn]
) -> Iterator[Case | BadCase]:
    """The cases without a record; the others only move the bar."""
    for case in cases:
        if case.id in answered:
            bar.update()
        else:
            yield case


def _task(benchmark: Benchmark) -> dict[str, Any]:
    """What identifies the questions."""
    return {"benchmark": benchmark.name, **benchmark.task()}


def _windows(cases: Iterable[Case | BadCase], size: int) -> Iterator[Sequence[Case | BadCase]]:
    """Cases by so many: only one window is in memory."""
    cases = iter(cases)
    while window := list(islice(cases, size)):
        yield window


def _answer(
    benchmark: Benchmark, answer: _Answer, window: Sequence[Case | BadCase], settings: RunSettings, key: str
) -> list[Record]:
    answers = iter(answer([case for case in window if isinstance(case, Case)]))
    records: list[Record] = []
    for case in window:
        given = (
            next(answers)
            if isinstance(case, Case)
            else Generation(text="", num_tokens=0, seconds=0.0, error=case.reason)
        )
        records.append(_record(benchmark, case, given, key))
        if settings.verbose:
            _show(records[-1])
    return records


def _record(benchmark: Benchmark, case: Case | BadCase, answer: Generation, key: str) -> Record:
    asked = isinstance(case, Case)
    record: Record = {
        "schema": SCHEMA,
        "key": key,
        "id": case.id,
        "benchmark": benchmark.name,
        "prompt": case.prompt if asked else "",
        "media": list(case.media) if asked else [],
        "answer": answer.text,
        "extracted": None,
        "expected": case.expected if asked else None,
        "score": 0.0,
        "outcome": "failed",
        "tokens": answer.num_tokens,
        "seconds": round(answer.seconds, 4),
        "category": case.category,
        "labels": dict(case.labels) if asked else {},
        "cluster": case.cluster if asked else "",
    }
    if answer.error is not None:
        record["error"] = answer.error
    if answer.transient:
        record["transient"] = True
    return record | _graded(benchmark, case, record)


def _show(record: Record) -> None:
    asked = record["prompt"].strip().replace("\n", " ")
    tqdm.write(
        f"{record['id']}: {asked}\n  expected {record['expected']!r}, answered {record['answer']!r}: {record['outcome']}"
    )
