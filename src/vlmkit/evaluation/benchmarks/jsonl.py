"""A benchmark of your own out of a JSONL file: media, a question, an answer, and a rule by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from vlmkit.conversation import ImagePart, Part, TextPart, VideoPart
from vlmkit.data.manifest import parse_row
from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.evaluation.answers import find_yes_or_no
from vlmkit.evaluation.benchmark import BadCase, Case, JudgeUse
from vlmkit.evaluation.benchmarks.asking import Content, ask, listed
from vlmkit.evaluation.rows import lettered
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.anls import anls
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice
from vlmkit.evaluation.scorers.relaxed_accuracy import relaxed_accuracy
from vlmkit.evaluation.scorers.vqa import vqa_soft_accuracy

_KEYS = ("id", "question", "answer")


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().lower()


def _exact(case: Case, answer: str) -> Score:
    said = _plain(answer)
    return grade(float(said in map(_plain, _all(case))), extracted=said)


def _contains(case: Case, answer: str) -> Score:
    said = answer.strip().lower()
    return grade(float(any(_plain(one) in said for one in _all(case))), extracted=said)


def _yes_no(case: Case, answer: str) -> Score:
    word = find_yes_or_no(answer)
    return grade(float(word is not None and word.lower() == _plain(_all(case)[0])), extracted=word)


def _all(case: Case) -> list[str]:
    expected = case.expected
    return [str(one) for one in cast("list[Any]", expected)] if isinstance(expected, list) else [str(expected)]


RULES: dict[str, Callable[[Case, str], Score]] = {
    "exact_match": _exact,
    "contains": _contains,
    "choice": lambda case, answer: score_inferred_choice(prediction=answer, answer=_all(case)[0], options=case.options),
    "yes_no": _yes_no,
    "relaxed_accuracy": lambda case, answer: max(
        (relaxed_accuracy(prediction=answer, target=one, protocol="lmms-eval") for one in _all(case)),
        key=lambda score: score.value,
    ),
    "anls": lambda case, answer: anls(prediction=answer, answers=_all(case)),
    "vqa_soft_accuracy": lambda case, answer: vqa_soft_accuracy(prediction=answer, answers=_all(case)),
}
"""How an answer is compared, by name; all of them know several right answers but `choice` and `yes_no`."""


class JsonlBenchmark:
    """Rows with `id`, `question`, `answer` (a text, or a list of right ones) and, as wanted, what follows.

    `image` or `video`: a path under `root`, or a list of paths; `options`: a list, `answer` is then a letter; `category`.
    A row of a manifest (`conversations`: a question and its answer) is asked as it stands there.

    Args:
        name: What reports call it.
        path: The file.
        root: Directory of the media; None: the file's.
        rule: How answers are compared: exact_match (letter case, surrounding white space and a final full stop aside),
            contains, choice, yes_no, relaxed_accuracy, anls, vqa_soft_accuracy.
        prompt_suffix: After each question; None: nothing.
        baselines: Scores in percent that need no model.
    """

    protocol = "vlmkit"
    unit = "percent"
    judge: ClassVar[JudgeUse] = "no"
    resampled = False

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        root: str | Path | None,
        rule: str,
        prompt_suffix: str | None,
        baselines: Mapping[str, float] | None = None,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"benchmark_options.{name}.rule must be one of {', '.join(RULES)}, got {rule!r}")
        self.name = name
        self.metric = rule
        self.path = Path(path).expanduser()
        self.root = Path(root).expanduser() if root else self.path.parent
        self.source = str(path)
        self.suffix = prompt_suffix or ""
        self._baselines = dict(baselines or {})

    def __len__(self) -> int:
        return sum(1 for _ in self._lines())

    def cases(self) -> Iterator[Case | BadCase]:
        """A case a line."""
        for number, line in self._lines():
            yield self._case(line, Origin(str(self.path), number))

    def _lines(self) -> Iterator[tuple[int, str]]:
        if not self.path.is_file():
            raise ConfigError(f"benchmarks: {self.name} reads {self.path}, which is not there. Check path in its yaml.")
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line

    def _case(self, line: str, origin: Origin) -> Case | BadCase:
        try:
            row: dict[str, Any] = json.loads(line)
            if "conversations" in row:
                return self._said(row, origin)
            missing = [key for key in _KEYS if key not in row]
        except (ValueError, TypeError) as error:
            return BadCase(id=f"line-{origin.row}", reason=f"{origin}: not a JSON object ({error}).")
        if missing:
            return BadCase(id=str(row.get("id", f"line-{origin.row}")), reason=f"{origin}: lacks {', '.join(missing)}.")
        options = lettered([str(text) for text in row.get("options") or []])
        if self.metric == "choice" and row["answer"] not in options:
            told = f"answer {row['answer']!r} is no letter of {len(options)} options"
            return BadCase(id=str(row["id"]), reason=f"{origin}: {told}.")
        media = self._media(row)
        text = f"{row['question']}\n{listed(options)}" if options else str(row["question"])
        return ask(
            str(row["id"]),
            [*media, ("\n" if media else "") + text + self.suffix],
            row["answer"],
            origin=origin,
            category=str(row.get("category", "")),
            options=options,
        )

    def _said(self, row: dict[str, Any], origin: Origin) -> Case | BadCase:
        """A row of a manifest."""
        identifier = str(row.get("id", f"line-{origin.row}"))
        try:
            turns = parse_row(row, origin=origin, root=self.root).turns
        except DataError as error:
            return BadCase(id=identifier, reason=str(error))
        if self.metric == "choice" or [turn.role for turn in turns] != ["user", "assistant"]:
            told = (
                "has no options" if self.metric == "choice" else f"has {len(turns)} turns, not a question and an answer"
            )
            return BadCase(id=identifier, reason=f"{origin}: {told}.")
        content = [*map(_content, turns[0].parts), *([self.suffix] if self.suffix else [])]
        expected = "".join(part.text for part in turns[1].parts if isinstance(part, TextPart))
        return ask(identifier, content, expected, origin=origin, category=str(row.get("category", "")))

    def _media(self, row: Mapping[str, Any]) -> list[Content]:
        images, videos = _several(row.get("image")), _several(row.get("video"))
        return [*(self.root / image for image in images), *(VideoPart(self.root / video) for video in videos)]

    def task(self) -> dict[str, Any]:
        """What stands after each question, and the content of the file."""
        content = "".join(line for _, line in self._lines())
        return {"prompt_suffix": self.suffix, "data": hashlib.sha256(content.encode()).hexdigest()}

    def score(self, case: Case, answer: str) -> Score:
        """By the rule; an empty answer is unparsed."""
        return RULES[self.metric](case, answer)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """None beside the mean."""
        return {}

    def baselines(self) -> dict[str, float]:
        """As given."""
        return self._baselines


def _content(part: Part) -> Content:
    if isinstance(part, TextPart):
        return part.text
    return part.source if isinstance(part, ImagePart) else part


def _several(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in cast("list[Any]", value)] if isinstance(value, list) else [str(value)]
