"""Answers from a Hugging Face directory with plain transformers, in left-padded batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vlmkit.conversation import Conversation
from vlmkit.errors import CheckpointError, ConfigError, DataError
from vlmkit.generation.backend import Generation, GenerationParams
from vlmkit.model.checkpoint import weights_hash
from vlmkit.processing.encode import encode_prompt
from vlmkit.processing.processor import load_processor

_MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


class HFBackend:
    """Greedy decoding with the stock model.

    Args:
        directory: Hugging Face directory of model and processor.
        device: `auto` (a GPU where there is one), or a torch device.
        dtype: `auto` (as saved), float32, bfloat16 or float16.
    """

    def __init__(self, *, directory: Path, device: str, dtype: str) -> None:
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"backend.dtype={dtype}: choose auto, float32, bfloat16 or float16.")
        self.directory = directory
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.processor = load_processor(directory)
        kind = "auto" if dtype == "auto" else getattr(torch, dtype)
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(
                directory, dtype=kind, attn_implementation="sdpa", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"ckpt={directory}: no model can be loaded ({str(error).splitlines()[0]}). Export or download it again."
            ) from error
        self.model = model.eval().to(self.device)
        self.dtype = dtype
        self._find_ends()

    def _find_ends(self) -> None:
        """Tokens that end an answer, and the one that pads."""
        tokenizer = self.processor.hf.tokenizer
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        config = self.model.generation_config
        told = config.eos_token_id if config is not None else None
        ends: set[Any] = {tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
        self.ends: list[int] = sorted(ends - {None})

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of weights and processor, and the precision."""
        weights = weights_hash(self.directory)
        return {"backend": "hf", "weights": weights, "processor": self.processor.fingerprint, "dtype": self.dtype}

    def generate(self, conversations: Sequence[Conversation], params: GenerationParams) -> list[Generation]:
        """Answer each conversation, in order; prompts of like length are decoded together."""
        found: dict[int, Generation] = {}
        prompts: dict[int, dict[str, Tensor]] = {}
        for number, conversation in enumerate(conversations):
            try:
                prompts[number] = encode_prompt(conversation, self.processor)
            except DataError as error:
                found[number] = Generation(text="", num_tokens=0, seconds=0.0, error=str(error))
        order = sorted(prompts, key=lambda number: prompts[number]["input_ids"].shape[1])
        for start in range(0, len(order), params.batch_size):
            chosen = order[start : start + params.batch_size]
            answers = self._answer([prompts[number] for number in chosen], params)
            found.update(zip(chosen, answers, strict=True))
        return [found[number] for number in range(len(conversations))]

    def _answer(self, prompts: list[dict[str, Tensor]], params: GenerationParams) -> list[Generation]:
        """Decode one batch; where the device's memory does not suffice, its halves one after the other."""
        started = time.perf_counter()
        try:
            new = self._decode(prompts, params)
        except torch.cuda.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(prompts) // 2
            return [*self._answer(prompts[:half], params), *self._answer(prompts[half:], params)]
        seconds = (time.perf_counter() - started) / len(prompts)
        answers: list[Generation] = []
        for tokens in new.tolist():
            end = next((place + 1 for place, token in enumerate(tokens) if token in self.ends), len(tokens))
            text = self.processor.hf.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            answers.append(Generation(text=text, num_tokens=end, seconds=seconds))
        return answers

    def _decode(self, prompts: list[dict[str, Tensor]], params: GenerationParams) -> Tensor:
        batch = {name: value.to(self.device) for name, value in pad_left(prompts, self.padding).items()}
        with torch.inference_mode():
            whole = self.model.generate(
                **batch,
                max_new_tokens=params.max_new_tokens,
                do_sample=False,
                eos_token_id=self.ends,
                pad_token_id=self.padding,
            )
        return whole[:, batch["input_ids"].shape[1] :]


def pad_left(prompts: Sequence[dict[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """Join prompts into one batch, padded on the left and masked; media one after the other.

    Args:
        prompts: As `encode_prompt` makes them.
        padding: Token id of the padding.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: (prompts, longest); media as in the prompts, joined.
    """
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def padded(name: str, value: int) -> Tensor:
        rows = [prompt[name][0] for prompt in prompts]
        return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows])

    batch = {
        "input_ids": padded("input_ids", padding),
        "attention_mask": padded("attention_mask", 0),
        "mm_token_type_ids": padded("mm_token_type_ids", 0),
    }
    for name in _MEDIA:
        if parts := [prompt[name] for prompt in prompts if name in prompt]:
            batch[name] = torch.cat(parts)
    return batch
