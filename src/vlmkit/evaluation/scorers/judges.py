"""What judges reply, read.

Sources: lmms-eval `lmms_eval/llm_judge` and `lmms_eval/tasks/{llava-in-the-wild,mmvet,hallusion_bench}/utils.py`;
VLMEvalKit `vlmeval/dataset/utils/{llavabench,mmvet}.py`. A reply that cannot be read is None here, never a score.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmkit.evaluation.answers import parse_float
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
