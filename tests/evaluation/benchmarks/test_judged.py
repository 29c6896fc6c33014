"""Benchmarks that a judge scores, each on a small file of its real columns: planted answers, a real server that judges.

The judge here is a table: it replies by the answer it is shown. What it is not asked about, the rule has decided.
"""

from __future__ import annotations

import gc
import json

import pytest

from tests.evaluation.benchmarks.test_further import DATA
from tests.evaluation.benchmarks.test_further import FILES as FILES_OF_VLMEVALKIT
from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import BLUE, HUB, RED, TSV, write_columns, write_hub, write_tsv
from tests.serving import ChatServer, text_of
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.judge import Judge, judge_records
from vlmkit.evaluation.judging import Judgeable, JudgedBenchmark
from vlmkit.evaluation.runner import run_answers

SETTINGS = {
    "model": "m", "api_key_env": None, "temperature": 0, "max_tokens": 64, "timeout_seconds": 5.0, "retries": 0,
    "retry_seconds": 0.01, "concurrency": 2, "rereads": 0, "input_price": None, "output_price": None, "extra_body": {},
}  # fmt: skip


def verse(n, version, question, answer, kind, image=RED):
    """A row of MathVerse."""
    return {
        "sample_index": str(n), "problem_index": str(n // 2), "problem_version": version, "question": question,
        "image": image, "answer": answer, "question_type": kind,
        "metadata": {"split": "testmini", "source": "x", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": f"Directly: {question}", "query_cot": f"Reason: {question}", "question_for_eval": f"In full: {question}",
    }  # fmt: skip


ANGLES = "How large is x?\nChoices:\nA: 10°\nB: 20°"
VERSES = [
    verse(0, "Text Dominant", ANGLES, "B", "multi-choice"),
    verse(1, "Vision Only", ANGLES, "B", "multi-choice"),
    verse(2, "Text Lite", "How long?", "2 cm", "free-form"),
    verse(3, "Text Only", "How long?", "2 cm", "free-form", None),
]


def hallusion(category, set_id, figure_id, question_id, answer):
    return {
        "category": category, "subcategory": "chart", "visual_input": "1", "set_id": set_id, "figure_id": figure_id,
        "sample_note": "x", "question_id": question_id, "question": f"Is it so {set_id}{figure_id}{question_id}?",
        "gt_answer_details": "It is so." if answer == "1" else "It is not so.", "gt_answer": answer, "filename": "x.png",
        "image": RED,
    }  # fmt: skip


HALLUSIONS = [
    hallusion("VS", "0", "0", "0", "1"), hallusion("VS", "0", "1", "0", "1"),
    hallusion("VD", "1", "0", "0", "0"), hallusion("VD", "1", "1", "0", "0"),
]  # fmt: skip


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


FILES = {
    "simplevqa": ("test-00000-of-00001.parquet", {
        "data_id": [1, 2, 3], "image": [RED] * 3, "image_description": [""] * 3, "language": ["EN", "CN", "EN"],
        "question": ["Who?", "谁？", "Where?"], "answer": ["Ada Lovelace", "李白", "Rome"], "vqa_category": ["people"] * 3,
    }),
    "mathvista": HUB["mathvista"],
    "mathvision": ("testmini-00000-of-00001.parquet", {
        "id": ["4", "5", "6"], "question": ["How much?", "Which?", "Which?"], "options": [[], ["1", "2"], ["1", "2"]],
        "image": ["images/4.jpg"] * 3, "decoded_image": [RED] * 3, "answer": ["3", "B", "B"], "solution": [None] * 3,
        "level": [1, 2, 2], "subject": ["algebra"] * 3,
    }),
    "mathverse": ("testmini/testmini-00000-of-00001.parquet", columns(VERSES)),
    "mmvet": ("test-00000-of-00001.parquet", {
        "question_id": ["v1_0", "v1_1", "v1_2"], "image": [RED, RED, BLUE], "question": ["What is x?", "What?", "Who?"],
        "answer": ["-1<AND>-5", "a pond<OR>a pool", "Ada"], "image_source": ["x"] * 3,
        "capability": ["ocr,math", "rec", "rec,know"],
    }),
    "llava_in_the_wild": ("train-00000-of-00001.parquet", {
        "question_id": ["0", "1", "2", "3"], "question": ["What?", "Tell me.", "Why?", "Who?"],
        "caption": [["A red wall.", "A door."]] * 4, "gpt_answer": ["A wall.", "A red wall.", "It is old.", "Nobody."],
        "category": ["conv", "detail", "complex", "conv"], "image": [RED] * 4,
    }),
    "hallusionbench": ("image-00000-of-00001.parquet", columns(HALLUSIONS)),
}  # fmt: skip

JUDGED = {
    ("simplevqa", "lmms-eval"): (
        {"1": "It was Ada.", "2": "杜甫", "3": "No idea."},
        {"It was Ada.": "CORRECT", "杜甫": "错误", "No idea.": "NOT_ATTEMPTED"},
        ["right", "wrong", "unparsed"], "judged_f1", 40.0,
        {"correct": 33.33, "incorrect": 33.33, "not_attempted": 33.33, "accuracy_given_attempted": 50.0},
    ),
    ("mathvista", "vlmkit"): (
        {"1": "On the other side.", "2": "12", "3": "It comes to 1.251 cm", "4": "They are one and two."},
        {"On the other side.": "(B)", "It comes to 1.251 cm": "1.251", "They are one and two.": "[1, 2]"},
        ["right"] * 4, "judged_accuracy", 100.0, {},
    ),
    ("mathvista", "lmms-eval"): (
        {"1": "right", "2": "twelve", "3": "1.251 cm", "4": "cannot be told"},
        {"twelve": "12", "1.251 cm": "1.251", "cannot be told": "NONE"},
        ["right", "right", "right", "unparsed"], "judged_accuracy", 75.0, {},
    ),
    ("mathvista", "vlmevalkit"): (
        {"1": "(A)", "2": "twelve", "3": "1.251 cm", "4": "[1, 2]"},
        {"twelve": "12", "1.251 cm": "1.251"},  # no rounding; lists are never right
        ["wrong", "right", "wrong", "unparsed"], "judged_accuracy", 25.0, {},
    ),
    ("mathvision", "vlmevalkit"): (
        {"4": "So it is three.", "5": "The greater one.", "6": "A"},
        {"So it is three.": "3", "The greater one.": "B"},
        ["right", "right", "wrong"], "judged_accuracy", 200 / 3, {},
    ),
    ("mathverse", "lmms-eval"): (
        {"0": "Twenty.", "1": "B", "2": "two centimetres", "3": ""},
        {"Twenty.": "1", "B": "1", "two centimetres": "0"},
        ["right", "right", "wrong", "unparsed"], "judged_accuracy", 50.0, {},
    ),
    ("mathverse", "vlmevalkit"): (
        {"0": "So it is B.", "1": "Ten, so A.", "2": "two centimetres", "3": "It cannot be known."},
        {
            "So it is B.": "B", "Ten, so A.": "A", "A": "0", "two centimetres": "two centimetres long",
            "two centimetres long": "1", "It cannot be known.": "NONE",
        },
        ["right", "wrong", "right", "unparsed"], "judged_accuracy", 50.0, {},
    ),
    ("mmvet", "lmms-eval"): (
        {"v1_0": "<think>hm</think>x is -1", "v1_1": "A pool.", "v1_2": " "},
        {"x is -1": "0.5", "A pool.": "1.0"},
        ["partial", "right", "unparsed"], "judged_score", 50.0, {"math": 50.0, "ocr": 50.0, "rec": 50.0, "know": 0.0},
    ),
    ("llava_in_the_wild", "lmms-eval"): (
        {"0": "A wall.", "1": "Something red.", "2": "Age.", "3": "Who knows?"},
        {"A wall.": "8 8\nAlike.", "Something red.": "8, 4", "Age.": "8/10 9/10", "Who knows?": "4 1"},
        ["partial", "partial", "failed", "partial"], "judged_ratio", 65.0,
        {"failed_reviews": 1, "reference_score": 200 / 3, "model_score": 130 / 3, "ratio_conv": 75.0, "ratio_detail": 50.0,
         "ratio_complex": 0.0},
    ),
    ("hallusionbench", "lmms-eval"): (
        {"VS_chart_0_0_0": "One cannot know.", "VS_chart_0_1_0": "Certainly.", "VD_chart_1_0_0": "By no means.",
         "VD_chart_1_1_0": "Hard to say."},
        {"One cannot know.": "unclear", "Certainly.": "correct", "By no means.": "Correct.", "Hard to say.": "unclear"},
        ["right", "right", "right", "wrong"], "judged_aAcc", 75.0, {"fAcc": 200 / 3, "qAcc": 50.0},
    ),
    ("hallusionbench", "vlmevalkit"): (
        {"VS_chart_0_0_0": "Yes, it is.", "VS_chart_0_1_0": "Certainly.", "VD_chart_1_0_0": "By all means.",
         "VD_chart_1_1_0": "Hard to say."},
        {"Certainly.": "Yes", "By all means.": "**Yes**", "Hard to say.": "Unknown"},
        ["right", "right", "wrong", "unparsed"], "judged_aAcc", 50.0, {"fAcc": 50.0, "qAcc": 50.0},
    ),
}  # fmt: skip
"""Planted answers, the judge's reply to each that it is to be asked about, outcomes, headline figure, further figures."""


@pytest.fixture
def server():
    made = ChatServer()
    yield made
    made.close()
    gc.collect()


def shown(body: dict) -> str:
    """The answer that a judge is shown."""
    text = text_of(body)
    if "| ground truth |" in text:
        return text.rsplit(" | ", 1)[1].removesuffix(" |")
    if "\nAnswer of assistant 2:\n" in text:
        return text.rsplit("\nAnswer of assistant 2:\n", 1)[1].split("\n\nRate ", 1)[0]
    return text.rsplit("\nAnswer: " if "\nAnswer: " in text else "\nResponse: ", 1)[1].removesuffix("\nYour reply:")


def answered(name, protocol, answers, tmp_path):
    file, data = FILES[name]
    write_columns(tmp_path / name / file, data)
    benchmark = make(name, tmp_path, protocol=protocol)
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in answers.items()))
    run_answers(benchmark, FileAnswers(path), settings(tmp_path))
    return benchmark


@pytest.mark.parametrize(("name", "protocol"), JUDGED, ids=" ".join)
def test_planted_answers_are_judged(name, protocol, tmp_path, server):
    answers, replies, outcomes, metric, score, further = JUDGED[name, protocol]
    benchmark = answered(name, protocol, answers, tmp_path)
    assert isinstance(benchmark, Judgeable)
    assert benchmark.uses_judge
    asked = []

    def reply(body):
        asked.append(shown(body))
        return replies[asked[-1]]

    server.reply = reply
    view = JudgedBenchmark(benchmark)
    records = judge_records(view, Judge(base_url=server.url, **SETTINGS), settings(tmp_path))
    assert sorted(asked) == sorted(replies), "asked about these, and no other"
    assert [record["outcome"] for record in records] == outcomes
    figures = aggregate(view, records)
    assert (figures["metric"], figures["n"]) == (metric, len(answers))
    assert figures["score"] == pytest.approx(score, abs=0.01)
    assert {key: figures["figures"][key] for key in further} == pytest.approx(further, abs=0.01)


def test_the_judge_is_shown_what_it_needs_and_no_more(tmp_path, server):
    texts = {}
    for name, protocol in JUDGED:
        answers, replies, *_ = JUDGED[name, protocol]
        benchmark = answered(name, protocol, answers, tmp_path / f"{name}-{protocol}")
        server.reply = lambda body, known=replies: known[shown(body)]
        server.requests.clear()
        judge_records(
            JudgedBenchmark(benchmark),
            Judge(base_url=server.url, **SETTINGS),
            settings(tmp_path / f"{name}-{protocol}"),
        )
        texts[name, protocol] = "\n".join(server.texts())
        assert "$" not in texts[name, protocol]
    assert "Reference answer: 李白" in texts["simplevqa", "lmms-eval"]
    assert "short phrase" not in texts["simplevqa", "lmms-eval"]
    assert "What mean? (Unit: cm)" in texts["mathvista", "vlmkit"]
    assert "Which bar?\n(A) left\n(B) right" in texts["mathvista", "vlmkit"]
    assert "a number with 2 decimal places" in texts["mathvista", "vlmkit"]
    assert "A. 1\nB. 2" in texts["mathvision", "vlmevalkit"]
    assert "In full: How long?" in texts["mathverse", "lmms-eval"]
    assert "What is x? | -1 <AND> -5 | x is -1 |" in texts["mmvet", "lmms-eval"]
    assert "A red wall.\nA door." in texts["llava_in_the_wild", "lmms-eval"]
    assert "Reference: It is not so." in texts["hallusionbench", "lmms-eval"]


def test_mathverse_asks_as_the_protocol_does_and_a_text_needs_no_picture(tmp_path):
    write_columns(tmp_path / "mathverse" / FILES["mathverse"][0], FILES["mathverse"][1])
    first, *_, last = make("mathverse", tmp_path).cases()
    assert isinstance(first, Case)
    assert first.prompt == f"Directly: {ANGLES}"
    assert (first.category, first.labels["subject"], first.cluster) == ("Text Dominant", "Plane Geometry", "0")
    assert first.options == {"A": "10°", "B": "20°"}
    assert (len(first.media), len(last.media)) == (1, 0)
    assert next(make("mathverse", tmp_path, protocol="vlmevalkit").cases()).prompt == ANGLES
    assert next(make("mathverse", tmp_path, reasoned=True).cases()).prompt == f"Reason: {ANGLES}"


def test_without_a_judge_mathverse_is_an_exact_match_by_that_name(tmp_path):
    benchmark = answered("mathverse", "lmms-eval", {"0": "20°", "1": "A", "2": "2 cm ", "3": "2 centimetres"}, tmp_path)
    records = run_answers(benchmark, FileAnswers(tmp_path / "answers.jsonl"), settings(tmp_path))
    assert [record["outcome"] for record in records] == ["right", "wrong", "right", "unparsed"]
    assert benchmark.metric == "exact_match"


def test_mmvet_asks_to_reason_first_only_with_lmms_eval(tmp_path):
    file, data = FILES["mmvet"]
    write_columns(tmp_path / "mmvet" / file, data)
    assert next(make("mmvet", tmp_path).cases()).prompt.endswith("the following question: \n\nWhat is x?")
    assert next(make("mmvet", tmp_path, protocol="vlmevalkit").cases()).prompt == "What is x?"
    case = next(make("mmvet", tmp_path, prompt_suffix=" Brief!").cases())
    assert (case.prompt, case.category) == ("What is x? Brief!", "ocr,math")


def test_mathvision_by_lmms_eval_needs_no_judge(tmp_path):
    assert not make("mathvision", tmp_path).uses_judge


@pytest.mark.parametrize("name", ["mmvet", "llava_in_the_wild"])
def test_no_rule_scores_an_open_answer(name, tmp_path):
    file, data = FILES[name]
    write_columns(tmp_path / name / file, data)
    benchmark = make(name, tmp_path)
    assert benchmark.judge == "required"
    assert benchmark.score(next(benchmark.cases()), "A wall.").outcome == "failed"


def test_when_every_review_fails_there_is_no_ratio(tmp_path):
    benchmark = make("llava_in_the_wild", tmp_path)
    rows = [{"outcome": "failed", "extracted": None, "category": "conv"}]
    assert benchmark.judged_figures(rows) == {"judged_ratio": 0.0, "failed_reviews": 1.0, "ratio_conv": 0.0}


TSV_ROWS = {
    "mathverse": ({"question": ANGLES, "answer": "B", "problem_version": "Vision Only"}, "B"),
    "mmvet": ({"question": "What is x?", "answer": "-1<AND>-5", "category": "ocr,math"}, None),
    "llava_in_the_wild": (
        {"question": "What?", "caption": "A red wall.", "gpt4_ans": "A wall.", "category": "conv"}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TSV_ROWS)
def test_the_files_of_vlmevalkit_are_read(name, tmp_path, monkeypatch):
    benchmark = make(name, tmp_path, protocol="vlmevalkit")
    row, right = TSV_ROWS[name]
    monkeypatch.setitem(TSV, name, (benchmark.tsv_name, [row]))
    write_tsv(tmp_path, name)
    (case,) = benchmark.cases()
    assert isinstance(case, Case), case
    assert case.id == "100"
    assert case.prompt == row["question"]
    if right:
        assert benchmark.score(case, right).value == 1


@pytest.mark.parametrize("name", ["mathverse", "mmvet", "llava_in_the_wild"])
def test_a_missing_column_is_named(name, tmp_path):
    from vlmkit.errors import DataError

    file, data = FILES[name]
    missing = {"mathverse": "question_for_eval", "mmvet": "capability", "llava_in_the_wild": "gpt_answer"}[name]
    write_columns(tmp_path / name / file, {key: value for key, value in data.items() if key != missing})
    with pytest.raises(DataError, match=f"lacks the columns {missing}; found .*question"):
        list(make(name, tmp_path).cases())


def test_mathvista_s_rule_is_unchanged_by_the_judge(tmp_path):
    benchmark = make("mathvista", write_hub(tmp_path, "mathvista"))
    cases = list(benchmark.cases())
    assert [benchmark.score(case, "12").outcome for case in cases] == ["unparsed", "right", "wrong", "unparsed"]


LETTERS = ("ai2d", "seed", "mmstar", "realworldqa", "mmmu", "science_qa", "mmbench_en", "mmvp", "blink")
WORDS = ("pope", "mme")
UNREADABLE = "Hmm, it is hard to say, though I lean somewhere."


def first_case(name, tmp_path, monkeypatch, protocol="vlmevalkit"):
    if name in HUB:
        write_hub(tmp_path, name)
    elif name in DATA:
        write_columns(tmp_path / name / DATA[name][0], DATA[name][1])
    else:
        monkeypatch.setitem(TSV, name, (make(name, tmp_path).tsv_name, [FILES_OF_VLMEVALKIT[name]]))
        write_tsv(tmp_path, name)
    benchmark = make(name, tmp_path, protocol=protocol)
    return benchmark, next(case for case in benchmark.cases() if isinstance(case, Case))


def follow(steps, *replies):
    """The score at the end of a judgement, and what was asked; `replies` are the judge's."""
    asked = []
    try:
        ask = next(steps)
        for reply in replies:
            asked.append(ask)
            ask = steps.send(ask.read(reply))
    except StopIteration as end:
        return end.value, asked
    raise AssertionError("it asks for more than there are replies")


@pytest.mark.parametrize("name", LETTERS)
def test_a_judge_finds_the_letter_where_the_rule_does_not(name, tmp_path, monkeypatch):
    benchmark, case = first_case(name, tmp_path, monkeypatch)
    assert benchmark.uses_judge
    assert benchmark.judged_metric == f"judged_{benchmark.metric}"
    wrong = next(letter for letter in case.options if letter != case.expected)
    for reply, outcome in ((f"**{case.expected}**", "right"), (wrong, "wrong"), ("Z", "unparsed")):
        score, (ask,) = follow(benchmark.judging(case, UNREADABLE), reply)
        assert (score.outcome, score.value) == (outcome, float(outcome == "right"))
    assert UNREADABLE in ask.text
    assert all(f"{letter}. {text}" in ask.text for letter, text in case.options.items())
    assert ask.read("It might be one or the other.") is None
    for answer in (case.expected, wrong, ""):
        assert follow(benchmark.judging(case, answer)) == (benchmark.score(case, answer), [])


@pytest.mark.parametrize("name", WORDS)
def test_a_judge_finds_yes_or_no_where_the_rule_does_not(name, tmp_path, monkeypatch):
    benchmark, case = first_case(name, tmp_path, monkeypatch)
    other = "No" if case.expected.lower() == "yes" else "Yes"
    for reply, outcome in ((case.expected.title(), "right"), (f"{other}.", "wrong"), ("Unknown", "unparsed")):
        score, (ask,) = follow(benchmark.judging(case, UNREADABLE), reply)
        assert score.outcome == outcome
    assert ask.read("yes and no") is None
    assert follow(benchmark.judging(case, "Yes, there is."))[1] == []


@pytest.mark.parametrize("name", [*LETTERS, *WORDS])
def test_lmms_eval_s_rules_ask_no_judge(name, tmp_path, monkeypatch):
    assert not first_case(name, tmp_path, monkeypatch, protocol="lmms-eval")[0].uses_judge


def test_judged_figures_keep_their_names_but_the_headline_s(tmp_path, monkeypatch):
    benchmark, _ = first_case("pope", tmp_path, monkeypatch)
    rows = [{"extracted": "Yes", "expected": "yes", "category": "random"}]
    assert benchmark.judged_figures(rows) == {
        "judged_f1" if name == "f1" else name: value for name, value in benchmark.figures(rows).items()
    }
    assert JudgedBenchmark(benchmark).metric == "judged_f1"
