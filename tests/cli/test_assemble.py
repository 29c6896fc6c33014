"""`vlmkit-assemble` as its users run it."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from tests.training.conftest import run


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "model"
    return out, run("assemble", f"out={out}")


def test_it_prints_the_sources_the_proof_and_what_to_do_next(assembled):
    out, printed = assembled
    assert printed.startswith("Assembled from\n  template  ")
    assert printed.count("  holds  ") == 3
    assert "FAILS" not in printed
    assert printed.endswith(
        f"parameters in {out}; where each field and tensor came from: {out}/report.txt\n"
        f"Next: vlmkit-train init_from={out} optim.lr=0.001 optim.beta2=0.95 optim.warmup_ratio=0.1\n"
    )


def test_what_it_proposes_trains_as_the_model_itself_would_be_trained(assembled, monkeypatch):
    """The recipe of the model's file does not come along with `init_from=`, so it is in the command."""
    from hydra import compose, initialize_config_dir

    from vlmkit.config import TAKEN_OVER_VARIABLE, conf_dir, with_saved_choices

    monkeypatch.setenv(TAKEN_OVER_VARIABLE, "")  # set by what follows
    proposed = assembled[1].strip().splitlines()[-1].removeprefix("Next: vlmkit-train ").split()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        taken = compose("train", overrides=with_saved_choices(proposed, ("data", "model"))).optim
        assert taken == compose("train", overrides=["model=tiny"]).optim


def test_the_directory_holds_model_processor_and_report(assembled):
    out, _ = assembled
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vlmkit.json",
        "report.txt",
        "report.json",
    }
    report = json.loads((out / "report.json").read_text())
    assert report["proved"] is True
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert {tensor["name"] for tensor in report["tensors"]} == set(file.keys())
    provenance = json.loads((out / "vlmkit.json").read_text())["provenance"]
    assert provenance["merger_init"] == "crop"
    assert provenance["dtype"] == "torch.float32", "auto: as the tiny language model is stored"


def test_an_assembly_is_made_again_over_the_former_one(assembled):
    out, _ = assembled
    run("assemble", f"out={out}", "dtype=bfloat16", "model.merger_init=random", "model.seed=3")
    report = json.loads((out / "report.json").read_text())
    assert {tensor["origin"] for tensor in report["tensors"]} == {"copied", "new"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_directory_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    printed = run("assemble", f"out={tmp_path}", status=1)
    assert f"{tmp_path}: not empty and not written by vlmkit" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (["dtype=int8"], "dtype=int8: choose one of auto, float32, bfloat16, float16"),
        (["model=qwen3_vl", "model.path=/nowhere"], "this is a whole checkpoint, there is nothing to assemble"),
        (["model.merger_init=pad"], "model.merger_init must be crop or random, got 'pad'"),
        (["model=vision2b_llm0_6b", "model.language_model=/nowhere", "model.vision_encoder=/nowhere"], "'/nowhere' is no directory"),
        (["model.merger_inti=crop"], "Did you mean model.merger_init"),
    ],
)  # fmt: skip
def test_wrong_turns(tmp_path, overrides, finding):
    printed = run("assemble", f"out={tmp_path / 'model'}", *overrides, status=1)
    assert finding in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "model").exists()
