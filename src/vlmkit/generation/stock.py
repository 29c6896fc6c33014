"""Batches through transformers' own `generate`, left-padded: for models whose layers our decoding does not know."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vlmkit.conversation import Conversation
from vlmkit.errors import DataError, is_out_of_memory
from vlmkit.generation.decoding import Answered
from vlmkit.processing.encode import encode_prompt
from vlmkit.processing.processor import Processor

_MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
_Prompt = dict[str, Tensor]


class StockDecoder:
    """Answers conversations in batches of prompts of like length.

    Args:
        model: A stock model.
        processor: What its prompts are made with.
        ends: Tokens that end an answer.
    """

    def __init__(self, *, model: Any, processor: Processor, ends: Sequence[int]) -> None:
        tokenizer = processor.hf.tokenizer
        self.model = model
        self.processor = processor
        self.ends = list(ends)
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def answer(
        self, conversations: Iterable[Conversation], *, num_rows: int, window: int, max_new_tokens: int
    ) -> Iterator[list[Answered]]:
        """Answer conversations, ordered by length within each window; a batch that memory does not hold is halved."""
        numbered = enumerate(conversations)
        while taken := list(islice(numbered, window)):
            prompts: dict[int, _Prompt] = {}
            for number, conversation in taken:
                try:
                    prompts[number] = encode_prompt(conversation, self.processor)
                except DataError as error:
                    yield [Answered(number=number, error=str(error))]
            order = sorted(prompts, key=lambda number: -prompts[number]["input_ids"].shape[1])
            for start in range(0, len(order), num_rows):
                chosen = {number: prompts.pop(number) for number in order[start : start + num_rows]}
                yield self._answer(chosen, max_new_tokens)

    def _answer(self, prompts: dict[int, _Prompt], max_new_tokens: int) -> list[Answered]:
        started = time.perf_counter()
        try:
            new = self._decode(list(prompts.values()), max_new_tokens)
        except (RuntimeError, MemoryError) as error:
            if len(prompts) == 1 or not is_out_of_memory(error):
                raise
            new = None
        if new is None:  # outside the handler: the traceback would hold on to what is to be freed
            torch.cuda.empty_cache()
            numbers, half = list(prompts), len(prompts) // 2
            parts = ({number: prompts[number] for number in some} for some in (numbers[:half], numbers[half:]))
            return [one for part in parts for one in self._answer(part, max_new_tokens)]
        seconds = (time.perf_counter() - started) / len(prompts)
        return [
            Answered(number=number, tokens=self._cut(tokens), seconds=seconds)
            for number, tokens in zip(prompts, new.tolist(), strict=True)
        ]

    def _cut(self, tokens: list[int]) -> list[int]:
        end = next((place + 1 for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[:end]

    def _decode(self, prompts: list[_Prompt], max_new_tokens: int) -> Tensor:
        batch = {name: value.to(self.model.device) for name, value in pad_left(prompts, self.padding).items()}
        whole = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.ends,
            pad_token_id=self.padding,
        )
        return whole[:, batch["input_ids"].shape[1] :]


def pad_left(prompts: Sequence[_Prompt], padding: int) -> _Prompt:
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
