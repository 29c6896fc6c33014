"""Letters, yes and no, and lists out of free text."""

from __future__ import annotations

import pytest

from vlmkit.evaluation.answers import (
    REFUSED,
    extract_choice,
    find_yes_or_no,
    infer_choice,
    list_literal,
    parse_float,
    parse_int,
    remove_reasoning,
    respace_punctuation,
)

ANIMALS = {"A": "a cat", "B": "a dog", "C": "a bird", "D": "a fish"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("\\boxed{B}", "B"),
        ("It is a dog.", "B"),
        ("A dog", "A"),  # the article is a letter
        ("b", None),
        ("A and B", None),
        ("'B'", None),
        ("答案：B。", None),
        ("B, because it barks loudly and has a long tail", None),  # too far from the end
        ("B, as it barks now", None),  # five tokens from the end
        ("B, it barks now", "B"),  # four tokens from the end
        ("The answer is difficult to tell from this picture, sorry about that one", "D"),
        ("the answer is (C)", "C"),
        ("Cannot determine the answer", REFUSED),
        ("Z", REFUSED),
        ("Failed to obtain answer via API B", None),
        ("A dog, a bird or a fish", None),  # the only letter, but too far from the end
        ("", None),
    ],
)
def test_a_choice_is_inferred_as_vlmevalkit_does(answer: str, letter: str | None) -> None:
    assert infer_choice(answer, options=ANIMALS) == letter


def test_a_number_that_contains_another_option_is_not_that_option() -> None:
    numbers = {"A": "25", "B": "5", "C": "10"}
    assert infer_choice("25", options=numbers) is None
    assert infer_choice("5", options=numbers) == "B"


def test_option_text_is_not_searched_in_a_long_answer() -> None:
    options = {"A": "yes", "B": "no"}
    assert infer_choice("yes, sir", options=options) == "A"
    assert infer_choice("yes, of course", options=options) is None


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("A and B", "A"),  # the start beats the end
        ("It is not A, it is B", "B"),
        ("The correct answer is **B**, while A would purr.", "A"),  # the last one after the phrase
        ("(A) or (C)?", "C"),
        ("maybe B: or A.", "A"),
        ('"B."', "B"),
        ("选B", "B"),
        ("是B", "B"),  # nothing better than the letter anywhere
        ("a dog", None),
        ("b", None),
        ("  ", None),
        (". C: red B.", "C"),  # what is left of the marks is stripped once more
        ("DNA test", "A"),  # a letter and a space, even at the end of a word
        ("E", None),
    ],
)
def test_a_choice_is_extracted_as_lmms_eval_does(answer: str, letter: str | None) -> None:
    assert extract_choice(answer) == letter


def test_further_letters_are_found_only_if_asked_for() -> None:
    assert extract_choice("(E)", letters="ABCDE") == "E"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes, there is a dog.", "Yes"),
        ("There is no dog, so the answer is no.", "No"),
        ("no-one", "No"),
        ("YES!", "Yes"),
        ("Yes. No other animal is visible.", None),
        ("**Yes**", None),
        ("yesterday", None),
        ("Nope", None),
        ("none", None),
        ("", None),
    ],
)
def test_yes_and_no_are_words(text: str, word: str | None) -> None:
    assert find_yes_or_no(text) == word


def test_punctuation_goes_or_becomes_a_space() -> None:
    assert respace_punctuation("t-shirt", keep_dot_after_digit=False) == "t shirt"
    assert respace_punctuation("t-shirt - blue", keep_dot_after_digit=False) == "tshirt  blue"
    assert respace_punctuation("1,000-ish", keep_dot_after_digit=False) == "1000ish"
    assert respace_punctuation("5. 0.5", keep_dot_after_digit=False) == "5 0.5"
    assert respace_punctuation("5. 0.5", keep_dot_after_digit=True) == "5. 0.5"
    assert respace_punctuation("." * 40, keep_dot_after_digit=False) == "." * 8


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>A looks right</think>B", "B"),
        ("it looks like A</think> B ", "B"),
        ("<think>A looks right", "<think>A looks right"),
        ("<analysis>x</analysis>B<think>y</think>", "B"),
        ("<THINK>x</THINK>B", "<THINK>x</THINK>B"),
    ],
)
def test_reasoning_is_removed(text: str, answer: str) -> None:
    assert remove_reasoning(text) == answer


def test_only_a_list_is_a_list() -> None:
    assert list_literal("['24/7', 3]") == ["24/7", "3"]
    assert list_literal("[]") == []
    assert list_literal("24") is None
    assert list_literal("[not, a, literal]") is None
    assert list_literal("[__import__('os')]") is None


def test_numbers_are_the_whole_text() -> None:
    assert (parse_int(" 14 "), parse_int("14.0"), parse_int("14 cm")) == (14, None, None)
    assert (parse_float(".6"), parse_float("1,400"), parse_float("60%")) == (0.6, None, None)
