"""MMMU and MMMU-Pro: letters for multiple choice, numbers and short texts for open questions.

Sources: the MMMU evaluation code (Yue et al., 2024; `eval/eval_utils.py`), which lmms-eval
`lmms_eval/tasks/{mmmu,mmmu_pro}/utils.py` takes over; VLMEvalKit `vlmeval/dataset/image_mcq.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from vlmkit.evaluation.answers import parse_float
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
"""Subjects of each domain, as they stand in an MMMU `id`."""


def mmmu_multiple_choice(
    *, prediction: str, answer: str, options: Mapping[str, str], guess_seed: int | None = None
) -> Score:
    """1 if the official parser finds the expected letter.

    The letter is looked for as `(B)`, then `B ` (also at the end of a word: `VITAMIN D `), then `B.`, then, in answers
    of more than five words, by the text of an option; of several the last one counts. `B)`, `**B**`, `$B$` and `b` are
    not understood.

    Args:
        prediction: The text of the model.
        answer: The expected letter.
        options: Text of each option by its letter.
        guess_seed: For parity only. The official code answers at random where it understands nothing; with a seed, so
            do we. Without one, such an answer is unparsed.
    """
    letter = parse_mmmu_choice(prediction, options=options)
    if letter is None and guess_seed is not None:
        letter = random.Random(guess_seed).choice(list(options))
    return grade(float(letter == answer), extracted=letter)


def parse_mmmu_choice(prediction: str, *, options: Mapping[str, str]) -> str | None:
    """The letter the official parser finds, or None where it would guess."""
    text = prediction.strip()
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for mark, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in options if mark.format(letter) in text]:
            return _last(found, {letter: text.rfind(place.format(letter)) for letter in found})
    if len(text.split()) <= 5:
        return None
    folded = text.lower()
    positions = {letter: folded.rfind(option.lower()) for letter, option in options.items()}
    found = [letter for letter in options if positions[letter] >= 0]
    return _last(found, positions) if found else None


def _last(letters: Sequence[str], positions: Mapping[str, int]) -> str:
    """The letter with the largest position, the first of equals."""
    return max(letters, key=lambda letter: positions[letter])


def mmmu_open(*, prediction: str, answer: str | Sequence[str]) -> Score:
    """1 if a number or text read out of the prediction fits the answer, by the official parse and evaluation.

    A number fits an equal number (both rounded to two decimals), a text fits if it contains the expected text. Known
    oddities are kept: `.5` reads as 5, `1,200` as 1200 and 200, and `is ` is found inside `this `.

    Args:
        prediction: The text of the model.
        answer: The expected answer, or several. The data set keeps several as the text of a Python list; read it with
            `answers.list_literal` first (the official code does, lmms-eval forgets to).
    """
    wanted = _wanted_forms(answer)
    found = parse_mmmu_open(prediction)
    right = any(_fits(form, wanted) for form in found)
    readable = any(form.strip() if isinstance(form, str) else True for form in found)
    return grade(float(right), extracted=" | ".join(map(str, found)) if readable else None)


def mmmu_open_as_shipped(*, prediction: str, answer: str | Sequence[str]) -> Score:
    """What lmms-eval makes of open questions: practically always 0. For parity only.

    It keeps one of the parsed forms, as text, and then compares every *character* of that text.
    """
    wanted = _wanted_forms(answer)
    kept = str(parse_mmmu_open(prediction)[0])
    return grade(float(any(_fits(character, wanted) for character in kept)), extracted=kept)


_Form = str | float


def _wanted_forms(answer: str | Sequence[str]) -> list[_Form]:
    return [form for text in ([answer] if isinstance(answer, str) else answer) for form in _comparable_forms(text)]


def _fits(form: _Form, wanted: Sequence[_Form]) -> bool:
    if isinstance(form, str):
        return any(isinstance(text, str) and text in form for text in wanted)
    return form in wanted


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_mmmu_open(prediction: str) -> list[str | float]:
    """The texts and numbers an open answer may mean: its key parts, then every number in them, without repetition."""
    parts = _key_parts(prediction)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return list(dict.fromkeys(form for text in [*parts, *numbers] for form in _comparable_forms(text)))


def _key_parts(prediction: str) -> list[str]:
    """Per line the shortest text after an indicator; the whole answer where there is none."""
    answer = prediction.strip().strip(".").lower()
    lines = answer.split("\n")  # The official code means to split sentences too, but asks for a capital it has lowered.
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        tails = [line.rsplit(indicator, 1)[-1].strip() for indicator in indicators if indicator in line]
        # An empty tail gives way to the next one, and to that alone: upstream tests it for truth.
        part = ""
        for tail in tails:
            if not part or len(tail) < len(part):
                part = tail
        if part and part not in _TRIVIAL:
            parts.append(part)
    return parts or [answer]


def _comparable_forms(text: str) -> list[_Form]:
    """A number rounded to two decimals, or the lower-case text; one character is kept off the inside of words."""
    text = text.strip()
    if (number := parse_float(text.replace(",", ""))) is not None:
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_as_choice(*, prediction: str, answer: str, options: Mapping[str, str] | None = None) -> Score:
    """1 if `infer_choice` finds the letter; an open question becomes a choice between its answer and `Other Answers`.

    So an open answer is right if its text occurs in the prediction, unless that is much longer, and `1,200` is wrong
    for `1200`.

    Source: VLMEvalKit `vlmeval/dataset/image_mcq.py` (`MMMUDataset`).
    """
    if options:
        return score_inferred_choice(prediction=prediction, answer=answer, options=options)
    return score_inferred_choice(prediction=prediction, answer="A", options={"A": answer, "B": "Other Answers"})


def mmmu_pro_cot(*, prediction: str, answer: str, options: Mapping[str, str]) -> Score:
    """1 if `infer_choice` finds the letter in what follows the last `Answer:` line's colon.

    Where that holds exactly one distinct capital letter of the ASCII alphabet, only the letter is looked at.

    Source: VLMEvalKit `vlmeval/dataset/image_mcq.py` (`MMMUProDataset.cot_postproc`).
    """
    return score_inferred_choice(prediction=last_answer_line(prediction), answer=answer, options=options)


def last_answer_line(prediction: str) -> str:
    """What follows `Answer:` on the last line that starts so, reduced to its letter; the prediction without one."""
    lines = [line for line in prediction.split("\n") if line.startswith("Answer:")]
    if not lines:
        return prediction
    stated = lines[-1].removeprefix("Answer:")
    capitals = {character for character in stated if "A" <= character <= "Z"}
    return capitals.pop() if len(capitals) == 1 else stated


def mmmu_pro_vision_raw(*, prediction: str, answer: str) -> Score:
    """1 if the stripped prediction is the letter itself: lmms-eval's rule for the vision set; nothing is parsed."""
    given = prediction.strip()
    return grade(float(given == answer), extracted=given)
