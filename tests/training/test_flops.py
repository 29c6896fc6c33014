"""FLOPs against torch's own counter and against a count by hand: parts frozen and not, adapters, recomputation."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.families.fixtures import checkpoint, family, of_every_family
from tests.families.tiny import CONFIGS
from tests.training.conftest import write_manifest
from tests.training.small_run import prepared
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.families import FAMILIES
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import set_checkpointing
from vlmkit.training.flops import FlopCount, Rates, count_flops

__all__ = ["checkpoint", "family"]  # fixtures
POLICIES = {
    "nothing frozen": (False, False, False),
    "merger only": (True, False, True),
    "vision frozen": (True, False, False),
    "language model only": (True, True, False),
    "vision encoder only": (False, True, True),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VISUAL = ["qkv", "proj", "linear_fc1", "linear_fc2"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({1}))


@pytest.fixture(scope="module")
def data(rows, tiny, cache):
    return prepared(rows, tiny.vision_language, cache, batch_size=8)


@pytest.fixture(scope="module")
def stock(tiny):
    return WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model


@pytest.fixture(scope="module")
def batch(data):
    return data.pack_batch(0)


def policy(name: str) -> FreezePolicy:
    return FreezePolicy(**dict(zip(("vision_encoder", "merger", "language_model"), POLICIES[name], strict=True)))


def lora(**parts: list[str]) -> Lora:
    targets = {"vision_encoder": [], "merger": [], "language_model": []} | parts
    return Lora(rank=4, alpha=8, dropout=0.0, **targets)


def counted_by_torch(model: PackedVLM, batch) -> int:
    """FLOPs of forward and backward, attention as the products it is made of (causal attention whole)."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch).loss_sum.backward()
    return counter.get_total_flops()


def counted(hf) -> FlopCount:
    """Ours, with causal attention whole as well."""
    found = count_flops(hf)
    found.causal = 1.0
    return found


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_step_is_counted_exactly_as_torch_counts_it(data, stock, batch, name, recomputed):
    hf = deepcopy(stock).train()
    policy(name).apply(hf)
    set_checkpointing(hf, vision_encoder=recomputed, language_model=recomputed)
    model = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    torch_s = counted_by_torch(model, batch)
    assert counted(hf).executed(batch) == torch_s
    assert (counted(hf)(batch) < torch_s) == recomputed


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"language_model": ALL}, "vision frozen"),
        ({"language_model": ["v_proj", "down_proj"]}, "language model only"),
        ({"language_model": ALL}, "language model only"),
        ({"language_model": ["up_proj"], "vision_encoder": VISUAL}, "vision frozen"),
        ({"vision_encoder": ["proj"], "merger": ["linear_fc1"]}, "merger only"),
    ],
    ids=["language, merger trained", "two matrices", "language alone", "both", "vision and merger"],
)
def test_adapters_are_counted_as_torch_counts_them(data, stock, batch, parts, name, recomputed):
    """Exactly, but where nothing before the first adapted block learns: torch computes odds and ends there that we do not
    count (the last product again, attention for values only)."""
    pytest.importorskip("peft", reason="adapters need PEFT: pip install 'vlmkit[lora]'")
    hf, adapters = deepcopy(stock).train(), lora(**parts)
    adapters.inject(hf)
    adapters.choose(hf, policy(name))
    set_checkpointing(hf, vision_encoder=recomputed, language_model=recomputed)
    model = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    tolerance = 0.025 if name == "language model only" else 0.0
    assert counted(hf).executed(batch) == pytest.approx(counted_by_torch(model, batch), rel=tolerance, abs=0)


@of_every_family("name", ["nothing frozen", "merger only", "language model only"], quick=["nothing frozen"])
def test_every_family_is_counted_as_torch_counts_it(rows, checkpoint, family, cache, name):
    """But for layers with a state, which torch counts as computed, chunk by chunk: more than the mathematics asks for."""
    data = prepared(rows, checkpoint, cache, batch_size=8)
    hf = WholeCheckpoint(path=checkpoint, processor=None).build(dtype=torch.float32).model
    policy(name).apply(hf)
    if family.experts:
        hf.set_experts_implementation("eager")  # the grouped product is not counted
    model = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    batch = data.pack_batch(0)
    found, wanted = counted(hf)(batch), counted_by_torch(model, batch)
    if family.linear_attention:
        assert 0.5 * wanted < found < wanted
    else:
        assert found == pytest.approx(wanted, rel=0.01)


def test_windows_cost_less_than_whole_images():
    hf = FAMILIES["qwen2_5_vl"].make(CONFIGS["qwen2_5_vl"]())
    batch = {
        "vision_seqlens": [64],
        "vision_window_seqlens": [16] * 4,
        "seqlens": [16],
        "targets": [],
        "video_patches": [],
    }
    whole, without = count_flops(hf), count_flops(hf)
    without.model.patch_pair = without.model.window_pair = 0.0
    assert whole(batch) - without(batch) == 3 * 4 * 64 * (2 * 64**2 + 2 * 4 * 16**2)


def test_a_frozen_base_with_adapters_by_hand(stock):
    """Of a frozen matrix with an adapter: forward and gradient of its input, not of its weight (4 n, not 6 n)."""
    pytest.importorskip("peft", reason="adapters need PEFT: pip install 'vlmkit[lora]'")
    hf, adapters = deepcopy(stock).train(), lora(language_model=["down_proj"])
    adapters.inject(hf)
    adapters.choose(hf, policy("merger only"))
    text = hf.config.text_config
    width, inner, heads, kv = (
        text.hidden_size,
        text.intermediate_size,
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    attention = width * text.head_dim * (2 * heads + 2 * kv)
    frozen = attention + 3 * width * inner
    adapter = 4 * inner + 4 * width
    assert count_flops(hf).model.token == text.num_hidden_layers * (4 * frozen + 6 * adapter)
    assert count_flops(hf).model.supervised == 4 * hf.lm_head.weight.numel()
    vision = hf.config.vision_config
    block = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    assert count_flops(hf).model.patch == vision.depth * 2 * block  # frozen, and nothing before it learns


def test_counts_of_a_plan_are_those_of_its_packs(data, stock, batch):
    """Attention apart, which the counts of a pack do not tell."""
    count = count_flops(stock)
    count.model.patch_pair = count.model.token_pair = 0.0
    plan = data.plan
    found = count.executed_of(plan.num_tokens, plan.num_patches, plan.num_supervised_tokens)
    assert found[0] == pytest.approx(count.executed(batch))
    of_tokens = FlopCount(model=Rates(token=2.0), merge=4)
    found = of_tokens.executed_of(plan.num_tokens, plan.num_patches, plan.num_supervised_tokens)
    assert found[0] == 2.0 * sum(batch["seqlens"])
