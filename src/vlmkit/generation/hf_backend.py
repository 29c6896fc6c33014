"""Answers from a Hugging Face directory: the stock transformers model, decoded by our own loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vlmkit.conversation import Conversation
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.generation.ahead import Ahead
from vlmkit.generation.backend import Generation, GenerationParams, Numbered
from vlmkit.generation.decoding import Answered, Decoder
from vlmkit.generation.stock import StockDecoder
from vlmkit.model.checkpoint import weights_hash
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import Processor, load_processor

WINDOW_BATCHES = 8
"""Batches whose prompts are ordered by length together."""
_OWN = ("qwen3_vl",)
_PACK_TOKENS = 8192
_CHECK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks for end tokens: on a CPU a look costs nothing, elsewhere it waits for the device."""


class HFBackend:
    """Greedy decoding with the stock model: in fp32, token for token what its `generate` gives for each prompt alone.

    Args:
        directory: Hugging Face directory of model and processor.
        device: `auto` (a GPU where there is one), or a torch device.
        dtype: `auto` (as saved), float32, bfloat16 or float16.
        workers: Threads that read media and encode prompts ahead of the model.
    """

    def __init__(self, *, directory: Path, device: str, dtype: str, workers: int) -> None:
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"backend.dtype={dtype}: choose auto, float32, bfloat16 or float16.")
        self.directory = directory
        place = _place(device)
        processor = load_processor(directory)
        kind = "auto" if dtype == "auto" else getattr(torch, dtype)
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(
                directory, dtype=kind, attn_implementation="sdpa", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"ckpt={directory}: no model can be loaded ({str(error).splitlines()[0]}). Export or download it again."
            ) from error
        self.dtype = dtype
        self._take(model.eval().to(place), processor, workers)

    def _take(self, model: Any, processor: Processor, workers: int) -> None:
        """Make what decodes."""
        self.model = model
        self.processor = processor
        self.device: torch.device = model.lm_head.weight.device
        self.ahead = Ahead(processor=processor, workers=workers)
        self.ends = end_tokens(model, processor)
        tokenizer = processor.hf.tokenizer
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.decoder = _decoder(model, processor, self.ends)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of weights and processor, and the precision."""
        weights = weights_hash(self.directory)
        return {"backend": "hf", "weights": weights, "processor": self.processor.fingerprint, "dtype": self.dtype}

    def generate(self, conversations: Sequence[Conversation], params: GenerationParams) -> list[Generation]:
        """Answer each conversation, in order."""
        found = {number: answer for told in self.stream(conversations, params) for number, answer in told}
        return [found[number] for number in range(len(conversations))]

    @torch.inference_mode()
    def stream(self, conversations: Iterable[Conversation], params: GenerationParams) -> Iterator[list[Numbered]]:
        """Answers as they end; prompts are ordered by length within windows of eight batches.

        One that cannot be encoded is told with its error, and so is one too large for the memory, once another was
        answered.

        Raises:
            VlmkitError: memory does not suffice for the first answer.
        """
        size, most, window = params.batch_size, params.max_new_tokens, params.batch_size * WINDOW_BATCHES
        if isinstance(self.decoder, StockDecoder):
            answers = self.decoder.answer(conversations, num_rows=size, window=window, max_new_tokens=most)
            for told in answers:
                yield [(one.number, self._generation(one)) for one in told]
            return
        prompts = self.ahead(conversations, window=window, ready=size)
        try:
            for told in self.decoder.answer(prompts, num_rows=size, max_new_tokens=most):
                yield [(one.number, self._generation(one)) for one in told]
        finally:
            prompts.close()

    def _generation(self, answered: Answered) -> Generation:
        text = self.processor.hf.tokenizer.decode(answered.tokens, skip_special_tokens=True)
        return Generation(text=text, num_tokens=len(answered.tokens), seconds=answered.seconds, error=answered.error)


def _place(device: str) -> torch.device:
    """The device by its name, if there is such a one here.

    Raises:
        ConfigError: there is not.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"backend.device={device}: no such device. Choose auto, cpu, cuda or cuda:1.") from error
    if place.type == "cuda" and (place.index or 0) >= (found := torch.cuda.device_count()):
        raise ConfigError(f"backend.device={device}: PyTorch sees {found} GPUs here. Choose auto or cpu.")
    return place


def end_tokens(model: Any, processor: Processor) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's generation config names."""
    config = model.generation_config
    told = config.eos_token_id if config is not None else None
    ends: set[Any] = {processor.hf.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
    return sorted(ends - {None})


def _decoder(model: Any, processor: Processor, ends: list[int]) -> Decoder | StockDecoder:
    """Our own decoding where the model's layers are those it was written for, transformers' elsewhere."""
    if model.config.model_type not in _OWN:
        return StockDecoder(model=model, processor=processor, ends=ends)
    return Decoder(
        packed=PackedVLM(model, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std),
        processor=processor,
        ends=ends,
        check_every=_CHECK_EVERY.get(model.lm_head.weight.device.type, _CHECK_EVERY["cuda"]),
        enter_at=1,
        pack_tokens=_PACK_TOKENS,
    )
