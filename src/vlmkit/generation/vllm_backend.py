"""Answers by vLLM, from the same prompts as plain transformers; needs a GPU and the extra `vllm`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmkit.conversation import Conversation
from vlmkit.errors import CheckpointError, ConfigError, DataError
from vlmkit.generation.backend import Generation, GenerationParams
from vlmkit.generation.vllm_request import Request, check_prompt, make_request, sampling_settings
from vlmkit.model.checkpoint import weights_hash
from vlmkit.processing.processor import load_processor

DTYPES = ("auto", "float32", "bfloat16", "float16")


class VLLMBackend:
    """Greedy decoding by vLLM's engine, which batches by itself: `batch_size` is how many questions it is given at once.

    Args:
        directory: Hugging Face directory of model and processor.
        dtype: `auto` (as saved), float32, bfloat16 or float16.
        max_model_len: Most tokens of a prompt and its answer together; None: what the model's config says.
        gpu_memory_utilization: Share of the GPU's memory that the engine may take.
        tensor_parallel_size: GPUs over which the model is split.
        max_images: Most images of one question.
        max_videos: Most videos of one question.
    """

    def __init__(
        self,
        *,
        directory: Path,
        dtype: str,
        max_model_len: int | None,
        gpu_memory_utilization: float,
        tensor_parallel_size: int,
        max_images: int,
        max_videos: int,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"backend.dtype={dtype}: choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
        self._vllm = _import_vllm()
        self.directory = directory
        self.dtype = dtype
        self.processor = load_processor(directory)
        self.ends = _ends(directory, self.processor.hf.tokenizer)
        self._settings: dict[str, Any] = {
            "model": str(directory),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "limit_mm_per_prompt": {"image": max_images, "video": max_videos},
            "generation_config": "vllm",  # nothing of the directory's sampling: decoding is greedy
            "trust_remote_code": False,
            "seed": 0,
        }

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of weights and processor, and the precision."""
        weights = weights_hash(self.directory)
        return {"backend": "vllm", "weights": weights, "processor": self.processor.fingerprint, "dtype": self.dtype}

    @cached_property
    def _engine(self) -> Any:
        """The engine, started when the first question comes."""
        try:
            return self._vllm.LLM(**self._settings)
        except (OSError, ValueError, RuntimeError) as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"ckpt={self.directory}: vLLM cannot load it ({told}). Use backend=hf, or a release of vLLM that knows this model."
            ) from error

    def generate(self, conversations: Sequence[Conversation], params: GenerationParams) -> list[Generation]:
        """Answer each conversation, in order.

        Raises:
            VlmkitError: vLLM makes other tokens of a prompt than the model's own processor.
        """
        found: dict[int, Generation] = {}
        requests: dict[int, Request] = {}
        for number, conversation in enumerate(conversations):
            try:
                requests[number] = make_request(conversation, self.processor)
            except DataError as error:
                found[number] = Generation(text="", num_tokens=0, seconds=0.0, error=str(error))
        found.update(zip(requests, self._ask(list(requests.values()), params), strict=True))
        return [found[number] for number in range(len(conversations))]

    def _ask(self, requests: Sequence[Request], params: GenerationParams) -> list[Generation]:
        if not requests:
            return []
        sampling = self._vllm.SamplingParams(**sampling_settings(params, ends=self.ends))
        started = time.perf_counter()
        answers = self._engine.generate([request.prompt for request in requests], sampling, use_tqdm=False)
        seconds = (time.perf_counter() - started) / len(requests)
        return [self._read(request, answer, seconds) for request, answer in zip(requests, answers, strict=True)]

    def _read(self, request: Request, answer: Any, seconds: float) -> Generation:
        check_prompt(request, answer.prompt_token_ids)
        tokens = list(answer.outputs[0].token_ids)
        end = next((place + 1 for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        text = self.processor.hf.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Generation(text=text, num_tokens=end, seconds=seconds)


def _import_vllm() -> Any:
    """The package, imported.

    Raises:
        ConfigError: it is not installed, or does not load here.
    """
    try:
        import vllm  # pyright: ignore[reportMissingImports]  # an extra, which most machines lack
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"backend=vllm: vLLM cannot be loaded here ({error}). It needs a GPU and pip install 'vlmkit[vllm]'; without "
            "it choose backend=hf."
        ) from error
    return vllm


def _ends(directory: Path, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those of the model's generation config or else of its config."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        told: Any = GenerationConfig.from_pretrained(directory).eos_token_id
    else:
        told = AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config().eos_token_id
    ends: set[Any] = {tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
    return sorted(ends - {None})
