"""METEOR 1.5 for English captions, with rules of grammar in place of its tables: an approximation.

METEOR aligns words that are equal, share a stem, are synonyms in WordNet, or are paraphrases in a table learned from
parallel corpora. Formula, weights and alignment are those of METEOR 1.5 (Denkowski and Lavie, 2014; the ranking
parameters for English), and so are its function words. Of the other resources there is here a light stemmer, and two
kinds of paraphrase that follow from grammar: an auxiliary with a participle for the plain verb (`is sitting`,
`sits`), and one article for the other before the same word (`the street`, `a street`). There are no synonyms. Say so
when reporting, and never compare the value with one from the Java program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_EXACT, _STEM, _PHRASE = "exact", "stem", "phrase"
_CREDIT = {_EXACT: 1.0, _STEM: 0.6, _PHRASE: 0.6}  # in the score
_PREFERENCE = {_EXACT: 1.0, _STEM: 0.5, _PHRASE: 0.5}  # in the choice of an alignment
_BEAM = 40

_ARTICLES = {"a", "an", "the"}
_AUXILIARIES = {"am", "is", "are", "was", "were", "be", "been", "being"}
_FREQUENT_WORDS = """
    the to of and a in that for is on 's it with was as said at he by be from have has are his but an this not i will they
    who their had we which were been more or its would about new one after you also up when there than all out her people
    she year two can if last first over other into some what so no time years could 't ' -- -rrb- -lrb- $
"""
_FUNCTION_WORDS = set(_FREQUENT_WORDS.split())
"""Words whose share of an English news corpus is above one in a thousand: METEOR weighs them less than the others."""


class _Match(NamedTuple):
    start: int
    length: int
    other_start: int
    other_length: int
    kind: str


@dataclass(frozen=True, slots=True)
class _Path:
    """An alignment up to some word of the reference."""

    matches: tuple[_Match, ...] = ()
    used: frozenset[int] = frozenset()
    preference: float = 0.0
    chunks: int = 0
    distance: int = 0

    def extended(self, match: _Match) -> _Path:
        last = self.matches[-1] if self.matches else None
        follows = (
            last is not None
            and last.start + last.length == match.start
            and last.other_start + last.other_length == match.other_start
        )
        return _Path(
            matches=(*self.matches, match),
            used=self.used | set(range(match.start, match.start + match.length)),
            preference=self.preference + _PREFERENCE[match.kind] * (match.length + match.other_length),
            chunks=self.chunks + (not follows),
            distance=self.distance + abs(match.start - match.other_start),
        )

    @property
    def rank(self) -> tuple[float, int, int]:
        return (-self.preference, self.chunks, self.distance)


@dataclass(frozen=True, slots=True)
class _Counts:
    """What segments are summed by, before the score of the whole is computed."""

    matched: float = 0.0
    other_matched: float = 0.0
    weight: float = 0.0
    other_weight: float = 0.0
    chunks: int = 0
    num_matched: int = 0
    other_num_matched: int = 0

    def plus(self, other: _Counts) -> _Counts:
        return _Counts(*(getattr(self, name) + getattr(other, name) for name in _Counts.__slots__))

    @property
    def score(self) -> float:
        if not self.matched or not self.other_matched:
            return 0.0
        precision, recall = self.matched / self.weight, self.other_matched / self.other_weight
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = 2 * self.chunks / (self.num_matched + self.other_num_matched)
        return mean * (1 - _GAMMA * fragments**_BETA)


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Score of a set of tokenised, lower-case captions: counts against the best reference of each, summed.

    Raises:
        ValueError: The lengths differ, or a caption has no references.
    """
    total = _Counts()
    for prediction, captions in zip(predictions, references, strict=True):
        counts = [_count(prediction.split(), caption.split()) for caption in captions]
        total = total.plus(max(counts, key=lambda count: count.score))
    return total.score


def _count(words: list[str], others: list[str]) -> _Counts:
    path = _align(words, others)
    credit = [_CREDIT[match.kind] for match in path.matches]
    spans = [words[match.start : match.start + match.length] for match in path.matches]
    other_spans = [others[m.other_start : m.other_start + m.other_length] for m in path.matches]
    num_matched, other_num_matched = sum(map(len, spans)), sum(map(len, other_spans))
    complete = num_matched == len(words) and other_num_matched == len(others)
    return _Counts(
        matched=sum(share * _weight(span) for share, span in zip(credit, spans, strict=True)),
        other_matched=sum(share * _weight(span) for share, span in zip(credit, other_spans, strict=True)),
        weight=_weight(words),
        other_weight=_weight(others),
        chunks=0 if complete and path.chunks == 1 else path.chunks,  # a whole sentence does not count as a fragment
        num_matched=num_matched,
        other_num_matched=other_num_matched,
    )


def _weight(words: Sequence[str]) -> float:
    return sum(1 - _DELTA if word in _FUNCTION_WORDS else _DELTA for word in words)


def _align(words: list[str], others: list[str]) -> _Path:
    """The alignment that covers most, in fewest chunks, with least distance; by a beam, from left to right."""
    waiting: list[list[_Path]] = [[_Path()], *([] for _ in others)]
    for place in range(len(others)):
        for path in sorted(waiting[place], key=lambda path: path.rank)[:_BEAM]:
            waiting[place + 1].append(path)
            for match in _matches(words, others, place):
                if path.used.isdisjoint(range(match.start, match.start + match.length)):
                    waiting[place + match.other_length].append(path.extended(match))
    return min(waiting[-1], key=lambda path: path.rank)


def _matches(words: list[str], others: list[str], place: int) -> Iterator[_Match]:
    other = others[place]
    for start, word in enumerate(words):
        if word == other:
            yield _Match(start, 1, place, 1, _EXACT)
        elif stem(word) == stem(other):
            yield _Match(start, 1, place, 1, _STEM)
        for length, other_length in ((1, 2), (2, 1), (2, 2)):
            ours, theirs = words[start : start + length], others[place : place + other_length]
            if len(ours) == length and len(theirs) == other_length and _paraphrase(ours, theirs):
                yield _Match(start, length, place, other_length, _PHRASE)


def _paraphrase(ours: list[str], theirs: list[str]) -> bool:
    if len(ours) == len(theirs):
        return ours[1] == theirs[1] and ours[0] != theirs[0] and {ours[0], theirs[0]} <= _ARTICLES
    plain, compound = sorted((ours, theirs), key=len)
    return compound[0] in _AUXILIARIES and compound[1] != plain[0] and stem(compound[1]) == stem(plain[0])


def stem(word: str) -> str:
    """The word without its plural, past or progressive ending: `sit`, `sits` and `sitting` are one, and so on."""
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and any(vowel in root for vowel in "aeiouy"):
            doubled = len(root) > 2 and root[-1] == root[-2] and root[-1] not in "aeiouls"
            return root[:-1] if doubled else root.removesuffix("e")
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word
