"""Multiple choice: the two shared rules, and the letter rules that single benchmarks have of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vlmkit.evaluation.answers import REFUSED, extract_choice, infer_choice, respace_punctuation
from vlmkit.evaluation.score import ProtocolName, Score, grade
from vlmkit.evaluation.scorers.exact_match import delete_punctuation


def score_inferred_choice(*, prediction: str, answer: str, options: Mapping[str, str]) -> Score:
    """1 if `infer_choice` finds the expected letter; a refusal, or no letter, is unparsed.

    Source: VLMEvalKit `vlmeval/dataset/utils/multiple_choice.py` (`eval_vanilla`), without a judge.
    """
    return grade_letter(infer_choice(prediction, options=options), answer=answer, options=options)


def score_extracted_choice(*, prediction: str, answer: str, letters: Iterable[str] = "ABCD") -> Score:
    """1 if `extract_choice` finds the expected letter (MMStar, RealWorldQA, Video-MME, MLVU in lmms-eval)."""
    letter = extract_choice(prediction, letters=letters)
    return grade(float(letter == answer), extracted=letter)


def grade_letter(letter: str | None, *, answer: str, options: Mapping[str, str]) -> Score:
    """Grade an inferred letter; the mark of a refusal counts as no letter unless an option bears it."""
    if letter == REFUSED and REFUSED not in options:
        letter = None
    return grade(float(letter == answer), extracted=letter)


def seed_letter(*, prediction: str, answer: str) -> Score:
    """1 if the first character is the expected letter, in either case; `(B)` is not understood.

    Source: lmms-eval `lmms_eval/tasks/seedbench/utils.py`.
    """
    return _grade_first(prediction.strip()[:1].upper(), answer)


_AI2D_LETTER = re.compile(r"\s*([A-Z])\.")


def ai2d_letter(*, prediction: str, answer: str) -> Score:
    """1 if the prediction is the letter, or opens with the capital letter and a full stop.

    Without that opening the whole text is compared, case and punctuation ignored: `(B)` and `b` are right, `B a dog` is
    not understood.

    Source: lmms-eval `lmms_eval/tasks/ai2d/utils.py` (`MultiChoiceRegexFilter`).
    """
    given = prediction.strip()
    opening = _AI2D_LETTER.match(given)
    return _grade_first(delete_punctuation(opening[1] if opening else given).upper(), answer)


_BLINK_LETTER = re.compile(r"[\(\s]*([A-Z])", re.IGNORECASE)


def blink_letter(*, prediction: str, answer: str) -> Score:
    """1 if the first letter of the prediction is the expected one: `The answer is (B)` reads as T, `a dog` as A.

    Source: lmms-eval `lmms_eval/tasks/blink/utils.py`.
    """
    opening = _BLINK_LETTER.match(prediction.strip())
    letter = opening[1].upper() if opening else None
    return grade(float(letter == answer.strip("()")), extracted=letter)


_MVBENCH_OPTION = re.compile(r"([A-E])\.\s*(.+)$", re.IGNORECASE)
_MVBENCH_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def mvbench_letter(
    *, prediction: str, answer: str, options: Mapping[str, str] | None = None, protocol: ProtocolName
) -> Score:
    """1 if MVBench's own rule finds the expected letter.

    `lmms-eval` takes the letter of an opening `B. text`, else the first of A to E that stands alone, in either case:
    the article `a` is an A. `vlmevalkit` compares the first word with `(b)` and calls it right if either contains the
    other, *so that an empty prediction is right*; what fails is left to `infer_choice`, which needs `options`.

    Sources: lmms-eval `lmms_eval/tasks/mvbench/utils.py`; VLMEvalKit `vlmeval/dataset/utils/mvbench.py`.
    """
    if protocol == "vlmevalkit":
        first, wanted = prediction.lower().split(" ")[0], f"({answer.lower()})"
        if first.replace(".", "") in wanted or wanted in first:
            return Score(1.0, answer, "right")
        return score_inferred_choice(prediction=prediction, answer=answer, options=options or {})
    given = prediction.strip()
    found = _MVBENCH_OPTION.match(given)
    if not found:
        given = respace_punctuation(given.replace("\n", " ").replace("\t", " ").strip(), keep_dot_after_digit=False)
        found = _MVBENCH_LETTER.search(given.strip("'").strip('"').strip(")").strip("(").strip().lower())
    letter = found[1].upper() if found else None
    return grade(float(letter == answer), extracted=letter)


def mlvu_letter(*, prediction: str, answer: str, options: Mapping[str, str]) -> Score:
    """1 if the character before the first `)`, or the whole prediction, is the letter; else by `infer_choice`.

    Source: VLMEvalKit `vlmeval/dataset/utils/mlvu.py`.
    """
    bracket = prediction.find(")")
    if (prediction[bracket - 1 : bracket] if bracket >= 0 else prediction) == answer:
        return Score(1.0, answer, "right")
    return score_inferred_choice(prediction=prediction, answer=answer, options=options)


# Two pairs of upstream's phrases have grown together for want of a comma, and so never occur: `Best option: C` reads B.
_VIDEOMME_PHRASES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:"),
)


def videomme_letter(*, prediction: str, answer: str, options: Mapping[str, str] | None = None) -> Score:
    """1 if the first A, B, C or D anywhere, once known phrases are deleted, is the letter; else by `infer_choice`.

    Source: VLMEvalKit `vlmeval/dataset/utils/videomme.py`.
    """
    text = prediction.strip()
    for phrase in _VIDEOMME_PHRASES:
        text = text.replace(phrase, "")
    if found := re.search("[ABCD]", text):
        return grade(float(found[0] == answer), extracted=found[0])
    return score_inferred_choice(prediction=prediction, answer=answer, options=options or {})


_MMBENCH_DECORATIONS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def mmbench_letter(*, prediction: str, answer: str, options: Mapping[str, str]) -> Score:
    """1 if lmms-eval's own, older inference, or failing that `extract_choice`, finds the letter of one rotation.

    Words are cut at white space and keep their punctuation. One bare letter A to E counts, unless the word `A` occurs
    in an answer of more than three words; then one decorated letter, by decoration (`B.`, `B,`, `B:`, ...); then the
    one option A to D whose text is contained. That is the task without a judge (`mmbench_en_dev_static`).

    Source: lmms-eval `lmms_eval/tasks/mmbench/mmbench_evals.py`.
    """
    text = prediction.strip()
    letter = _mmbench_letter(text) or _mmbench_text(text, options) or extract_choice(text)
    return grade(float(letter == answer), extracted=letter)


def _mmbench_letter(text: str) -> str | None:
    if "Failed to obtain answer via API" in text:
        return None
    words = text.split()
    bare = [letter for letter in "ABCDE" if letter in words]
    if len(bare) == 1 and not ("A" in words and len(words) > 3):
        return bare[0]
    for decoration in _MMBENCH_DECORATIONS:
        decorated = [letter for letter in "ABCDE" if decoration.format(letter) in words]
        if len(decorated) == 1:
            return decorated[0]
    return None


def _mmbench_text(text: str, options: Mapping[str, str]) -> str | None:
    folded = text.lower()
    found = [letter for letter in "ABCD" if letter in options and options[letter].lower() in folded]
    return found[0] if len(found) == 1 else None


_MMVP_LETTERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[\.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
        r"^([AB])",
    )
)


def mmvp_letter(*, prediction: str, answer: str) -> Score:
    """1 if the first pattern that matches holds the expected letter.

    A bare letter, a letter at the start, `answer is B`, `option B`, any A or B that ends a word, the first character.

    Source: lmms-eval `lmms_eval/tasks/mmvp/utils.py`. VLMEvalKit uses `score_inferred_choice`.
    """
    text = prediction.strip()
    found = next((match for pattern in _MMVP_LETTERS if (match := pattern.search(text))), None)
    letter = found[1].upper() if found else None
    return grade(float(letter == answer), extracted=letter)


def pair_accuracy(values: Sequence[float]) -> float:
    """Share of the pairs (rows 2i and 2i + 1) of which both are right: MMVP's headline number, a fraction.

    Raises:
        ValueError: There is no row, or one without its partner.
    """
    if not values or len(values) % 2:
        raise ValueError(f"pairs of rows are wanted, found {len(values)} rows")
    both = [first >= 1 and second >= 1 for first, second in zip(values[::2], values[1::2], strict=True)]
    return sum(both) / len(both)


def mean_over_groups(values: Sequence[float], groups: Sequence[str]) -> float:
    """Unweighted mean of the group means, a fraction: MMStar (18 `l2_category`), BLINK, MVBench and MLVU (tasks).

    Raises:
        ValueError: There is no row, or not one group a row.
    """
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    if not members:
        raise ValueError("no rows to average")
    return sum(sum(group) / len(group) for group in members.values()) / len(members)


def _grade_first(letter: str, answer: str) -> Score:
    """Grade what should be one letter; anything else is not understood."""
    found = letter if len(letter) == 1 and letter.isalpha() else None
    return grade(float(letter == answer.upper()), extracted=found)
