"""The chunked head: loss and gradients of full logits, as exact with many chunks as with one."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from vlmkit.model.head import linear_cross_entropy

POSITIONS, WIDTH, VOCABULARY = 512, 64, 600


@pytest.fixture(scope="module")
def inputs():
    """Hidden states, weight and targets, the first two exact in bf16."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).bfloat16()
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5).bfloat16()
    return hidden, weight, torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)


def gradients(inputs, dtype, num_chunks, factor=1.0):
    hidden, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs[:2])
    loss, losses = linear_cross_entropy(hidden, weight, inputs[2], chunk=POSITIONS // num_chunks)
    (factor * loss).backward()
    return loss.detach(), losses, hidden.grad, weight.grad


def relative_error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("num_chunks", [1, 3, 32])
def test_loss_and_gradients_are_those_of_full_logits(inputs, num_chunks):
    loss, losses, hidden_grad, weight_grad = gradients(inputs, torch.float64, num_chunks, factor=0.5)
    hidden, weight = (tensor.double().requires_grad_() for tensor in inputs[:2])
    wanted = cross_entropy(hidden @ weight.T, inputs[2], reduction="none")
    (0.5 * wanted.sum()).backward()
    torch.testing.assert_close(losses, wanted.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss, wanted.detach().sum(), rtol=0, atol=1e-10)
    torch.testing.assert_close(hidden_grad, hidden.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight_grad, weight.grad, rtol=0, atol=1e-12)


def test_the_error_of_a_bf16_weight_s_gradient_does_not_grow_with_the_number_of_chunks(inputs):
    """Were the chunks added in bf16, the error of 32 would be over three times that of one.

    Each chunk's product is rounded to bf16 once, and the sum once: together the square root of 2, however many chunks.
    """
    exact = gradients(inputs, torch.float64, 1)[3]
    errors = {}
    for num_chunks in (1, 2, 32):
        found = gradients(inputs, torch.bfloat16, num_chunks)[3]
        assert found.dtype == torch.bfloat16
        errors[num_chunks] = relative_error(found, exact)
    assert errors[2] < 1.5 * errors[1]
    assert errors[32] < 1.1 * errors[2]


def test_the_gradient_of_an_fp32_weight_stays_fp32_under_autocast(inputs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _, grad = gradients(inputs, torch.float32, 32)
    assert loss.dtype == grad.dtype == torch.float32
    assert relative_error(grad, gradients(inputs, torch.float64, 1)[3]) < 0.003
