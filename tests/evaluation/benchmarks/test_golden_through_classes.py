"""Every recorded score of the references comes out of the benchmark as its yaml makes it, protocol and all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make
from tests.evaluation.real_columns import PLANTED
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.scorers.mathvista import MathVistaQuestion
from vlmkit.evaluation.scorers.ocrbench import FORMULA_CATEGORY

GOLDEN = Path(__file__).parents[2] / "golden" / "scoring_cases.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
NOT_OFFERED = {
    "mmmu_open_as_shipped": "a fault of the reference that scores every open question 0",
    "mmmu_pro_cot": "the prompts that ask for reasoning are not asked",
}
SINGLE = {
    "gqa_exact_match", "scienceqa", "mcq_inference", "vqa_soft_accuracy", "vqa_mean_exact", "vqa_exact_match", "anls",
    "relaxed_accuracy", "seed_letter", "ai2d_letter", "blink_letter", "mvbench_letter", "videomme_letter", "mcq_extract",
    "mmmu_multi_choice", "mmmu_open", "mmmu_as_mcq", "mmmu_pro_vision_raw", "mathvista_no_judge", "realworldqa_open",
    "ocrbench", "pope", "mme_answer", "mathvision_rule", "mathvision_no_judge", "mmbench_en_letter",
}  # fmt: skip
"""Rules whose cases are one answer each."""
INFERRING = ("science_qa", "seed", "ai2d", "mmstar", "realworldqa", "blink", "mmvp", "mmbench_en", "mmmu_pro")
"""Benchmarks that share VLMEvalKit's rule, which has cases of its own, of no benchmark."""


def options_of(told):
    """Settings of the benchmark that the case was made with."""
    if told["rule"] == "mmmu_multi_choice" and told["benchmark"] == "mmmu":
        return {"random_guess": True, "seed": told["extra"].get("seed", 42)}
    return {}


def case_of(told, name):
    """The case as the benchmark would have read it."""
    extra, options = told.get("extra") or {}, told.get("options") or {}
    further = {}
    if name == "mathvista":
        further["question"] = MathVistaQuestion(
            answer=told["answer"], question_type=extra["question_type"], answer_type=extra["answer_type"],
            precision=int(extra.get("precision") or 0), options=options,
        )  # fmt: skip
    if name == "ocrbench":
        by_dataset = told["source"] == "lmms-eval" and "dataset" in extra
        further["is_formula"] = (
            extra["dataset"] == "HME100k" if by_dataset else extra.get("category") == FORMULA_CATEGORY
        )
    if name == "mmmu_pro":
        further["vision"] = bool(extra.get("vision"))
    if told["rule"] == "videomme_letter":
        options = {}  # the reference found none in the questions of these cases
    expected = told["answers"] if "answers" in told else told["answer"]
    return Case(id="x", conversation=None, prompt="", expected=expected, options=options, extra=further)


def score(told, name):
    """The score of the benchmark; reasoning is removed before the rule, which these cases were made without."""
    benchmark = make(name, "/nowhere", protocol=told["source"], **options_of(told))
    case, prediction = case_of(told, name), told["prediction"]
    if "think>" in prediction or "analysis>" in prediction:
        return benchmark.grade(case, prediction.strip() if told["source"] == "lmms-eval" else prediction).value
    return benchmark.score(case, prediction).value


def offered(told, name):
    return told["rule"] in SINGLE and not (told["extra"].get("quick_extract") and told["rule"] == "mathvista_no_judge")


def wanted(told):
    percent = told["source"] == "vlmevalkit" and told["expected"] > 1
    return told["expected"] / (100 if percent else 1)


OWN = sorted({told["benchmark"] for told in LINES if told["rule"] in SINGLE} - {"mcq", "mlvu"})


@pytest.mark.parametrize("name", OWN)
def test_the_cases_of_a_benchmark_agree_through_its_class(name):
    checked = 0
    for told in (told for told in LINES if told["benchmark"] == name and offered(told, name)):
        assert score(told, name) == pytest.approx(wanted(told), abs=1e-6), told
        checked += 1
    assert checked


@pytest.mark.parametrize("name", INFERRING)
def test_the_shared_rule_agrees_through_every_class_that_has_it(name):
    cases = [told for told in LINES if told["rule"] == "mcq_inference"]
    assert len(cases) > 50
    for told in cases:
        assert score(told, name) == wanted(told), told


def test_of_the_twelve_no_case_is_left_out():
    """But for those that ask for what the classes do not offer, and why stands above."""
    left = Counter()
    for told in LINES:
        if told["benchmark"] in PLANTED and not offered(told, told["benchmark"]):
            left[told["rule"]] += 1
    quick = left.pop("mathvista_no_judge", 0)
    assert set(left) <= {*NOT_OFFERED, "mmstar_average"}
    assert quick == sum(bool(told["extra"].get("quick_extract")) for told in LINES)


def test_averages_agree_through_the_classes():
    for told in LINES:
        if told["rule"] == "mmstar_average":
            rows = [
                {"score": row["score"], "labels": {"l2_category": row["l2_category"]}} for row in told["extra"]["rows"]
            ]
            figures = make("mmstar", "/nowhere", protocol=told["source"]).figures(rows)
            assert figures["mean_over_l2_categories"] == pytest.approx(100 * told["expected"])


@pytest.mark.parametrize("rule", ["accuracy", "precision", "recall", "f1", "yes_ratio"])
def test_rates_of_pope_agree_through_the_class(rule):
    for told in (told for told in LINES if told["rule"] == f"pope_{rule}"):
        if told["extra"].get("split") not in (None, "Overall"):
            continue  # one category alone
        benchmark = make("pope", "/nowhere", protocol=told["source"])
        categories = told["extra"].get("categories") or [""] * len(told["answers"])
        rows = []
        for prediction, answer, category in zip(told["prediction"], told["answers"], categories, strict=True):
            found = benchmark.score(Case(id="x", conversation=None, prompt="", expected=answer), prediction)
            rows.append({"extracted": found.extracted, "expected": answer, "category": category})
        unit = 1 if told["source"] == "vlmevalkit" else 100
        assert benchmark.figures(rows)[rule] == pytest.approx(unit * told["expected"]), told


def test_sums_of_mme_agree_through_the_class():
    for told in (told for told in LINES if told["rule"] == "mme_score"):
        benchmark = make("mme", "/nowhere", protocol=told["source"])
        rows = []
        for row in told["extra"]["rows"]:
            case = Case(id="x", conversation=None, prompt="", expected=row["answer"])
            value = benchmark.score(case, row["prediction"]).value
            rows.append({"id": "x", "category": row["category"], "cluster": row["image"], "score": value})
        report = {"reasoning": "cognition"}.get(told["extra"]["report"], told["extra"]["report"])
        assert benchmark.figures(rows)[report] == pytest.approx(told["expected"]), told
