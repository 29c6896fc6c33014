"""The references' rules written down once more, step by step as their descriptions have them, without vlmkit's scorers.

Slow and plain on purpose: `test_mutated_cases.py` compares them with the scorers on texts that nobody wrote by hand.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

Case = Mapping[str, Any]


def plain_score(case: Case) -> float | None:
    """The score of a golden case by the plain rule; None where its rule is not among them."""
    rule = PLAIN_RULES.get((case["rule"], case["source"]))
    return None if rule is None else float(rule(case))


# --- short answers ----------------------------------------------------------------------------------------------------

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        map(str, range(11)),
        strict=True,
    )
)
_NUMBERS["none"] = "0"
_CONTRACTIONS = {
    without.replace("'", ""): without
    for without in [
        "don't",
        "can't",
        "isn't",
        "doesn't",
        "didn't",
        "won't",
        "wasn't",
        "aren't",
        "that's",
        "what's",
        "he's",
        "they're",
        "you're",
        "couldn't",
    ]
}


def _normalised(text: str, *, lmms_eval: bool) -> str:
    if lmms_eval:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    joined = any(
        a.isdigit() and b == "," and c.isdigit() for a, b, c in zip(before, before[1:], before[2:], strict=False)
    )
    for mark in _MARKS:
        if joined or f"{mark} " in before or f" {mark}" in before:
            text = "".join(text.split(mark))
        else:
            text = " ".join(text.split(mark))
    kept, dropped = "", 0
    for place, character in enumerate(text):
        follows = text[place + 1 : place + 2].isdigit()
        after_digit = text[place - 1 : place].isdigit() if place else False
        if character == "." and not follows and (lmms_eval or not after_digit) and dropped < 32:
            dropped += 1
            continue
        kept += character
    words = [_NUMBERS.get(word, word) for word in kept.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def _soft_accuracy(case: Case, *, lmms_eval: bool) -> float:
    prediction = case["prediction"].strip() if lmms_eval else case["prediction"]
    prediction = _normalised(prediction, lmms_eval=lmms_eval)
    answers = [_normalised(str(answer), lmms_eval=lmms_eval) for answer in _answers(case)]
    shares: list[float] = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        shares.append(min(1.0, others.count(prediction) / 3))
    return sum(shares) / len(shares)


def _share_of_annotators(case: Case) -> float:
    prediction = _normalised(case["prediction"], lmms_eval=False)
    answers = [_normalised(str(answer), lmms_eval=False) for answer in _answers(case)]
    return answers.count(prediction) / len(answers)


def _normalised_match(case: Case) -> bool:
    return _normalised(case["prediction"].strip(), lmms_eval=True) == _normalised(case["answer"], lmms_eval=True)


def _answers(case: Case) -> list[Any]:
    return list(case["answers"]) if "answers" in case else [case["answer"]]


def _edits(first: str, second: str) -> int:
    table = [
        [row + column if not row * column else 0 for column in range(len(second) + 1)] for row in range(len(first) + 1)
    ]
    for row in range(1, len(first) + 1):
        for column in range(1, len(second) + 1):
            change = table[row - 1][column - 1] + (first[row - 1] != second[column - 1])
            table[row][column] = min(change, table[row - 1][column] + 1, table[row][column - 1] + 1)
    return table[-1][-1]


def _anls(case: Case, *, lmms_eval: bool) -> float:
    prediction = case["prediction"].strip() if lmms_eval else case["prediction"]
    distances: list[float] = []
    for answer in map(str, _answers(case)):
        length = max(len(answer.upper()), len(prediction.upper()))
        edits = _edits(" ".join(answer.strip().lower().split()), " ".join(prediction.strip().lower().split()))
        distances.append(edits / length if length else 0.0)
    best = 1 - min(distances)
    return best if best >= 0.5 else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _relaxed(case: Case, *, lmms_eval: bool) -> bool:
    prediction, targets = case["prediction"].strip(), [case["answer"]]
    if not lmms_eval and targets[0].startswith("[") and targets[0].endswith("]"):
        targets = [str(target) for target in ast.literal_eval(targets[0])]
    for target in targets:
        ours, theirs = _number(prediction), _number(target)
        if ours is not None and theirs:
            right = abs(ours - theirs) / abs(theirs) <= 0.05
        else:
            right = prediction.lower() == target.lower()
        if right:
            return True
    return False


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower() if character not in string.punctuation)


def _exact_match(case: Case, *, lmms_eval: bool) -> bool:
    prediction, answer = case["prediction"].strip(), case["answer"]
    if lmms_eval:
        return _without_punctuation(prediction) == _without_punctuation(answer)
    return prediction.lower() == answer.strip().lower()


def _contains(case: Case, *, lmms_eval: bool) -> bool:
    extra = case.get("extra") or {}
    if lmms_eval and extra.get("dataset") is not None:
        formula = extra["dataset"] == "HME100k"
    else:
        formula = extra.get("category") == "Handwritten Mathematical Expression Recognition"

    def prepared(text: str) -> str:
        if lmms_eval and not formula:
            text = "".join(
                chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character for character in text
            ).replace("\u3000", " ")
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    return any(prepared(str(answer)) in prepared(case["prediction"]) for answer in _answers(case))


# --- letters ----------------------------------------------------------------------------------------------------------


def _inferred(text: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's inference."""
    refusals = (
        "Sorry, I can't help with images of people yet.",
        "I can't process this file.",
        "I'm sorry, but without the image provided",
        "Cannot determine the answer",
    )
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in refusals):
            return "Z"
        spaced = text
        for mark in ".()[],:;!*#{}":
            spaced = spaced.replace(mark, " ")
        tokens = spaced.split()
        present = {letter for letter in options if letter in tokens}
        if len(present) == 1:
            (letter,) = present
            if tokens.index(letter) > len(tokens) - 5:
                return letter
        if not present and "Z" in tokens:
            return "Z"
        stated = re.search(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", text)
        if stated and stated.group(1).upper() in options:
            return stated.group(1).upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    contained = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return contained[0] if len(contained) == 1 else None


_PHRASES = [
    f"{article}{kind}{noun} is"
    for noun, kinds in (
        ("answer", ("", "correct ", "best ")),
        ("option", ("correct ", "best ")),
        ("choice", ("", "correct ")),
    )
    for kind in kinds
    for article in ("the ", "")
] + ["i choose", "i select", "i pick", "my answer is", "my choice is"]
_PHRASES += ["옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"]


def _extracted(text: str, letters: str = "ABCD") -> str:
    """lmms-eval's extraction."""
    if not text.strip():
        return ""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    padded, stripped = f" {text} ", text.strip()
    found: list[tuple[int, int, str]] = []
    for priority, form in ((6, "(X)"), (5, "X."), (4, "X:"), (3, "X)"), (2, "X ")):
        for letter in letters:
            if form.replace("X", letter) in padded:
                found.append((priority, padded.rindex(form.replace("X", letter)), letter))
    for phrase in _PHRASES:
        start = padded.lower().find(phrase)
        for letter in letters if start >= 0 else "":
            if letter in padded[start + len(phrase) :]:
                found.append((7, padded.index(letter, start + len(phrase)), letter))
    if stripped and stripped[0] in letters and not stripped[1:2].isalpha():
        found.append((10, 0, stripped[0]))
    if stripped and stripped[-1] in letters and not stripped[-2:-1].isalpha():
        found.append((9, len(stripped) - 1, stripped[-1]))
    if not found:
        found = [(0, padded.rindex(letter), letter) for letter in letters if letter in padded]
    best = max(((priority, position) for priority, position, _ in found), default=None)
    ties = sorted({letter for priority, position, letter in found if (priority, position) == best})
    return ties[0] if ties else ""


def _extracted_right(case: Case) -> bool:
    letter, answer = _extracted(case["prediction"]), case["answer"]
    if case["benchmark"] == "realworldqa":
        return letter.lower() == answer.lower()
    return letter == answer


def _realworldqa_open(case: Case) -> bool:
    answer = case["answer"].lower().strip()
    if answer in ("a", "b", "c", "d"):
        return _extracted(case["prediction"]).lower() == answer
    return case["prediction"].strip().lower().rstrip(".") == answer


def _seed(case: Case) -> bool:
    return case["prediction"].strip()[:1].lower() == case["answer"].lower()


def _ai2d(case: Case) -> bool:
    text = case["prediction"].strip()
    opening = re.match(r"\s*([A-Z])\.", text)
    return _without_punctuation(opening.group(1) if opening else text) == case["answer"].lower()


def _blink(case: Case) -> bool:
    text = case["prediction"].strip().lstrip("( \t\r\n\v\f")
    return bool(text) and text[0].upper() == case["answer"].strip("()") and text[0].upper() in string.ascii_uppercase


def _mvbench_vlmevalkit(case: Case) -> bool:
    first, wanted = case["prediction"].lower().split(" ")[0], f"({case['answer'].lower()})"
    if first.replace(".", "") in wanted or wanted in first:
        return True
    return _inferred(case["prediction"], case["options"]) == case["answer"]


def _mlvu(case: Case) -> bool:
    text = case["prediction"]
    before = text[max(text.index(")") - 1, 0) : text.index(")")] if ")" in text else text
    return before == case["answer"] or _inferred(text, case["options"]) == case["answer"]


def _science_qa(case: Case) -> bool:
    text, answer = case["prediction"].strip(), case["answer"].lower()
    if text.lower() == answer:
        return True
    return len(text) >= 2 and text[0].isupper() and text[1] == "." and text[0].lower() == answer


def _mmbench(case: Case) -> bool:
    text, options = case["prediction"].strip(), case["options"]
    words = text.split()
    letter = ""
    bare = [each for each in "ABCDE" if each in words]
    if "Failed to obtain answer via API" not in text:
        if len(bare) == 1 and not ("A" in words and len(words) > 3):
            letter = bare[0]
        for form in ["X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X)."]:
            decorated = [each for each in "ABCDE" if form.replace("X", each) in words]
            if not letter and len(decorated) == 1:
                letter = decorated[0]
    if not letter:
        contained = [each for each in "ABCD" if each in options and options[each].lower() in text.lower()]
        letter = contained[0] if len(contained) == 1 else _extracted(text)
    return letter == case["answer"]


def _mmmu_pro_cot(case: Case) -> bool:
    answers = [line[len("Answer:") :] for line in case["prediction"].split("\n") if line.startswith("Answer:")]
    if answers:
        capitals = {character for character in answers[-1] if character in string.ascii_uppercase}
        text = capitals.pop() if len(capitals) == 1 else answers[-1]
    else:
        text = case["prediction"]
    return _inferred(text, case["options"]) == case["answer"]


def _mmmu_as_choice(case: Case) -> bool:
    options = case.get("options") or {"A": case["answer"], "B": "Other Answers"}
    return _inferred(case["prediction"], options) == (case["answer"] if case.get("options") else "A")


def _inferred_right(case: Case) -> bool:
    return _inferred(case["prediction"], case["options"]) == case["answer"]


# --- yes and no -------------------------------------------------------------------------------------------------------


def _pope_vlmevalkit(case: Case) -> bool:
    text = case["prediction"].lower()
    joined = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _MARKS:
        cleaned = cleaned.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    words = re.sub(r"(?<!\d)\.(?!\d)", "", cleaned, count=32).split()
    found = "Yes" if "yes" in words else "No"
    return ("yes" in words) != ("no" in words) and found == case["answer"]


def _mme(case: Case) -> bool:
    text = case["prediction"].strip().lower().replace(".", "")
    if text not in ("yes", "no"):
        if len(text) == 1:
            text = {"y": "yes", "n": "no"}.get(text, "other")
        else:
            text = "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"
    return text == case["answer"].strip().lower()


PLAIN_RULES: Mapping[tuple[str, str], Callable[[Case], float | bool]] = {
    ("vqa_soft_accuracy", "lmms-eval"): lambda case: _soft_accuracy(case, lmms_eval=True),
    ("vqa_soft_accuracy", "vlmevalkit"): lambda case: _soft_accuracy(case, lmms_eval=False),
    ("vqa_mean_exact", "vlmevalkit"): _share_of_annotators,
    ("vqa_exact_match", "lmms-eval"): _normalised_match,
    ("anls", "lmms-eval"): lambda case: _anls(case, lmms_eval=True),
    ("anls", "vlmevalkit"): lambda case: _anls(case, lmms_eval=False),
    ("relaxed_accuracy", "lmms-eval"): lambda case: _relaxed(case, lmms_eval=True),
    ("relaxed_accuracy", "vlmevalkit"): lambda case: _relaxed(case, lmms_eval=False),
    ("gqa_exact_match", "lmms-eval"): lambda case: _exact_match(case, lmms_eval=True),
    ("gqa_exact_match", "vlmevalkit"): lambda case: _exact_match(case, lmms_eval=False),
    ("ocrbench", "lmms-eval"): lambda case: _contains(case, lmms_eval=True),
    ("ocrbench", "vlmevalkit"): lambda case: _contains(case, lmms_eval=False),
    ("mcq_inference", "vlmevalkit"): _inferred_right,
    ("mmmu_as_mcq", "vlmevalkit"): _mmmu_as_choice,
    ("mmmu_pro_cot", "vlmevalkit"): _mmmu_pro_cot,
    ("mcq_extract", "lmms-eval"): _extracted_right,
    ("realworldqa_open", "lmms-eval"): _realworldqa_open,
    ("seed_letter", "lmms-eval"): _seed,
    ("ai2d_letter", "lmms-eval"): _ai2d,
    ("blink_letter", "lmms-eval"): _blink,
    ("mvbench_letter", "vlmevalkit"): _mvbench_vlmevalkit,
    ("mlvu_letter", "vlmevalkit"): _mlvu,
    ("scienceqa", "lmms-eval"): _science_qa,
    ("mmbench_en_letter", "lmms-eval"): _mmbench,
    ("mmmu_pro_vision_raw", "lmms-eval"): lambda case: case["prediction"].strip() == case["answer"],
    ("pope", "lmms-eval"): lambda case: case["prediction"].strip().lower() == case["answer"].strip().lower(),
    ("pope", "vlmevalkit"): _pope_vlmevalkit,
    ("mme_answer", "lmms-eval"): _mme,
}
"""By rule and reference: only those whose description leaves nothing open."""
