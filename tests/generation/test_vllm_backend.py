"""The backend for vLLM against an engine with vLLM's interface: the same answers as plain transformers."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from types import ModuleType

import pytest

from tests.generation import engine
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.errors import ConfigError, VlmkitError
from vlmkit.generation.backend import GenerationBackend, GenerationParams
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.generation.vllm_backend import VLLMBackend

SETTINGS = {
    "dtype": "float32", "max_model_len": None, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 1, "max_images": 4,
    "max_videos": 1,
}  # fmt: skip


@pytest.fixture
def vllm(monkeypatch):
    """A module with vLLM's two classes."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = engine.LLM, engine.SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(engine.LLM, "started", [])
    return module


def ask(*parts):
    return Conversation((Turn("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),))


def test_answers_are_those_of_transformers(vllm, tiny, pictures, clip, tmp_path):
    questions = [
        ask(ImagePart(pictures[0]), "what is it?"),
        ask(ImagePart(tmp_path / "gone.png"), "what?"),
        ask(VideoPart(clip), "what moves?"),
        ask("only text"),
    ]
    params = GenerationParams(max_new_tokens=6, batch_size=1)
    ours, theirs = VLLMBackend(directory=tiny.vision_language, **SETTINGS), HFBackend(
        directory=tiny.vision_language, device="cpu", dtype="float32", workers=1
    )  # fmt: skip
    assert isinstance(ours, GenerationBackend)
    made, wanted = ours.generate(questions, params), theirs.generate(questions, params)
    assert [(one.text, one.num_tokens, one.error) for one in made] == [
        (one.text, one.num_tokens, one.error) for one in wanted
    ]
    assert "gone.png' not found" in (made[1].error or "")
    assert ours.identity == theirs.identity | {"backend": "vllm"}
    (told,) = engine.LLM.started
    assert told["limit_mm_per_prompt"] == {"image": 4, "video": 1}
    assert (told["generation_config"], told["trust_remote_code"], told["dtype"]) == ("vllm", False, "float32")


def test_answers_end_where_those_of_transformers_do(vllm, tiny, tmp_path):
    theirs = HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1)
    assert VLLMBackend(directory=tiny.vision_language, **SETTINGS).ends == theirs.ends
    shutil.copytree(tiny.vision_language, tmp_path / "plain")
    (tmp_path / "plain" / "generation_config.json").unlink()
    theirs = HFBackend(directory=tmp_path / "plain", device="cpu", dtype="float32", workers=1)
    assert VLLMBackend(directory=tmp_path / "plain", **SETTINGS).ends == theirs.ends


def test_an_engine_that_makes_other_prompts_is_refused(vllm, tiny, pictures, monkeypatch):
    def without_marks(prompt, hf):
        inputs = expand(prompt, hf)
        return inputs | {name: inputs[name][:, 1:] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}

    expand = engine.expand
    monkeypatch.setattr(engine, "expand", without_marks)
    backend = VLLMBackend(directory=tiny.vision_language, **SETTINGS)
    with pytest.raises(VlmkitError, match="they part at token 0"):
        backend.generate([ask(ImagePart(pictures[0]), "what?")], GenerationParams(max_new_tokens=1, batch_size=1))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(tiny):
    with pytest.raises(
        ConfigError, match=r"backend=vllm: .* pip install 'vlmkit\[vllm\]'; without it choose backend=hf"
    ):
        VLLMBackend(directory=tiny.vision_language, **SETTINGS)


def test_an_unknown_precision_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"backend.dtype=int8: choose auto, float32, bfloat16 or float16"):
        VLLMBackend(directory=tiny.vision_language, **(SETTINGS | {"dtype": "int8"}))
