"""What a user should know of counted rows: lengths, repeats, boxes, media that really decode."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import said

from vlmkit.data.dataset import PackDataset
from vlmkit.data.indexing import build_index
from vlmkit.data.survey.boxes import Box, find_boxes, frame_of
from vlmkit.data.survey.decoding import MIN_ROWS_FOR_WORKERS, DecodedRows, decode_rows, draw
from vlmkit.data.survey.lengths import histogram
from vlmkit.data.survey.reading import read_rows, repeats

# --- lengths ----------------------------------------------------------------------------------------------------------


def test_bins_double_and_hold_every_value_once():
    found = histogram(np.asarray([3, 4, 7, 8, 100]))
    assert found.edges == (2, 4, 8, 16, 32, 64, 128)
    assert found.counts == (1, 2, 1, 0, 0, 1)
    assert found.quantiles["median"] == 7
    assert found.quantiles["mean"] == pytest.approx(24.4)


def test_values_within_a_doubling_get_even_bins():
    found = histogram(np.asarray([60, 61, 61, 80]))
    assert found.edges[0] == 60
    assert found.edges[-1] > 80
    assert len({end - start for start, end in zip(found.edges, found.edges[1:], strict=False)}) == 1
    assert sum(found.counts) == 4


def test_bars_are_as_long_as_their_bins_are_full():
    lines = histogram(np.asarray([1] * 10 + [2] * 5)).bars()
    assert [line.count("#") for line in lines] == [40, 20]
    assert lines[0].endswith("10 (66.7%)")
    assert lines[1].startswith("2 - 3 |")


def test_zero_has_a_bin():
    assert histogram(np.asarray([0, 0, 5])).counts == (2, 0, 0, 1)


def test_a_histogram_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs values"):
        histogram(np.empty(0, dtype=np.int64))


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', [Box(1, 2, 30, 40)]),
        ("{'bbox_2d': [1.5,2,3,4]}", [Box(1.5, 2, 3, 4)]),
        ("a cat <box>(1,2),(30,40)</box> here", [Box(1, 2, 30, 40)]),
        ("<|box_start|>(1,2),(30,40)<|box_end|>", [Box(1, 2, 30, 40)]),
        ("<box>[[1,2,3,4],[5,6,7,8]]</box>", [Box(1, 2, 3, 4), Box(5, 6, 7, 8)]),
        ("the box is [1, 2, 3, 4]", []),
        ("bbox_2d is a word", []),
    ],
)
def test_boxes_are_found_by_their_convention_only(text, boxes):
    assert find_boxes(text) == (boxes, None)


def test_a_place_for_a_box_without_four_numbers_is_told():
    assert find_boxes('"bbox_2d": [1, 2, 3]') == ([], '"bbox_2d": [1, 2, 3]')


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        (Box(0, 0, 1000, 1000), None),
        (Box(0, 0, 1001, 1000), "exceeds 1000"),
        (Box(-1, 0, 10, 10), "negative"),
        (Box(20, 0, 10, 10), "top left to bottom right"),
        (Box(0, 10, 10, 10), "top left to bottom right"),
    ],
)
def test_what_is_wrong_with_a_box(box, fault):
    assert (box.fault is None) if fault is None else (fault in box.fault)


def test_frames_are_told_apart():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (60, 2)), rng.uniform(0.5, 1, (60, 2))

    def scaled(width, height):
        return [
            (Box(x1 * width, y1 * height, x2 * width, y2 * height), 400, 500)
            for (x1, y1), (x2, y2) in zip(*corners, strict=True)
        ]

    assert frame_of(scaled(500, 400)) == "pixels"
    assert frame_of(scaled(1000, 1000)) == "thousandths"
    assert frame_of(scaled(1, 1)) == "shares"
    assert frame_of(scaled(500, 400)[:5]) is None, "five boxes tell nothing"


def test_one_turned_image_does_not_hide_pixels():
    boxes = [(Box(0, 0, 490, 390), 400, 500)] * 40 + [(Box(0, 0, 490, 390), 500, 400)]
    assert frame_of(boxes) == "pixels"


# --- repeats ----------------------------------------------------------------------------------------------------------


def test_repeats_name_the_first_of_their_kind_and_nothing_is_no_kind():
    places, first = repeats(np.asarray([5, 0, 7, 5, 0, 7, 5], dtype=np.uint64))
    assert places.tolist() == [3, 5, 6]
    assert first.tolist() == [0, 2, 0]


@pytest.fixture
def counted(corpus, source, processor, tmp_path):
    """Makes an index of rows."""

    def make(*rows):
        path = corpus.write(list(rows))
        return build_index([source(path)], processor, cache_dir=tmp_path / "cache")

    return make


def read(index, processor):
    return read_rows(index, np.flatnonzero(index.verdict == 0), processor)


def test_fields_that_are_not_read_are_counted_by_row(counted, processor):
    turns = said("hello", "hi")["conversations"]
    scored = [{**turn, "score": 3} for turn in turns]
    index = counted(
        {"id": 1, "system": "be brief", "source": "web", **said("a", "b")},
        {"source": "web", "height": 3, "conversations": scored},
        {"image": "gone.png", "lost": 1, **said("<image>", "b")},  # no row that can be used
    )
    assert read(index, processor).unread == {"source": 2, "conversations.score": 1, "height": 1}
    assert list(read(index, processor).unread) == ["source", "conversations.score", "height"]


def test_repeats_of_content_question_and_id(counted, corpus, processor):
    one = said("<image>\nwhat is this?", "a square", image="wide.png")
    index = counted(
        {"id": 1, **one},
        {"id": 2, **one},  # the same but for its id
        {"id": "1", **said("<image>\nwhat is this?", "no idea", image="wide.png")},  # asks the same; has the first's id
        {"id": 3, **said("<image>\nwhat is this?", "a square", image="tall.png")},  # other media
        {"id": 4, **said("hello", "hi")},
        {"id": 5, **said("hello", "good day")},  # without media that is no repeat
        said("no id", "a"),
        said("no id", "b"),
    )
    found = read(index, processor)
    assert (found.same_content.num_rows, found.same_content.first) == (1, ((1, 0),))
    assert (found.same_question.num_rows, found.same_question.first) == (1, ((2, 0),))
    assert (found.same_id.num_rows, found.same_id.first) == (1, ((2, 0),))


def test_another_split_of_the_same_text_over_turns_is_no_repeat(counted, processor):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    more = [*turns, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]
    index = counted({"conversations": more}, {"conversations": turns}, said("ab", "cd"))
    assert read(index, processor).same_content.num_rows == 0


def test_ids_of_two_manifests_may_agree(corpus, source, processor, tmp_path):
    paths = [corpus.write([{"id": 1, **said(word, word)}], name=f"{word}.jsonl") for word in ("a", "b")]
    index = build_index([source(path) for path in paths], processor, cache_dir=tmp_path / "cache")
    assert read(index, processor).same_id.num_rows == 0


def test_boxes_and_typed_tokens_are_tallied(counted, processor):
    index = counted(
        said("<image> where?", '{"bbox_2d": [1, 2, 300, 400]}', image="wide.png"),
        said("<image> where?", '{"bbox_2d": [1, 2, 3000, 400]}', image="tall.png"),
        said("<image> where?", '{"bbox_2d": [1, 2]}', image="small.png"),
        said("what does <|im_end|> mean?", "the end"),
    )
    found = read(index, processor)
    assert (found.boxes.num_rows, found.boxes.num_boxes, found.boxes.num_wrong_rows) == (3, 2, 2)
    assert found.boxes.first == [
        (1, "box [1, 2, 3000, 400] exceeds 1000, the end of Qwen3-VL's frame"),
        (2, "'\"bbox_2d\": [1, 2]' holds no four numbers"),
    ]
    assert (found.num_typed, found.first_typed) == (1, ((3, "<|im_end|>"),))


# --- decoding ---------------------------------------------------------------------------------------------------------


def decoding(index, processor, rows=None):
    chosen = np.flatnonzero(index.verdict == 0) if rows is None else np.asarray(rows)
    return DecodedRows(PackDataset(index=index, processor=processor, pixels="uint8"), chosen)


def test_a_file_that_is_cut_short_passes_the_count_and_fails_here(counted, corpus, processor):
    path = corpus.root / "photo.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    index = counted(
        said("<image> one", image="photo.jpg"),
        said("<image> two", image="wide.png"),
        said("<image> 3", image="tall.png"),
    )
    assert index.counts_by_reason() == {}, "headers are whole"
    found = list(decode_rows(decoding(index, processor), num_workers=0))
    assert [one.reason for one in found] == ["unreadable_media", "", ""]
    assert "photo.jpg' cannot be decoded" in found[0].finding
    assert found[1].num_media == 1
    assert found[1].seconds > 0


@pytest.mark.slow
def test_workers_find_what_one_process_finds(counted, corpus, processor):
    names = [corpus.draw(f"{number}.jpg", 40 + number, 32) for number in range(30)]
    (corpus.root / names[7]).write_bytes((corpus.root / names[7]).read_bytes()[:-500])
    index = counted(*(said(f"<image> {number}", image=names[number % 30]) for number in range(MIN_ROWS_FOR_WORKERS)))
    found, alone = (
        [
            (one.row, one.reason, one.finding, one.num_media)
            for one in decode_rows(decoding(index, processor), num_workers=n)
        ]
        for n in (2, 0)
    )
    assert found == alone
    assert [row for row, reason, _, _ in found if reason] == list(range(7, MIN_ROWS_FOR_WORKERS, 30))


def test_exif_rotation_is_counted(counted, corpus, processor):
    picture = Image.new("RGB", (96, 64), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(corpus.root / "turned.jpg", exif=exif)
    index = counted(said("<image> one <image> two", images=["turned.jpg", "wide.png"]))
    (found,) = decode_rows(decoding(index, processor), num_workers=0)
    assert (found.num_media, found.turned) == (2, 1)


def test_a_medium_that_changed_since_it_was_counted_is_told(counted, corpus, processor):
    index = counted(said("<image> one", image="wide.png"))
    corpus.draw("wide.png", 300, 200)
    (found,) = decode_rows(decoding(index, processor), num_workers=0)
    assert found.reason == "changed_media"
    assert "one of its media has changed" in found.finding


def test_drawn_rows_are_distinct_ascending_and_the_same_for_a_seed():
    rows = np.arange(0, 1000, 3)
    chosen = draw(rows, 50, seed=1)
    assert len(set(chosen.tolist())) == 50
    assert chosen.tolist() == sorted(set(chosen.tolist()) & set(rows.tolist()))
    assert chosen.tolist() == draw(rows, 50, seed=1).tolist()
    assert chosen.tolist() != draw(rows, 50, seed=2).tolist()
    assert draw(rows, None, seed=1) is rows
