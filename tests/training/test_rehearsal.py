"""A rehearsed step takes what a step takes, and moves nothing."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.optim import SGD

from tests.training.conftest import write_manifest
from tests.training.small_run import prepared
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.training.memory import is_measured, mark_peak, peak_bytes
from vlmkit.training.rehearsal import Parts, RehearsalError, rehearse

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny, cache):
    return prepared(write_manifest(tmp_path_factory.mktemp("rows"), 6), tiny.vision_language, cache, batch_size=2)


@pytest.fixture
def packed(data, tiny):
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model.train()
    return PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)


def parts(packed, data, optimizer, **more) -> Parts:
    return Parts(packed=packed, optimizer=optimizer, accumulate=1, load=data.pack_batch, **more)


def adamw(packed):
    return torch.optim.AdamW([p for p in packed.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)


@pytest.mark.skipif(not is_measured(CPU), reason="this system does not tell the memory of a process")
def test_memory_holds_the_optimiser_s_state_and_the_peak_the_activations(packed, data):
    trained = sum(p.nbytes for p in packed.parameters())
    before = mark_peak(CPU)  # garbage of other tests collected
    found = rehearse(parts(packed, data, adamw(packed)), first=0, heavy=[1], timed=[1, 2], rounds=1)
    assert 1.6 * trained < found.resting_bytes - before < 3.2 * trained, "two moments, and libraries that were loaded"
    assert found.peak_bytes > found.resting_bytes
    del found
    plain = rehearse(parts(packed, data, None), first=None, heavy=[1], timed=[1], rounds=1)
    assert plain.update_seconds is None


@pytest.mark.skipif(not is_measured(CPU), reason="this system does not tell the memory of a process")
def test_a_peak_is_seen_after_what_caused_it_is_gone():
    used = mark_peak(CPU)
    block = torch.ones(64 * MIB // 4)
    del block
    assert 50 * MIB < peak_bytes(CPU) - used < 90 * MIB
    assert mark_peak(CPU) < used + 30 * MIB
    assert peak_bytes(CPU) < used + 30 * MIB, "the mark was set anew"


def test_every_pack_is_timed_as_often_as_asked_in_turns(packed, data):
    loaded: list[int] = []

    def load(number):
        loaded.append(number)
        return data.pack_batch(number)

    given = Parts(packed=packed, optimizer=adamw(packed), accumulate=1, load=load)
    found = rehearse(given, first=0, heavy=[1], timed=[1, 2], rounds=3)
    assert loaded == [0, 1, 2, 1, 2], "the first step, the heaviest later one, the rest; then those to time"
    assert [(one.pack, len(one.seconds)) for one in found.calibrations] == [(1, 3), (2, 3)]
    assert found.calibrations[0].tokens == int(data.plan.num_tokens[1])
    assert found.calibrations[0].patches == int(data.plan.num_patches[1])
    assert found.calibrations[0].supervised == int(data.plan.num_supervised_tokens[1])
    for one in found.calibrations:
        for cpu, wall in zip(one.cpu_seconds, one.seconds, strict=True):
            assert 0 < cpu <= wall * 1.05
    assert found.update_seconds > 0


def test_of_several_micro_batches_only_the_last_is_synchronised(packed, data):
    entered: list[str] = []

    def noted(word):
        @contextmanager
        def context():
            entered.append(word)
            yield

        return context

    given = Parts(
        packed=packed, optimizer=None, accumulate=4, load=data.pack_batch, forward_context=noted("forward"),
        unsynced=noted("unsynced"),
    )  # fmt: skip
    rehearse(given, first=None, heavy=[], timed=[0], rounds=1)
    assert entered == ["unsynced", "forward", "forward"] * 2, "a warm-up and a round, two micro-batches each"


def test_gradients_that_are_not_finite_do_not_reach_the_weights(packed, data):
    """The head's bias-free product overflows: its gradient is not finite, and a rate of zero would make NaN of it."""
    with torch.no_grad():
        packed.hf.model.language_model.norm.weight.fill_(torch.inf)
    before = [p.detach().clone() for p in packed.parameters()]
    rehearse(parts(packed, data, adamw(packed)), first=0, heavy=[1], timed=[1], rounds=1)
    assert all(torch.equal(p, was) for p, was in zip(packed.parameters(), before, strict=True))
    assert all(p.grad is None for p in packed.parameters())


class Restless(SGD):
    """Moves weights whatever it is told."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)


def test_an_optimiser_that_cannot_keep_still_is_refused_with_the_remedy(packed, data):
    with pytest.raises(RehearsalError, match=r"Restless\) moves weights .*callbacks.forecast=null"):
        rehearse(parts(packed, data, Restless(packed.parameters(), lr=0.0)), first=0, heavy=[], timed=[1], rounds=1)


def test_a_step_that_does_not_fit_is_answered_with_what_to_lower(packed, data):
    def load(number):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    batch = data.pack_batch(0)

    class Full(PackedVLM):
        def forward(self, batch):
            return load(0)

    packed.__class__ = Full
    with pytest.raises(RehearsalError, match=rf"{sum(batch['seqlens'])} tokens.*does not fit .*data.tokens_per_batch"):
        rehearse(parts(packed, data, None), first=None, heavy=[0], timed=[0], rounds=1)
