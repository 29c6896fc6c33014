"""A letter, yes or no, or a list out of free text: pure functions that the scorers share.

Where the two reference evaluators read the same text differently, both readings are here, each under its own name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping

REFUSED = "Z"
"""The letter by which VLMEvalKit marks an answer that declines to choose."""

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_CHOICE_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


def infer_choice(answer: str, *, options: Mapping[str, str]) -> str | None:
    """The letter VLMEvalKit's rules find, without a judge: first by letter, then by the text of an option.

    The letter must be the only option letter among the tokens and stand within the last four, or follow `answer is`,
    where no word boundary is asked for (`The answer is difficult` reads as D). Otherwise the option whose text alone is
    contained in the answer is taken, unless the answer is more than twice as long as all options together.

    Args:
        answer: The raw text of the model.
        options: Text of each option by its letter.

    Returns:
        A letter of `options`, `REFUSED` for an answer that declines to choose, None where nothing is found.

    Source: VLMEvalKit `vlmeval/utils/matching_util.py` (`can_infer`).
    """
    return _infer_by_letter(answer, options) or _infer_by_text(answer, options)


def _infer_by_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if _API_FAILURE in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    tokens = answer.translate(_CHOICE_PUNCTUATION).split()
    found = [letter for letter in options if letter in tokens]
    if len(found) == 1 and tokens.index(found[0]) > len(tokens) - 5:
        return found[0]
    if not found and REFUSED in tokens:
        return REFUSED
    if (stated := _ANSWER_IS.search(answer)) and stated[1].upper() in options:
        return stated[1].upper()
    return None


def _infer_by_text(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    folded = answer.lower()
    found = [letter for letter, text in options.items() if text.lower() in folded]
    return found[0] if len(found) == 1 else None


_STATEMENTS = (
    *(
        "the answer is",
        "answer is",
        "the correct answer is",
        "correct answer is",
        "the best answer is",
        "best answer is",
    ),
    *("the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_MARKS = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}  # how a letter is written -> priority
_START, _END, _STATED = 10, 9, 7


def extract_choice(answer: str, *, letters: Iterable[str] = "ABCD") -> str | None:
    """The letter lmms-eval's rules find: the best-placed one of all that occur, never by the text of an option.

    A letter that opens the answer beats one that ends it, which beats the last one after a phrase such as `the answer
    is`; then come `(B)`, `B.`, `B:`, `B)`, `B ` and, only if nothing else was found, the letter anywhere. So an answer
    that opens with the article `A` reads as A.

    Args:
        answer: The text of the model.
        letters: The letters to look for, in upper case.

    Returns:
        A letter of `letters`, or None where none occurs.

    Source: lmms-eval `extract_mcq_answer` in `lmms_eval/tasks/_task_utils/mcq_extract.py`.
    """
    letters = tuple(letters)
    text = _strip_each(answer.strip(), ",.!?;:'\"")
    found = [*_marked_letters(text, letters), *_stated_letters(text, letters), *_outer_letters(text, letters)]
    if not found:
        found = [(0, position, letter) for letter in letters if (position := text.rfind(letter)) >= 0]
    # max() keeps the first of equals, as the reference's stable sort does.
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None


_Candidate = tuple[int, int, str]  # priority, position, letter


def _marked_letters(text: str, letters: tuple[str, ...]) -> list[_Candidate]:
    padded = f" {text} "
    return [
        (priority, position, letter)
        for letter in letters
        for mark, priority in _MARKS.items()
        if (position := padded.rfind(mark.format(letter))) >= 0
    ]


def _stated_letters(text: str, letters: tuple[str, ...]) -> list[_Candidate]:
    padded = f" {text} "
    folded = padded.lower()
    starts = [start + len(phrase) for phrase in _STATEMENTS if (start := folded.find(phrase)) >= 0]
    return [
        (_STATED, position, letter)
        for start in starts
        for letter in letters
        if (position := padded.find(letter, start)) >= 0
    ]


def _outer_letters(text: str, letters: tuple[str, ...]) -> list[_Candidate]:
    found: list[_Candidate] = []
    text = text.strip()  # taking marks away may have left a space: `. C: red` opens with the C
    if text[:1] in letters and not text[1:2].isalpha():
        found.append((_START, 0, text[0]))
    if text[-1:] in letters and not text[-2:-1].isalpha():
        found.append((_END, len(text) - 1, text[-1]))
    return found


def _strip_each(text: str, characters: str) -> str:
    """Strip the characters one after the other; each only once, so that `"B."` keeps its full stop."""
    for character in characters:
        text = text.strip(character)
    return text


def list_literal(text: str) -> list[str] | None:
    """The elements, as text, if `text` is a Python list written out; None otherwise."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(element) for element in value] if isinstance(value, list) else None


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")


def respace_punctuation(text: str, *, keep_dot_after_digit: bool) -> str:
    """The punctuation step of the VQA evaluation, as both references ship it.

    A mark is deleted if it stands beside a space somewhere in the text, or if the text holds a number such as `1,000`;
    otherwise it becomes a space. `. : ' * $ % & # | ~` and marks outside ASCII are no marks here. Full stops that are
    not followed by a digit go, the first 32 of them (upstream hands a flag over where the count belongs).

    Args:
        text: The text to clean.
        keep_dot_after_digit: Keep the full stop of `5.`, as VLMEvalKit does; lmms-eval means to, but its pattern
            has a look-ahead where a look-behind belongs.

    Source: VQA evaluation code (Antol et al., 2015), by way of lmms-eval `EvalAIAnswerProcessor` and VLMEvalKit
    `process_punctuation`.
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if delete_all or beside_space else " ")
    full_stop = r"(?<!\d)\.(?!\d)" if keep_dot_after_digit else r"\.(?!\d)"
    return re.sub(full_stop, "", cleaned, count=32)


def find_yes_or_no(text: str) -> str | None:
    """`Yes` or `No` if exactly one of the two is among the words, else None.

    Words are what white space separates after `respace_punctuation`: `no-one` holds `no`, `**Yes**` and `Yes:` hold
    neither, and `Yes. No other animal is there.` holds both.

    Source: VLMEvalKit `vlmeval/dataset/utils/yorn.py` (`YOrN_Extraction`).
    """
    words = respace_punctuation(text.lower(), keep_dot_after_digit=True).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


_REASONING_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))


def remove_reasoning(text: str) -> str:
    """The answer without the reasoning before it, stripped.

    Complete `<think>` and `<analysis>` spans are deleted; where only the closing tag stands, what follows the last one
    is kept; an opening tag that is never closed stays, with everything after it.

    Source: lmms-eval `lmms_eval/tasks/_task_utils/reasoning_utils.py`.
    """
    for opening, closing in _REASONING_TAGS:
        text = re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL)
        if opening not in text:
            text = text.rsplit(closing, 1)[-1]
    return text.strip()


def parse_int(text: str) -> int | None:
    """The integer that is the whole text (Python syntax, surrounding space allowed), else None."""
    try:
        return int(text)
    except ValueError:
        return None


def parse_float(text: str) -> float | None:
    """The number that is the whole text (Python syntax, surrounding space allowed), else None."""
    try:
        return float(text)
    except ValueError:
        return None
