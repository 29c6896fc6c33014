"""MMMU (Yue et al., 2024): college questions of 30 subjects, with up to seven images in the text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vlmkit.errors import DataError
from vlmkit.evaluation.answers import list_literal
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask, choose, interleave, listed
from vlmkit.evaluation.benchmarks.dataset import CHOICE_OPTIONAL
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.mmmu import DOMAINS, mmmu_as_choice, mmmu_multiple_choice, mmmu_open

NUM_IMAGES = 7
_LETTER = "\n\nAnswer with the option's letter from the given choices directly."
_PHRASE = "\n\nAnswer the question using a single word or phrase."
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}


class MMMU(JudgedLetters):
    """The validation split; images stand where the text names them.

    lmms-eval parses letters and, for open questions, numbers and texts, by the official code; a letter that it does not
    find is unparsed here, unless `random_guess`. VLMEvalKit infers a letter, of open questions too.

    Args:
        protocol: lmms-eval or vlmevalkit.
        prompt_suffix: Instead of the instruction; None: the protocol's.
        hub_id: Dataset on the hub.
        config: Its configuration.
        split: Its split; of a TSV the value of its column `split`.
        data_root: Local data; None: the hub.
        random_guess: Draw a letter where none is found, as lmms-eval does. For parity only.
        seed: Of that draw.
    """

    name = "mmmu"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("id", "question", "options", "answer", "question_type", "image_1"),
        "tsv": ("index", "question", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": (*(f"image_{number}" for number in range(2, NUM_IMAGES + 1)), "subfield", "topic_difficulty"),
        "tsv": ("A", "B", *CHOICE_OPTIONAL),
    }
    paper: ClassVar[Mapping[str, Any]] = {"protocol": "lmms-eval", "random_guess": True}
    tsv_name = "MMMU_DEV_VAL"
    id_column = "id"

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | None,
        split: str,
        data_root: str | Path | None,
        random_guess: bool,
        seed: int,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        self.random_guess = random_guess
        self.seed = seed

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question with its images in place; None for rows of a TSV's other splits."""
        return self._tsv(row, identifier) if row.layout == "tsv" else self._hub(row, identifier)

    def _hub(self, row: Row, identifier: str) -> Case:
        is_open = row.text("question_type") != "multiple-choice"
        images = {n: row.image(f"image_{n}") for n in range(1, NUM_IMAGES + 1) if row.has(f"image_{n}")}
        return self._case(
            row,
            identifier,
            options={} if is_open else lettered(row.texts("options")),
            images=images,
            category=subject_of(identifier),
            labels={"subfield": row.optional("subfield"), "difficulty": row.optional("topic_difficulty")},
        )

    def _tsv(self, row: Row, identifier: str) -> Case | None:
        if row.has("split") and row.text("split") != self.split:
            return None
        return self._case(
            row,
            identifier,
            options=row.options(),
            images=dict(enumerate(row.images(), start=1)),
            category=row.optional("category"),
            labels={"domain": row.optional("l2-category")},
        )

    def _case(
        self,
        row: Row,
        identifier: str,
        *,
        options: Mapping[str, str],
        images: Mapping[int, bytes],
        category: str,
        labels: Mapping[str, str],
    ) -> Case:
        answer = row.text("answer")
        if options and answer not in options:
            raise DataError(
                f"answer {answer!r} but the options {', '.join(options)}. The row is not scored. Mend the data.",
                reason="bad_row",
                origin=row.origin,
            )
        if category in DOMAIN_OF:
            labels = {**labels, "domain": DOMAIN_OF[category]}
        text = self.put(row.text("question"), options, row.optional("hint"))
        return ask(
            identifier,
            interleave(text, images),
            answer if options else list_literal(answer) or answer,
            origin=row.origin,
            category=category,
            options=options,
            labels={**labels, "kind": "multiple choice" if options else "open"},
        )

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """The question as the protocol puts it, image marks still in it."""
        if not self.lmms_eval:
            return choose(question, options, hint=hint, instruction=self.prompt_suffix)
        body = f"{question}\n{listed(options)}" if options else question
        return body + self.instruction(lmms_eval=_LETTER if options else _PHRASE)

    def grade(self, case: Case, prediction: str) -> Score:
        """By letter, or by what an open answer holds."""
        if not self.lmms_eval:
            first = case.expected if isinstance(case.expected, str) else case.expected[0]
            return mmmu_as_choice(prediction=prediction, answer=first, options=case.options)
        if not case.options:
            return mmmu_open(prediction=prediction, answer=case.expected)
        seed = self.seed if self.random_guess else None
        return mmmu_multiple_choice(prediction=prediction, answer=case.expected, options=case.options, guess_seed=seed)


def subject_of(identifier: str) -> str:
    """`Art_Theory` of `validation_Art_Theory_12`; "" where it has no such parts."""
    return "_".join(identifier.split("_")[1:-1])
