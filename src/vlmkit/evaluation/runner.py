"""Cases through a backend to records, and records through the scorer: two passes, the second without a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.benchmark import BadCase, Benchmark, Case
from vlmkit.evaluation.parts import ALONE, Share, answered_already, await_all, join_parts
from vlmkit.evaluation.records import SCHEMA, Record, append_records, read_records, record_key, replace_records
from vlmkit.evaluation.score import failed
from vlmkit.generation.backend import Generation, GenerationBackend, GenerationParams, Numbered, answers_of

_log = logging.getLogger(__name__)
UNSCORED = "cannot be scored: "
"""How the error of a record begins that has an answer, but one that its scorer refuses."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a benchmark is run.

    Attributes:
        output_dir: Records go to `<output_dir>/<benchmark>/records.jsonl`.
        max_samples: Only the first so many cases, in the order of the data; None: all.
        params: How answers are decoded.
        verbose: Print question, expected and given answer as they come.
        progress: Show a bar.
        share: Which cases this process answers.
    """

    output_dir: Path
    max_samples: int | None
    params: GenerationParams
    verbose: bool
    progress: bool
    share: Share = ALONE

    def path(self, benchmark: Benchmark) -> Path:
        """Where the records of a benchmark lie."""
        return self.output_dir / benchmark.name / "records.jsonl"


def run_benchmark(benchmark: Benchmark, backend: GenerationBackend, settings: RunSettings) -> list[Record]:
    """Answer what is not answered yet, then score everything.

    Returns:
        The records, in the order of the data.
    """
    answer_benchmark(benchmark, backend, settings)
    return score_records(benchmark, settings)


def answer_benchmark(benchmark: Benchmark, backend: GenerationBackend, settings: RunSettings) -> None:
    """Answer what is not answered yet, of this process's share; answers are on the disk before others take their place."""

    def answer(cases: Iterable[Case]) -> Iterator[list[Numbered]]:
        return answers_of(backend, (case.conversation for case in cases), settings.params)

    _run(benchmark, answer, _key(benchmark, backend, settings), settings)


def await_ranks(benchmark: Benchmark, backend: GenerationBackend, settings: RunSettings) -> None:
    """Wait for the answers of the other ranks; nothing to wait for where there are none."""
    if settings.share.num_ranks > 1:
        identifiers = (case.id for case in islice(benchmark.cases(), settings.max_samples))
        await_all(settings.path(benchmark), _key(benchmark, backend, settings), identifiers)


def _key(benchmark: Benchmark, backend: GenerationBackend, settings: RunSettings) -> str:
    decoding = vars(settings.params) | {"batch_size": None}
    return record_key(identity=backend.identity, benchmark=_task(benchmark), decoding=decoding)


def run_answers(benchmark: Benchmark, answers: FileAnswers, settings: RunSettings) -> list[Record]:
    """Record answers made elsewhere, then score everything.

    Returns:
        The records, in the order of the data.
    """
    record_answers(benchmark, answers, settings)
    return score_records(benchmark, settings)


def record_answers(benchmark: Benchmark, answers: FileAnswers, settings: RunSettings) -> None:
    """Record answers made elsewhere; a case that the file does not answer is recorded as failed.

    Raises:
        ConfigError: the file answers not one case.
    """
    identifiers = [case.id for case in islice(benchmark.cases(), settings.max_samples)]
    answers.check(benchmark.name, identifiers)
    key = record_key(identity=answers.identity, benchmark=_task(benchmark), decoding={})

    def answer(cases: Iterable[Case]) -> Iterator[list[Numbered]]:
        numbered, size = enumerate(answers.answer(cases)), settings.params.batch_size
        while batch := list(islice(numbered, size)):
            yield batch

    _run(benchmark, answer, key, settings)


_Answers = Callable[[Iterable[Case]], Iterator[list[Numbered]]]


def _run(benchmark: Benchmark, answer: _Answers, key: str, settings: RunSettings) -> None:
    path = settings.path(benchmark)
    answered, aside = answered_already(path, key, settings.share)
    for old in aside:
        _log.warning("%s: answers of another model, prompt or decoding are not used again; they lie in %s.", path, old)
    total = min(len(benchmark), settings.max_samples or len(benchmark))
    own = len(range(settings.share.rank, total, settings.share.num_ranks))
    hidden = not settings.progress or settings.share.rank > 0
    with tqdm(total=own, desc=benchmark.name, unit=" cases", disable=hidden) as bar:
        places = enumerate(islice(benchmark.cases(), settings.max_samples))
        mine = (case for place, case in places if settings.share.holds(place))
        for records in _answered(benchmark, answer, _not_yet(mine, answered, bar), key):
            append_records(settings.share.own(path), records)
            bar.update(len(records))
            if settings.verbose:
                for record in records:
                    _show(record)


def _answered(
    benchmark: Benchmark, answer: _Answers, cases: Iterable[Case | BadCase], key: str
) -> Iterator[list[Record]]:
    """Records of cases as they are answered; rows that make no question come with the next."""
    asked: dict[int, Case] = {}
    bad: list[Record] = []

    def questions() -> Iterator[Case]:
        number = 0
        for case in cases:
            if isinstance(case, Case):
                asked[number] = case
                number += 1
                yield case
            else:
                failure = Generation(text="", num_tokens=0, seconds=0.0, error=case.reason)
                bad.append(_record(benchmark, case, failure, key))

    for told in answer(questions()):
        yield [*bad, *(_record(benchmark, asked.pop(number), one, key) for number, one in told)]
        bad.clear()
    if bad:
        yield bad


def score_records(benchmark: Benchmark, settings: RunSettings) -> list[Record]:
    """Score the records that are there, again or for the first time; needs no model.

    Records beyond `max_samples`, or of cases that the data no longer has, stay in the file as they are.

    Returns:
        The scored records, in the order of the data.

    Raises:
        VlmkitError: there are none.
    """
    path = settings.path(benchmark)
    join_parts(path)
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
    """The cases without a record; the others move the bar, but are not counted in its rate."""
    for case in cases:
        if case.id in answered:
            if not bar.disable:
                bar.initial += 1
            bar.update()
        else:
            yield case


def _task(benchmark: Benchmark) -> dict[str, Any]:
    """What identifies the questions."""
    return {"benchmark": benchmark.name, **benchmark.task()}


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
