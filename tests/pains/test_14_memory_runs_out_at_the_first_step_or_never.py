"""Out of memory in the middle of a run: the heaviest pack is trained first, and a row that no pack holds is refused."""

from __future__ import annotations

import json

import pytest
import torch

from tests.training.conftest import write_manifest
from tests.training.gradients import datamodule
from vlmkit.data.plan import pack_weights
from vlmkit.errors import ConfigError
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.processor import load_processor
from vlmkit.training.forecast import Ranks, forecast
from vlmkit.training.rehearsal import Parts


def prepared(data, tiny, *, num_epochs=1):
    processor = load_processor(tiny.vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=num_epochs, max_packs=None, require_media=False)
    return data


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_no_later_pack_is_heavier_than_the_first_step_s(tiny, cache, tmp_path, num_ranks):
    manifest = write_manifest(tmp_path, 12, text_only=frozenset({0, 1, 2}))
    rows = json.loads(manifest.read_text())
    rows[7]["conversations"][1]["value"] = "a very long answer " * 30  # the heaviest stands far behind
    manifest.write_text(json.dumps(rows))
    data = datamodule(manifest, cache, 2)
    data.heaviest_first, data.order = True, "shuffled"
    plan = prepared(data, tiny).plan
    weights = pack_weights(plan.num_tokens, plan.num_patches)
    first = {data.steps(num_ranks, 1).slots(rank)[0].pack for rank in range(num_ranks)}
    assert max(weights[pack] for pack in first) == weights.max()


def test_the_forecast_runs_the_heaviest_pack_of_all_epochs_before_the_first_step(tiny, cache, tmp_path):
    """Packs are drawn anew in each epoch: the heaviest of a later one may be heavier than all of the first."""
    data = datamodule(write_manifest(tmp_path, 12, text_only=frozenset({0, 1, 2})), cache, 2)
    data.order = "shuffled"
    plan = prepared(data, tiny, num_epochs=4).plan
    hf = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=torch.float32).model
    packed = PackedVLM(hf, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std).train()
    ran: list[int] = []

    def load(number: int):
        ran.append(number)
        return data.pack_batch(number)

    optimizer = torch.optim.AdamW(packed.parameters(), lr=0.0, weight_decay=0.0)
    parts = Parts(packed=packed, optimizer=optimizer, accumulate=1, load=load)
    alone = Ranks(number=1, measured=1, sharing="nothing")
    forecast(
        parts=parts, steps=data.steps(1, 1), epoch=data.epoch_counts(), ranks=alone, packs=2, rounds=1, workers=0
    )  # fmt: skip
    weights = pack_weights(plan.num_tokens, plan.num_patches)
    assert max(weights[ran[:2]]) == weights.max()


def test_a_row_beyond_the_budget_is_named_with_the_remedy(tiny, cache, tmp_path):
    manifest = write_manifest(tmp_path, 4)
    rows = json.loads(manifest.read_text())
    rows[2]["conversations"][1]["value"] = "word " * 200
    manifest.write_text(json.dumps(rows))
    data = datamodule(manifest, cache, 2)
    data.pack_budget = type(data.pack_budget)(rows=None, tokens=100, patches=None)
    with pytest.raises(ConfigError, match=r"manifest.json:3: \d+ tokens .* more than a pack may hold .*1 of 4 rows"):
        prepared(data, tiny)
