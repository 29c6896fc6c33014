"""What judges reply, read: first as the references read replies to their prompts, then replies to our own prompts.

Sources: lmms-eval `lmms_eval/llm_judge` and `lmms_eval/tasks/{llava-in-the-wild,mmvet,hallusion_bench}/utils.py`;
VLMEvalKit `vlmeval/dataset/utils/{llavabench,mmvet}.py`. A reply that cannot be read is None here, never a score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlmkit.evaluation.answers import REFUSED, infer_choice, parse_float
from vlmkit.evaluation.score import ProtocolName

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read_score_pair(reply: str, *, protocol: ProtocolName = "lmms-eval") -> tuple[float, float] | None:
    """The two scores on the first line of a comparison (LLaVA-Bench): reference first, model second.

    `lmms-eval` takes the first two numbers of the line; `vlmevalkit` wants two numbers, one space (or a comma) between
    them, and nothing else: `8, 7` fails there.
    """
    if protocol == "lmms-eval":
        line = reply.strip().split("\n")[0].replace(",", " ")
        found = [float(number) for number in _NUMBER.findall(line)]
        return (found[0], found[1]) if len(found) >= 2 else None
    parts = [parse_float(part) for part in reply.split("\n")[0].replace(",", " ").split(" ")]
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    return parts[0], parts[1]


def score_ratio(pairs: Sequence[tuple[float, float] | None], *, protocol: ProtocolName | None = None) -> float:
    """Mean score of the model as a percentage of the reference's mean.

    Args:
        pairs: (reference, model) of each review; None, or what the references put instead, where it failed.
        protocol: By default failed reviews (None, and the references' -1 and -999) are left out: report their number.
            `lmms-eval` leaves out -999 only, lets -1 lower both means, and rounds the means to three digits and the
            ratio to one. `vlmevalkit` leaves nothing out and rounds nothing.

    Raises:
        ValueError: No review is left, or the reference's mean is 0.
    """
    kept = [pair for pair in pairs if pair is not None and (protocol == "vlmevalkit" or -999 not in pair)]
    if protocol is None:
        kept = [pair for pair in kept if min(pair) >= 0]
    if not kept:
        raise ValueError("no review has scores")
    reference, model = (sum(scores) / len(kept) for scores in zip(*kept, strict=True))
    if protocol == "lmms-eval":
        reference, model = round(reference, 3), round(model, 3)
    if not reference:
        raise ValueError("the reference's scores add up to 0")
    ratio = 100 * (model / reference)
    return round(ratio, 1) if protocol == "lmms-eval" else ratio


def read_binary(reply: str, *, protocol: ProtocolName | None = None) -> bool | None:
    """A verdict of `1` or `0`; None for any other reply.

    `lmms-eval` takes every reply that contains a `1` for right, and every other for wrong.
    """
    if protocol == "lmms-eval":
        return "1" in reply
    return {"1": True, "0": False}.get(reply.strip())


def read_unit_score(reply: str, *, protocol: ProtocolName = "vlmevalkit") -> float | None:
    """A score from 0 to 1 (MM-Vet): the whole reply, with `lmms-eval` its first word; None if that is no such score."""
    text = reply.strip().split(" ")[0] if protocol == "lmms-eval" else reply
    score = parse_float(text.strip())
    return score if score is not None and 0 <= score <= 1 else None


def read_correctness(reply: str) -> bool | None:
    """`incorrect` is wrong, else `correct` is right, else None (HallusionBench in lmms-eval)."""
    folded = reply.lower()
    if "incorrect" in folded:
        return False
    return True if "correct" in folded else None


# --- replies to vlmkit's own prompts ----------------------------------------------------------------------------------

NO_ANSWER = "NONE"
"""What a judge says of a response in which it finds no answer."""
_EDGES = " \t\n*_`\"'.:()[]"
_LABEL = re.compile(r"^\s*(?:final |extracted )?answer\s*[:=]\s*", re.IGNORECASE)


def read_word(reply: str, words: Mapping[str, str]) -> str | None:
    """The value of the one word (or phrase) of `words` that a reply has, whatever the case; None for none or several.

    A word inside another is no occurrence: `incorrect` has no `correct`.
    """
    folded = reply.lower().replace("_", " ").replace("-", " ")
    found = {value for word, value in words.items() if re.search(rf"\b{re.escape(word)}\b", folded)}
    return found.pop() if len(found) == 1 else None


def read_digit(reply: str) -> bool | None:
    """A verdict of 1 or 0, if one of the two, and no other number, stands in the reply."""
    found = set(_NUMBER.findall(reply))
    return {"1": True, "0": False}.get(found.pop()) if len(found) == 1 else None


def read_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The option that a judge says was chosen, `REFUSED` for none of them, None where the reply cannot be read."""
    bare = reply.strip(_EDGES).upper()
    if bare in options or bare == REFUSED:
        return bare
    return infer_choice(reply, options=options)


def read_extraction(reply: str) -> str | None:
    """The answer that a judge took out of a response, on its last line; `NO_ANSWER` where it says so, None for nothing."""
    lines = [line for line in reply.splitlines() if line.strip(_EDGES)]
    found = _LABEL.sub("", lines[-1]).strip(" \t*`") if lines else ""
    return NO_ANSWER if found.strip(_EDGES).upper() == NO_ANSWER else found or None


def read_share(reply: str) -> float | None:
    """A score from 0 to 1, if it is the only number in the reply."""
    found = [float(number) for number in _NUMBER.findall(reply)]
    return found[0] if len(found) == 1 and 0 <= found[0] <= 1 else None


def read_review(reply: str) -> tuple[float, float] | None:
    """Two scores from 1 to 10, if they are all the numbers on the first line: `8/10 9/10` is not understood."""
    line = reply.strip().split("\n")[0]
    found = [float(number) for number in _NUMBER.findall(line)]
    return (found[0], found[1]) if len(found) == 2 and all(1 <= one <= 10 for one in found) else None


def read_three_words(reply: str) -> str | None:
    """`correct`, `incorrect` or `unclear`, if it is the only one of them in the reply."""
    return read_word(reply, {word: word for word in ("correct", "incorrect", "unclear")})
