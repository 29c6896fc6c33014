"""Thousands of texts that nobody wrote by hand: recorded cases, changed at random, scored by the rules as described."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.plain_rules import PLAIN_RULES, plain_score
from vlmkit.evaluation.golden import GoldenCase, score_case

CASES = Path(__file__).parents[1] / "golden" / "scoring_cases.jsonl"
RECORDED: list[dict[str, Any]] = [
    case
    for case in map(json.loads, CASES.read_text(encoding="utf-8").splitlines())
    if (case["rule"], case["source"]) in PLAIN_RULES
]
NUM_CASES = 5_000
OPENINGS = (
    "The answer is ",
    "Answer: ",
    "I choose ",
    "It is ",
    "the correct option is ",
    "A ",
    "Yes, ",
    "No, ",
    ". ",
    "（",
)
ENDINGS = (
    ".",
    "!",
    " because it is red",
    ". A would do",
    "\nB",
    " or C",
    " and no.",
    "?",
    " \n",
    "%",
    ".0",
    ", 1,000",
    "-x",
)
MARKS = ".,!?;:'\"()[]{}*-/ \n\t%0aA"


def changed(text: str, draw: random.Random) -> str:
    """The text after one to three changes."""
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(text) + 1)
        kind = draw.randrange(9)
        if kind == 0:
            text = draw.choice((text.upper(), text.lower(), text.swapcase(), text.capitalize()))
        elif kind == 1:
            text = draw.choice(OPENINGS) + text
        elif kind == 2:
            text += draw.choice(ENDINGS)
        elif kind == 3:
            text = draw.choice(("({})", "**{}**", '"{}"', "'{}'", "[{}]", "  {}  ", "\\boxed{{{}}}", ". {}.")).format(
                text
            )
        elif kind == 4:
            text = text[:place] + draw.choice(MARKS) + text[place:]
        elif kind == 5:
            text = text[:place] + text[place + 1 :]
        elif kind == 6:
            text = " ".join(draw.sample(words := text.split(), len(words)))
        elif kind == 7:
            text = f"{text}{draw.choice((' ', '. ', ': ', chr(10)))}{text}"
        else:
            text = text[:place] + draw.choice("ABCD") + text[place:]
    return text


def mutated_cases(*, seed: int, number: int) -> list[dict[str, Any]]:
    """So many cases, each a recorded one whose prediction (and sometimes the case of its answer) is changed."""
    draw = random.Random(seed)
    by_rule = [[case for case in RECORDED if (case["rule"], case["source"]) == rule] for rule in PLAIN_RULES]
    cases: list[dict[str, Any]] = []
    for place in range(number):
        case = dict(draw.choice(by_rule[place % len(by_rule)]))
        case["prediction"] = changed(case["prediction"], draw)
        if case["benchmark"] == "realworldqa" and draw.random() < 0.3:
            case["answer"] = case["answer"].lower()
        cases.append(case)
    return cases


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: f"{case['rule']}-{case['source']}")
def test_the_plain_rules_give_the_recorded_scores(case: dict[str, Any]) -> None:
    assert plain_score(case) == pytest.approx(case["expected"], abs=1e-6)


def test_scorers_agree_with_the_plain_rules_on_mutated_cases() -> None:
    cases = mutated_cases(seed=12, number=NUM_CASES)
    wrong: list[str] = []
    for case in cases:
        expected, score = plain_score(case), score_case(GoldenCase(case))
        assert expected is not None
        if not math.isclose(expected, score, rel_tol=1e-6, abs_tol=1e-6):
            wrong.append(f"{case['rule']} ({case['source']}) {case['prediction']!r}: expected {expected}, got {score}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)} differ", *wrong[:20]])


def test_mutated_cases_reach_every_rule_with_right_and_wrong_answers() -> None:
    cases = mutated_cases(seed=12, number=NUM_CASES)
    assert {(case["rule"], case["source"]) for case in cases} == set(PLAIN_RULES)
    outcomes = Counter((case["rule"], case["source"], bool(plain_score(case))) for case in cases)
    assert all(outcomes[*rule, right] >= 3 for rule in PLAIN_RULES for right in (True, False)), outcomes
