"""`vlmkit-train` as its users run it: stages, resume after a kill, two ranks, wrong turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import forked
from tests.training.conftest import lines, run, small


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "hf" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ in any bit."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    from tests.training.conftest import write_manifest

    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6, 11, 17}))


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "model"
    run("assemble", f"out={out}")
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def stage1(manifest, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "s1"
    return run_dir, run("train", *small(manifest, run_dir, "stage=stage1"))


def test_stage1_changes_the_mergers_and_nothing_else(stage1, assembled):
    run_dir, output = stage1
    changed = same(weights(run_dir), assembled)
    assert changed
    assert all(".visual.merger." in name or ".visual.deepstack_merger_list." in name for name in changed)
    mergers = {name for name in assembled if "merger" in name}
    assert changed == mergers
    assert "language_model (frozen)" in output
    assert "20 trained" in output, "text-only rows train nothing in stage 1"


def test_a_run_directory_holds_what_is_promised(stage1):
    run_dir, _ = stage1
    report = json.loads((run_dir / "report.json").read_text())
    rows = report["rows"]["sources"]["manifest"]
    assert rows["read"] == rows["trained"] + rows["skipped"] + rows["masked"] + rows["overlong"] == 24
    assert rows["skipped_by_reason"] == {"text_only": 4}
    assert report["schema"] == "vlmkit.report/1"
    assert report["receipt"]["frozen_tensors_unmoved"] > 0
    log = lines(run_dir)
    assert [line["step"] for line in log] == list(range(1, 11))
    keys = {"schema", "step", "epoch", "loss", "lr", "grad_norm", "supervised_tokens", "tokens", "patches", "samples"}
    keys |= {"tokens_per_second", "data_wait", "data_wait_worst", "mfu", "seconds", "loss_by_source"}
    assert all(line.keys() == keys for line in log)
    assert log[-1]["loss"] < log[0]["loss"]
    assert sum(line["samples"] for line in log) == 20
    assert set(log[0]["grad_norm"]) == {"merger"}
    assert (run_dir / "config.yaml").is_file()
    assert json.loads((run_dir / "config.json").read_text())["choices"]["stage"] == "stage1"
    told = json.loads((run_dir / "hf" / "vlmkit.json").read_text())
    assert told["schema"] == "vlmkit.model/1"
    assert told["provenance"]["fields"]["text_config.rope_parameters.rope_theta"] == "language_model"


def test_stage2_takes_over_the_run_and_leaves_the_vision_blocks(stage1, tmp_path):
    run_dir, _ = stage1
    output = run(
        "train",
        "stage=stage2",
        f"init_from={run_dir}",
        f"run_dir={tmp_path}",
        "data.batch_size=4",
        "data.on_bad_row=skip",  # which data=shapes does not have
        "log.progress=false",
    )
    assert "Taken over from" in output
    assert "24 rows read, 24 trained" in output
    changed = same(weights(tmp_path), weights(run_dir))
    assert any("language_model" in name for name in changed)
    assert not [name for name in changed if ".visual." in name and "merger" not in name]


def test_resume_refuses_another_plan(stage1, manifest):
    run_dir, _ = stage1
    output = run("train", *small(manifest, run_dir, "stage=stage1", "data.seed=5", "resume_from=auto"), status=1)
    assert "trained on another plan" in output
    assert "Traceback" not in output


def test_two_ranks_from_another_directory(manifest, tmp_path):
    run_dir = tmp_path / "run"
    more = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=4"]
    run("train", *small(manifest, run_dir, *more), cwd=tmp_path)
    assert sum(line["samples"] for line in lines(run_dir)) == 24
    assert (run_dir / "hf" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "a rank wrote somewhere else"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources=[x.json]"], "choose data=llava"),
        (["data=llava"], "data.sources is empty"),
        (["data=llava", "data.sources=[nowhere.json]"], "nowhere.json"),
        (["init_from=nowhere"], "init_from=nowhere: no model"),
        (["resume_from=nowhere"], "resume_from=nowhere: no checkpoint"),
        (["optim.weight_decai=1"], "optim.weight_decay"),
        (["model=nope"], "vision2b_llm0_6b"),
        (
            ["freeze.vision_encoder=true", "freeze.merger=true", "freeze.language_model=true"],
            "nothing would be trained",
        ),
    ],
)
def test_wrong_turns_are_answered(overrides, message, tmp_path):
    output = run("train", *overrides, f"run_dir={tmp_path}", status=1)
    assert message in output
    assert "Traceback" not in output


def test_a_bad_row_is_named_and_can_be_skipped(manifest, tmp_path):
    rows = json.loads(manifest.read_text())[:4]
    rows[2]["image"] = "gone.png"
    broken = manifest.parent / "broken.json"
    broken.write_text(json.dumps(rows))
    output = run("train", *small(broken, tmp_path / "a"), status=1)
    assert f"{broken}:3: image" in output
    assert "data.on_bad_row=skip" in output
    run("train", *small(broken, tmp_path / "b", "data.on_bad_row=skip", "data.max_bad_rows=1"))
    told = json.loads((tmp_path / "b" / "report.json").read_text())["rows"]
    assert told["sources"]["broken"]["skipped_by_reason"] == {"missing_media": 1}
    assert told["first_of_each"]["missing_media"]["where"] == f"{broken}:3"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains_close_to_fp32_and_exports(manifest, stage1, precision, tmp_path):
    """With recomputation in both parts; the exported weights have the type that was trained."""
    checkpointing = "model.gradient_checkpointing={vision_encoder: true, language_model: true}"
    run("train", *small(manifest, tmp_path, "stage=stage1", f"trainer.precision={precision}", checkpointing))
    exact = [line["loss"] for line in lines(stage1[0])]
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(exact, rel=0.03)
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {wanted}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_max_pixels=4096", "pixel_limits: data.image_max_pixels=4096, trained with was 1310720"),
        ("model.merger_init=random", "assembled with model.merger_init=crop; model.merger_init=random would assemble"),
        ("init_allow=[pixels]", "init_allow=['pixels']: wanted a list of some of assembly"),
    ],
)
def test_a_stage_that_differs_from_the_one_before_is_refused(stage1, override, message, tmp_path):
    output = forked.run(
        "stage=stage2",
        f"init_from={stage1[0]}",
        f"run_dir={tmp_path / 'run'}",
        override,
        output=tmp_path / "out",
        status=1,
    )
    assert message in output
    assert "Traceback" not in output
