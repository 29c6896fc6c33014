"""`vlmkit-check check.on=...`: the section, its figures and its picture; wrong requests; no plan, no weights."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.cli.test_check import look, section


def test_machines_that_are_not_here(tmp_path):
    report = look(
        "check.on=[1xrtx4090,8xh100]",
        "check.alternatives=false",
        f"check.picture={tmp_path / 'memory.png'}",
        "check.decode=4",
        "check.limit=40",
        "trainer.precision=bf16-mixed",
    )
    machines = section(report, "machines")
    assert machines.mark == "ok"
    estimates = machines.figures["machines"]
    assert [(each["request"], each["num_ranks"]) for each in estimates] == [("1xrtx4090", 1), ("8xh100", 8)]
    for each in estimates:
        assert each["memory"]["fits"]
        assert each["memory"]["total"] > sum(each["memory"]["tensors"].values()) > 0
        assert each["step_seconds"] > 0
        assert each["run_seconds"] > 0
        assert each["largest_tokens_per_batch"] > 100_000
    text = machines.to_text()
    assert "of the plan's" in text
    assert text.count("Simulated:") == text.count("Computed from data sheets") == text.count("Assumed:") == 1
    with Image.open(tmp_path / "memory.png") as picture:
        assert picture.width > 500


def test_without_data_packs_are_assumed_and_without_weights_nothing_is_missing(tiny, tmp_path):
    import shutil

    checkpoint = tmp_path / "config only"
    shutil.copytree(tiny.vision_language, checkpoint, ignore=shutil.ignore_patterns("*.safetensors*"))
    report = look(
        "model=qwen3_vl",
        f"model.path='{checkpoint}'",
        "data=llava",
        f"data.sources=[{tmp_path}/missing.json]",
        "data.tokens_per_batch=4096",
        "data.batch_size=null",
        "check.on=1xl40s",
        "check.alternatives=false",
    )
    assert section(report, "model").mark == "ok"
    assert not report.starts  # there is no data
    machines = section(report, "machines")
    assert "packs of 4,096 tokens are assumed" in machines.findings[0].message
    assert machines.figures["machines"][0]["run_seconds"] is None


def test_a_machine_that_is_too_small_is_a_warning_that_says_what_fits(tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text(
        "name: Small\nmemory_gib: 0.80\nbf16_tflops: 1\ntf32_tflops: 1\nbandwidth_gb: 100\nlink_gb: 1\nnetwork_gb: 1\n"
        "gpus: 1\ncapability: null\n"
    )
    report = look(f"check.on=1x{small}", "check.decode=false", "check.limit=64")
    warning = next(finding for finding in section(report, "machines").findings if finding.mark == "warning")
    assert "GiB are needed and 0.8 are there. " in warning.message
    assert "data.tokens_per_batch" in warning.message
    assert report.starts


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("h100", "check.on=h100: expected a number of GPUs and a machine"),
        ("8xh1000", "no such machine. There are a100-40"),
    ],
)
def test_wrong_requests(on, message):
    report = look(f"check.on={on}", "check.decode=false", "check.limit=8")
    assert any(message in finding.message for finding in section(report, "machines").findings)
