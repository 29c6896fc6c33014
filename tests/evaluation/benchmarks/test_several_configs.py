"""Benchmarks whose data has several configurations: all in one run, each named where it is missing."""

from __future__ import annotations

import pytest

from tests.evaluation.benchmarks.test_further import figures_of
from tests.evaluation.benchmarks.test_the_twelve import make
from tests.evaluation.real_columns import BLUE, CHOICES, RED, TSV, write_columns, write_tsv
from vlmkit.errors import ConfigError
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.blink import TASKS


def blink(task: str, answers: list[str]) -> dict[str, list]:
    n = len(answers)
    return {
        "idx": [f"val_{task}_{k}" for k in range(n)], "question": ["How many?"] * n, "sub_task": [task] * n,
        "image_1": [RED] * n, "image_2": [None, BLUE][:n], "image_3": [None] * n, "image_4": [None] * n,
        "choices": [["one", "two"]] * n, "answer": answers, "prompt": ["How many?\n(A) one"] * n, "explanation": [""] * n,
    }  # fmt: skip


def write_blink(root, tasks=TASKS):
    for task in tasks:
        answers = ["(A)", "(B)"] if task == "Counting" else ["(A)"]
        write_columns(root / "blink" / task / "val-00000-of-00001.parquet", blink(task, answers))


def test_all_tasks_of_blink_are_asked_with_both_averages(tmp_path):
    write_blink(tmp_path)
    benchmark = make("blink", tmp_path)
    cases = list(benchmark.cases())
    assert [case.category for case in cases] == [TASKS[0], "Counting", *TASKS[1:]]
    assert (len(benchmark), len({case.id for case in cases})) == (15, 15)
    answers = {case.id: "A" for case in cases} | {"val_Jigsaw_0": "two"}
    figures = figures_of(benchmark, answers, tmp_path)
    assert figures["score"] == pytest.approx(100 * 13 / 15, abs=1e-3)  # one of Counting, and Jigsaw, are wrong
    assert figures["figures"]["mean_over_tasks"] == pytest.approx(100 * 12.5 / 14, abs=1e-3)
    assert set(figures["by_category"]) == set(TASKS)


def test_missing_configurations_are_named_or_left_out_by_name(tmp_path):
    write_blink(tmp_path, ("Counting", "Jigsaw"))
    with pytest.raises(
        ConfigError, match=r"blink: 12 of 14 configurations are not there: Art_Style, Forensic_Detection"
    ):
        list(make("blink", tmp_path).cases())
    chosen = make("blink", tmp_path, config=["Jigsaw", "Counting"])
    assert [case.category for case in chosen.cases()] == ["Jigsaw", "Counting", "Counting"]
    assert chosen.config == "Jigsaw, Counting"
    assert [case.category for case in make("blink", tmp_path, config="Jigsaw").cases()] == ["Jigsaw"]
    with pytest.raises(
        ConfigError, match=r"benchmark_options.blink.config must be all, or of Art_Style, .*; got 'Countin'"
    ):
        make("blink", tmp_path, config="Countin")


def test_a_saved_copy_of_each_configuration_is_read(tmp_path):
    from datasets import load_dataset

    write_blink(tmp_path / "parquet", ("Counting", "Jigsaw"))
    for task in ("Counting", "Jigsaw"):
        data = load_dataset("parquet", data_files=str(tmp_path / f"parquet/blink/{task}/*.parquet"), split="train",
                            cache_dir=str(tmp_path / "cache"))  # fmt: skip
        data.save_to_disk(str(tmp_path / "saved" / "blink" / task / "val"))
    cases = list(make("blink", tmp_path / "saved", config=["Counting", "Jigsaw"]).cases())
    assert [case.category for case in cases] == ["Counting", "Counting", "Jigsaw"]


@pytest.mark.parametrize("protocol", ["lmms-eval", "vlmevalkit"])
def test_blink_is_asked_as_each_protocol_does(protocol, tmp_path):
    write_blink(tmp_path, ("Counting",))
    case = next(make("blink", tmp_path, config="Counting", protocol=protocol).cases())
    assert (
        case.prompt
        == {
            "lmms-eval": "Note: You only need to respond with A, B without providing any additional information.\n"
            "How many?\n(A) one",
            "vlmevalkit": "Question: How many?\nOptions:\nA. one\nB. two\n"
            "Please select the correct answer from the options above. \n",
        }[protocol]
    )


def test_one_tsv_file_holds_all_tasks(tmp_path, monkeypatch):
    rows = [{"question": "Which?", "answer": "B", **CHOICES, "category": task} for task in ("Counting", "Jigsaw")]
    monkeypatch.setitem(TSV, "blink", ("BLINK", rows))
    cases = list(make("blink", write_tsv(tmp_path, "blink")).cases())
    assert [(case.id, case.category) for case in cases] == [("100", "Counting"), ("101", "Jigsaw")]


STANDARD = {
    "id": ["test_Art_1", "test_Art_2"], "question": ["Which is <image 1>?", "Which <image 2>?"],
    "options": ["['a fox', 'a dog']", "['left', 'right']"], "explanation": [""] * 2, "image_1": [RED, RED],
    "image_2": [None, BLUE], **{f"image_{n}": [None] * 2 for n in range(3, 8)}, "img_type": ["x"] * 2,
    "answer": ["B", "A"], "topic_difficulty": ["Easy"] * 2, "subject": ["Art"] * 2,
}  # fmt: skip
VISION = {"id": ["test_Art_1"], "image": [BLUE], "options": ["['a fox', 'a dog']"], "answer": ["B"], "subject": ["Art"]}


def write_pro(root):
    for config, columns in (
        ("standard (10 options)", STANDARD),
        ("vision", VISION),
        ("standard (4 options)", STANDARD),
    ):
        write_columns(root / "mmmu_pro" / config / "test-00000-of-00001.parquet", columns)


def test_mmmu_pro_is_the_mean_of_standard_and_vision(tmp_path):
    write_pro(tmp_path)
    benchmark = make("mmmu_pro", tmp_path)
    first, second, vision = benchmark.cases()
    assert vision.id == "vision/test_Art_1"
    assert vision.prompt.startswith("Answer the following multiple-choice question in the image. ")
    answers = {first.id: "a dog", second.id: "B", vision.id: "B"}
    figures = figures_of(benchmark, answers, tmp_path)
    assert (figures["metric"], figures["score"]) == ("mean_over_configs", 75.0)
    assert figures["accuracy"] == pytest.approx(200 / 3, abs=1e-3)
    assert figures["figures"] == {"mean_over_configs": 75.0, "standard (10 options)": 50.0, "vision": 100.0}
    assert figures["tables"]["config"]["vision"]["score"] == 100.0
    assert figures["by_category"]["Art"]["n"] == 3


def test_one_configuration_of_mmmu_pro_keeps_its_ids(tmp_path):
    write_pro(tmp_path)
    for protocol in ("lmms-eval", "vlmevalkit"):
        benchmark = make("mmmu_pro", tmp_path, config="standard (4 options)", protocol=protocol)
        assert [case.id for case in benchmark.cases()] == ["test_Art_1", "test_Art_2"]
        figures = figures_of(benchmark, {"test_Art_1": "B", "test_Art_2": "B"}, tmp_path / protocol)
        assert (figures["score"], figures["figures"]) == (50.0, {"mean_over_configs": 50.0})


def test_mmmu_pro_has_a_tsv_file_for_each_configuration(tmp_path, monkeypatch):
    standard = {"question": "Is <image 1> it?", "answer": "B", **CHOICES}
    monkeypatch.setitem(TSV, "mmmu_pro", ("MMMU_Pro_10c", [standard]))
    write_tsv(tmp_path / "mmmu_pro", "mmmu_pro")
    with pytest.raises(ConfigError, match=r"1 of 2 configurations are not there: vision"):
        list(make("mmmu_pro", tmp_path).cases())
    monkeypatch.setitem(TSV, "mmmu_pro", ("MMMU_Pro_V", [{key: standard[key] for key in ("answer", "A", "B")}]))
    write_tsv(tmp_path / "mmmu_pro", "mmmu_pro")
    cases = list(make("mmmu_pro", tmp_path).cases())
    assert [(case.id, case.extra["vision"]) for case in cases] == [
        ("standard (10 options)/100", False), ("vision/100", True),
    ]  # fmt: skip
    assert all(isinstance(case, Case) for case in cases)
