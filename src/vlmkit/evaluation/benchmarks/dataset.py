"""What benchmarks out of a data set share: finding their rows, and turning each into a case or a told fault."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from vlmkit.errors import DataError
from vlmkit.evaluation.answers import remove_reasoning
from vlmkit.evaluation.benchmark import BadCase, Case, JudgeUse
from vlmkit.evaluation.benchmarks.asking import LETTER_DIRECTLY, PROTOCOLS, Content, ask, choose, listed
from vlmkit.evaluation.loading import DataPlace, Rows, open_configs, open_rows
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import ProtocolName, Score
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice

CHOICE_COLUMNS = ("index", "question", "A", "B", "answer")
"""Columns of VLMEvalKit's multiple choice files; further options, image, hint and category may be there."""
CHOICE_OPTIONAL = (*"CDEFGHIJKLMN", "image", "image_path", "hint", "category", "l2-category", "split", "g_index")


class DatasetBenchmark(ABC):
    """Questions out of a data set; a subclass says how a row is read, asked and graded.

    Args:
        protocol: Whose prompt and rule are followed.
        prompt_suffix: Instead of the protocol's instruction after the question; None: the protocol's.
        hub_id: Dataset on the hub.
        config: Its configuration; None: the only one. Of a benchmark with several: `all`, or one, or a list.
        split: Its split.
        data_root: Local Parquet, TSV or saved files; None: the hub.
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "percent"
    figure_units: ClassVar[Mapping[str, str]] = {}
    """Units of those figures that are not in the benchmark's own."""
    judge: ClassVar[JudgeUse] = "no"
    resampled: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = PROTOCOLS
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]]
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {}
    tsv_name: ClassVar[str] = ""
    configs: ClassVar[tuple[str, ...]] = ()
    """Configurations that one run asks one after the other; empty: the data has one, or one is chosen."""
    default_configs: ClassVar[tuple[str, ...]] = ()
    """Which of them `all` means; empty: all of them."""
    tsv_names: ClassVar[Mapping[str, str]] = {}
    """VLMEvalKit's file of each configuration, where it has one for each."""
    paper: ClassVar[Mapping[str, Any]] = {}
    """Settings that follow a reference where the default departs from it, for numbers to set beside published ones."""
    asked_by: ClassVar[tuple[str, ...]] = ()
    """Further settings that change what is asked (not how it is scored), for the key of the records."""
    id_column: ClassVar[str] = ""
    """Column of the hub's data that names a row; a TSV has `index`. "": the row's number."""

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | Sequence[str] | None,
        split: str,
        data_root: str | Path | None,
    ) -> None:
        self.protocol = check_protocol(self.name, protocol, self.protocols)
        self._configs = self._chosen(config)
        self.prompt_suffix = prompt_suffix
        self.source = hub_id
        self.config = config if isinstance(config, str) or config is None else ", ".join(config)
        self.split = split
        self.data_root = data_root

    def _chosen(self, config: str | Sequence[str] | None) -> tuple[str, ...]:
        """The configurations to ask; empty where the benchmark has no several.

        Raises:
            ValueError: one that it does not have.
        """
        if not self.configs:
            return ()
        told = config if isinstance(config, str) or config is None else tuple(config)
        chosen = (
            (self.default_configs or self.configs)
            if told in (None, "all")
            else (told,)
            if isinstance(told, str)
            else told
        )
        if unknown := [one for one in chosen if one not in self.configs]:
            raise ValueError(
                f"benchmark_options.{self.name}.config must be all, or of {', '.join(self.configs)}; got {unknown[0]!r}"
            )
        return chosen

    @property
    def lmms_eval(self) -> bool:
        """Whether lmms-eval is followed."""
        return self.protocol == "lmms-eval"

    def place(self) -> DataPlace:
        """Where the data lies."""
        return DataPlace(
            name=self.name,
            hub_id=self.source,
            config=self.config,
            split=self.split,
            data_root=self.data_root,
            columns=self.columns,
            optional=self.optional,
            tsv_name=self.tsv_name,
        )

    @cached_property
    def _rows(self) -> Rows:
        if self._configs:
            return open_configs(self.place(), self._configs, tsv_names=self.tsv_names)
        return open_rows(self.place())

    def __len__(self) -> int:
        return self._rows.num_rows

    def cases(self) -> Iterator[Case | BadCase]:
        """A case a row, in the order of the data; a row that makes none is told and ends nothing."""
        seen: dict[str, int] = {}
        for row in self._rows:
            identifier = self.identifier(row)
            seen[identifier] = seen.get(identifier, 0) + 1
            if seen[identifier] > 1:
                identifier = f"{identifier}~{seen[identifier]}"
            try:
                case = self.read(row, identifier)
            except DataError as error:
                yield BadCase(id=identifier, reason=str(error))
                continue
            if case is not None:
                yield case

    def task(self) -> dict[str, Any]:
        """Protocol, prompt, part of the data and its fingerprint."""
        names = ("protocol", "prompt_suffix", "config", "split", *self.asked_by)
        return {**{name: getattr(self, name) for name in names}, "data": self._rows.fingerprint}

    def identifier(self, row: Row) -> str:
        """What names a row."""
        return row.optional("index" if row.layout == "tsv" else self.id_column) or str(row.number)

    @abstractmethod
    def read(self, row: Row, identifier: str) -> Case | None:
        """The case of a row; None where the row is not part of the benchmark.

        Raises:
            DataError: the row makes no question.
        """

    def score(self, case: Case, answer: str) -> Score:
        """Grade an answer; lmms-eval removes reasoning first."""
        return self.grade(case, remove_reasoning(answer) if self.lmms_eval else answer)

    @abstractmethod
    def grade(self, case: Case, prediction: str) -> Score:
        """The score of a prediction."""

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """None beside the mean."""
        return {}

    def baselines(self) -> dict[str, float]:
        """None."""
        return {}

    def instruction(self, *, lmms_eval: str, vlmevalkit: str = "") -> str:
        """What follows the question: the user's suffix, or the protocol's."""
        if self.prompt_suffix is not None:
            return self.prompt_suffix
        return lmms_eval if self.lmms_eval else vlmevalkit

    @property
    def rule(self) -> ProtocolName:
        """The protocol, where it is a reference's."""
        return cast("ProtocolName", self.protocol)


class ChoiceBenchmark(DatasetBenchmark):
    """Multiple choice with options A, B, ...: a subclass reads the hub's columns, VLMEvalKit's are read here.

    `vlmevalkit` infers the letter from letter or option text, for all of them; lmms-eval has a rule for each.
    """

    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"hub": (), "tsv": CHOICE_COLUMNS}
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": CHOICE_OPTIONAL}
    lmms_eval_instruction: ClassVar[str] = LETTER_DIRECTLY

    def read(self, row: Row, identifier: str) -> Case | None:
        """A case with its options."""
        return self.read_tsv(row, identifier) if row.layout == "tsv" else self.read_hub(row, identifier)

    @abstractmethod
    def read_hub(self, row: Row, identifier: str) -> Case | None:
        """The case of a row of the hub's data."""

    def read_tsv(self, row: Row, identifier: str) -> Case | None:
        """The case of a row of VLMEvalKit's file."""
        return self.choice(
            row,
            identifier,
            question=row.text("question"),
            options=row.options(),
            answer=row.text("answer"),
            images=row.images(),
            hint=row.optional("hint"),
            category=row.optional("category"),
            labels={"l2_category": row.optional("l2-category"), "split": row.optional("split")},
        )

    def choice(
        self,
        row: Row,
        identifier: str,
        *,
        question: str,
        options: Mapping[str, str],
        answer: str,
        images: Sequence[Content],
        hint: str = "",
        category: str = "",
        labels: Mapping[str, str] | None = None,
        cluster: str | None = None,
    ) -> Case:
        """A case, asked as the protocol does.

        Raises:
            DataError: the answer is none of the options.
        """
        if answer not in options:
            raise DataError(
                f"answer {answer!r} but {len(options)} options ({', '.join(options)}). The data is malformed; the row "
                "is not scored. Mend the data.",
                reason="bad_row",
                origin=row.origin,
            )
        if self.lmms_eval:
            text = self.put(question, options, hint)
        else:
            text = choose(question, options, hint=hint, instruction=self.prompt_suffix)
        return ask(
            identifier,
            [*images, text],
            answer,
            origin=row.origin,
            category=category,
            options=options,
            labels=labels,
            cluster=cluster,
            extra={"question": question},
        )

    def put(self, question: str, options: Mapping[str, str], hint: str) -> str:
        """The question as lmms-eval puts it."""
        return f"{question}\n{listed(options)}{self.instruction(lmms_eval=self.lmms_eval_instruction)}"

    def grade(self, case: Case, prediction: str) -> Score:
        """1 if the letter is the expected one."""
        if self.lmms_eval:
            return self.grade_as_lmms_eval(case, prediction)
        return score_inferred_choice(prediction=prediction, answer=case.expected, options=case.options)

    @abstractmethod
    def grade_as_lmms_eval(self, case: Case, prediction: str) -> Score:
        """The score by lmms-eval's own rule for this benchmark."""


class ShortAnswerBenchmark(DatasetBenchmark):
    """A question, one image, one or several short answers; both layouts call them by these names.

    Attributes:
        lmms_eval_instruction, vlmevalkit_instruction: What follows the question.
        answer_columns: The column of the answers, by layout.
    """

    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("question", "answers", "image"),
        "tsv": ("index", "question", "answer", "image"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("image_path", "category", "split")}
    lmms_eval_instruction: ClassVar[str]
    vlmevalkit_instruction: ClassVar[str]
    answer_columns: ClassVar[Mapping[Layout, str]] = {"hub": "answers", "tsv": "answer"}
    category_column: ClassVar[str] = ""

    def read(self, row: Row, identifier: str) -> Case | None:
        """A case a row."""
        text = self.put(row.text("question"), row)
        text += self.instruction(lmms_eval=self.lmms_eval_instruction, vlmevalkit=self.vlmevalkit_instruction)
        column = "category" if row.layout == "tsv" else self.category_column
        return ask(
            identifier,
            [row.image(), text],
            self.expected(row),
            origin=row.origin,
            category=self.categorise(row.optional(column)),
            labels=self.labels(row),
            extra={"question": row.text("question")},
        )

    def put(self, question: str, row: Row) -> str:
        """The question as the protocol puts it."""
        return question

    def expected(self, row: Row) -> Any:
        """What the scorer compares with."""
        return row.texts(self.answer_columns[row.layout])

    def categorise(self, category: str) -> str:
        """The category by its value in the data."""
        return category

    def labels(self, row: Row) -> Mapping[str, str]:
        """Further groups."""
        return {}


def check_protocol(name: str, protocol: str, protocols: Sequence[str] = PROTOCOLS) -> str:
    """The protocol, if it is one.

    Raises:
        ValueError: it is not.
    """
    if protocol not in protocols:
        raise ValueError(f"benchmark_options.{name}.protocol must be one of {', '.join(protocols)}, got {protocol!r}")
    return protocol
