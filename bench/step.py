"""One training step, vlmkit's beside transformers' own: supervised tokens a second, and peak memory.

transformers' step is what its Trainer runs: the stock model on a batch padded to its longest row, `labels=` and full
logits. vlmkit's is `PackedVLM` on the same rows in one pack. Both have the same weights, rows, supervised tokens,
clipping and AdamW; the vocabulary is Qwen's 151,936. Lengths are those of `packing.py`, scaled down for a CPU (`--scale`).
They run in turn in one process; three settings are measured, each on its own: everything is trained (joint), only the
merger (stage 1), merger and language model (stage 2). `python bench/step.py --help` for the options.

First, in fp64 on a small model: loss and all gradients equal the stock logits' with `F.cross_entropy`, to 1e-10.

Printed, and checked (exit status 1 where a target is missed), medians over the rounds:
- supervised tokens a second, over transformers': at least 2.2.
- peak memory (weights, optimiser state, and the most that a step takes on top), over transformers': at most 0.6.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packing import draw
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlmkit.batch import IGNORE_INDEX, Batch, Sample
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.demo import tiny_checkpoints
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.positions import position_ids
from vlmkit.processing.processor import Processor, load_processor

MIN_SPEED, MAX_MEMORY = 2.2, 0.6
VOCABULARY = 151_936
SETTINGS = {
    "joint": FreezePolicy(vision_encoder=False, merger=False, language_model=False),
    "stage 1": FreezePolicy(vision_encoder=True, merger=False, language_model=True),
    "stage 2": FreezePolicy(vision_encoder=True, merger=False, language_model=False),
}


@dataclass(frozen=True)
class Step:
    """One side: its model's bytes at rest, and what runs a step."""

    name: str
    resting_bytes: Callable[[], int]
    run: Callable[[], None]


def main() -> int:
    """Prove, measure every setting, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.25, help="factor of the lengths of packing.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512, help="of the language model; the rest follows")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    processor = load_processor(tiny_checkpoints().vision_language)
    samples = make_samples(options.rows, options.scale, processor)
    prove(processor, make_samples(4, 0.1, processor))
    pad, true = padded_tokens(samples), sum(len(one["input_ids"]) for one in samples)
    supervised = sum(int((one["labels"] != IGNORE_INDEX).sum()) for one in samples)
    print(f"{options.rows} rows: {true:,} tokens ({pad:,} padded), {supervised} supervised")
    return 0 if all([measure(name, options, processor, samples, supervised) for name in options.settings]) else 1


def measure(name: str, options: argparse.Namespace, processor: Processor, samples: list[Sample], count: int) -> bool:
    """Run both sides in turn in one setting; whether both targets are met."""
    sides = [
        side(
            make_model(processor, width=options.width, depth=8, vocabulary=VOCABULARY), processor, samples, freeze, ours
        )
        for freeze in [SETTINGS[name]]
        for ours in (False, True)
    ]
    for one in sides:
        one.run()  # optimiser state is made, kernels are chosen
    seconds: dict[str, list[float]] = {one.name: [] for one in sides}
    peaks: dict[str, list[float]] = {one.name: [] for one in sides}
    for _ in range(options.rounds):
        for one in sides:
            took, rise = timed(one.run)
            seconds[one.name].append(took)
            peaks[one.name].append((one.resting_bytes() + rise) / 2**20)
    theirs, ours = (statistics.median(seconds[one.name]) for one in sides)
    most, least = (statistics.median(peaks[one.name]) for one in sides)
    print(f"{name}")
    for one in sides:
        s, m = statistics.median(seconds[one.name]), statistics.median(peaks[one.name])
        spread = "  ".join(f"{value:.1f}" for value in seconds[one.name])
        print(
            f"  {one.name:<14} {s:6.2f} s a step  {count / s:7.1f} supervised tokens/s  peak {m:7,.0f} MiB   ({spread})"
        )
    speed, memory = theirs / ours, least / most
    fine = speed >= MIN_SPEED, memory <= MAX_MEMORY
    print(f"  speed          {speed:.2f} times   at least {MIN_SPEED}{'' if fine[0] else '   MISSED'}")
    print(f"  peak memory    {memory:.2f}         at most {MAX_MEMORY}{'' if fine[1] else '   MISSED'}")
    del sides
    gc.collect()
    return all(fine)


def make_samples(num_rows: int, scale: float, processor: Processor) -> list[Sample]:
    """Rows with the lengths, images and supervised shares of `packing.py`."""
    lengths = draw(max(num_rows, 100))
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = []
    for row in range(num_rows):
        visual = int(scale * lengths.num_patches[row] / 4)
        tokens = max(16, int(scale * lengths.num_tokens[row]))
        samples.append(make_sample(tokens, visual, max(2, tokens // 8 + 1), generator, processor))
    return samples


def make_sample(tokens: int, visual: int, supervised: int, generator: torch.Generator, processor: Processor) -> Sample:
    """Random ids, at most one image of about so many visual tokens, labels at the end."""
    merge, patch = processor.geometry.merge_size, processor.geometry.patch_size
    high = max(1, int(visual**0.5)) if visual else 0
    wide = visual // high if high else 0
    visual = high * wide
    ids = torch.randint(0, 900, (max(tokens, visual + supervised + 8),), generator=generator)
    grid = (1, high * merge, wide * merge)
    if visual:
        ids[3 : 3 + visual] = processor.image_token_id
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[-supervised:] = ids[-supervised:]
    positions, _ = position_ids(len(ids), [(3, grid, False)] if visual else [], merge_size=merge)
    num_patches = visual * merge**2
    return Sample(
        input_ids=ids,
        labels=labels,
        position_ids=torch.from_numpy(positions),
        still_patches=torch.randint(0, 256, (num_patches, 3 * patch**2), dtype=torch.uint8, generator=generator),
        video_patches=torch.empty(0, 6 * patch**2, dtype=torch.uint8),
        grid_thw=torch.tensor([grid] if visual else [], dtype=torch.int64).reshape(-1, 3),
        is_video=torch.zeros(int(bool(visual)), dtype=torch.bool),
    )


def padded_tokens(samples: list[Sample]) -> int:
    """Tokens of the batch when every row is as long as the longest."""
    return len(samples) * max(len(one["input_ids"]) for one in samples)


def stock_batch(samples: list[Sample], processor: Processor) -> dict[str, Tensor]:
    """What transformers' collator hands to the model: padded on the right, pixels normalised, both temporal copies."""
    longest = max(len(one["input_ids"]) for one in samples)

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=value) for row in rows])

    ids = padded([one["input_ids"] for one in samples], 0)
    single = (torch.cat([one["still_patches"] for one in samples]).float() - 127.5) / 127.5
    doubled = single.unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)
    return {
        "input_ids": ids,
        "attention_mask": padded([torch.ones_like(one["input_ids"]) for one in samples], 0),
        "labels": padded([one["labels"] for one in samples], IGNORE_INDEX),
        "mm_token_type_ids": (ids == processor.image_token_id).long(),
        "pixel_values": doubled,
        "image_grid_thw": torch.cat([one["grid_thw"] for one in samples]),
    }


def our_batch(samples: list[Sample], processor: Processor) -> Batch:
    """The same rows in one pack."""
    rows = tuple(range(len(samples)))
    info = PackInfo(pack=0, rows=rows, sources=(0,) * len(rows), step_supervised_tokens=1)
    return pack_samples(samples, processor, info)


def make_model(processor: Processor, *, width: int, depth: int, vocabulary: int) -> Any:
    """A Qwen3-VL between the demo's and the real one, drawn from a seed."""
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    config: Any = AutoConfig.from_pretrained(tiny_checkpoints().vision_language)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 3 * width, depth
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = width // 64, width // 128, 64
    text.layer_types = ["full_attention"] * depth
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [12, 10, 10]}
    text.vocab_size = vocabulary
    vision.hidden_size, vision.intermediate_size, vision.depth = 3 * width // 4, 3 * width, depth
    vision.num_heads, vision.out_hidden_size = 3 * width // 256, width
    vision.deepstack_visual_indexes = [depth // 4, depth // 2, 3 * depth // 4]
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config).train()


def side(model: Any, processor: Processor, samples: list[Sample], freeze: FreezePolicy, ours: bool) -> Step:
    """A model, its optimiser and a step of it."""
    freeze.apply(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    if ours:
        packed, batch = packed_model(model, processor), our_batch(samples, processor)
        freeze.set_modes(model)
        count = len(batch["targets"])

        def loss() -> Tensor:
            return packed(batch).loss_sum / count
    else:
        inputs = stock_batch(samples, processor)

        def loss() -> Tensor:
            return model(**inputs).loss

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def resting() -> int:
        moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.nbytes for t in (*model.parameters(), *moments))

    return Step("vlmkit" if ours else "transformers", resting, step)


def packed_model(model: Any, processor: Processor) -> PackedVLM:
    """The model as vlmkit trains it."""
    return PackedVLM(model, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)


def prove(processor: Processor, samples: list[Sample]) -> None:
    """Compare loss and gradients in fp64 on a small model; raises where they differ."""
    stock, copied = (make_model(processor, width=128, depth=4, vocabulary=4096).double() for _ in range(2))
    batch, inputs = our_batch(samples, processor), stock_batch(samples, processor)
    labels = inputs.pop("labels")
    logits = stock(**{**inputs, "pixel_values": inputs["pixel_values"].double()}).logits
    wanted = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    found = packed_model(copied, processor)(batch).loss_sum / len(batch["targets"])
    wanted.backward()
    found.backward()
    pairs = zip(stock.parameters(), copied.parameters(), strict=True)
    worst = max(float((one.grad - other.grad).abs().max()) for one, other in pairs if one.grad is not None)
    difference = abs(float(found.detach() - wanted.detach()))
    print(f"fp64, small model: loss differs by {difference:.1e}, gradients by {worst:.1e} (at most 1e-10)")
    if not (difference < 1e-10 and worst < 1e-10):
        raise SystemExit("the two steps do not compute the same")


def timed(run: Callable[[], None]) -> tuple[float, int]:
    """Seconds of a call, and the most memory that it had above what stood before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, start = status("VmRSS"), time.perf_counter()
    run()
    return time.perf_counter() - start, status("VmHWM") - before


def status(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match
    return 1024 * int(match[1])


if __name__ == "__main__":
    sys.exit(main())
