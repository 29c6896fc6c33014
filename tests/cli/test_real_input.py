"""Real manifests, images and a real video with the real tokenizer, on a model of few layers with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.conftest import lines, run


@pytest.fixture(scope="module")
def checkpoint(shared, tmp_path_factory) -> Path:
    """Qwen3-VL's shape in small, with the real Qwen3 tokenizer and its vocabulary."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    from vlmkit.demo.checkpoints import CHAT_TEMPLATE

    folder = tmp_path_factory.mktemp("real") / "checkpoint"
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": rope,
            "tie_word_embeddings": True, "eos_token_id": 151645,
        },
        vision_config={
            "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    limits = {"shortest_edge": 1024, "longest_edge": 256 * 1024}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=limits),
        tokenizer=AutoTokenizer.from_pretrained(shared / "qwen3_tokenizer"),
        video_processor=Qwen3VLVideoProcessor(size=limits, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def settings(checkpoint, run_dir, manifest, root, *more):
    return [
        "model=qwen3_vl", f"model.path={checkpoint}", "data=llava", f"data.sources=[{manifest}]", f"data.root={root}",
        "data.num_workers=0", "data.batch_size=3", "data.image_max_pixels=65536", "data.video_max_pixels=262144",
        "data.video_max_frames=16", "trainer.max_epochs=8", "optim.lr=6e-3", "log.every_n_steps=1", "log.progress=false",
        f"run_dir={run_dir}", *more,
    ]  # fmt: skip


def test_real_images_train_export_and_answer(checkpoint, shared, tmp_path):
    from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
    from vlmkit.generation.backend import GenerationParams
    from vlmkit.generation.hf_backend import HFBackend

    demo = shared / "qwen_demo"
    run("train", *settings(checkpoint, tmp_path, demo / "single_images.json", demo))
    losses = [line["loss"] for line in lines(tmp_path)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1
    backend = HFBackend(directory=tmp_path / "hf", device="cpu", dtype="auto", workers=1)
    picture = ImagePart(demo / "demo/images/10095.png")
    asked = Conversation((Turn("user", (TextPart("Is the value of Favorable 38 in 2015?\n"), picture)),))
    answer = backend.generate([asked], GenerationParams(max_new_tokens=4, batch_size=1))[0]
    assert answer.error is None
    assert 1 <= answer.num_tokens <= 4


def test_the_present_video_trains_and_the_missing_ones_are_told(checkpoint, shared, tmp_path):
    manifest, root = shared / "qwen_demo/video.json", shared / "qwen_demo/demo/videos"
    output = run("train", *settings(checkpoint, tmp_path / "a", manifest, root), status=1)
    assert f"{manifest}:1: video" in output
    assert f"{manifest}:2: video" in output
    assert "2 of 3 rows cannot be used" in output
    run("train", *settings(checkpoint, tmp_path / "b", manifest, root, "data.on_bad_row=skip", "data.max_bad_rows=2"))
    rows = json.loads((tmp_path / "b" / "report.json").read_text())["rows"]["sources"]["video"]
    assert (rows["read"], rows["trained"], rows["skipped"]) == (3, 1, 2)
    losses = [line["loss"] for line in lines(tmp_path / "b")]
    assert losses[-1] < losses[0] - 1
