"""Benchmarks about videos: files found wherever they lie, subtitles, both references' forms and rules."""

from __future__ import annotations

import csv
import json

import pytest

from tests.evaluation.benchmarks.test_further import figures_of
from tests.evaluation.benchmarks.test_the_twelve import make
from tests.evaluation.real_columns import png, write_columns
from vlmkit.errors import ConfigError, DataError
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.benchmarks.mvbench import FOLDERS
from vlmkit.evaluation.benchmarks.videos import read_subtitles

# --- Video-MME --------------------------------------------------------------------------------------------------------

OPTIONS = ["A. A cat.", "B. A dog.", "C. Noise.", "D. Nothing."]
COLUMNS = {
    "videoID": ["drawn", "gone"], "question_id": ["001-1", "001-2"], "question": ["What moves?"] * 2,
    "options": [OPTIONS] * 2, "answer": ["C", "A"], "duration": ["short"] * 2, "domain": ["Knowledge"] * 2,
    "sub_category": ["x"] * 2, "task_type": ["y"] * 2,
}  # fmt: skip
SRT = (
    "\ufeff1\r\n00:00:00,000 --> 00:00:01,500\r\n<i>Look</i> at\r\nthis!\r\n\r\n"
    "2\n00:00:01,500 --> 00:00:02,000\nLook at this!\n\n3\n00:00:02,000 --> 00:00:03,000\n{\\an8}It moves.\n"
)


@pytest.fixture
def videomme(tmp_path, clip):
    root = tmp_path / "videomme"
    write_columns(root / "videomme" / "test-00000-of-00001.parquet", COLUMNS)
    (root / "data").mkdir()
    (root / "data" / "drawn.mp4").write_bytes(clip.read_bytes())
    return tmp_path


def test_videos_are_found_beside_the_rows_or_told(videomme):
    for protocol in ("vlmkit", "lmms-eval", "vlmevalkit"):
        benchmark = make("videomme", videomme, protocol=protocol)
        found, gone = benchmark.cases()
        assert found.conversation.media[0].source == videomme / "videomme" / "data" / "drawn.mp4"
        assert "video 'gone' is not under" in gone.reason
        assert benchmark.score(found, "C").outcome == "right"
    assert make("videomme", videomme).score(found, "It shows noise.").outcome == "right"
    shipped = make("videomme", videomme, protocol="vlmevalkit")
    assert shipped.score(found, "Best option: C").extracted == "B"  # the first capital letter of the four anywhere
    assert make("videomme", videomme).score(found, "Best option: C").extracted == "C"


PROMPTS = {
    (
        "vlmkit",
        False,
    ): "\nThese are the frames of a video. Select the best answer to the following multiple-choice question "
    "based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\nQuestion: What moves?\n"
    "A. A cat.\nB. A dog.\nC. Noise.\nD. Nothing.\nAnswer: ",
    ("vlmevalkit", True): "\nThese are the frames of a video. This video's subtitles are listed below:\nLook at this!\n"
    "It moves.\nSelect the best answer to the following multiple-choice question based on the video. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\nQuestion: What moves?\nA. A cat.\nB. A dog.\nC. Noise.\n"
    "D. Nothing.\nAnswer: ",
    ("lmms-eval", False): "Select the best answer to the following multiple-choice question based on the video and the "
    "subtitles. Respond with only the letter (A, B, C, or D) of the correct option.\nWhat moves?\nA. A cat.\nB. A dog.\n"
    "C. Noise.\nD. Nothing.\n\nAnswer with the option's letter from the given choices directly.",
    (
        "lmms-eval",
        True,
    ): "This video's subtitles are listed below: \nLook at this!\nIt moves.\nSelect the best answer to "
    "the following multiple-choice question based on the video and the subtitles. Respond with only the letter (A, B, C, or "
    "D) of the correct option.\nWhat moves?\nA. A cat.\nB. A dog.\nC. Noise.\nD. Nothing.\nThe best answer is:",
}


@pytest.mark.parametrize(("protocol", "subtitles"), PROMPTS, ids=str)
def test_subtitles_stand_in_the_question_where_they_are_wanted(protocol, subtitles, videomme):
    (videomme / "videomme" / "subtitle").mkdir()
    (videomme / "videomme" / "subtitle" / "drawn.srt").write_text(SRT, encoding="utf-8")
    case = next(make("videomme", videomme, protocol=protocol, subtitles=subtitles).cases())
    assert case.prompt == PROMPTS[protocol, subtitles]


def test_a_video_without_subtitles_says_so(videomme):
    case = next(make("videomme", videomme, protocol="lmms-eval", subtitles=True).cases())
    assert case.prompt.startswith("This video's subtitles are listed below: \nNo subtitles available\nSelect")


def test_a_file_that_is_no_subtitles_says_nothing(tmp_path):
    path = tmp_path / "x.srt"
    path.write_text("just words\n\nand more\n")
    assert read_subtitles(path) == ""


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def test_the_tsv_of_vlmevalkit_is_read(tmp_path, clip):
    row = {
        "index": 7, "video": "drawn", "video_path": "./video/drawn.mp4", "duration": "short", "domain": "Knowledge",
        "candidates": str(OPTIONS), "sub_category": "x", "task_type": "y", "subtitle_path": "./subtitle/drawn.srt",
        "question": "What moves?", "answer": "C",
    }  # fmt: skip
    write_lines(tmp_path / "Video-MME.tsv", [row])
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "drawn.mp4").write_bytes(clip.read_bytes())
    (case,) = make("videomme", tmp_path).cases()
    assert (case.id, case.options["C"], case.labels["domain"]) == ("7", "Noise.", "Knowledge")
    assert case.conversation.media[0].source == tmp_path / "video" / "drawn.mp4"
    del row["candidates"]
    write_lines(tmp_path / "Video-MME.tsv", [row])
    with pytest.raises(DataError, match="lacks the columns candidates; found index, video"):
        list(make("videomme", tmp_path).cases())


# --- MVBench ----------------------------------------------------------------------------------------------------------


def rows_of(task, num=2):
    return {
        "video": [f"{task}_{n}.mp4" for n in range(num)], "question": ["What happens?"] * num,
        "candidates": [["a cat", "a dog", "noise"]] * num, "answer": ["noise", "a cat"][:num],
    }  # fmt: skip


def write_mvbench(root, clip, tasks):
    for task in tasks:
        write_columns(root / "mvbench" / task / "train-00000-of-00001.parquet", rows_of(task))
        for name in rows_of(task)["video"]:
            path = root / "mvbench" / "video" / FOLDERS[task] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(clip)


def test_the_score_is_the_mean_over_the_20_tasks(tmp_path, clip):
    write_mvbench(tmp_path, clip, FOLDERS)
    benchmark = make("mvbench", tmp_path)
    assert (len(FOLDERS), len(benchmark), benchmark.protocol) == (20, 40, "vlmkit")
    answers = {case.id: "C" for case in benchmark.cases()}  # the first of each task is right
    answers |= {"action_count/0": "", "action_count/1": "(A) a cat", "state_change/1": "the answer is a cat"}
    figures = figures_of(benchmark, answers, tmp_path)
    assert (figures["metric"], figures["unit"]) == ("mean_over_tasks", "percent")
    assert figures["score"] == pytest.approx(100 * (18 * 0.5 + 0.5 + 1.0) / 20)
    assert figures["outcomes"] == {"right": 21, "unparsed": 1, "wrong": 18}
    assert set(figures["by_category"]) == set(FOLDERS)
    assert figures["stderr"] > 0


def test_an_empty_answer_is_what_each_protocol_calls_it(tmp_path, clip):
    write_mvbench(tmp_path, clip, ["action_count", "moving_count"])
    chosen = ["action_count", "moving_count"]
    answers = {"action_count/0": "", "action_count/1": "A", "moving_count/0": "C", "moving_count/1": "B"}
    scores = {}
    for protocol in ("vlmkit", "lmms-eval", "vlmevalkit"):
        benchmark = make("mvbench", tmp_path, config=chosen, protocol=protocol)
        scores[protocol] = figures_of(benchmark, answers, tmp_path / protocol)["score"]
    assert scores == {"vlmkit": 50.0, "lmms-eval": 75.0, "vlmevalkit": 75.0}
    assert make("mvbench", tmp_path, protocol="lmms-eval").figures([{"answer": " ", "score": 0}]) == {
        "mean_over_tasks": 0.0
    }


def test_mvbench_is_asked_as_each_protocol_does(tmp_path, clip):
    write_mvbench(tmp_path, clip, ["action_count"])
    told = {}
    for protocol in ("vlmkit", "lmms-eval", "vlmevalkit"):
        case = next(make("mvbench", tmp_path, config="action_count", protocol=protocol).cases())
        told[protocol] = (len(case.conversation.turns), case.prompt)
    short = (1, "Question:What happens?\nOption:\n(A) a cat\n(B) a dog\n(C) noise\nOnly give the best option.\n")
    assert told == {
        "vlmkit": short,
        "lmms-eval": short,
        "vlmevalkit": (
            2,
            "Question: What happens?\nOptions:\n(A) a cat\n(B) a dog\n(C) noise\nOnly give the best option.Best option:(",
        ),
    }
    case = next(make("mvbench", tmp_path, config="action_count", prompt_suffix="Brief!").cases())
    assert case.prompt.endswith("(C) noise\nBrief!")


def test_lists_in_json_and_frames_are_read(tmp_path, clip):
    """The layout of the repository: json/<task>.json, videos and folders of frames under video."""
    row = {key: values[0] for key, values in rows_of("episodic_reasoning", 1).items()}
    (tmp_path / "mvbench" / "json").mkdir(parents=True)
    path = tmp_path / "mvbench" / "json" / "episodic_reasoning.json"
    path.write_text(json.dumps([row | {"video": "castle", "start": 0, "end": 3}, row | {"video": "empty"}]))
    frames = tmp_path / "mvbench" / "video" / "tvqa" / "frames_fps3_hq" / "castle"
    frames.mkdir(parents=True)
    (frames.parent / "empty").mkdir()
    for number in (2, 1):
        (frames / f"{number:05d}.png").write_bytes(png())
    benchmark = make("mvbench", tmp_path, config=["episodic_reasoning", "action_count"])
    with pytest.raises(ConfigError, match="1 of 2 configurations are not there: action_count"):
        list(benchmark.cases())
    write_mvbench(tmp_path, clip, ["action_count"])
    benchmark = make("mvbench", tmp_path, config=["episodic_reasoning", "action_count"])
    first, empty, *rest = benchmark.cases()
    assert first.conversation.media[0].source == (frames / "00001.png", frames / "00002.png")
    assert isinstance(empty, BadCase)
    assert "empty holds no frames" in empty.reason
    assert [case.id for case in rest] == ["action_count/0", "action_count/1"]
    path.write_text("{}")
    with pytest.raises(DataError, match="not a list of JSON objects"):
        list(make("mvbench", tmp_path, config=["episodic_reasoning", "action_count"]).cases())


def test_a_name_in_several_places_goes_by_its_folder_or_is_told(tmp_path, clip):
    write_mvbench(tmp_path, clip, ["action_count"])
    videos = tmp_path / "mvbench" / "video"
    (videos / "clevrer").mkdir()
    (videos / "clevrer" / "action_count_0.mp4").symlink_to(clip)
    first, _ = make("mvbench", tmp_path, config="action_count").cases()
    assert first.conversation.media[0].source == videos / "perception" / "action_count_0.mp4"
    (videos / "perception" / "again").mkdir()
    (videos / "perception" / "again" / "action_count_0.mp4").symlink_to(clip)
    (videos / "perception" / "action_count_1.mp4").unlink()
    several, gone = make("mvbench", tmp_path, config="action_count").cases()
    assert "is in 2 places" in several.reason
    assert "video 'action_count_1.mp4' is nowhere under" in gone.reason


def test_the_tsv_of_mvbench_is_read(tmp_path, clip):
    row = {
        "task_type": "Fine-grained Action", "prefix": "video/Moments_in_Time_Raw/videos/", "data_type": "video",
        "bound": "False", "start": "", "end": "", "video": "drawn.mp4", "question": "What?", "answer": "a dog",
        "candidates": "['a cat', 'a dog']", "index": 3,
    }  # fmt: skip
    write_lines(tmp_path / "MVBench.tsv", [row, row | {"task_type": "Moving Count", "index": 4, "answer": "no"}])
    folder = tmp_path / "video" / "Moments_in_Time_Raw" / "videos"
    folder.mkdir(parents=True)
    (folder / "drawn.mp4").symlink_to(clip)
    case, bad = make("mvbench", tmp_path).cases()
    assert isinstance(case, Case)
    assert (case.id, case.category, case.expected) == ("3", "fine_grained_action", "B")
    assert "wanted one of its 2 candidates" in bad.reason
    assert len(list(make("mvbench", tmp_path, config="moving_count").cases())) == 1


def test_a_column_that_is_missing_is_named(tmp_path):
    columns = rows_of("action_count")
    del columns["candidates"]
    write_columns(tmp_path / "mvbench" / "action_count" / "train-00000-of-00001.parquet", columns)
    with pytest.raises(DataError, match="lacks the columns candidates; found video, question, answer"):
        list(make("mvbench", tmp_path, config="action_count").cases())
