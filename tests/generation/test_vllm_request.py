"""What is sent to vLLM gives, expanded by the model's own processor, exactly the inputs of plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor

from tests.generation.engine import expand
from vlmkit.conversation import Conversation, ImagePart, Origin, TextPart, Turn, VideoPart
from vlmkit.errors import DataError, VlmkitError
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.vllm_request import check_prompt, make_request, sampling_settings
from vlmkit.processing.encode import encode_prompt, prompt_tokens
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import load_processor


def ask(*parts, origin=None):
    return Conversation((Turn("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),), origin)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A directory as training exports it: small limits in its files."""
    budget = PixelBudget(image_max_pixels=64 * 64 * 2, video_max_pixels=64 * 64 * 12, video_max_frames=5)
    directory = tmp_path_factory.mktemp("exported")
    positions = load_processor(tiny.vision_language).geometry.positions_per_side
    load_processor(tiny.vision_language, budget=budget).save(directory)
    return load_processor(directory, positions_per_side=positions), AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def conversations(pictures, clip):
    image, other = ImagePart(pictures[0]), ImagePart(pictures[1])
    return {
        "text": ask("what <|image_pad|> is, and <|im_end|>"),
        "image": ask(image, "what is it?"),
        "images": ask("first ", image, " and then ", other, " <|vision_start|>?"),
        "bytes": ask(ImagePart(pictures[2].read_bytes()), "small"),
        "video": ask(VideoPart(clip), "what moves?"),
        "frames": ask(VideoPart(tuple(pictures[:1] * 3)), "still?"),
        "both": ask(image, VideoPart(clip), "both?"),
        "system": Conversation((Turn("system", (TextPart("Be brief."),)), Turn("user", (image, TextPart("what?"))))),
    }


@pytest.mark.parametrize("name", ["text", "image", "images", "bytes", "video", "frames", "both", "system"])
def test_expanded_by_the_stock_processor_a_request_is_what_transformers_gets(name, conversations, exported):
    processor, hf = exported
    request = make_request(conversations[name], processor)
    wanted, made = encode_prompt(conversations[name], processor), expand(request.prompt, hf)
    assert made.keys() == wanted.keys()
    assert made["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert request.expanded == wanted["input_ids"][0].tolist()
    for key in wanted:
        torch.testing.assert_close(made[key], wanted[key], rtol=0, atol=0)
    check_prompt(request, made["input_ids"][0].tolist())


def test_one_token_stands_for_each_medium_and_typed_ones_are_text(conversations, exported):
    processor, _ = exported
    ids = prompt_tokens(conversations["both"], processor).written
    assert (ids.count(processor.image_token_id), ids.count(processor.video_token_id)) == (1, 1)
    assert processor.image_token_id not in prompt_tokens(conversations["text"], processor).written
    assert make_request(conversations["text"], processor).prompt.keys() == {"prompt_token_ids"}


def test_limits_and_frames_are_told(conversations, exported):
    processor, _ = exported
    image = make_request(conversations["image"], processor).prompt
    assert image["mm_processor_kwargs"] == {
        "size": {"shortest_edge": processor.image_min_pixels, "longest_edge": 64 * 64 * 2}
    }
    video = make_request(conversations["video"], processor).prompt
    assert video["mm_processor_kwargs"] == {
        "do_sample_frames": False,
        "size": {"shortest_edge": processor.video_min_pixels, "longest_edge": 64 * 64 * 12},
    }
    ((frames, metadata),) = video["multi_modal_data"]["video"]
    assert frames.shape == (5, 48, 64, 3)
    assert metadata == {
        "fps": 8.0, "frames_indices": [0, 6, 12, 17, 23], "total_num_frames": 24, "duration": 3.0,
        "video_backend": "vlmkit", "do_sample_frames": False,
    }  # fmt: skip
    assert make_request(conversations["both"], processor).prompt["mm_processor_kwargs"] == {"do_sample_frames": False}


def test_decoding_is_greedy_and_ends_where_ours_does():
    params = GenerationParams(max_new_tokens=7, batch_size=3)
    assert sampling_settings(params, ends=[5, 9]) == {
        "temperature": 0.0, "max_tokens": 7, "stop_token_ids": [5, 9], "detokenize": False,
    }  # fmt: skip


def test_another_expansion_is_refused(conversations, exported):
    """Older releases leave out the marks around a video."""
    processor, _ = exported
    request = make_request(conversations["video"], processor)
    start = request.expanded.index(processor.hf.vision_start_token_id)
    given = request.expanded[:start] + request.expanded[start + 1 :]
    with pytest.raises(VlmkitError, match=rf"{len(given)} tokens .* {len(given) + 1}; they part at token {start}"):
        check_prompt(request, given)
    with pytest.raises(VlmkitError, match="they part at token 3"):
        check_prompt(request, request.expanded[:3])
    check_prompt(request, None)


def test_a_broken_medium_names_its_row(tmp_path, exported):
    processor, _ = exported
    path = tmp_path / "cut.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"rows.jsonl:3: image .*cut.png"):
        make_request(ask(ImagePart(path), "x", origin=Origin("rows.jsonl", 3)), processor)
