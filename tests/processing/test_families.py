"""Each family's media: ids, pixels, times and positions are those of the stock processor and the stock model."""

from __future__ import annotations

import pytest
import torch
from tests.families.fixtures import checkpoint, family, family_processor
from tests.processing.test_encode import messages, say, with_copies

from vlmkit.conversation import ImagePart, VideoPart
from vlmkit.processing.encode import encode_example, encode_prompt, layout, measure_example
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.positions import position_ids
from vlmkit.processing.processor import load_processor

__all__ = ["checkpoint", "family", "family_processor"]


def told_of(pictures, clip):
    return say(
        ("user", "look ", VideoPart(clip), "and ", ImagePart(pictures[0]), ImagePart(pictures[1]), "what?"),
        ("assistant", "A jump."),
    )


@pytest.fixture(scope="module")
def stock(family_processor, pictures, clip):
    """What the stock processor makes of the conversation, given the frames that we sample."""
    from PIL import Image
    from transformers.video_utils import VideoMetadata

    processor = family_processor
    told = told_of(pictures, clip)
    place = layout(VideoPart(clip), processor)
    frames = processor.reading.frames(clip, list(place.frames))
    metadata = VideoMetadata(total_num_frames=24, fps=8.0, frames_indices=list(place.frames))
    return processor.hf(
        text=[processor.hf.apply_chat_template(messages(told), tokenize=False)],
        images=[Image.open(pictures[number]) for number in (0, 1)],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


def test_ids_and_pixels_are_the_stock_processors(family_processor, stock, pictures, clip):
    told = told_of(pictures, clip)
    sample = encode_example(told, family_processor, pixels="float32")
    assert torch.equal(sample["input_ids"], stock["input_ids"][0])
    assert torch.equal(sample["grid_thw"][sample["is_video"]], stock["video_grid_thw"])
    assert torch.equal(sample["grid_thw"][~sample["is_video"]], stock["image_grid_thw"])
    # A mean and deviation per channel are folded with the scale by transformers: the last bit may differ.
    torch.testing.assert_close(with_copies(sample["still_patches"]), stock["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(sample["video_patches"], stock["pixel_values_videos"], rtol=0, atol=1e-6)
    assert measure_example(told, family_processor).num_tokens == len(sample["input_ids"])


def test_the_time_between_frame_pairs_is_the_stock_processors(family_processor, stock, pictures, clip):
    prompt = encode_prompt(told_of(pictures, clip), family_processor)
    assert ("second_per_grid_ts" in prompt) == ("second_per_grid_ts" in stock)
    if "second_per_grid_ts" in stock:
        assert torch.equal(prompt["second_per_grid_ts"], torch.as_tensor(stock["second_per_grid_ts"]))


def test_positions_are_the_stock_models(family_processor, stock, checkpoint, pictures, clip):
    from transformers import AutoConfig

    from vlmkit.model.families import on_meta

    model = on_meta(AutoConfig.from_pretrained(checkpoint)).model
    media = {name: stock[name] for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if name in stock}
    wanted, deltas = model.get_rope_index(stock["input_ids"], mm_token_type_ids=stock["mm_token_type_ids"], **media)
    sample = encode_example(told_of(pictures, clip), family_processor, pixels="uint8")
    assert torch.equal(sample["position_ids"][1:], wanted[:, 0])


@pytest.mark.parametrize("fps", [0.7, 1.0, 1.9, 3.0, 8.0])
def test_positions_of_any_frame_rate_are_the_stock_models(checkpoint, family, clip, fps):
    """Time that falls between two positions is rounded as the stock model rounds it."""
    from transformers import AutoConfig

    from vlmkit.model.families import on_meta

    processor = load_processor(checkpoint, budget=PixelBudget(video_fps=fps, video_max_pixels=64 * 48))
    model = on_meta(AutoConfig.from_pretrained(checkpoint)).model
    told = say(("user", VideoPart(clip), "what?"), ("assistant", "x"))
    prompt, sample = encode_prompt(told, processor), encode_example(told, processor, pixels="uint8")
    ids = sample["input_ids"][None]
    media = {name: prompt[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in prompt}
    kinds = 2 * (ids == processor.video_token_id).long()
    wanted, _ = model.get_rope_index(ids, mm_token_type_ids=kinds, **media)
    assert torch.equal(sample["position_ids"][1:], wanted[:, 0])


def test_moments_of_a_run_are_apart_and_text_goes_on_after_its_longer_side():
    positions, after = position_ids(12, [(1, (3, 2, 4), 1.5)], merge_size=2)
    assert positions[1].tolist() == [0, 1, 1, 2, 2, 4, 4, 3, 4, 5, 6, 7]
    assert positions[2].tolist() == [0, 1, 1, 1, 1, 1, 1, 3, 4, 5, 6, 7]
    assert positions[3].tolist() == [0, 1, 2, 1, 2, 1, 2, 3, 4, 5, 6, 7]
    assert after == 8


def test_a_video_shorter_than_a_patch_is_encoded(family_processor, pictures, tmp_path):
    import av
    import numpy as np

    path = tmp_path / "one.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), dtype=np.uint8), format="rgb24")))
        container.mux(stream.encode())
    told = say(("user", VideoPart(path), "what?"), ("assistant", "x"))
    assert encode_example(told, family_processor, pixels="uint8")["grid_thw"][0, 0] == 1


def test_limits_of_a_video_hold_as_the_stock_processor_takes_them(family_processor):
    """Of each frame in Qwen2.5-VL, of all frames together in the others."""
    short, long = (family_processor.video_grid(count, 480, 640) for count in (4, 400))
    assert (short[1:] == long[1:]) == family_processor.video_rules.limits_of_a_frame


def test_another_processor_is_refused_by_name(family_processor, tmp_path):
    from vlmkit.errors import CheckpointError

    family_processor.hf.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"^model\.processor: "):
        load_processor(tmp_path, positions_per_side=1)
