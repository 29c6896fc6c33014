"""Without a judge nothing is guessed: an answer that says nothing is unparsed, scores 0 and lowers the parse rate."""

from __future__ import annotations

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make
from tests.evaluation.real_columns import write_hub
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.benchmark import Case

CHOICES = ("science_qa", "mmmu", "seed", "mathvista", "ai2d", "mmstar")
NOTHING = "Hmm, it is hard to say."


@pytest.mark.parametrize("protocol", ["lmms-eval", "vlmevalkit"])
@pytest.mark.parametrize("name", CHOICES)
def test_no_letter_is_drawn(name, protocol, tmp_path):
    if (name, protocol) == ("mathvista", "lmms-eval"):
        protocol = "vlmkit"  # lmms-eval takes the shortest option where its judge fails: offered for parity only
    benchmark = make(name, write_hub(tmp_path, name), protocol=protocol)
    case = next(case for case in benchmark.cases() if isinstance(case, Case) and case.options)
    scores = [benchmark.score(case, text) for text in (NOTHING, "") for _ in range(20)]
    if (name, protocol) == ("seed", "lmms-eval"):
        scores = scores[20:]  # its rule reads the first character, an H
    assert {(score.value, score.outcome, score.extracted) for score in scores} == {(0.0, "unparsed", None)}


def test_the_parse_rate_tells_a_poor_score_from_a_poor_parser():
    rows = [{"score": 1, "outcome": "right", "seconds": 0}, {"score": 0, "outcome": "unparsed", "seconds": 0}]
    benchmark = make("ai2d", "nowhere")
    figures = aggregate(benchmark, rows)
    assert (figures["score"], figures["score_parsed"], figures["parsed"]) == (50.0, 100.0, 0.5)
