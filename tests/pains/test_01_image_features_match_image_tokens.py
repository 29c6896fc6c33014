"""Image features and image tokens do not match: found by file and row, with both numbers, before the model sees them."""

from __future__ import annotations

import pytest

from vlmkit.data.dataset import PackDataset
from vlmkit.errors import DataError


def prepared(data, processor):
    data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    return data, PackDataset(index=data.index, processor=processor, pixels="uint8")


def test_every_batch_has_as_many_features_as_tokens_and_as_were_counted(corpus, processor, datamodule):
    data, dataset = prepared(datamodule(corpus.write(list(corpus.rows.values()))), processor)
    merged = processor.geometry.merge_size**2
    seen = 0
    for slot in data.steps(1, 1).slots(0):
        batch = dataset[slot]
        rows = list(slot.rows)
        assert batch["seqlens"] == data.index.num_tokens[rows].tolist()
        assert len(batch["visual_positions"]) * merged == data.index.num_patches[rows].sum()
        if batch["num_media"]:
            assert len(batch["vision_position_ids"]) == data.index.num_patches[rows].sum()
        ids = batch["input_ids"][0, batch["visual_positions"]].tolist()
        assert set(ids) <= {processor.image_token_id, processor.video_token_id}
        seen += len(rows)
    assert seen == len(corpus.rows)


def test_an_image_that_changed_after_the_count_is_told_with_its_size_and_both_numbers(corpus, processor, datamodule):
    path = corpus.write([corpus.rows["text"], corpus.rows["image"]])
    data, dataset = prepared(datamodule(path, batch_size=1), processor)
    slot = next(slot for slot in data.steps(1, 1).slots(0) if slot.rows == (1,))
    counted = int(data.index.num_tokens[1])
    grown = counted + 320 * 320 // 32**2 - 96 * 64 // 32**2
    corpus.draw("wide.png", 320, 320)
    with pytest.raises(DataError) as caught:
        dataset[slot]
    assert str(caught.value) == (
        f"{path}:2: has {grown} tokens now and had {counted} when it was counted: one of its media has changed since. They are "
        f"now: {corpus.root}/wide.png at 320 x 320 pixels, 100 tokens. Start the run again: it counts changed media again."
    )


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"image": "wide.png", "text": "<image><image>"}, "2 <image>"),
        ({"image": ["wide.png", "tall.png"], "text": "<image>"}, "1 <image>"),
        ({"image": "wide.png", "text": "no marker"}, "no turn has a <image>"),
    ],
)
def test_more_or_fewer_markers_than_media_stop_the_run_by_row(row, finding, corpus, processor, datamodule):
    text = row.pop("text")
    planted = row | {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]}
    path = corpus.write([corpus.rows["image"], planted])
    with pytest.raises(DataError, match=rf"^{path}:2: .*({finding})"):
        prepared(datamodule(path), processor)
