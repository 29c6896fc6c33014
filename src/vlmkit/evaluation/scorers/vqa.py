"""Short answers against those of several annotators (TextVQA, VizWiz, SimpleVQA without a judge).

Sources: the VQA evaluation code (Antol et al., 2015); lmms-eval `lmms_eval/tasks/_task_utils/vqa_eval_metric.py` and
`lmms_eval/tasks/{textvqa,vizwiz_vqa,simplevqa}/utils.py`; VLMEvalKit `vlmeval/dataset/utils/vqa_eval.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evaluation.answers import respace_punctuation
from vlmkit.evaluation.score import ProtocolName, Score, grade

_NUMBERS = {
    "none": "0",
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_ARTICLES = {"a", "an", "the"}

_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_PRONOUNS = ("he", "it", "she", "somebody", "someone", "something", "there", "they", "we", "who", "you")
_VERBS = ("could", "had", "might", "should", "would")
_CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _CONTRACTED.split()},
    **{written: f"{verb}n't've" for verb in _VERBS for written in (f"{verb}nt've", f"{verb}n'tve")},
    **{written: f"{who}'d've" for who in _PRONOUNS for written in (f"{who}d've", f"{who}'dve")},
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    "somebody'd": "somebodyd",
}
"""Words that are given their apostrophes; upstream's entries that cannot match lower-case text are left out."""


def normalise_vqa_answer(text: str, *, protocol: ProtocolName = "lmms-eval") -> str:
    """An answer in the form in which VQA answers are compared.

    Lower case, punctuation respaced, number words up to ten as digits (`None` is 0), articles dropped, apostrophes put
    into contractions. The protocols differ in `5.` (`5` or, with VLMEvalKit, `5.`), in possessives, and in commas and
    question marks inside words, which lmms-eval deletes first.
    """
    if protocol == "lmms-eval":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = respace_punctuation(text, keep_dot_after_digit=protocol == "vlmevalkit").lower()
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_soft_accuracy(*, prediction: str, answers: Sequence[str], protocol: ProtocolName = "lmms-eval") -> Score:
    """Mean over the annotators of min(1, number of the *other* annotators who agree / 3).

    With ten annotators, n in agreement score 0, 0.3, 0.6, 0.9, 1 for n = 0, 1, 2, 3, 4 and more. A lone answer has no
    others and always scores 0.

    Raises:
        ValueError: `answers` is empty.
    """
    given, references = _normalise_all(prediction, answers, protocol)
    agreeing = references.count(given)
    shares = [min(1.0, (agreeing - (reference == given)) / 3) for reference in references]
    return grade(sum(shares) / len(shares), extracted=given)


def vqa_mean_exact(*, prediction: str, answers: Sequence[str], protocol: ProtocolName = "vlmevalkit") -> Score:
    """Share of the annotators whose answer is the prediction: VLMEvalKit's VizWiz, not the soft accuracy.

    Raises:
        ValueError: `answers` is empty.
    """
    given, references = _normalise_all(prediction, answers, protocol)
    return grade(references.count(given) / len(references), extracted=given)


def vqa_exact_match(*, prediction: str, answer: str, protocol: ProtocolName = "lmms-eval") -> Score:
    """1 if both are the same after normalisation (SimpleVQA in lmms-eval). Chinese marks are not normalised."""
    given, (reference,) = _normalise_all(prediction, [answer], protocol)
    return grade(float(given == reference), extracted=given)


def _normalise_all(prediction: str, answers: Sequence[str], protocol: ProtocolName) -> tuple[str, list[str]]:
    if not answers:
        raise ValueError("no answers to compare with")
    given = normalise_vqa_answer(prediction, protocol=protocol)
    return given, [normalise_vqa_answer(answer, protocol=protocol) for answer in answers]
