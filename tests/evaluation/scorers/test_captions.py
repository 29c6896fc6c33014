"""Captions: what can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from vlmkit.evaluation.scorers.captions import bleu, caption_scores, cider, ptb_words, rouge_l
from vlmkit.evaluation.scorers.meteor import meteor, stem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog.", "a dog"),
        ("A man's t-shirt, isn't it?", "a man 's t-shirt is n't it"),
        ("1,000 people; 3.5 m", "1,000 people 3.5 m"),
        ("a (red) car -- fast...", "a -lrb- red -rrb- car fast"),
        ("the u.s. flag\n", "the u.s. flag"),
        ("mr. smith, a. b. and no. 5.", "mr. smith a. b. and no. 5"),
        ("woman!! what?! end... so.. yes!", "woman !! what ?! end so yes"),
        ("it’s “smart” – a—b…", "it 's smart a b"),
        ("1/2 of his/hers, 10th at@x.com www.a.com", "1/2 of his/hers 10th at@x.com www.a.com"),
        ("we cannot --- **see** <x>", "we can not ** see ** <x>"),
        ("", ""),
    ],
)
def test_words_of_a_caption(text: str, words: str) -> None:
    assert ptb_words(text) == words


def test_bleu_clips_counts_and_penalises_brevity() -> None:
    assert bleu(["the the the the"], [["the cat is here"]])[0] == pytest.approx(1 / 4)
    assert bleu(["the cat"], [["the cat is here"]])[0] == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu(["the cat is here"], [["a dog", "the cat is here"]]) == pytest.approx([1, 1, 1, 1])


def test_rouge_takes_the_longest_common_subsequence() -> None:
    assert rouge_l(["a cat here"], [["a big cat is here"]]) == pytest.approx(2.44 * 0.6 / (0.6 + 1.44))
    assert rouge_l(["dog"], [["a cat"]]) == 0
    assert rouge_l([""], [["a cat"]]) == 0


def test_cider_needs_words_that_tell_captions_apart() -> None:
    assert cider(["a cat sits here now", "x y z w v"], [["a cat sits here now"], ["x y z w v"]]) == pytest.approx(10)
    assert cider(["a cat"], [["a cat"]]) == 0  # one document: every word is everywhere
    assert cider(["a dog", "a cat"], [["a cat"], ["a dog"]]) == 0


def test_cider_is_of_the_whole_set() -> None:
    apart = (cider(["a cat"], [["a cat"]]) + cider(["a dog"], [["a dog"]])) / 2
    assert cider(["a cat", "a dog"], [["a cat"], ["a dog"]]) > apart


def test_meteor_of_equal_and_of_foreign_captions() -> None:
    assert meteor(["a cat sits"], [["a cat sits"]]) == pytest.approx(1)
    assert meteor(["dog"], [["a cat sits"]]) == 0
    assert meteor([""], [["a cat"]]) == 0


def test_meteor_prefers_order_and_knows_inflection() -> None:
    reference = [["a cat is sitting on the mat"]]
    assert meteor(["a cat sits on a mat"], reference) > meteor(["a cat stands on a mat"], reference)
    assert meteor(["a cat sits on a mat"], reference) > meteor(["on a mat sits a cat"], reference)


def test_meteor_weighs_frequent_words_less_and_a_whole_sentence_is_no_fragment() -> None:
    """The numbers are those of METEOR 1.5's own program on the words of its tokeniser."""
    predictions = ["Three zebras grazing in a field!", "A plate of food, with a fork", "people"]
    references = [
        ["three zebras eat grass in a field", "zebras graze on the savanna"],
        ["a plate with food and a fork", "food on a plate"],
        ["a group of people standing together", "people standing"],
    ]
    assert caption_scores(predictions=predictions, references=references)["METEOR"] == pytest.approx(0.33448846)
    predictions = ["a train lying dog the surfboard", "two black pizza holding on two cat"]
    references = [
        ["a train lying near the surfboard", "two red pizza standing next to the dog"],
        ["two black pizza holding on two cat", "two chair is riding near a cat"],
    ]
    assert meteor(predictions, references) == pytest.approx(0.5206309292125297)


@pytest.mark.parametrize(
    "family",
    [["sit", "sits", "sitting"], ["ride", "rides", "riding"], ["walk", "walked", "walking"], ["city", "cities"]],
)
def test_stems(family: list[str]) -> None:
    assert len({stem(word) for word in family}) == 1


def test_short_words_are_their_own_stem() -> None:
    assert [stem(word) for word in ("bus", "is", "ring", "red", "glass")] == ["bus", "is", "ring", "red", "glass"]


def test_lmms_eval_tokenises_and_vlmevalkit_does_not() -> None:
    arguments = {"predictions": ["A cat."], "references": [["a cat"]]}
    assert caption_scores(**arguments)["ROUGE_L"] == 1
    assert caption_scores(**arguments, protocol="vlmevalkit")["ROUGE_L"] == 0
    assert "METEOR" not in caption_scores(**arguments, protocol="vlmevalkit")


def test_an_incomplete_set_is_refused() -> None:
    with pytest.raises(ValueError, match="found 2 captions and 1 lists"):
        caption_scores(predictions=["a", "b"], references=[["a"]])
    with pytest.raises(ValueError, match="none empty"):
        caption_scores(predictions=["a"], references=[[]])
