"""Captions against several references: BLEU, ROUGE-L and CIDEr over a whole set (COCO).

Sources: Papineni et al., 2002; Lin, 2004; Vedantam et al., 2015; as implemented in `pycocoevalcap`, which both
references use. lmms-eval tokenises first (`ptb_words`); VLMEvalKit does not, and multiplies by 100. All values here are
plain (CIDEr reaches 10). CIDEr weighs words by the references of the whole set: never average it over parts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from vlmkit.evaluation.score import ProtocolName
from vlmkit.evaluation.scorers.meteor import meteor

_ORDER = 4
_Grams = Counter[tuple[str, ...]]

_CONTRACTION = re.compile(r"(?i)n't\b|'(?:s|m|d|re|ve|ll)\b")
_ABBREVIATIONS = (
    "mr mrs ms dr prof rev gen gov sen rep capt col lt sgt jr sr st mt ave rd blvd sq ft dept univ assn bros co corp inc ltd "
    "est ext tel vs cf al etc jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri"
)
_PTB_WORD = re.compile(
    rf"""
      (?<!\S)(?:n't|'(?:s|m|d|re|ve|ll))(?!\S)  # what is left of a contraction
    | [^\s@]+@[^\s@]+\.[^\W\d_]+              # an e-mail address
    | <[^<>\s]+>                             # markup
    | \d+/\d+                                # 1/2
    | \d+(?:[.,:]\d+)*(?![\w'-])             # 1,000  3.5  12:30
    | (?:ph\.d|(?<!\w)[^\W\d_](?:\.[^\W\d_])*|\b(?:{"|".join(_ABBREVIATIONS.split())}))\.(?![\w.])  # a.  u.s.  mr.
    | \b(?:nos?|figs?|pp|op|art)\.(?=\s*\d)   # no. 5
    | \w+(?:[-'/.]\w+)*                      # t-shirt  o'clock  his/hers  example.com
    | [?!]{{2,}} | \*+ | \.{{2,}} | -+ | [^\w\s]
    """,
    re.VERBOSE,
)
_DROPPED = frozenset("'\"`?!,:;")
_PLAIN_MARKS = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})
_REWRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"},
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"},
}


def ptb_words(text: str) -> str:
    """Lower-case words in the manner of the Penn Treebank, without punctuation, joined by spaces.

    Stands in for the Java tokeniser that lmms-eval runs: contractions are split (`is n't`, `dog 's`), hyphenated words,
    numbers and abbreviations (`mr.`, a single letter with its full stop) stay whole, and what upstream fails to drop stays
    here too: brackets as `-lrb-` and the like, and several marks in a row (`!!`, `?!`). Rare cases may differ.
    """
    text = _CONTRACTION.sub(lambda found: f" {found[0]} ", text.lower().translate(_PLAIN_MARKS))
    words: list[str] = _PTB_WORD.findall(text)
    return " ".join(_REWRITTEN.get(word, word) for word in words if word not in _DROPPED and word.strip("-."))


def caption_scores(
    *, predictions: Sequence[str], references: Sequence[Sequence[str]], protocol: ProtocolName = "lmms-eval"
) -> dict[str, float]:
    """All caption metrics of a set, named as the references name them.

    `Bleu_1` to `Bleu_4`, `ROUGE_L` and `CIDEr`; with `lmms-eval` also `METEOR`, which is our approximation (see there).

    Raises:
        ValueError: The set is empty, the lengths differ, or a caption has no references.
    """
    if protocol == "lmms-eval":
        predictions = [ptb_words(prediction) for prediction in predictions]
        references = [[ptb_words(reference) for reference in captions] for captions in references]
    scores = {f"Bleu_{n}": value for n, value in enumerate(bleu(predictions, references), start=1)}
    scores |= {"ROUGE_L": rouge_l(predictions, references), "CIDEr": cider(predictions, references)}
    if protocol == "lmms-eval":
        scores["METEOR"] = meteor(predictions, references)
    return scores


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Corpus BLEU of orders 1 to 4, with the length of the closest reference and pycocoevalcap's tiny floors."""
    _check(predictions, references)
    matches, totals = [0] * _ORDER, [0] * _ORDER
    num_words = num_reference_words = 0
    for prediction, captions in zip(predictions, references, strict=True):
        length = len(prediction.split())
        num_words += length
        num_reference_words += min((abs(len(c.split()) - length), len(c.split())) for c in captions)[1]
        most: _Grams = Counter()
        for caption in captions:
            most |= _grams(caption)
        for gram, count in _grams(prediction).items():
            matches[len(gram) - 1] += min(count, most[gram])
        for order in range(_ORDER):
            totals[order] += max(0, length - order)
    ratio = (num_words + 1e-15) / (num_reference_words + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, list[float]()
    for order in range(_ORDER):
        product *= (matches[order] + 1e-15) / (totals[order] + 1e-9)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over the captions of the F-measure (recall weighs 1.2 squared) of the longest common subsequence.

    Precision and recall are the best over the references, each for itself.
    """
    _check(predictions, references)
    return sum(map(_rouge_l, predictions, references)) / len(predictions)


def _rouge_l(prediction: str, captions: Sequence[str]) -> float:
    words = prediction.split(" ")
    others = [caption.split(" ") for caption in captions]
    common = [_common_length(words, other) for other in others]
    precision = max(length / len(words) for length in common)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    weight = 1.2**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D: mean over captions, references and orders 1 to 4 of clipped, length-damped TF-IDF cosines, times 10."""
    _check(predictions, references)
    reference_grams = [[_grams(caption) for caption in captions] for captions in references]
    containing = Counter(gram for captions in reference_grams for gram in set().union(*captions))
    log_size = math.log(len(references))

    def weight(gram: tuple[str, ...]) -> float:
        return log_size - math.log(max(1, containing[gram]))

    total = 0.0
    for prediction, captions in zip(predictions, reference_grams, strict=True):
        grams = _grams(prediction)
        total += 10 * sum(_cider_pair(grams, caption, weight) for caption in captions) / len(captions)
    return total / len(predictions)


def _cider_pair(grams: _Grams, caption: _Grams, weight: Callable[[tuple[str, ...]], float]) -> float:
    # The length is counted in pairs of words, as upstream.
    difference = sum(count for gram, count in grams.items() if len(gram) == 2) - sum(
        count for gram, count in caption.items() if len(gram) == 2
    )
    damping = math.exp(-(difference**2) / (2 * 6.0**2))
    total = 0.0
    for order in range(1, _ORDER + 1):
        ours = {gram: count * weight(gram) for gram, count in grams.items() if len(gram) == order}
        theirs = {gram: count * weight(gram) for gram, count in caption.items() if len(gram) == order}
        product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs)
        norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        total += damping * (product / norms if norms else product)
    return total / _ORDER


def _grams(text: str) -> _Grams:
    words = text.split()
    return Counter(
        tuple(words[start : start + order]) for order in range(1, _ORDER + 1) for start in range(len(words) - order + 1)
    )


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"as many captions as lists of references are wanted, none empty; found {len(predictions)} captions and "
            f"{len(references)} lists"
        )
