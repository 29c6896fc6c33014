"""How a benchmark lets a judge decide: what is asked, how replies are read, what is counted. Pure; nothing here sends.

A benchmark describes the judgement of one answer as a generator: it yields what to ask, is sent what was read in the
reply, and returns the score. One that the rule can decide returns without asking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, Protocol, runtime_checkable

from vlmkit.evaluation.benchmark import BadCase, Benchmark, Case, JudgeUse
from vlmkit.evaluation.records import Record
from vlmkit.evaluation.score import Score, failed

CONTENT_LIMIT = 20_000
"""Characters of an answer that a judge is shown: a model that repeats itself without end costs no more than this."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A question to a judge, by name and version; a change of its words is a new version.

    Attributes:
        name: What reports call it.
        version: Counted from 1.
        wanted: What a readable reply is, for messages.
        template: The text, with `$names` to be filled in.
    """

    name: str
    version: int
    wanted: str
    template: str

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def fingerprint(self) -> str:
        """Hash of its words."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def ask(self, read: Callable[[str], object | None], **values: str) -> Ask:
        """The question with its names filled in.

        Args:
            read: Makes of a reply what the benchmark is sent; None where the reply cannot be read.
            values: A text for each name of the template.
        """
        shown = {name: _limited(value) for name, value in values.items()}
        return Ask(prompt=self, text=Template(self.template).substitute(shown), read=read)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question to the judge.

    Attributes:
        prompt: Which one it is.
        text: The whole text.
        read: What it means; None: unreadable.
    """

    prompt: JudgePrompt
    text: str
    read: Callable[[str], object | None]


Steps = Generator[Ask, Any, Score]
"""The judgement of one answer: yields questions, is sent what was read in each reply, returns the score."""


def _limited(text: str) -> str:
    return text if len(text) <= CONTENT_LIMIT else f"{text[:CONTENT_LIMIT]} [cut here]"


@runtime_checkable
class Judgeable(Benchmark, Protocol):
    """A benchmark that knows how a judge would score it."""

    @property
    def uses_judge(self) -> bool:
        """Whether a judge has a say under the protocol that is followed."""
        ...

    @property
    def judge_prompts(self) -> Sequence[JudgePrompt]:
        """What may be asked."""
        ...

    @property
    def judged_metric(self) -> str:
        """Name of the headline figure of judged records, another than that of the rule."""
        ...

    def judging(self, case: Case, answer: str) -> Steps:
        """The judgement of an answer."""
        ...

    def judged_figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """As `figures`, over judged records."""
        ...


class JudgedBenchmark:
    """A benchmark as a judge scores it: the same questions, another metric. For figures and reports.

    Args:
        benchmark: The benchmark itself.
    """

    def __init__(self, benchmark: Judgeable) -> None:
        self.benchmark = benchmark
        self.name = benchmark.name
        self.protocol = benchmark.protocol
        self.metric = benchmark.judged_metric
        self.source = benchmark.source
        self.unit = benchmark.unit
        self.judge: JudgeUse = benchmark.judge
        self.resampled = benchmark.resampled
        self.figure_units: Mapping[str, str] = getattr(benchmark, "figure_units", {})
        self.protocols: tuple[str, ...] = tuple(getattr(benchmark, "protocols", (benchmark.protocol,)))

    def __len__(self) -> int:
        """Rows of the data."""
        return len(self.benchmark)

    def task(self) -> dict[str, Any]:
        """The benchmark's: a judge changes no question."""
        return self.benchmark.task()

    def cases(self) -> Iterator[Case | BadCase]:
        """The benchmark's."""
        return self.benchmark.cases()

    def score(self, case: Case, answer: str) -> Score:
        """No rule scores what is left to a judge."""
        return failed()

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Over judged records."""
        return self.benchmark.judged_figures(records)

    def baselines(self) -> dict[str, float]:
        """None: those of the rule are another metric's."""
        return {}


def judging_figures(
    records: Sequence[Record], *, input_price: float | None, output_price: float | None
) -> dict[str, Any]:
    """What judging took, out of the judged records.

    Args:
        records: With a `judgement` where a judge was asked.
        input_price: Of a million tokens of questions; None: not known.
        output_price: Of a million tokens of replies.

    Returns:
        judged, of these cached (without a single request), failed, by_rule (decided without a judge), unanswered (no
        answer to judge); requests, prompt_tokens, completion_tokens and, where prices are known, cost of this pass;
        served, the names by which the server called the model.
    """
    asked = [record["judgement"] for record in records if record.get("judgement")]
    without = [record for record in records if not record.get("judgement")]
    unanswered = sum(record["outcome"] == "failed" for record in without)
    good = [one for one in asked if "error" not in one]
    tokens = {name: sum(one[name] for one in asked) for name in ("prompt_tokens", "completion_tokens")}
    told: dict[str, Any] = {
        "judged": len(good),
        "cached": sum(not one["requests"] for one in good),
        "failed": len(asked) - len(good),
        "by_rule": len(without) - unanswered,
        "unanswered": unanswered,
        "requests": sum(one["requests"] for one in asked),
        **tokens,
        "served": sorted({name for one in asked for name in one["served"] if name}),
    }
    if input_price is not None and output_price is not None:
        spent = tokens["prompt_tokens"] * input_price + tokens["completion_tokens"] * output_price
        told["cost"] = round(spent / 1e6, 6)
    return told
