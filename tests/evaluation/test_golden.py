"""Every recorded score of the references is ours too, and the program that says so can also say no."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmkit.evaluation.golden import RULES, disagreement, main

CASES = Path(__file__).parents[1] / "golden" / "scoring_cases.jsonl"
LINES = CASES.read_text(encoding="utf-8").rstrip("\n").split("\n")


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def case(**fields: object) -> str:
    whole = {
        "benchmark": "gqa",
        "rule": "gqa_exact_match",
        "prediction": "No.",
        "answer": "no",
        "extra": {},
        "expected": 1.0,
        "source": "lmms-eval",
    }
    return json.dumps(whole | fields)


def test_all_golden_cases_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CASES)]) == 0
    assert capsys.readouterr().out == f"{len(LINES)} of {len(LINES)} agree\n"


def test_every_rule_has_a_golden_case() -> None:
    assert {json.loads(line)["rule"] for line in LINES} == set(RULES)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_changed_expectation_is_noticed(rule: str) -> None:
    cases = [json.loads(line) for line in LINES if json.loads(line)["rule"] == rule]
    for fields in cases:
        assert disagreement(json.dumps(fields | {"expected": fields["expected"] + 0.01})) is not None


def test_the_letter_of_realworldqa_is_compared_without_regard_to_case() -> None:
    fields = {"rule": "mcq_extract", "prediction": "A", "answer": "a"}
    assert disagreement(case(benchmark="realworldqa", **fields)) is None
    assert disagreement(case(benchmark="mmstar", **fields)) is not None


def test_a_disagreement_names_what_was_expected_and_what_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "cases.jsonl", case(), case(source="vlmevalkit"))
    assert main([path]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f'{path}:2: gqa gqa_exact_match (vlmevalkit): prediction "No.", expected 1, got 0',
        "1 of 2 agree",
    ]


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("{not json", "no JSON"),
        ("[1, 2]", "a JSON object is wanted, found list"),
        (case(rule="no_such_rule"), "unknown rule 'no_such_rule'"),
        (case(rule=None), "field 'rule' is None, no text"),
        (case(source="elsewhere"), "unknown source 'elsewhere'"),
        (case(prediction=None), "field 'prediction' is None, no text"),
        (case(prediction=5), "field 'prediction' is 5, no text"),
        (case(answer=["no"]), "field 'answer' is ['no'], no text"),
        (case(expected="1"), "field 'expected' is '1', no number"),
        (case(expected=True), "field 'expected' is True, no number"),
        (case(rule="anls", answers=[]), "field 'answers' is [], no list with something in it"),
        (case(rule="mcq_inference", options="AB"), "options are 'AB', no object"),
        (case(rule="mmbench_circular", extra={}), "field 'rotations' is None"),
        (case(rule="mme_score", extra={"rows": [1]}), "field 'extra.rows' is no list of objects"),
        (case(rule="pope_f1", prediction=["Yes"], answers=["Yes", "No"]), "rule 'pope_f1' cannot score this"),
        (case(rule="mathvista_no_judge", extra={"precision": "x"}), "no text"),
    ],
)
def test_a_malformed_line_is_named_and_counts(
    line: str, finding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "cases.jsonl", case(), "", line)
    assert main([path]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}:3: ")
    assert finding in first
    assert last == "1 of 2 agree"


def test_a_nan_never_agrees() -> None:
    assert disagreement(case(expected=float("nan"))) is not None


def test_tiny_values_are_compared_absolutely_and_others_relatively() -> None:
    assert disagreement(case(expected=1 + 1e-7)) is None
    assert disagreement(case(expected=1 + 1e-5)) is not None


def test_a_file_without_cases_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write(tmp_path / "cases.jsonl", "")]) == 1
    assert capsys.readouterr().out == "0 of 0 agree\n"


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl cannot be read" in capsys.readouterr().err
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    assert main([str(tmp_path / "binary.jsonl")]) == 2
    assert main([]) == 2
    assert "usage: " in capsys.readouterr().err


def test_it_runs_as_a_module_and_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('vlmkit.evaluation.golden', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    path = write(tmp_path / "cases.jsonl", case())
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 of 1 agree\n", "", 0)
