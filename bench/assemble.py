"""Assemble Qwen3-VL-2B's vision encoder with Qwen3-0.6B at full shape: peak memory, seconds, bytes read.

Both checkpoints are written with random bf16 weights, in shards, into a temporary directory (5.5 GB). The assembly then
runs in a process of its own, so that nothing of the writing counts. `python bench/assemble.py --help` for the options.

Printed, and checked (exit status 1 where a target is missed):
- peak memory over the start of the assembly, as a multiple of the final model's size: target at most 1.15. Counted is all
  resident memory, and beside it the anonymous part alone: mapped pages of the checkpoints' files would show up in the
  first and not in the second.
- bytes that the process read over the bytes of the tensors that the final model is made of: target 1.0, to 1 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PEAK_TARGET = 1.15
READ_TARGET = 1.01
SHARD_BYTES = 1 << 30
ROWS = 151_936
TEXT_2B = {"hidden_size": 2048, "intermediate_size": 6144}
TEXT_06B = {"hidden_size": 1024, "intermediate_size": 3072}
TEXT = {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": ROWS,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
    "out_hidden_size": 2048,
}


def main() -> int:
    """Write the checkpoints, assemble in a fresh process, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="keep the checkpoints here, and use them again")
    parser.add_argument("--no-proof", action="store_true", help="measure the assembly alone")
    parser.add_argument(
        "--quick", action="store_true", help="a fiftieth of the size; memory and reading are not judged"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, prove=not options.no_proof)))
        return 0
    with tempfile.TemporaryDirectory(prefix="vlmkit-bench-") as scratch:
        root = options.directory or Path(scratch)
        if not (root / "language_model" / "config.json").is_file():
            write_checkpoints(root, small=options.quick)
        command = [sys.executable, __file__, "--measure", str(root), *(["--no-proof"] if options.no_proof else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    met = judge(json.loads(done.stdout.splitlines()[-1]))
    return 0 if met or options.quick else 1


def judge(found: dict[str, float]) -> bool:
    """Print what was measured; whether the targets are met."""
    size, needed = found["model_bytes"], found["needed_bytes"]
    whole, anonymous = found["peak_bytes"] / size, found["anonymous_peak_bytes"] / size
    read = found["read_bytes"] / needed
    print(f"final model           {size / 1e9:.2f} GB, {found['num_tensors']:.0f} tensors")
    print(f"assembled in          {found['seconds']:.1f} s")
    print(f"peak memory           {whole:.3f} x the model (target at most {PEAK_TARGET}), anonymous {anonymous:.3f} x")
    print(
        f"read                  {found['read_bytes'] / 1e9:.2f} GB for {needed / 1e9:.2f} GB: {read:.3f} x (target 1)"
    )
    if "proof_seconds" in found:
        print(
            f"proved in             {found['proof_seconds']:.1f} s, peak {found['proof_peak_bytes'] / size:.2f} x the model"
        )
    met = whole <= PEAK_TARGET and read <= READ_TARGET
    print("targets met" if met else "TARGETS MISSED")
    return met


def measure(root: Path, *, prove: bool) -> dict[str, float]:
    """Assemble once in this process.

    Returns:
        Sizes in bytes, peaks over the memory held when the assembly starts, times in seconds.
    """
    import torch

    from vlmkit.model.assembly import Assembly
    from vlmkit.model.tensors import TensorReader

    assembly = Assembly(
        vision_encoder=root / "vision_language",
        language_model=root / "language_model",
        template=None,
        merger_init="crop",
        processor=None,
        seed=0,
        prove=True,
    )
    with MemoryWatch() as watch:
        read, started = _bytes_read(), time.perf_counter()
        vlm = assembly.build(dtype=torch.bfloat16)
        seconds, read = time.perf_counter() - started, _bytes_read() - read
    assert vlm.report is not None
    readers = {part: TensorReader(root / part) for part in ("vision_language", "language_model")}
    places = [tensor.source.split(":") for tensor in vlm.report.tensors]
    origin = {"vision_encoder": "vision_language", "language_model": "language_model"}
    needed = sum(2 * torch.Size(readers[origin[part]].shape(name)).numel() for part, _, name in places)
    found = {
        "model_bytes": sum(tensor.numel() * tensor.element_size() for tensor in vlm.model.parameters()),
        "num_tensors": len(vlm.report.tensors),
        "seconds": seconds,
        "peak_bytes": watch.peak,
        "anonymous_peak_bytes": watch.anonymous_peak,
        "read_bytes": read,
        "needed_bytes": needed,
    }
    if prove:
        with MemoryWatch(start=watch.start) as proof_watch:
            started = time.perf_counter()
            assembly.prove(vlm)
            found["proof_seconds"] = time.perf_counter() - started
        found["proof_peak_bytes"] = proof_watch.peak
        print(vlm.report.to_text().split("\nConfig fields")[0], file=sys.stderr)
    return found


class MemoryWatch:
    """Looks every 5 ms how much memory the process holds.

    Attributes:
        start: What it held on entry: all, anonymous (bytes).
        peak: The most it held beyond that (bytes).
        anonymous_peak: The same without mapped files (bytes).
    """

    def __init__(self, *, start: tuple[int, int] | None = None) -> None:
        self.start = start or _memory()
        self.peak = self.anonymous_peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._look()

    def _look(self) -> None:
        whole, anonymous = _memory()
        self.peak = max(self.peak, whole - self.start[0])
        self.anonymous_peak = max(self.anonymous_peak, anonymous - self.start[1])


def _memory() -> tuple[int, int]:
    """All resident memory of this process, and the anonymous part (bytes)."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["VmRSS"].split()[0]) * 1024, int(told["RssAnon"].split()[0]) * 1024


def _bytes_read() -> int:
    """Bytes that this process has asked files for so far."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"])


def write_checkpoints(root: Path, *, small: bool) -> None:
    """Write the template and the language model as sharded Hugging Face directories with random weights.

    Args:
        root: Directory of both.
        small: With few layers and tokens, to see that everything works.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from vlmkit.demo.checkpoints import make_processor, train_tokenizer

    tokenizer = train_tokenizer()
    sections = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**TEXT, "num_hidden_layers": 4, "vocab_size": 4096} if small else TEXT
    vision = {**VISION, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]} if small else VISION
    template = Qwen3VLConfig(
        vision_config=vision,
        text_config={**text, **TEXT_2B, "rope_parameters": sections},
        tie_word_embeddings=True,
    )
    plain = {"rope_type": "default", "rope_theta": 1e6}
    language = Qwen3Config(**text, **TEXT_06B, max_position_embeddings=40_960, rope_parameters=plain)
    with torch.device("meta"):
        models = {
            "vision_language": Qwen3VLForConditionalGeneration(template),
            "language_model": Qwen3ForCausalLM(language),
        }
    for name, model in models.items():
        write_random(model, root / name)
        tokenizer.save_pretrained(root / name)
    make_processor(tokenizer).save_pretrained(root / "vision_language")
    for name, config in (("vision_language", template), ("language_model", language)):  # last: marks them as complete
        config.save_pretrained(root / name)


def write_random(model, directory: Path) -> None:
    """Write a model on the meta device as shards of at most a gibibyte, drawn shard by shard."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Size]] = [{}]
    filled = 0
    for name, tensor in model.named_parameters():  # a tied head comes once
        size = 2 * tensor.numel()
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.shape
        filled += size
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in shard.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


if __name__ == "__main__":
    sys.exit(main())
