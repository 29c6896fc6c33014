"""Golden rows of the LLaVA format, and every fault by its reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from vlmkit.conversation import Conversation, ImagePart, TextPart, VideoPart
from vlmkit.data.manifest import Source, decode_row, parse_row, resolve_sources
from vlmkit.errors import ConfigError, DataError, Origin

ROOT = Path("/data")
ORIGIN = Origin("train.json", 7)


def parse(raw: object, **options: Any) -> Conversation:
    return parse_row(raw, origin=ORIGIN, root=ROOT, **options)


def row(*turns: str, **media: object) -> dict[str, Any]:
    speakers = ("human", "gpt")
    return {
        "conversations": [{"from": speakers[number % 2], "value": value} for number, value in enumerate(turns)],
        **media,
    }


QA = row("what?", "red")["conversations"]


def image(name: str) -> ImagePart:
    return ImagePart(ROOT / name)


def first_parts(raw: object) -> tuple[object, ...]:
    return parse(raw).turns[0].parts


@pytest.mark.parametrize(
    ("media", "question", "parts"),
    [
        ({"image": "a.png"}, "<image>\nwhat?", (image("a.png"), TextPart("\nwhat?"))),
        ({"image": ["a.png"]}, "what?\n<image>", (TextPart("what?\n"), image("a.png"))),
        ({"images": "a.png"}, "see <image> here", (TextPart("see "), image("a.png"), TextPart(" here"))),
        (
            {"images": ["a.png", "sub/b.png"]},
            "<image><image> differ?",
            (image("a.png"), image("sub/b.png"), TextPart(" differ?")),
        ),
        ({"video": "a.mp4"}, "<video>\nwhat?", (VideoPart(ROOT / "a.mp4"), TextPart("\nwhat?"))),
        ({"videos": ["a.mp4", "b.mp4"]}, "<video><video>", (VideoPart(ROOT / "a.mp4"), VideoPart(ROOT / "b.mp4"))),
        ({"video": ["0.png", "1.PNG"]}, "<video>", (VideoPart((ROOT / "0.png", ROOT / "1.PNG")),)),
        (
            {"videos": [["0.png", "1.png"], "b.mp4"]},
            "<video><video>",
            (VideoPart((ROOT / "0.png", ROOT / "1.png")), VideoPart(ROOT / "b.mp4")),
        ),
        (
            {"image": "a.png", "video": "a.mp4"},
            "<video> or <image>",
            (VideoPart(ROOT / "a.mp4"), TextPart(" or "), image("a.png")),
        ),
        ({"video": "a.mp4"}, "<image>\nwhat?", (VideoPart(ROOT / "a.mp4"), TextPart("\nwhat?"))),
        ({"video": ["0.png", "1.png"]}, "<image>", (VideoPart((ROOT / "0.png", ROOT / "1.png")),)),
        ({"image": "a.png", "image_path": "/x/a.png"}, "<image>", (image("a.png"),)),
        ({"loss": True, "weight": 1, "tools": []}, "two?", (TextPart("two?"),)),
        ({"loss": "0.3", "weight": None}, "two?", (TextPart("two?"),)),
        ({}, "two and two?", (TextPart("two and two?"),)),
        ({"image": None, "images": [], "video": ""}, "two?", (TextPart("two?"),)),
        ({}, "a <IMAGE> or <images>?", (TextPart("a <IMAGE> or <images>?"),)),
        ({}, "  <|im_end|> stays \n", (TextPart("  <|im_end|> stays \n"),)),
    ],
)
def test_golden_rows(media: dict[str, object], question: str, parts: tuple[object, ...]) -> None:
    assert first_parts(row(question, "yes", **media)) == parts


def test_roles_turns_and_origin() -> None:
    raw = {
        "id": 3,
        "images": ["a.png", "b.png"],
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "<image> colour?"},
            {"from": "gpt", "value": "red"},
            {"from": "user", "value": "and <image>"},
            {"from": "assistant", "value": "blue"},
        ],
    }
    conversation = parse(raw)
    assert [turn.role for turn in conversation.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert conversation.media == (image("a.png"), image("b.png"))
    assert conversation.turns[4].parts == (TextPart("blue"),)
    assert conversation.origin == ORIGIN


def test_the_system_text_of_a_row_is_its_first_turn() -> None:
    conversation = parse(row("what?", "red", system="be brief"))
    assert [turn.role for turn in conversation.turns] == ["system", "user", "assistant"]
    assert conversation.turns[0].parts == (TextPart("be brief"),)
    turns = [{"from": "system", "value": "be brief"}, *row("what?", "red")["conversations"]]
    assert parse({"system": "be brief", "conversations": turns}) == conversation
    assert parse(row("what?", "red", system="")).turns == conversation.turns[1:]


FAULTS: list[tuple[str, object, str]] = [
    ("not_an_object", [1], "the row is a list, not an object"),
    ("not_an_object", None, "the row is null"),
    ("not_an_object", 3.5, "the row is a number"),
    ("no_conversations", {"image": "a.png"}, "the row has no 'conversations'"),
    ("no_conversations", {"messages": []}, "'messages' is another format"),
    ("no_conversations", {"conversations": []}, "the row has an empty list as 'conversations'"),
    ("no_conversations", {"conversations": "hi"}, "the row has a string as 'conversations'"),
    ("bad_turn", {"conversations": ["hi"]}, "turn 1 is a string"),
    ("bad_turn", {"conversations": [{"value": "hi"}]}, "turn 1 has no 'from'"),
    ("bad_turn", {"conversations": [{"from": "human", "value": 3}]}, "turn 1 has a number as 'value'"),
    ("bad_turn", {"conversations": [{"from": ["human"], "value": "x"}]}, "turn 1 has a list as 'from'"),
    ("unknown_role", {"conversations": [{"from": "bot", "value": "x"}]}, "turn 1 is from 'bot', an unknown role"),
    ("empty_turn", row("what?", ""), "turn 2 is empty"),
    ("empty_turn", row(" \n", "yes"), "turn 1 is empty"),
    ("no_assistant_turn", row("what?"), "no turn from 'gpt'"),
    ("placeholder_place", row("what?", "see <image>", image="a.png"), "turn 2 is from 'gpt' and holds <image>"),
    (
        "placeholder_place",
        {"conversations": [{"from": "system", "value": "<video>"}], "video": "a.mp4"},
        "turn 1 is from 'system' and holds <video>",
    ),
    ("placeholder_count", row("<image> what?", "x"), "turn 1 has 1 <image> placeholder but the row lists no image"),
    ("placeholder_count", row("what?", "x", image="a.png"), "no turn has a <image> placeholder but the row lists 1"),
    (
        "placeholder_count",
        row("<image><image><image>", "x", images=["a.png", "b.png"]),
        "turn 1 has 3 <image> placeholders but the row lists 2 images",
    ),
    (
        "placeholder_count",
        row("<image>", "x", "<image>", "y", image="a.png"),
        "the turns have 2 <image> placeholders but the row lists 1 image",
    ),
    ("placeholder_count", row("<video>", "x", image="a.png"), "<image>"),
    ("placeholder_count", row("<video>", "x"), "the row lists no video"),
    (
        "placeholder_count",
        row("<Image>\nwhat?", "x", image="a.png"),
        "drop the row. Turn 1 has '<Image>'; a placeholder is written <image>.",
    ),
    ("placeholder_count", row("see <image_1>", "x", image="a.png"), "Turn 1 has '<image_1>'; a placeholder is written"),
    (
        "placeholder_count",
        row("<image>", "x", videos=["a.mp4", "b.mp4"]),
        "has 1 <image> placeholder but the row lists no",
    ),
    ("placeholder_count", row("<image>", "x", image="a.png", video="a.mp4"), "no turn has a <video> placeholder"),
    (
        "placeholder_place",
        row("<img>a.png</img> what?", "x"),
        "turn 1 holds '<img>a.png</img>', a path within the text",
    ),
    (
        "ambiguous_system",
        {"system": "be long", "conversations": [{"from": "system", "value": "be brief"}, *QA]},
        "else",
    ),
    ("bad_turn", row("what?", "x", system=["be brief"]), "'system' of the row is a list"),
    ("bad_turn", row("what?", "x", system="<image>"), "'system' of the row is a text with a placeholder"),
    (
        "unsupported_field",
        row("what?", "x", loss=False),
        "the row has 'loss', which would change its meaning (loss=false",
    ),
    (
        "unsupported_field",
        row("what?", "x", weight=0),
        "the row has 'weight', which would change its meaning (weight=0",
    ),
    ("unsupported_field", row("what?", "x", weight=0.5), "data.sources has a weight for each manifest"),
    ("unsupported_field", row("what?", "x", image_path="a.png"), "has 'image_path', which is not read, and no 'image'"),
    ("unsupported_field", row("what?", "x", tools=[{"name": "f"}]), "calls of tools are not trained"),
    ("unsupported_field", row("what?", "x", rejected_response="y"), "preferences are not trained"),
    ("unsupported_field", row("what?", "x", audios=["a.wav"]), "sound is not read"),
    (
        "unsupported_field",
        {"conversations": [QA[0], {**QA[1], "loss": False}]},
        "turn 2 has 'loss', which would change its meaning",
    ),
    ("unsupported_field", {"conversations": [QA[0], {**QA[1], "weight": 0}]}, "turn 2 has 'weight'"),
    ("unsupported_field", {"conversations": [QA[0], {**QA[1], "reasoning_content": "so"}]}, "write it into the answer"),
    ("bad_media", row("<image><image>", "x", image='["a.png", "b.png"]'), "'image' holds a list written as text"),
    ("bad_media", row("<image>", "x", image="['a.png']"), "'image' holds a list written as text (['a.png'])"),
    ("absolute_path", row("<image>", "x", image="C:\\data\\a.png"), "is an absolute path of Windows"),
    ("bad_media", row("<image>", "x", image=3), "'image' holds a number"),
    ("bad_media", row("<image>", "x", images=["a.png", None]), "'images' holds null"),
    ("bad_media", row("<image>", "x", images=[""]), "'images' holds an empty string"),
    ("bad_media", row("<image>", "x", image=[["a.png"]]), "'image' holds a list"),
    ("bad_media", row("<image>", "x", image={"bytes": "x"}), "'image' holds an object"),
    ("bad_media", row("<image>", "x", image="a\0.png"), "zero byte"),
    ("bad_media", row("<video>", "x", video=[[]]), "'video' holds an empty list"),
    ("bad_media", row("<video>", "x", videos=[["a.png", 3]]), "'videos' holds a list"),
    ("ambiguous_media", row("<image>", "x", image="a.png", images=["a.png"]), "both 'image' and 'images'"),
    ("url", row("<image>", "x", image="https://host/a.png"), "'https://host/a.png' is a URL"),
    ("url", row("<image>", "x", image="data:image/png;base64,AAAA"), "is a URL"),
    ("url", row("<video>", "x", video="s3://bucket/a.mp4"), "video 's3://bucket/a.mp4' is a URL"),
    ("absolute_path", row("<image>", "x", image="/etc/a.png"), "data.allow_absolute_paths=true"),
    ("path_leaves_root", row("<image>", "x", image="../a.png"), "'../a.png' leaves data.root '/data'"),
    ("path_leaves_root", row("<image>", "x", image="sub/../../a.png"), "leaves data.root"),
    ("path_leaves_root", row("<video>", "x", video=["../0.png", "1.png"]), "video frame '../0.png' leaves"),
]


@pytest.mark.parametrize(("reason", "raw", "finding"), FAULTS)
def test_faults(reason: str, raw: object, finding: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(raw)
    error = caught.value
    assert error.reason == reason
    assert finding in error.finding
    assert str(error) == f"train.json:7: {error.finding}"
    assert error.finding.endswith((".", ")"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # workers send it home


def test_paths_that_only_look_bad() -> None:
    raw = row("<image><image><image>", "x", images=["a..b.png", "sub/../a.png", "..hidden/a.png"])
    assert len(parse(raw).media) == 3
    absolute = row("<image>", "x", image="/etc/a.png")
    assert parse(absolute, allow_absolute_paths=True).media == (ImagePart(Path("/etc/a.png")),)


def test_long_paths_are_shortened_in_messages() -> None:
    with pytest.raises(DataError, match=r"^train.json:7: image 'https://h/a{107}\.\.\.' is a URL"):
        parse(row("<image>", "x", image="https://h/" + "a" * 4000))


@pytest.mark.parametrize("text", [b'{"conversations": [', b"", b"{'a': 1}", b'{"a": NaN}', b'{"a": "\xff"}'])
def test_bad_json(text: bytes) -> None:
    with pytest.raises(DataError, match=r"^train.json:7: the row is no valid JSON \(.*\)\. .*Mend or drop") as caught:
        decode_row(text, origin=ORIGIN, root=ROOT)
    assert caught.value.reason == "bad_json"


def test_decode_row_is_parse_row_of_json() -> None:
    raw = row("<image> größer?", "jä", image="ü.png")
    for text in (json.dumps(raw).encode(), json.dumps(raw, ensure_ascii=False).encode()):
        assert decode_row(text, origin=ORIGIN, root=ROOT) == parse(raw)


def test_sources(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "sub" / "a.json"
    second.parent.mkdir()
    for path in (first, second):
        path.write_text("[]")
    found = resolve_sources([str(first), {"path": second, "weight": 2}, {"path": second, "root": tmp_path}], root=None)
    assert found == [
        Source(path=first, root=tmp_path, weight=1.0, name="a"),
        Source(path=second, root=second.parent, weight=2.0, name="a-2"),
        Source(path=second, root=tmp_path, weight=1.0, name="a-3"),
    ]
    assert resolve_sources([second], root=tmp_path)[0].root == tmp_path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("none.json", r"data\.sources\[0\]: no file at 'none\.json' \(seen from "),
        ("table.csv", r"data\.sources\[0\]: table\.csv is a table\. Convert it: vlmkit-convert input=table\.csv out="),
        ("/tmp", r"data\.sources\[0\]: '/tmp' is a directory\. Name the manifest"),
        ({"weight": 1}, r"data\.sources\[0\]: 'path' must name a manifest, got None"),
        ({"path": "a.json", "wieght": 1}, r"data\.sources\[0\]: unknown key 'wieght'. A source has path, root"),
        ({"path": "a.json", "weight": "2"}, r"data\.sources\[0\]: weight must be a number, got '2'"),
        ({"path": "a.json", "weight": True}, r"weight must be a number, got True"),
        ({"path": "a.json", "weight": 0}, r"weight of 'a' must be a positive number, got 0"),
        ({"path": "a.json", "weight": float("nan")}, r"weight of 'a' must be a positive number, got nan"),
        ({"path": "a.json", "root": "nowhere"}, r"data\.sources\[0\]\.root: no directory at 'nowhere'"),
    ],
)
def test_bad_sources(entry: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text("[]")
    with pytest.raises(ConfigError, match=message):
        resolve_sources([entry], root=None)


def test_no_sources_and_no_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        resolve_sources([], root=None)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"^data\.root: no directory at"):
        resolve_sources([tmp_path / "a.json"], root=tmp_path / "none")
