r"""MATH-Vision: the final answer out of a worked solution, compared as text and as a number.

Sources: lmms-eval `lmms_eval/tasks/mathvision/{utils,eval_utils}.py`; VLMEvalKit `vlmeval/dataset/utils/mathv.py`. Both
evaluate what the model wrote as code; here `value_of` reads it. Roots, constants and letters are compared as text only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from vlmkit.evaluation.answers import parse_float
from vlmkit.evaluation.score import Score, grade
from vlmkit.evaluation.scorers.expressions import Value, value_of
from vlmkit.evaluation.scorers.multiple_choice import score_inferred_choice


def mathvision(*, prediction: str, answer: str, options: Mapping[str, str] | None = None) -> Score:
    """1 if the final answer found is the expected letter, the text of its option, or the expected value.

    Rational values are compared after rounding to two decimals (`0.333` is `1/3`); roots and constants only as text,
    as upstream.

    Source: lmms-eval's rule without a judge.
    """
    found = final_answer(prediction.strip())
    wanted = [answer, (options or {}).get(answer, "")]
    return grade(float(any(_same_to_two_decimals(text, found) for text in wanted)), extracted=found)


def mathvision_no_judge(*, prediction: str, answer: str, options: Mapping[str, str] | None = None) -> Score:
    r"""1 if `infer_choice` finds the letter, or the whole prediction of an open question equals the answer.

    Equal means the same text, or values of plain arithmetic within 1e-6. What holds a name has no value there, since the
    name is unknown where the expression is evaluated: `\sqrt{16}` is not `4`, nor `1+x` the same as `x+1`, while
    `\sqrt[3]{8}` is `2`. What is not equal is left to a judge.

    Source: VLMEvalKit, up to where it asks a judge.
    """
    if options:
        return score_inferred_choice(prediction=prediction, answer=answer, options=options)
    found = prediction.lower().strip()
    return grade(float(_same_to_a_millionth(answer.lower().strip(), found)), extracted=found)


_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_BOX = re.compile(r"oxed\{(.*)\}", re.DOTALL)


def final_answer(text: str) -> str:
    """What lmms-eval takes for the final answer of a solution, in lower case and cleaned of LaTeX dressing."""
    text = _reduce_to_letter(text)
    tail = text.rsplit("is ", 1)[-1].rstrip(".")
    if parse_float(tail) is not None:
        text = tail
    if "oxed{" not in text:
        text = _after_phrases(text)
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.rsplit("oxed{", 1)[-1]
    text = _clean(_unbox(text.lower()))
    for letter in "abcde":
        text = text.replace(f"({letter})", letter)
    for letter in "abcde":
        text = text.replace(f"{{{letter}}}", letter)
    return text.rstrip(".").lstrip(":").strip()


def _reduce_to_letter(text: str) -> str:
    for letter in "ABCDE":
        if text.endswith((f" {letter}.", f" ({letter}).")):
            text = letter
        if text.startswith((f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")):
            text = letter
    return text


def _after_phrases(text: str) -> str:
    for phrase in _PHRASES:
        for written in (phrase, phrase.replace("the", "The")):
            occurs = written in text
            text = text.rsplit(written, 1)[-1].strip()
            if occurs:
                text = text.split("\n")[0].split(". ")[0]
    return text


def _unbox(text: str) -> str:
    """The content of the box, if there is one, up to a brace that closes nothing; then what follows the last `=`."""
    text = text.replace("{}", "")
    boxes = _BOX.findall(text)
    text = boxes[-1] if boxes else text
    closing, opening = text.find("}"), text.find("{")
    if closing >= 0 and (opening < 0 or closing < opening):
        text = text[:closing]
    return text.rsplit("=", 1)[-1].rsplit("\\approx", 1)[-1]


_REPLACEMENTS = (
    *((" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", "")),
    *(("\\text", ""), ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("{m}^3", ""), ("m^3", "")),
    *(("{units}", ""), ("units", ""), ("{km}", ""), ("km", "")),
    *(("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""), ("\\%", ""), ("{.", "{0.")),
)
"""Applied one after the other; some repeat, since an earlier one may bring forth what a later one looks for."""

_BARE_ROOT = re.compile(r"\\sqrt(?!\\sqrt)([^{])")
_BARE_FRACTION = re.compile(r"\\frac(?!\\frac)([^{])(?:\{|(?!\\frac)(.))")
_SIMPLE_FRACTION = re.compile(r"(-?\d+)/(-?\d+)")


def _clean(text: str) -> str:
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    if text.startswith("."):
        text = f"0{text}"
    if "sqrt" in text:
        text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
        text = _BARE_FRACTION.sub(lambda m: f"\\frac{{{m[1]}}}{{" + (f"{m[2]}}}" if m[2] else ""), text)
    if text == "0.5":
        return "\\frac{1}{2}"
    if (fraction := _SIMPLE_FRACTION.fullmatch(text)) and text == f"{int(fraction[1])}/{int(fraction[2])}":
        return f"\\frac{{{fraction[1]}}}{{{fraction[2]}}}"
    return text


def _same_to_two_decimals(wanted: str, found: str) -> bool:
    wanted, found = wanted.lower().strip(), found.lower().strip()
    if not wanted or not found:
        return False
    if wanted == found:
        return True
    first, second = _rounded(wanted), _rounded(found)
    return first is not None and first == second


def _rounded(text: str) -> tuple[str, tuple[float, ...]] | None:
    """The kind of brackets and the rational values within, to two decimals; None where there are others."""
    brackets = text[0] + text[-1]
    parts = text[1:-1].split(",")
    if brackets not in {"()", "[]"} or len(parts) < 2:
        brackets, parts = "", [text]
    values = [value_of(part) for part in parts]
    numbers = tuple(round(float(value), 2) for value in values if isinstance(value, Fraction))
    return (brackets, numbers) if len(numbers) == len(parts) else None


_NAMED = re.compile(r"\\(?:sqrt(?!\s*\[)|pi|sin|cos|tan|ln|log|exp)(?![a-z])|[π|]")
"""What a computer algebra system writes with a name: the square root, constants, functions, absolute values."""


def _same_to_a_millionth(wanted: str, found: str) -> bool:
    if wanted == found:
        return True
    if _NAMED.search(wanted) or _NAMED.search(found):
        return False
    return _near(value_of(wanted), value_of(found))


def _near(first: Value | None, second: Value | None) -> bool:
    return first is not None and second is not None and abs(float(first) - float(second)) < 1e-6
