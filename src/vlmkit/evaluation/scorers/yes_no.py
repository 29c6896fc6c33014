"""Yes or no: POPE, MME and HallusionBench, answer by answer and their aggregates.

Sources: VLMEvalKit `vlmeval/dataset/utils/yorn.py`; lmms-eval `lmms_eval/tasks/{pope,mme}/utils.py` and
`lmms_eval/tasks/hallusion_bench/evaluate_hb.py`. All aggregates here are fractions, except MME's points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from vlmkit.evaluation.answers import find_yes_or_no
from vlmkit.evaluation.score import ProtocolName, Score, grade


def pope(*, prediction: str, answer: str, protocol: ProtocolName = "vlmevalkit") -> Score:
    """1 if the answer is the expected `yes` or `no`.

    `vlmevalkit` looks for exactly one of the two words; `lmms-eval` wants the bare word (`No.` is not understood).
    """
    return _grade_word(find_yes_or_no(prediction) if protocol == "vlmevalkit" else _bare_word(prediction), answer)


def mme(*, prediction: str, answer: str, protocol: ProtocolName = "vlmevalkit") -> Score:
    """1 if the answer is the expected `Yes` or `No`.

    `lmms-eval` reads `y` and `n`, and otherwise looks for `yes`, then for `no`, in the first four characters without
    full stops: `None`, `not at all` and `north` are a no, `The answer is yes` is neither.
    """
    return _grade_word(find_yes_or_no(prediction) if protocol == "vlmevalkit" else _first_four(prediction), answer)


def hallusion_bench(*, prediction: str, answer: str, protocol: ProtocolName = "vlmevalkit") -> Score:
    """1 if the answer is the expected `Yes` or `No`.

    `lmms-eval` stands for its rule without a judge, which it ships but does not use: `yes` anywhere (`yesterday`) is a
    yes, everything else a no.
    """
    if protocol == "vlmevalkit":
        return _grade_word(find_yes_or_no(prediction), answer)
    return _grade_word("Yes" if "yes" in prediction.lower() else "No", answer)


def _grade_word(word: str | None, answer: str) -> Score:
    return grade(float(word is not None and word.lower() == answer.strip().lower().replace(".", "")), extracted=word)


def _bare_word(text: str) -> str | None:
    return {"yes": "Yes", "no": "No"}.get(text.strip().lower())


def _first_four(text: str) -> str | None:
    folded = text.lower().strip().replace(".", "")
    if len(folded) == 1:
        return {"y": "Yes", "n": "No"}.get(folded)
    if "yes" in folded[:4]:
        return "Yes"
    return "No" if "no" in folded[:4] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNoRates:
    """How well yes and no are told apart; all fractions, 0 where a denominator is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def yes_no_rates(
    *, extracted: Sequence[str | None], answers: Sequence[str], protocol: ProtocolName = "vlmevalkit"
) -> YesNoRates:
    """POPE's rates over the given rows, `yes` being the positive class.

    An answer that was not understood counts as a missed yes with `vlmevalkit`; with `lmms-eval` it lowers the accuracy
    only. `yes_ratio` is the share of *predicted* yes, as POPE defines it; for `lmms-eval`, of expected yes, a constant.

    Args:
        extracted: `Yes`, `No` or None for each row, as `pope` extracts them.
        answers: The expected word of each row. VLMEvalKit counts a row once in each of its categories, in the overall
            too: repeat it accordingly.
        protocol: Whose counting to follow.

    Raises:
        ValueError: There is no row, or the lengths differ.
    """
    rows = list(zip(extracted, [answer.strip().lower() == "yes" for answer in answers], strict=True))
    if not rows:
        raise ValueError("no rows to rate")
    hits = sum(word == "Yes" and positive for word, positive in rows)
    alarms = sum(word == "Yes" and not positive for word, positive in rows)
    misses = sum(positive and (word == "No" or (word is None and protocol == "vlmevalkit")) for word, positive in rows)
    precision, recall = _ratio(hits, hits + alarms), _ratio(hits, hits + misses)
    yes = hits + alarms if protocol == "vlmevalkit" else sum(positive for _, positive in rows)
    return YesNoRates(
        accuracy=sum(word == ("Yes" if positive else "No") for word, positive in rows) / len(rows),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        yes_ratio=yes / len(rows),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_scores(*, categories: Sequence[str], images: Sequence[Hashable], values: Sequence[float]) -> dict[str, float]:
    """MME's points by category, 0 to 200: percent of questions right plus percent of pictures wholly right.

    Args:
        categories: The category of each row.
        images: The picture of each row, within its category.
        values: 1 for a right row, 0 for a wrong one.

    Raises:
        ValueError: The lengths differ.
    """
    rows: dict[str, dict[Hashable, list[float]]] = {}
    for category, image, value in zip(categories, images, values, strict=True):
        rows.setdefault(category, {}).setdefault(image, []).append(value)
    return {category: _points(list(pictures.values())) for category, pictures in rows.items()}


def _points(pictures: Sequence[Sequence[float]]) -> float:
    questions = [value for picture in pictures for value in picture]
    whole = [min(picture) for picture in pictures]
    return 100 * sum(questions) / len(questions) + 100 * sum(whole) / len(whole)


def mme_total(scores: dict[str, float], *, categories: Sequence[str]) -> float:
    """Sum of the points over `PERCEPTION` (at most 2000) or `COGNITION` (at most 800); absent categories add 0."""
    return sum(scores.get(category, 0.0) for category in categories)


@dataclass(frozen=True, slots=True, kw_only=True)
class HallusionRow:
    """One scored question of HallusionBench.

    Attributes:
        category: `VD` or `VS`, joined with the subcategory.
        set_id: The set of pictures.
        figure_id: The picture within its set.
        question_id: The question, put to several pictures.
        value: 1 if right, else 0.
    """

    category: str
    set_id: str
    figure_id: str
    question_id: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HallusionRates:
    """Shares of questions, of pictures with every question right, and of questions right on every picture."""

    all_accuracy: float
    figure_accuracy: float
    question_accuracy: float


def hallusion_rates(rows: Sequence[HallusionRow]) -> HallusionRates:
    """HallusionBench's aAcc, fAcc and qAcc, as fractions.

    Raises:
        ValueError: There is no row.
    """
    if not rows:
        raise ValueError("no rows to rate")
    return HallusionRates(
        all_accuracy=sum(row.value for row in rows) / len(rows),
        figure_accuracy=_share_all_right(rows, lambda row: (row.category, row.set_id, row.figure_id)),
        question_accuracy=_share_all_right(rows, lambda row: (row.category, row.set_id, row.question_id)),
    )


def _share_all_right(rows: Sequence[HallusionRow], key: Callable[[HallusionRow], Hashable]) -> float:
    groups: dict[Hashable, float] = {}
    for row in rows:
        groups[key(row)] = min(groups.get(key(row), 1.0), row.value)
    return sum(value >= 1 for value in groups.values()) / len(groups)
