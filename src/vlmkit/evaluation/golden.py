"""Check the scorers against scores of the reference evaluators: `python -m vlmkit.evaluation.golden CASES.jsonl`.

Each line of the file is a JSON object with `benchmark`, `rule`, `source` (`lmms-eval` or `vlmevalkit`), `prediction`,
`answer` or `answers`, `options`, `extra` and `expected`, a number in the unit of the reference. Every case is scored by
the scorer and protocol that rule and source name; what disagrees is printed, and the last line says `N of M agree`. The
exit status is 0 only if all do, 1 if not, and 2 if the file cannot be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlmkit.evaluation.score import ProtocolName, Score
from vlmkit.evaluation.scorers import judges, mathvista, mmmu, multiple_choice, simplevqa, vqa, yes_no
from vlmkit.evaluation.scorers.anls import anls
from vlmkit.evaluation.scorers.captions import caption_scores
from vlmkit.evaluation.scorers.circular import circular
from vlmkit.evaluation.scorers.exact_match import exact_match
from vlmkit.evaluation.scorers.mathvision import mathvision, mathvision_no_judge
from vlmkit.evaluation.scorers.ocrbench import FORMULA_CATEGORY, ocrbench
from vlmkit.evaluation.scorers.realworldqa import realworldqa
from vlmkit.evaluation.scorers.relaxed_accuracy import relaxed_accuracy
from vlmkit.evaluation.scorers.science_qa import science_qa

RELATIVE_TOLERANCE = ABSOLUTE_TOLERANCE = 1e-6
_GUESS_SEED = 42  # the seed with which the reference's random answers were recorded


class MalformedCaseError(ValueError):
    """A line that is no case: no JSON object, or without a field its rule needs, or with one of another kind."""


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One case, its fields fetched with a check.

    Attributes:
        fields: The JSON object of the line.
    """

    fields: Mapping[str, Any]

    @property
    def rule(self) -> str:
        """The name of the scoring rule."""
        return self.text("rule")

    @property
    def protocol(self) -> ProtocolName:
        """The evaluator that the case was made with."""
        source = self.text("source")
        if source not in ("lmms-eval", "vlmevalkit"):
            raise MalformedCaseError(f"unknown source {source!r}: 'lmms-eval' or 'vlmevalkit' is wanted")
        return source

    @property
    def expected(self) -> float:
        """The score that the reference gave."""
        value = self.fields.get("expected")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MalformedCaseError(f"field 'expected' is {value!r}, no number")
        return float(value)

    @property
    def prediction(self) -> str:
        """The raw text of the model."""
        return self.text("prediction")

    @property
    def answer(self) -> str:
        """The one expected answer."""
        return self.text("answer")

    @property
    def answers(self) -> list[Any]:
        """The references; for a set of captions or rows, one entry a row."""
        return self.items("answers")

    @property
    def options(self) -> dict[str, str]:
        """Text of each option by its letter; empty where the question has none."""
        return _options(self.fields.get("options") or {})

    @property
    def extra(self) -> Extra:
        """Further inputs of the rule."""
        value = self.fields.get("extra")
        return Extra(cast("Mapping[str, Any]", value) if isinstance(value, dict) else {})

    def text(self, name: str) -> str:
        """The text in a field."""
        return _text(self.fields, name)

    def items(self, name: str) -> list[Any]:
        """The list in a field."""
        return _items(self.fields, name)


@dataclass(frozen=True, slots=True)
class Extra:
    """The `extra` of a case."""

    fields: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field that may be absent."""
        return self.fields.get(name, default)

    def text(self, name: str) -> str:
        """The text in a field."""
        return _text(self.fields, name)

    def rows(self, name: str) -> list[Mapping[str, Any]]:
        """The list of objects in a field."""
        rows = _items(self.fields, name)
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise MalformedCaseError(f"field 'extra.{name}' is no list of objects")
        return rows


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise MalformedCaseError(f"field {name!r} is {value!r}, no text")
    return value


def _items(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list) or not value:
        raise MalformedCaseError(f"field {name!r} is {value!r}, no list with something in it")
    return cast("list[Any]", value)


def _options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise MalformedCaseError(f"options are {value!r}, no object of texts by letter")
    return {str(letter): str(text) for letter, text in cast("dict[Any, Any]", value).items()}


def _texts(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


_Rule = Callable[[GoldenCase], float | Score]


def _mmbench_circular(case: GoldenCase) -> Score:
    score = multiple_choice.mmbench_letter if case.protocol == "lmms-eval" else multiple_choice.score_inferred_choice
    return circular(
        [
            score(
                prediction=_text(row, "prediction"), answer=_text(row, "answer"), options=_options(row.get("options"))
            )
            for row in case.extra.rows("rotations")
        ]
    )


def _mmvp(case: GoldenCase) -> list[float]:
    def score(row: Mapping[str, Any]) -> Score:
        prediction, answer = _text(row, "prediction"), _text(row, "answer")
        if case.protocol == "lmms-eval":
            return multiple_choice.mmvp_letter(prediction=prediction, answer=answer)
        options = _options(row.get("options"))
        return multiple_choice.score_inferred_choice(prediction=prediction, answer=answer, options=options)

    return [score(row).value for row in case.extra.rows("rows")]


def _mmvp_average(case: GoldenCase) -> float:
    values = _mmvp(case)
    return sum(values) / len(values)


def _mmstar_average(case: GoldenCase) -> float:
    rows = case.extra.rows("rows")
    return multiple_choice.mean_over_groups(
        [float(row.get("score", math.nan)) for row in rows], [_text(row, "l2_category") for row in rows]
    )


def _extracted_choice(case: GoldenCase) -> Score:
    if case.fields.get("benchmark") == "realworldqa":
        return realworldqa(prediction=case.prediction, answer=case.answer, protocol="lmms-eval")
    return multiple_choice.score_extracted_choice(prediction=case.prediction, answer=case.answer)


def _mmmu_choice(case: GoldenCase) -> Score:
    return mmmu.mmmu_multiple_choice(
        prediction=case.prediction,
        answer=case.answer,
        options=case.options,
        guess_seed=int(case.extra.get("seed", _GUESS_SEED)),
    )


def _open_answers(case: GoldenCase) -> list[str]:
    return _texts(case.answers) if "answers" in case.fields else [case.answer]


def _ocrbench(case: GoldenCase) -> Score:
    by_dataset = case.protocol == "lmms-eval" and case.extra.get("dataset") is not None
    is_formula = (
        case.extra.get("dataset") == "HME100k" if by_dataset else case.extra.get("category") == FORMULA_CATEGORY
    )
    answers = _open_answers(case)
    return ocrbench(prediction=case.prediction, answers=answers, is_formula=is_formula, protocol=case.protocol)


def _pope_rate(case: GoldenCase) -> float:
    """One of POPE's rates over a list of predictions, in percent for VLMEvalKit."""
    protocol = case.protocol
    predictions, answers = _texts(case.items("prediction")), _texts(case.answers)
    repeats = _category_counts(case, len(answers))
    rows = [
        (yes_no.pope(prediction=prediction, answer=answer, protocol=protocol).extracted, answer)
        for prediction, answer, count in zip(predictions, answers, repeats, strict=True)
        for _ in range(count)
    ]
    rates = yes_no.yes_no_rates(
        extracted=[word for word, _ in rows], answers=[answer for _, answer in rows], protocol=protocol
    )
    name = case.rule.removeprefix("pope_")
    return getattr(rates, name) * (100 if protocol == "vlmevalkit" else 1)


def _category_counts(case: GoldenCase, num_rows: int) -> list[int]:
    """How often each row counts: once in each of its categories, or in the one that `split` names."""
    categories = case.extra.get("categories")
    if case.protocol == "lmms-eval" or categories is None:
        return [1] * num_rows
    split = case.extra.get("split")
    names = [str(joined).split(",") for joined in categories]
    return [len(row) if split in (None, "Overall") else row.count(split) for row in names]


def _mme_score(case: GoldenCase) -> float:
    rows = case.extra.rows("rows")
    scores = yes_no.mme_scores(
        categories=[_text(row, "category") for row in rows],
        images=[_text(row, "image") for row in rows],
        values=[
            yes_no.mme(prediction=_text(row, "prediction"), answer=_text(row, "answer"), protocol=case.protocol).value
            for row in rows
        ],
    )
    report = case.extra.text("report")
    groups = {"perception": yes_no.PERCEPTION, "cognition": yes_no.COGNITION, "reasoning": yes_no.COGNITION}
    return yes_no.mme_total(scores, categories=groups.get(report, (report,)))


def _hallusion(case: GoldenCase) -> float:
    rows = [
        yes_no.HallusionRow(
            category=f"{row.get('category')}_{row.get('subcategory')}",
            set_id=str(row.get("set_id")),
            figure_id=str(row.get("figure_id")),
            question_id=str(row.get("question_id")),
            value=yes_no.hallusion_bench(
                prediction=_text(row, "prediction"), answer=_text(row, "answer"), protocol=case.protocol
            ).value,
        )
        for row in case.extra.rows("rows")
    ]
    rates = yes_no.hallusion_rates(rows)
    value = {
        "hallusion_aAcc": rates.all_accuracy,
        "hallusion_fAcc": rates.figure_accuracy,
        "hallusion_qAcc": rates.question_accuracy,
    }[case.rule]
    return value * (100 if case.protocol == "vlmevalkit" else 1)


def _mathvista(case: GoldenCase) -> Score:
    options = case.options
    question = mathvista.MathVistaQuestion(
        answer=case.answer,
        question_type=case.extra.text("question_type"),  # pyright: ignore[reportArgumentType]: other texts fit no rule
        answer_type=case.extra.text("answer_type"),  # pyright: ignore[reportArgumentType]: likewise
        precision=int(case.extra.get("precision") or 0),
        options=options,
    )
    if case.extra.get("quick_extract") and (found := mathvista.quick_extract(case.prediction.strip())) is not None:
        return mathvista.mathvista_extracted(extraction=found, question=question)
    return mathvista.mathvista_as_shipped(prediction=case.prediction, question=question, protocol=case.protocol)


def _judge_pair(case: GoldenCase) -> float:
    pair = judges.read_score_pair(case.prediction, protocol=case.protocol)
    return (pair or (-1.0, -1.0))[int(case.extra.get("position", 0))]


def _judge_ratio(case: GoldenCase) -> float:
    pairs = [(float(pair[0]), float(pair[1])) for pair in _items(case.extra.fields, "pairs")]
    return judges.score_ratio(pairs, protocol=case.protocol)


def _simplevqa(case: GoldenCase) -> float:
    rates = simplevqa.simplevqa_rates([simplevqa.read_verdict(label) for label in _texts(case.items("prediction"))])
    return getattr(rates, case.rule.removeprefix("simplevqa_").removeprefix("is_"))


def _caption(case: GoldenCase) -> float:
    scores = caption_scores(
        predictions=_texts(case.items("prediction")),
        references=[_texts(captions) for captions in case.answers],
        protocol=case.protocol,
    )
    return scores[case.rule.removeprefix("caption_")] * (100 if case.protocol == "vlmevalkit" else 1)


RULES: dict[str, _Rule] = {
    "vqa_soft_accuracy": lambda case: vqa.vqa_soft_accuracy(
        prediction=case.prediction, answers=_open_answers(case), protocol=case.protocol
    ),
    "vqa_mean_exact": lambda case: vqa.vqa_mean_exact(
        prediction=case.prediction, answers=_open_answers(case), protocol=case.protocol
    ),
    "vqa_exact_match": lambda case: vqa.vqa_exact_match(
        prediction=case.prediction, answer=case.answer, protocol=case.protocol
    ),
    "anls": lambda case: anls(prediction=case.prediction, answers=_open_answers(case), protocol=case.protocol),
    "relaxed_accuracy": lambda case: relaxed_accuracy(
        prediction=case.prediction, target=case.answer, protocol=case.protocol
    ),
    "gqa_exact_match": lambda case: exact_match(prediction=case.prediction, answer=case.answer, protocol=case.protocol),
    "mcq_inference": lambda case: multiple_choice.score_inferred_choice(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    "mcq_extract": _extracted_choice,
    "seed_letter": lambda case: multiple_choice.seed_letter(prediction=case.prediction, answer=case.answer),
    "ai2d_letter": lambda case: multiple_choice.ai2d_letter(prediction=case.prediction, answer=case.answer),
    "blink_letter": lambda case: multiple_choice.blink_letter(prediction=case.prediction, answer=case.answer),
    "mvbench_letter": lambda case: multiple_choice.mvbench_letter(
        prediction=case.prediction, answer=case.answer, options=case.options, protocol=case.protocol
    ),
    "mlvu_letter": lambda case: multiple_choice.mlvu_letter(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    # The cases were made from questions that hold no options to cut out, so only letters could be found.
    "videomme_letter": lambda case: multiple_choice.videomme_letter(prediction=case.prediction, answer=case.answer),
    "mmbench_en_letter": lambda case: multiple_choice.mmbench_letter(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    "mmbench_circular": _mmbench_circular,
    "mmmu_multi_choice": _mmmu_choice,
    "mmmu_open": lambda case: mmmu.mmmu_open(prediction=case.prediction, answer=_open_answers(case)),
    "mmmu_open_as_shipped": lambda case: mmmu.mmmu_open_as_shipped(
        prediction=case.prediction, answer=_open_answers(case)
    ),
    "mmmu_as_mcq": lambda case: mmmu.mmmu_as_choice(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    "mmmu_pro_cot": lambda case: mmmu.mmmu_pro_cot(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    "mmmu_pro_vision_raw": lambda case: mmmu.mmmu_pro_vision_raw(prediction=case.prediction, answer=case.answer),
    "scienceqa": lambda case: science_qa(prediction=case.prediction, answer=case.answer),
    "realworldqa_open": lambda case: realworldqa(
        prediction=case.prediction, answer=case.answer, protocol=case.protocol
    ),
    "ocrbench": _ocrbench,
    "pope": lambda case: yes_no.pope(prediction=case.prediction, answer=case.answer, protocol=case.protocol),
    **dict.fromkeys(("pope_accuracy", "pope_precision", "pope_recall", "pope_f1", "pope_yes_ratio"), _pope_rate),
    "mme_answer": lambda case: yes_no.mme(prediction=case.prediction, answer=case.answer, protocol=case.protocol),
    "mme_score": _mme_score,
    **dict.fromkeys(("hallusion_aAcc", "hallusion_fAcc", "hallusion_qAcc"), _hallusion),
    "mathvista_no_judge": _mathvista,
    "mathvision_rule": lambda case: mathvision(prediction=case.prediction, answer=case.answer, options=case.options),
    "mathvision_no_judge": lambda case: mathvision_no_judge(
        prediction=case.prediction, answer=case.answer, options=case.options
    ),
    "mmvp_average": _mmvp_average,
    "mmvp_overall": lambda case: multiple_choice.pair_accuracy(_mmvp(case)),
    "mmstar_average": _mmstar_average,
    "judge_pair": _judge_pair,
    "judge_ratio": _judge_ratio,
    **dict.fromkeys(
        (
            *("simplevqa_is_correct", "simplevqa_is_incorrect", "simplevqa_is_not_attempted"),
            *("simplevqa_accuracy_given_attempted", "simplevqa_f1"),
        ),
        _simplevqa,
    ),
    **dict.fromkeys((f"caption_Bleu_{order}" for order in range(1, 5)), _caption),
    **dict.fromkeys(("caption_ROUGE_L", "caption_CIDEr", "caption_METEOR"), _caption),
}
"""What scores a case, by the name of its rule."""


def score_case(case: GoldenCase) -> float:
    """The value our scorer gives, in the unit of the reference.

    Raises:
        MalformedCaseError: The rule is unknown, or a field it needs is absent or of another kind.
    """
    rule = RULES.get(case.rule)
    if rule is None:
        raise MalformedCaseError(f"unknown rule {case.rule!r}")
    try:
        result = rule(case)
    except MalformedCaseError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise MalformedCaseError(f"rule {case.rule!r} cannot score this: {error}") from error
    return result.value if isinstance(result, Score) else result


def disagreement(line: str) -> str | None:
    """What is wrong with a line of the file, or None if its case agrees."""
    try:
        case = parse_case(line)
        got = score_case(case)
        expected = case.expected
    except MalformedCaseError as error:
        return str(error)
    if math.isclose(got, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE):
        return None
    prediction = _shortened(case.fields.get("prediction"))
    return (
        f"{case.fields.get('benchmark')} {case.rule} ({case.protocol}): "
        f"prediction {prediction}, expected {expected:g}, got {got:g}"
    )


def parse_case(line: str) -> GoldenCase:
    """The case of one line.

    Raises:
        MalformedCaseError: The line is no JSON object.
    """
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedCaseError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedCaseError(f"a JSON object is wanted, found {type(fields).__name__}")
    return GoldenCase(cast("dict[str, Any]", fields))


def _shortened(prediction: object) -> str:
    text = json.dumps(prediction, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


def check(lines: Iterable[str], *, name: str) -> Iterator[str | None]:
    """For each line with something on it, None or its disagreement, with file and line number (from 1)."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = disagreement(line)
            yield None if found is None else f"{name}:{number}: {found}"


def main(arguments: Sequence[str]) -> int:
    """Check the named file; print what disagrees and the count; return the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m vlmkit.evaluation.golden CASES.jsonl", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{path} cannot be read as UTF-8 text: {error}", file=sys.stderr)
        return 2
    results = list(check(lines, name=str(path)))
    for result in filter(None, results):
        print(result)
    num_agreeing = results.count(None)
    print(f"{num_agreeing} of {len(results)} agree")
    return 0 if results and num_agreeing == len(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
