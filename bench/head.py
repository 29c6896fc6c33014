"""The chunked head in bf16: how exact the gradient of `lm_head` is by number of chunks, and what chunks save in memory.

`vlmkit.model.head` adds the chunks' gradients in fp32 and rounds the sum once. Beside it, in the same run and on the same
numbers: the same chunks added in the weight's own type, bf16. The error is the norm of the difference from the gradient in
fp64, over that gradient's norm. `python bench/head.py --help` for the options.

Printed, and checked (exit status 1 where a target is missed):
- error: with 2 to 32 chunks at most 1.5 times that of one chunk, and with 32 at most 0.6 times what adding in bf16 gives.
- peak memory of loss and gradients over those of full logits, all in bf16: at most 0.6 with 8 chunks (not with `--quick`).
"""

from __future__ import annotations

import argparse
import sys

import torch
from step import timed
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlmkit.model.head import linear_cross_entropy

CHUNKS = (1, 2, 4, 8, 16, 32)
MAX_GROWTH, MAX_OF_NARROW, MAX_MEMORY = 1.5, 0.6, 0.6


def main() -> int:
    """Draw, measure, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds; memory is not judged")
    options = parser.parse_args()
    if options.quick:
        options.positions, options.width, options.vocabulary = 512, 64, 2048
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.positions, options.width, generator=generator).bfloat16()
    weight = (torch.randn(options.vocabulary, options.width, generator=generator) / options.width**0.5).bfloat16()
    frequencies = 1.0 / torch.arange(1, options.vocabulary + 1)  # Zipf's law: as tokens of a text are distributed
    targets = torch.multinomial(frequencies, options.positions, replacement=True, generator=generator)
    print(f"{options.positions} positions, width {options.width}, vocabulary {options.vocabulary:,}, bf16")
    precise = judge_errors(hidden, weight, targets)
    small = judge_memory(hidden, weight, targets)
    return 0 if precise and (small or options.quick) else 1


def judge_errors(hidden: Tensor, weight: Tensor, targets: Tensor) -> bool:
    """Print the errors by number of chunks; whether they meet the targets."""
    exact = chunked_gradient(hidden.double(), weight.double(), targets, 1)
    errors = {
        count: [
            relative_error(make(hidden, weight, targets, count), exact) for make in (chunked_gradient, added_in_bf16)
        ]
        for count in CHUNKS
    }
    print("chunks   fp32 sums   bf16 sums   relative error of the weight's gradient")
    for count, (ours, narrow) in errors.items():
        print(f"{count:>6}   {ours:9.5f}   {narrow:9.5f}   fp32 sums have {ours / narrow:.2f} of the bf16 sums' error")
    growth = max(ours for ours, _ in errors.values()) / errors[1][0]
    share = errors[CHUNKS[-1]][0] / errors[CHUNKS[-1]][1]
    good = growth <= MAX_GROWTH, share <= MAX_OF_NARROW
    print(f"growth over one chunk    {growth:.2f}   at most {MAX_GROWTH}{'' if good[0] else '   MISSED'}")
    print(f"over bf16, {CHUNKS[-1]} chunks    {share:.2f}   at most {MAX_OF_NARROW}{'' if good[1] else '   MISSED'}")
    return all(good)


def judge_memory(hidden: Tensor, weight: Tensor, targets: Tensor) -> bool:
    """Print the peak memory of 8 chunks beside that of full logits; whether it meets the target."""

    def full() -> None:
        states, head = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
        cross_entropy((states @ head.T).float(), targets, reduction="sum").backward()

    def in_chunks() -> None:
        chunked_gradient(hidden, weight, targets, 8)

    for run in (full, in_chunks):
        run()  # kernels are chosen, buffers of the libraries are there
    (_, whole), (_, part) = timed(full), timed(in_chunks)
    good = part <= MAX_MEMORY * whole
    print(
        f"peak memory, 8 chunks    {part / 2**20:.0f} MiB of {whole / 2**20:.0f} with full logits: {part / max(whole, 1):.2f}   "
        f"at most {MAX_MEMORY}{'' if good else '   MISSED'}"
    )
    return good


def chunked_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, num_chunks: int) -> Tensor:
    """The gradient of the weight as vlmkit makes it."""
    states, head = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
    linear_cross_entropy(states, head, targets, chunk=-(-len(targets) // num_chunks))[0].backward()
    assert head.grad is not None
    return head.grad


def added_in_bf16(hidden: Tensor, weight: Tensor, targets: Tensor, num_chunks: int) -> Tensor:
    """The gradients of the same chunks, each made the same way, added in the weight's type."""
    total = torch.zeros_like(weight)
    for states, columns in zip(hidden.chunk(num_chunks), targets.chunk(num_chunks), strict=True):
        total += chunked_gradient(states, weight, columns, 1)
    return total


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact one."""
    return float((found.double() - exact).norm() / exact.norm())


if __name__ == "__main__":
    sys.exit(main())
