"""Mixed precision never makes attention fall back: what is chosen runs, and what ran is what is printed and reported."""

from __future__ import annotations

import pytest
import torch

from tests.cli.test_check import llava, look, section, told
from tests.families.fixtures import checkpoint, family, load_stock
from tests.families.fixtures import family_processor as processor
from tests.model import kernels
from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from vlmkit.cli import checking
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.attention import attention_dtype, choose_kernel
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example
from vlmkit.training.callbacks.summary import AttentionReport

__all__ = ["checkpoint", "family", "processor"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_the_kernel_that_is_announced_is_the_one_that_runs(precision, checkpoint, processor, pictures, monkeypatch):
    """For every family: norms and rotary embeddings keep fp32 weights under autocast, and queries and keys with them."""
    said = (
        Turn("user", (ImagePart(pictures[0]), TextPart("what?"))),
        Turn("assistant", (TextPart("that"),)),
    )
    sample = encode_example(Conversation(said), processor, pixels="uint8")
    batch = pack_samples([sample, sample], processor, PackInfo(pack=0, rows=(), sources=(), step_supervised_tokens=4))
    hf = load_stock(checkpoint, torch.float32)
    model = PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std).train()
    calls = kernels.install(monkeypatch, "varlen")
    dtype = attention_dtype(precision)
    with torch.autocast("cpu", dtype if dtype != torch.float32 else torch.bfloat16, enabled=precision != "32-true"):
        model(batch).loss_sum.backward()
    announced = choose_kernel("auto", CPU, dtype)
    assert announced == ("sdpa" if precision == "32-true" else "varlen")
    assert {part: set(attention.ran) for part, attention in model.attention.items()} == {
        "vision_encoder": {announced},
        "language_model": {announced},
    }
    assert calls.dtypes == ({dtype} if announced == "varlen" else set())


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_run_prints_and_reports_what_ran(tiny, cache, tmp_path, monkeypatch, capsys):
    kernels.install(monkeypatch, "varlen")
    data = prepared(write_manifest(tmp_path, 4), tiny.vision_language, cache)
    mixed, full = AttentionReport(), AttentionReport()
    for precision, report in (("bf16-mixed", mixed), ("32-true", full)):
        fit(data, tiny.vision_language, tmp_path, callbacks=[report], precision=precision)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Attention")]
    assert printed == [
        "Attention: varlen in the vision encoder, varlen in the language model.",
        "Attention: sdpa in the vision encoder, sdpa in the language model.",
    ]
    for kernel, report in (("varlen", mixed), ("sdpa", full)):
        found = report.report()
        assert set(found) == {"vision_encoder", "language_model"}
        assert all(set(ran) == {kernel} and ran[kernel] > 0 for ran in found.values())


@pytest.mark.parametrize(
    ("capability", "precision", "kernel", "reported"),
    [((9, 0), "bf16-mixed", "varlen", False), ((7, 5), "bf16-mixed", "sdpa", True), ((9, 0), "32-true", "sdpa", False)],
)
def test_check_answers_from_the_same_function(capability, precision, kernel, reported, tmp_path, monkeypatch):
    """Precision and compute capability included: before 8.0 there is no bf16 and no FlashAttention, and check says so."""
    kernels.install(monkeypatch, "varlen", capability=capability)
    monkeypatch.setattr(checking, "compute_capability", lambda device: capability)
    manifest = write_manifest(tmp_path, 3)
    report = look(*llava(manifest), f"trainer.precision={precision}", "check.decode=false", "check.forecast=false")
    config = section(report, "config")
    assert config.figures["attention"] == kernel
    assert config.figures["compute_capability"] == ".".join(map(str, capability))
    assert ("has no bf16 arithmetic" in told(report, "config", "warning")) == reported
    assert f"attention by {kernel} (" in told(report, "config", "ok")
