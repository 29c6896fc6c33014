"""Further benchmarks, each on a small file of its real columns, with planted answers and figures reckoned by hand."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import BLUE, CHOICES, GREEN, RED, TSV, write_columns, write_tsv
from vlmkit.errors import ConfigError
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.runner import run_answers


def turned(index, a, b, answer):
    """A row of MMBench."""
    return {"index": index, "question": "Which?", "hint": "nan", "answer": answer, "A": a, "B": b, "C": "nan", "D": "nan",
            "category": "ocr", "image": RED, "source": "x", "L2-category": "perception", "comment": "", "split": "dev"}  # fmt: skip


MMBENCH = [
    turned(0, "cat", "dog", "A"), turned(1_000_000, "dog", "cat", "B"),
    turned(1, "sun", "sea", "B"), turned(1_000_001, "sea", "sun", "A"),
]  # fmt: skip
MMBENCH_ANSWERS = {"0": "A", "1000000": "the cat", "1": "B", "1000001": "B"}

DATA = {
    "vizwiz": (
        "val-00000-of-00001.parquet",
        {
            "question_id": ["v1"], "image": [RED], "question": ["what is IT"],
            "answers": [["cup"] * 7 + ["mug"] * 3], "category": ["other"],
        },
        {"v1": "Cup."}, "lmms-eval", 100.0, {},
    ),
    "infovqa": (
        "InfographicVQA/validation-00000-of-00001.parquet",
        {
            "questionId": ["1"], "question": ["How many?"], "answers": [["42 %"]], "answer_type": [["single span"]],
            "image": [RED], "image_url": [""], "operation/reasoning": [[]], "ocr": [""], "data_split": ["val"],
        },
        {"1": "42%"}, "lmms-eval", 75.0, {},
    ),
    "stvqa": (
        "test-00000-of-00001.parquet",
        {"question_id": ["1"], "question": ["What?"], "image": [RED], "answers": [["exit"]]},
        {"1": "EXIT"}, "lmms-eval", 100.0, {},
    ),
    "pope": (
        "test-00000-of-00001.parquet",
        {
            "id": ["0", "1", "2", "3"], "question_id": ["0", "1", "2", "3"], "question": ["Is there a cat?"] * 4,
            "answer": ["yes", "yes", "no", "no"], "image_source": ["x"] * 4, "image": [RED, RED, BLUE, BLUE],
            "category": ["random", "random", "popular", "popular"],
        },
        {"0": "Yes, there is.", "1": "No", "2": "yes", "3": "no"}, "vlmevalkit", 50.0,
        {"precision": 50.0, "recall": 50.0, "accuracy": 50.0, "yes_ratio": 50.0},
    ),
    "mme": (
        "test-00000-of-00001.parquet",
        {
            "question_id": ["a", "a", "b", "b"], "image": [RED, RED, BLUE, BLUE],
            "question": ["Is it red? Please answer yes or no."] * 4, "answer": ["Yes", "No", "Yes", "No"],
            "category": ["count", "count", "code_reasoning", "code_reasoning"],
        },
        {"0": "Yes", "1": "No", "2": "Yes.", "3": "Yes"}, "vlmevalkit", 250.0,
        {"perception": 200.0, "cognition": 50.0},
    ),
    "mmbench_en": (
        "en/dev-00000-of-00001.parquet", {key: [row[key] for row in MMBENCH] for key in MMBENCH[0]},
        MMBENCH_ANSWERS, "vlmevalkit", 50.0, {"vanilla_accuracy": 100.0},
    ),
    "mmbench_cn": (
        "cn/dev-00000-of-00001.parquet", {key: [row[key] for row in MMBENCH] for key in MMBENCH[0]},
        MMBENCH_ANSWERS, "vlmevalkit", 50.0, {"vanilla_accuracy": 100.0},
    ),
    "mmvp": (
        "train-00000-of-00001.parquet",
        {
            "Index": [1, 2, 3, 4], "Question": ["Is it open?"] * 4, "Options": ["(a) Open (b) Closed"] * 4,
            "Correct Answer": ["(a)", "(b)", "(a)", "(b)"], "image": [RED, BLUE, GREEN, RED],
        },
        {"1": "A", "2": "B", "3": "A", "4": "A"}, "vlmevalkit", 50.0, {},
    ),
    "hallusionbench": (
        "image-00000-of-00001.parquet",
        {
            "category": ["VD"] * 4, "subcategory": ["chart"] * 4, "visual_input": ["1"] * 4, "set_id": ["0"] * 4,
            "figure_id": ["0", "0", "1", "1"], "sample_note": ["x"] * 4, "question_id": ["0", "1", "0", "1"],
            "question": ["Is it?"] * 4, "gt_answer_details": ["x"] * 4, "gt_answer": ["1", "0", "1", "0"],
            "filename": ["x"] * 4, "image": [RED, RED, BLUE, BLUE],
        },
        {"VD_chart_0_0_0": "Yes", "VD_chart_0_0_1": "No", "VD_chart_0_1_0": "Yes", "VD_chart_0_1_1": "Yes"},
        "vlmevalkit", 75.0, {"fAcc": 50.0, "qAcc": 50.0},
    ),
    "mathvision": (
        "testmini-00000-of-00001.parquet",
        {
            "id": ["4", "5"], "question": ["How much is <image1>?", "Which?<image1>"], "options": [[], ["1", "2"]],
            "image": ["images/4.jpg"] * 2, "decoded_image": [RED, BLUE], "answer": ["3", "B"], "solution": [None, None],
            "level": [1, 2], "subject": ["algebra", "algebra"],
        },
        {"4": "So it is \\boxed{3}.", "5": "\\boxed{A}"}, "lmms-eval", 50.0, {},
    ),
    "simplevqa": (
        "test-00000-of-00001.parquet",
        {
            "data_id": [1, 2], "image": [RED, BLUE], "image_description": [""] * 2, "language": ["EN", "CN"],
            "question": [" Who? ", "谁？"], "answer": ["Ada Lovelace", "李白"], "vqa_category": ["people", "people"],
        },
        {"1": "ada lovelace.", "2": "杜甫"}, "lmms-eval", 50.0, {},
    ),
}  # fmt: skip
"""File, columns, planted answers, default protocol, headline figure, further figures."""


def figures_of(benchmark, answers, folder):
    """The figures that these answers earn."""
    folder.mkdir(exist_ok=True)
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in answers.items()))
    return aggregate(benchmark, run_answers(benchmark, FileAnswers(path), settings(folder)))


@pytest.mark.parametrize("name", DATA)
def test_planted_answers_earn_what_they_should(name, tmp_path):
    file, columns, answers, protocol, score, further = DATA[name]
    write_columns(tmp_path / name / file, columns)
    benchmark = make(name, tmp_path)
    assert benchmark.protocol == protocol
    figures = figures_of(benchmark, answers, tmp_path)
    assert figures["score"] == pytest.approx(score, abs=1e-3)
    assert figures["n"] == len(answers)
    assert {key: figures["figures"][key] for key in further} == pytest.approx(further)
    assert figures["outcomes"].get("failed", 0) == 0


@pytest.mark.parametrize("name", [name for name in DATA if name != "stvqa"])
def test_both_protocols_ask_and_score(name, tmp_path):
    file, columns, *_ = DATA[name]
    write_columns(tmp_path / name / file, columns)
    for protocol in ("lmms-eval", "vlmevalkit"):
        benchmark = make(name, tmp_path, protocol=protocol)
        for case in benchmark.cases():
            assert isinstance(case, Case), case
            assert case.prompt
            assert 0 <= benchmark.score(case, "Yes").value <= 1


FILES = {
    "pope": {"question": "Is there?", "answer": "Yes", "category": "random,popular"},
    "mme": {"question": "Is it?", "answer": "Yes", "category": "count"},
    "mmbench_en": {"question": "Which?", "answer": "B", "hint": "", **CHOICES},
    "mmvp": {"question": "Which?", "answer": "B", **CHOICES},
    "blink": {"question": "Which?", "answer": "B", **CHOICES},
    "hallusionbench": {"question": "Is it?", "answer": "Yes", "category": "VD", "l2-category": "VD_chart"},
    "vizwiz": {"question": "What?", "answers": str(["cup"] * 10)},
    "infovqa": {"question": "What?", "answer": "['42']"},
    "mathvision": {"question": "Which?", "answer": "B", "choices": "['1', '2']", "category": "algebra"},
    "simplevqa": {"question": "Who?", "answer": "Ada", "category": "people"},
}


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_vlmevalkit_are_read(name, tmp_path, monkeypatch):
    benchmark = make(name, tmp_path)
    monkeypatch.setitem(TSV, name, (benchmark.tsv_name, [FILES[name]]))
    write_tsv(tmp_path, name)
    (case,) = benchmark.cases()
    assert isinstance(case, Case), case
    assert case.id == "100"
    right = {"mathvision": "B", "vizwiz": "cup", "infovqa": "42", "simplevqa": "Ada"}.get(
        name, FILES[name].get("answer")
    )
    assert benchmark.score(case, right).value == 1
    assert benchmark.score(case, "nothing of the kind").value == 0


def test_pope_counts_a_row_in_each_of_its_categories(tmp_path):
    rows = [
        {"extracted": "Yes", "expected": "Yes", "category": "random,popular"},
        {"extracted": None, "expected": "Yes", "category": "random"},
    ]
    assert make("pope", tmp_path).figures(rows)["recall"] == pytest.approx(200 / 3)
    assert make("pope", tmp_path, protocol="lmms-eval").figures(rows)["accuracy"] == 50.0


def test_half_a_pair_is_no_pair(tmp_path):
    assert make("mmvp", tmp_path).figures([{"cluster": "pair 0", "id": "1", "score": 1}]) == {}


def test_a_protocol_that_a_benchmark_does_not_have_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="benchmark_options.stvqa.protocol must be one of lmms-eval, got 'vlmevalkit'"
    ):
        make("stvqa", tmp_path, protocol="vlmevalkit")


def test_captions_are_scored_over_the_set(tmp_path):
    captions = [["a red square on a wall", "a square"], ["a blue ball in the grass", "one ball"]]
    write_columns(
        tmp_path / "coco" / "val-00000-of-00001.parquet",
        {"question_id": ["a", "b"], "image": [RED, BLUE], "question": ["x", "x"], "answer": captions},
    )
    benchmark = make("coco", tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "answer": "A red square on a wall."}\n{"id": "b", "answer": ""}\n')
    figures = aggregate(benchmark, run_answers(benchmark, FileAnswers(path), settings(tmp_path)))
    assert figures["score"] == pytest.approx(figures["figures"]["CIDEr"])
    assert (figures["unit"], figures["parsed"], figures["stderr"]) == ("points", 0.5, None)
    assert 0 < figures["figures"]["ROUGE_L"] <= 50
