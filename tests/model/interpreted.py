"""Liger's kernels in Triton's interpreter: run as a program with TRITON_INTERPRET=1, which Triton reads once, at import.

    TRITON_INTERPRET=1 python -m tests.model.interpreted CHECKPOINT

Prints one JSON object: how far losses and gradients of a model with Liger's kernels are from the stock model in fp64, and
what the interpreter of the installed Triton (3.8) says of the two things in these kernels that it cannot run. `supply` gives
it both: a number handed to a kernel becomes an fp32 scalar, as the compiler makes it, and `libdevice.rsqrt` is Triton's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter


@triton.jit
def _cast_number(out, number):
    tl.store(out, number.to(tl.float32))


@triton.jit
def _take_root(out, values):
    tl.store(out, libdevice.rsqrt(tl.load(values)) + 1.0)


def refusals() -> dict[str, str]:
    """The interpreter's errors, each by the smallest kernel that raises it."""
    out, values = torch.zeros(1), torch.ones(1)
    calls = {"number": lambda: _cast_number[(1,)](out, 0.5), "libdevice": lambda: _take_root[(1,)](out, values)}
    errors = {}
    for name, call in calls.items():
        try:
            call()
        except interpreter.InterpreterError as error:
            errors[name] = str(error)
    return errors


def supply() -> None:
    """Give the interpreter what it lacks for Liger's norms and activations."""
    from liger_kernel.ops import rms_norm

    stock = interpreter._implicit_cvt

    def convert(argument):
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return stock(argument)

    interpreter._implicit_cvt = convert
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)  # looked up when called: the interpreter replaces it by its own


def losses_and_gradients(hf):
    """Cross-entropy of a short text, and the gradient of each parameter of the language model."""
    tokens = torch.arange(3, 15)[None]
    logits = hf(input_ids=tokens, use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
    loss.backward()
    language = hf.model.language_model
    return loss.detach().double(), {name: p.grad.double() for name, p in language.named_parameters()}


def main(checkpoint: Path) -> None:
    """Compare, and print what was found."""
    from tests.families.fixtures import load_stock
    from vlmkit.model.liger import _apply

    errors = refusals()
    supply()
    wanted, reference = losses_and_gradients(load_stock(checkpoint, torch.float64).train())
    model = load_stock(checkpoint, torch.float32).train()
    _apply(model)
    loss, gradients = losses_and_gradients(model)
    apart = {name: float((gradients[name] - grad).norm() / grad.norm()) for name, grad in reference.items()}
    print(json.dumps({"errors": errors, "loss": float((loss - wanted).abs()), "gradients": max(apart.values())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
