"""Layers that carry a state along the row: in a packed row none of it passes from one segment to the next."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.families.tiny import qwen3_5_config
from vlmkit.model.linear_attention import keep_segments_apart

LENGTHS = [5, 70, 5, 1, 130]
"""Two of one length, one token alone, one longer than two chunks of the kernel."""


@pytest.fixture(scope="module")
def layers():
    """A stock layer, and one with the same weights that keeps segments apart."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

    made = []
    for _ in range(2):
        torch.manual_seed(0)
        block = Qwen3_5DecoderLayer(qwen3_5_config().text_config, 0)
        with torch.no_grad():
            for parameter in block.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
        made.append(block)
    keep_segments_apart(made[1:])
    return tuple(block.linear_attn for block in made)


@pytest.fixture
def row():
    return torch.randn(1, sum(LENGTHS), 64, generator=torch.Generator().manual_seed(1))


def starts():
    return torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)


def test_each_segment_is_what_it_is_alone_bit_for_bit(layers, row):
    stock, ours = layers
    wanted = torch.cat([stock(segment) for segment in row.split(LENGTHS, dim=1)], dim=1)
    assert torch.equal(ours(row, seqlens=LENGTHS, cu_seq_lens_q=starts(), kernel="auto"), wanted)


def test_the_stock_layer_leaks_and_refuses_to_be_told_of_segments(layers, row):
    """The reason for all this. Should transformers' own layer learn of segments on a CPU, it is time to use it."""
    stock, ours = layers
    with pytest.raises(ValueError, match="can't keep packed sequences apart"):
        stock(row, cu_seq_lens_q=starts())
    leaking = stock(row)
    apart = (leaking - ours(row, seqlens=LENGTHS))[0].abs().amax(-1).split(LENGTHS)
    assert apart[0].detach().max() < 1e-4 * leaking.detach().abs().max(), "the first one has no neighbour before it"
    assert all(float(difference.detach().max()) > 1e-3 for difference in apart[1:])


def test_gradients_are_those_of_the_segments_alone(layers, row):
    stock, ours = layers
    weigh = torch.randn_like(row)
    found, wanted = row.clone().requires_grad_(), row.clone().requires_grad_()
    (ours(found, seqlens=LENGTHS) * weigh).sum().backward()
    alone = torch.cat([stock(segment) for segment in wanted.split(LENGTHS, dim=1)], dim=1)
    (alone * weigh).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-6)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
        parameter.grad = ours.get_parameter(name).grad = None


def test_without_segments_it_is_the_stock_layer(layers, row):
    stock, ours = layers
    assert torch.equal(ours(row), stock(row))
    mask = torch.ones(1, row.shape[1])
    mask[:, :7] = 0
    assert torch.equal(ours(row, attention_mask=mask), stock(row, attention_mask=mask))


def test_names_of_parameters_stay(layers):
    stock, ours = layers
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in stock.named_parameters()]
