"""Other tools' annotations: every shape becomes the LLaVA row it stands for, and no row is lost."""

from __future__ import annotations

import gzip
import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vlmkit.data.convert import Conversion
from vlmkit.data.convert.conversion import Refused
from vlmkit.data.convert.formats import GUESSES
from vlmkit.errors import ConfigError, DataError


def conversion(tmp_path: Path, **settings: object) -> Conversion:
    given: dict[str, object] = {
        "format": "auto",
        "fields": dict.fromkeys(GUESSES),
        "image": None,
        "question": "Describe the image.",
        "annotations": None,
        "root": None,
        "media_dir": None,
        "allow_absolute_paths": False,
        "on_bad_row": "skip",
        "limit": None,
        "cache_dir": str(tmp_path / "cache"),
    }
    return Conversion(**{**given, **settings})  # type: ignore[arg-type]


def convert(tmp_path: Path, source: Path, **settings: object):
    out = tmp_path / "out.jsonl"
    done = conversion(tmp_path, **settings).run(str(source), str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.read == done.written + done.refused.total()
    assert done.written == len(rows)
    return rows, done


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def said(row: dict) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in row["conversations"]]


def chat(*contents: object) -> dict:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]}


def test_messages_with_parts_place_each_image_where_it_is_said(tmp_path):
    image, video = {"type": "image_url", "image_url": {"url": "file://a.jpg"}}, {"type": "video", "video": "v.mp4"}
    row = chat([{"type": "text", "text": "Before "}, image, {"type": "text", "text": " after"}, video], "Yes.")
    rows, done = convert(tmp_path, lines(tmp_path / "chat.jsonl", row))
    assert done.format == "messages"
    assert rows[0] == {
        "image": "a.jpg",
        "video": "v.mp4",
        "conversations": [
            {"from": "human", "value": "Before <image> after<video>"},
            {"from": "gpt", "value": "Yes."},
        ],
    }


def test_images_without_a_path_are_those_the_row_lists_in_order(tmp_path):
    bare = {"type": "image"}
    row = {**chat([bare, bare, {"type": "text", "text": "Which?"}], "B."), "images": ["a.jpg", "b.jpg"]}
    rows, _ = convert(tmp_path, lines(tmp_path / "chat.jsonl", row))
    assert rows[0]["image"] == ["a.jpg", "b.jpg"]
    assert said(rows[0])[0] == ("human", "<image><image>Which?")


def test_a_placeholder_typed_in_a_text_part_is_refused(tmp_path):
    row = chat([{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "what is <image>?"}], "A tag.")
    _, done = convert(tmp_path, lines(tmp_path / "chat.jsonl", row))
    assert done.refused == {"placeholder_in_text": 1}


def test_sharegpt_keeps_its_turns_and_places_an_unplaced_image_first(tmp_path):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "What?"},
        {"from": "bot", "value": "X"},
    ]
    rows, done = convert(tmp_path, lines(tmp_path / "s.jsonl", {"id": 7, "image": "a.jpg", "conversations": turns}))
    assert done.format == "sharegpt"
    assert rows[0]["id"] == 7
    assert said(rows[0]) == [("system", "Be brief."), ("human", "<image>\nWhat?"), ("gpt", "X")]


def test_a_table_of_questions_keeps_quotes_commas_and_line_breaks(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text('question,answer,image\n"What, ""exactly"",\nis it?",cat,a.jpg\nHow many?,2,\n')
    rows, done = convert(tmp_path, path)
    assert done.format == "qa"
    assert said(rows[0]) == [("human", '<image>\nWhat, "exactly",\nis it?'), ("gpt", "cat")]
    assert said(rows[1]) == [("human", "How many?"), ("gpt", "2")]
    assert "image" not in rows[1]


def test_fields_are_taken_by_the_name_given_and_within_others(tmp_path):
    row = {"meta": {"ask": "Q?"}, "ref": 3, "n": 12}
    fields = {**dict.fromkeys(GUESSES), "question": "meta.ask", "answer": "ref", "id": "n"}
    rows, _ = convert(tmp_path, lines(tmp_path / "x.jsonl", row), fields=fields, image="train/{n:06d}.jpg")
    assert rows == [
        {
            "id": 12,
            "image": "train/000012.jpg",
            "conversations": [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "3"}],
        }
    ]


def test_a_field_that_is_not_there_is_told_with_those_that_are(tmp_path):
    fields = {**dict.fromkeys(GUESSES), "question": "ask", "answer": "tell"}
    _, done = convert(tmp_path, lines(tmp_path / "x.jsonl", {"ask": "Q?", "told": "A"}), fields=fields)
    assert done.first["no_field"] == [
        f"{tmp_path}/x.jsonl:1: the row has no field 'tell' (fields.answer). It has: 'ask', 'told'."
    ]


def test_coco_gives_a_row_a_caption(tmp_path):
    path = tmp_path / "captions.json"
    captions = [{"id": 5, "image_id": 1, "caption": "A dog."}, {"id": 6, "image_id": 9, "caption": "A cat."}]
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": captions}, indent=1))
    rows, done = convert(tmp_path, path)
    assert done.format == "coco"
    assert rows[0]["image"] == "x.jpg"
    assert said(rows[0]) == [("human", "<image>\nDescribe the image."), ("gpt", "A dog.")]
    assert done.first["unknown_image"] == [
        f"{path}:2: image_id 9 is not among the file's images. Add the image or drop the caption."
    ]


def test_vqa2_joins_questions_and_answers(tmp_path):
    questions, answers = tmp_path / "q.json", tmp_path / "a.json"
    asked = [
        {"image_id": 42, "question": "Is it?", "question_id": 7},
        {"image_id": 1, "question": "?", "question_id": 8},
    ]
    questions.write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    answers.write_text(json.dumps({"annotations": [{"question_id": 7, "multiple_choice_answer": "yes"}]}))
    rows, done = convert(tmp_path, questions, annotations=str(answers))
    assert rows[0]["image"] == "COCO_val2014_000000000042.jpg"
    assert said(rows[0]) == [("human", "<image>\nIs it?"), ("gpt", "yes")]
    assert done.refused == {"no_answer": 1}


def test_images_held_by_parquet_rows_become_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    drawn = BytesIO()
    Image.new("RGB", (40, 30), "red").save(drawn, "PNG")
    held = {"bytes": drawn.getvalue(), "path": None}
    rows = [{"image": held, "question": "What?", "answer": "red"}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qa.parquet")
    assert convert(tmp_path, tmp_path / "qa.parquet")[1].refused == {"embedded_image": 2}
    made, done = convert(tmp_path, tmp_path / "qa.parquet", media_dir=str(tmp_path / "media"))
    assert done.media == 1
    assert made[0]["image"] == made[1]["image"]
    assert (tmp_path / "media" / made[0]["image"]).read_bytes() == drawn.getvalue()


def test_compressed_rows_are_read_and_a_json_array_is_written(tmp_path):
    path, out = tmp_path / "rows.json.gz", tmp_path / "out.json"
    path.write_bytes(gzip.compress(json.dumps([{"question": "a?", "answer": "b"}, 5], indent=2).encode()))
    done = conversion(tmp_path).run(str(path), str(out))
    assert [said(row) for row in json.loads(out.read_text())] == [[("human", "a?"), ("gpt", "b")]]
    assert done.refused == {"not_an_object": 1}


def test_refused_rows_leave_the_former_output_alone(tmp_path):
    path, out = lines(tmp_path / "x.jsonl", chat("Hi", "Ho"), "{broken"), tmp_path / "out.jsonl"
    out.write_text("former\n")
    with pytest.raises(
        Refused, match=r"2 rows read as messages, 1 written, 1 refused\n  bad_json: 1\n    .*x.jsonl:2: "
    ):
        conversion(tmp_path, on_bad_row="error").run(str(path), str(out))
    assert out.read_text() == "former\n"
    assert sorted(place.name for place in tmp_path.iterdir() if place.is_file()) == ["out.jsonl", "x.jsonl"]


def test_media_that_are_not_there_are_found_where_root_is_given(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [{"image": name, "question": "a?", "answer": "b"} for name in ("a.jpg", "b.jpg", "../c.jpg")]
    _, done = convert(tmp_path, lines(tmp_path / "x.jsonl", *rows), root=str(tmp_path))
    assert done.refused == {"missing_media": 1, "path_leaves_root": 1}


def test_what_cannot_be_converted_at_all_is_told(tmp_path):
    strange = lines(tmp_path / "x.jsonl", {"foo": 1})
    with pytest.raises(
        ConfigError, match=r"format=auto: its first row has the fields 'foo', which is none of messages"
    ):
        conversion(tmp_path).run(str(strange), str(tmp_path / "out.jsonl"))
    with pytest.raises(ConfigError, match="this is the input itself"):
        conversion(tmp_path).run(str(strange), str(strange))
    with pytest.raises(ConfigError, match="no such file"):
        conversion(tmp_path).run(str(tmp_path / "none"), str(tmp_path / "out.jsonl"))
    cut = tmp_path / "coco.json"
    cut.write_text('{"images": [{"id": 1, "file_name"')
    (tmp_path / "captions.json").write_text('{"annotations": [\n{"id": 1, ')
    with pytest.raises(DataError, match=r"captions.json:1: the file begins as one JSON object and is no valid JSON"):
        conversion(tmp_path).run(str(tmp_path / "captions.json"), str(tmp_path / "out.jsonl"))


def test_a_template_reaches_fields_only(tmp_path):
    _, done = convert(
        tmp_path, lines(tmp_path / "x.jsonl", {"question": "a", "answer": "b"}), image="{question.__class__}.jpg"
    )
    assert done.refused == {"no_field": 1}


# --- data files of LLaMA-Factory and ms-swift -------------------------------------------------------------------------


def test_an_alpaca_row_with_images_keeps_its_input_history_and_system(tmp_path):
    row = {
        "instruction": "Which fruit?",
        "input": "Answer in one word.",
        "output": "Plum",
        "system": "Be brief.",
        "history": [["<image>What is on the table?", "A bowl."]],
        "images": ["a.jpg"],
    }
    rows, done = convert(tmp_path, lines(tmp_path / "alpaca.json", row))
    assert done.format == "qa"
    assert rows[0]["image"] == "a.jpg"
    assert said(rows[0]) == [
        ("system", "Be brief."),
        ("human", "<image>What is on the table?"),
        ("gpt", "A bowl."),
        ("human", "Which fruit?\nAnswer in one word."),
        ("gpt", "Plum"),
    ]


def test_an_input_is_only_added_to_an_instruction_that_was_not_named(tmp_path):
    row = {"question": "Why?", "instruction": "Explain.", "input": "x", "answer": "So."}
    source = lines(tmp_path / "rows.jsonl", row)
    assert said(convert(tmp_path, source)[0][0])[0] == ("human", "Why?")
    named = dict.fromkeys(GUESSES) | {"question": "instruction"}
    assert said(convert(tmp_path, source, fields=named)[0][0])[0] == ("human", "Explain.")


@pytest.mark.parametrize("key", ["sharegpt", "messages"])
def test_the_system_text_of_a_row_stands_before_its_turns_once(tmp_path, key):
    who, what = ("from", "value") if key == "sharegpt" else ("role", "content")
    turns = [{who: "user", what: "<image>Who are they?"}, {who: "assistant", what: "Players."}]
    field = "conversations" if key == "sharegpt" else "messages"
    own = {field: [{who: "system", what: "Own."}, *turns], "images": ["a.jpg"], "system": "Other."}
    source = lines(tmp_path / "rows.jsonl", {field: turns, "images": ["a.jpg"], "system": "Be kind."}, own)
    rows, done = convert(tmp_path, source)
    assert done.format == key
    assert said(rows[0])[:2] == [("system", "Be kind."), ("human", "<image>Who are they?")]
    assert said(rows[1])[0] == ("system", "Own.")
    assert len(said(rows[1])) == 3


def test_markers_that_another_tool_fills_are_refused(tmp_path):
    boxes = {
        **chat("<image>Where is <ref-object>?", "<bbox>"),
        "images": ["a.jpg"],
        "objects": {"bbox": [[1, 2, 3, 4]]},
    }
    source = lines(tmp_path / "swift.jsonl", chat("Hi", "Ho"), boxes, chat("I typed <bbox>", "Fine"))
    rows, done = convert(tmp_path, source)
    assert len(rows) == 2
    [told] = done.first["unfilled_marker"]
    assert "swift.jsonl:2: its text holds <bbox>, to be filled from 'objects'. Write the boxes into the text" in told


def test_a_history_that_is_none_is_refused(tmp_path):
    row = {"query": "And now?", "response": "Yes.", "history": ["once"]}
    _, done = convert(tmp_path, lines(tmp_path / "swift.jsonl", row))
    assert "exchange 1 of its history is no pair of texts" in done.first["bad_turn"][0]


# --- what would be lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({**chat("hi", "ho"), "tools": [{"name": "f"}]}, "the row has 'tools', which would change its meaning"),
        ({**chat("hi", "ho"), "rejected_response": "no"}, "the row has 'rejected_response'"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "turn 2 has 'tool_calls'",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y", "reasoning_content": "z"},
                ]
            },
            "turn 2 has 'reasoning_content'",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": False}]},
            "turn 2 has 'loss'",
        ),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0}]},
            "turn 2 has 'weight'",
        ),
        (
            {"question": "Which?", "answer": "B", "choices": ["red", "blue"]},
            "the row has 'choices', and not all of them",
        ),
        ({"query": "x", "response": "y", "rejected_response": "z"}, "the row has 'rejected_response'"),
    ],
)
def test_a_field_that_would_change_the_meaning_is_refused(tmp_path, row, finding):
    rows, done = convert(
        tmp_path, lines(tmp_path / "rows.jsonl", row, chat("fine", "yes") if "messages" in row else row)
    )
    assert len(rows) == ("messages" in row)
    assert finding in done.first["unsupported_field"][0]
    assert "rows.jsonl:1: " in done.first["unsupported_field"][0]


def test_choices_that_the_question_lists_are_not_lost(tmp_path):
    row = {"question": "Which? A. red B. blue", "answer": "B", "choices": ["red", "blue"]}
    rows, _ = convert(tmp_path, lines(tmp_path / "rows.jsonl", row))
    assert said(rows[0]) == [("human", "Which? A. red B. blue"), ("gpt", "B")]


def test_a_medium_that_is_none_is_described_with_the_setting_of_its_directory(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    source = lines(tmp_path / "rows.jsonl", {"image": "a.jpg", "question": "x", "answer": "y"}, {**QA_GONE})
    _, done = convert(tmp_path, source, root=str(tmp_path))
    assert done.first["missing_media"][0].endswith("a.jpg' is a directory. Name a file.")
    assert done.first["missing_media"][1].endswith("not found. Check root and the path in the row.")


QA_GONE = {"image": "gone.jpg", "question": "x", "answer": "y"}


def test_utf_16_is_named(tmp_path):
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([chat("hi", "ho")]), encoding="utf-16")
    with pytest.raises(DataError, match=r"the manifest is UTF-16 text; rows are UTF-8\. Convert it: iconv"):
        convert(tmp_path, source)
