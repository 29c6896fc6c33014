"""Out of memory in the middle of a run: the heaviest pack is trained first, and a row that no pack holds is refused."""

from __future__ import annotations

import json

import pytest
from tests.training.conftest import write_manifest
from tests.training.gradients import datamodule

from vlmkit.data.plan import pack_weights
from vlmkit.errors import ConfigError
from vlmkit.processing.processor import load_processor


def prepared(data, tiny):
    processor = load_processor(tiny.vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=2, max_packs=None, require_media=False)
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


def test_a_row_beyond_the_budget_is_named_with_the_remedy(tiny, cache, tmp_path):
    manifest = write_manifest(tmp_path, 4)
    rows = json.loads(manifest.read_text())
    rows[2]["conversations"][1]["value"] = "word " * 200
    manifest.write_text(json.dumps(rows))
    data = datamodule(manifest, cache, 2)
    data.pack_budget = type(data.pack_budget)(rows=None, tokens=100, patches=None)
    with pytest.raises(ConfigError, match=r"manifest.json:3: \d+ tokens .* more than a pack may hold .*1 of 4 rows"):
        prepared(data, tiny)
