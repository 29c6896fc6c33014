"""What the page shows of a row is what training gets: tokens, labels, positions, pictures."""

from __future__ import annotations

import pytest

from tests.pages.conftest import HOSTILE
from vlmkit.batch import IGNORE_INDEX
from vlmkit.data.dataset import PackDataset
from vlmkit.data.dealing import Slot
from vlmkit.pages.samples import SampleViewer, token_units


def batch_of(data, row):
    """The row as the loader gives it to training, in a pack of its own."""
    dataset = PackDataset(index=data.index, processor=data.processor, pixels="uint8", fits=data.judgement.fits)
    return dataset[Slot(pack=0, rows=(row,), step=0, step_supervised_tokens=1, epoch=0)]


def supervised(shown) -> list[int]:
    return [token for first, end in shown.supervised for token in range(first, end)]


@pytest.fixture
def viewed(prepare):
    data = prepare()
    return data, SampleViewer(data.judgement, data.processor)


def test_tokens_labels_and_positions_are_those_of_the_batch(viewed):
    data, viewer = viewed
    for row in data.judgement.rows("trained").tolist():
        shown, batch = viewer.show(row), batch_of(data, row)
        assert shown.ids == batch["input_ids"][0].tolist()
        assert supervised(shown) == (batch["supervised_positions"] + 1).tolist()
        assert [shown.ids[token] for token in supervised(shown)] == batch["targets"].tolist()
        assert shown.positions == batch["position_ids"][1:, 0].tolist()
        assert shown.num_visual_tokens == len(batch["visual_positions"])
        assert shown.where == str(data.index.origin(row))


def test_units_read_as_the_text_and_cover_every_token(viewed):
    data, viewer = viewed
    for row in data.judgement.rows("trained").tolist():
        shown = viewer.show(row)
        assert sum(length for length, _, _ in shown.units) == len(shown.ids)
        text = "".join(text * (length if kind == 2 else 1) for length, text, kind in shown.units)
        assert text == data.processor.hf.tokenizer.decode(shown.ids, clean_up_tokenization_spaces=False)


def test_characters_spread_over_tokens_are_one_unit(processor):
    tokenizer = processor.hf.tokenizer
    ids = tokenizer.encode("a 🏈 客", add_special_tokens=False)
    units = token_units(ids, processor)
    assert "🏈" in [text.strip() for _, text, _ in units]
    assert "\ufffd" not in "".join(text for _, text, _ in units)


def test_typed_special_tokens_are_text_and_open_no_turn(viewed):
    _, viewer = viewed
    shown = viewer.show(2)
    assert len(shown.turns) == 2
    said = "".join(text for _, text, kind in shown.units if kind == 0)
    assert said.count(HOSTILE) == 2
    assert [text for _, text, kind in shown.units if kind == 1] == ["<|im_start|>", "<|im_end|>"] * 2


def test_media_have_their_size_and_tokens(viewed):
    data, viewer = viewed
    shown = viewer.show(1)
    assert [medium.kind for medium in shown.media] == ["image", "image"]
    assert [medium.original for medium in shown.media] == [(120, 60), (33, 47)]
    for medium in shown.media:
        assert (medium.height, medium.width) == (16 * medium.grid[1], 16 * medium.grid[2])
        ((first, end),) = medium.runs
        assert end - first == medium.grid[1] * medium.grid[2] // 4
        assert set(shown.ids[first:end]) == {data.processor.image_token_id}


def test_a_video_has_the_stamps_that_the_model_reads(viewed):
    data, viewer = viewed
    shown = viewer.show(4)
    medium = shown.media[0]
    assert medium.num_pairs == medium.grid[0] == len(medium.runs) == len(medium.stamps) == len(medium.frames) // 2
    assert len(medium.numbers) == len(medium.frames)
    text = data.processor.hf.tokenizer.decode(shown.ids)
    assert [f"<{stamp} seconds>" in text for stamp in medium.stamps] == [True] * medium.num_pairs


def test_a_refused_row_tells_why_and_how_it_is_written(viewed):
    _, viewer = viewed
    assert "missing.png" in viewer.show(3).finding
    assert "2 <image> placeholders" in viewer.show(5).finding
    last = viewer.show(6)
    assert (last.ids, last.verdict) == ([], "no_conversations")
    assert "window.pwned" in last.raw


def test_a_row_that_is_too_long_is_shown_with_its_labels_and_the_reason(viewed):
    _, viewer = viewed
    shown = viewer.show(7)
    assert shown.verdict == "overlong"
    assert "more than data.max_tokens=500" in shown.finding
    assert len(supervised(shown)) > 500


def test_a_row_that_was_made_to_fit_is_shown_as_it_is_trained(prepare):
    data = prepare(overlong="drop_turns", max_tokens=40)
    shown = SampleViewer(data.judgement, data.processor).show(0)
    assert shown.note == "made to fit: 2 of 4 turns are kept"
    assert shown.ids == batch_of(data, 0)["input_ids"][0].tolist()
    assert len(shown.ids) <= 40


def test_labels_never_stand_on_ignored_positions(viewed):
    data, viewer = viewed
    shown = viewer.show(0)
    assert IGNORE_INDEX not in shown.ids
    assert 0 not in supervised(shown)
    assert supervised(shown)
