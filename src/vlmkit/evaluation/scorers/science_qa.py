"""ScienceQA: the bare letter, or the letter and a full stop, and nothing else.

Source: lmms-eval `lmms_eval/tasks/scienceqa/utils.py`. VLMEvalKit scores it with `score_inferred_choice`.
"""

from __future__ import annotations

from vlmkit.evaluation.score import Score, grade


def science_qa(*, prediction: str, answer: str) -> Score:
    """1 if the prediction is the letter (in either case) or starts with the capital letter and a full stop.

    `(B)`, `B)`, `b.`, `The answer is B.` and the text of the option are not understood, as upstream: unparsed.
    """
    given = prediction.strip()
    if len(given) == 1 and given.isalpha():
        letter = given.upper()
    elif len(given) >= 2 and given[0].isupper() and given[1] == ".":
        letter = given[0]
    else:
        letter = None
    return grade(float(letter == answer.strip().upper()), extracted=letter)
