"""What vLLM does with a request, done by transformers: media by the directory's own processor, placeholders expanded.

vLLM itself needs a GPU. This engine has its interface (`LLM`, `SamplingParams`) and follows its documented steps: each
video alone and all images together through the Hugging Face processor with `mm_processor_kwargs`, then each placeholder
in the given token ids replaced by what that processor makes of it, then greedy decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool


class LLM:
    """The engine; settings other than the model's place concern a GPU."""

    started: list[dict[str, Any]] = []

    def __init__(self, *, model: str, **settings: Any) -> None:
        self.hf = AutoProcessor.from_pretrained(model)
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.started.append(settings)

    def generate(self, prompts: list[dict[str, Any]], sampling: SamplingParams, *, use_tqdm: bool) -> list[Any]:
        return [self._answer(prompt, sampling) for prompt in prompts]

    def _answer(self, prompt: dict[str, Any], sampling: SamplingParams) -> Any:
        inputs = expand(prompt, self.hf)
        assert sampling.temperature == 0.0
        with torch.inference_mode():
            whole = self.model.generate(
                **inputs, max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=sampling.stop_token_ids
            )
        length = inputs["input_ids"].shape[1]
        return SimpleNamespace(
            prompt_token_ids=inputs["input_ids"][0].tolist(),
            outputs=[SimpleNamespace(token_ids=whole[0, length:].tolist())],
        )


def expand(prompt: dict[str, Any], hf: Any) -> dict[str, torch.Tensor]:
    """Inputs of the model for a request."""
    media, settings = prompt.get("multi_modal_data", {}), prompt.get("mm_processor_kwargs", {})
    replacements: dict[int, list[list[int]]] = {hf.image_token_id: [], hf.video_token_id: []}
    inputs: dict[str, Any] = {}
    for frames, metadata in media.get("video", ()):
        told = VideoMetadata(**{name: value for name, value in metadata.items() if name != "do_sample_frames"})
        made = hf(
            text=[hf.video_token], videos=[[frames]], video_metadata=[[told]], return_tensors="pt", **settings
        )  # fmt: skip
        replacements[hf.video_token_id].append(made["input_ids"][0].tolist())
        for name in ("pixel_values_videos", "video_grid_thw"):
            inputs[name] = torch.cat([inputs[name], made[name]]) if name in inputs else made[name]
    if images := media.get("image"):
        settings = {name: value for name, value in settings.items() if name != "do_sample_frames"}
        made = hf(text=[hf.image_token] * len(images), images=[[one] for one in images], return_tensors="pt",
                  padding=True, **settings)  # fmt: skip
        for grid in made["image_grid_thw"]:
            replacements[hf.image_token_id].append(
                [hf.image_token_id] * int(grid.prod() // hf.image_processor.merge_size**2)
            )
        inputs |= {name: made[name] for name in ("pixel_values", "image_grid_thw")}
    ids: list[int] = []
    for token in prompt["prompt_token_ids"]:
        ids += replacements[token].pop(0) if token in replacements else [token]
    assert not any(replacements.values()), "as many placeholders as media"
    whole = torch.tensor([ids])
    kinds = (whole == hf.image_token_id).long() + 2 * (whole == hf.video_token_id).long()
    return inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole), "mm_token_type_ids": kinds}
