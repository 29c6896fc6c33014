"""The benchmarks that are quoted most, each on a small file of its real columns, with planted answers."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.evaluation.real_columns import HUB, PICTURE, PLANTED, TSV, TSV_RIGHT, png, write_hub, write_saved, write_tsv
from vlmkit.config import benchmark_nodes, build, conf_dir
from vlmkit.conversation import ImagePart, TextPart
from vlmkit.errors import ConfigError, DataError
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.benchmark import BadCase, Benchmark, Case
from vlmkit.evaluation.runner import RunSettings, run_answers
from vlmkit.generation.backend import GenerationParams


def make(name, data_root, **options):
    node = benchmark_nodes([name])[name]
    node.data_root = str(data_root)
    node.update(options)
    return build(node, Benchmark)


def settings(tmp_path):
    params = GenerationParams(max_new_tokens=4, batch_size=2)
    return RunSettings(output_dir=tmp_path / "out", max_samples=None, params=params, verbose=False, progress=False)


def figures_of(benchmark, answers, folder):
    """The figures that these answers earn, by case id."""
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in answers.items()))
    records = run_answers(benchmark, FileAnswers(file), settings(folder))
    return records, aggregate(benchmark, records)


@pytest.mark.parametrize("write", [write_hub, write_saved])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_answers_earn_what_they_should(name, write, tmp_path):
    benchmark = make(name, write(tmp_path, name))
    answers, score, parsed = PLANTED[name]
    records, figures = figures_of(benchmark, answers, tmp_path)
    assert figures["score"] == pytest.approx(score, abs=1e-3)
    assert figures["parsed"] == pytest.approx(parsed, abs=1e-3)
    assert figures["n"] == len(records) == sum(1 for _ in benchmark.cases())
    assert figures["metric"] == benchmark.metric
    assert len(benchmark) >= figures["n"]


@pytest.mark.parametrize("protocol", ["lmms-eval", "vlmevalkit"])
@pytest.mark.parametrize("name", TSV)
def test_the_files_of_vlmevalkit_are_read(name, protocol, tmp_path):
    stem, rows = TSV[name]
    cases = list(make(name, write_tsv(tmp_path, name), protocol=protocol).cases())
    assert [case.id for case in cases] == (["100", "102"] if name == "mmmu" else ["100"])
    for case in cases:
        assert isinstance(case, Case), case
        assert [part.source for part in case.conversation.media] == [png("blue")]
    assert rows[0]["question"].split("<")[0].lower() in cases[0].prompt.lower()


@pytest.mark.parametrize("name", TSV)
def test_planted_answers_to_the_files_of_vlmevalkit_earn_what_they_should(name, tmp_path):
    benchmark = make(name, write_tsv(tmp_path, name))
    identifiers = ["100", "102"] if name == "mmmu" else ["100"]
    right = dict(zip(identifiers, TSV_RIGHT[name], strict=True))
    _, figures = figures_of(benchmark, right, tmp_path)
    assert (figures["score"], figures["n"], figures["parsed"]) == (100.0, len(right), 1.0)
    wrong = dict.fromkeys(right, "nothing of the kind")
    (tmp_path / "wrong").mkdir()
    _, figures = figures_of(benchmark, wrong, tmp_path / "wrong")
    assert (figures["score"], figures["n"]) == (0.0, len(right))


PROMPTS = {
    ("gqa", "lmms-eval"): "Is it red?\nAnswer the question using a single word or phrase.",
    ("science_qa", "lmms-eval"): "Which is red?\nA. this\nB. that\nAnswer with the option's letter from the given choices directly.",
    ("science_qa", "vlmevalkit"): "Question: Which is red?\nOptions:\nA. this\nB. that\nPlease select the correct answer from the options above. \n",
    ("textvqa", "lmms-eval"): "What does nato say?\nAnswer the question using a single word or phrase.",
    ("textvqa", "vlmevalkit"): "what does NATO say?\nAnswer the question using a single word or phrase.",
    ("mmmu", "lmms-eval"): "Compare  with .\nA. first\nB. second\n\nAnswer with the option's letter from the given choices directly.",
    ("seed", "lmms-eval"): "What?\nA. option a\nB. option b\nC. option c\nD. option d\nAnswer with the option's letter from the given choices directly.",
    ("mathvista", "vlmkit"): "Which bar?\nA. left\nB. right\nAnswer with the option's letter from the given choices directly.",
    ("mathvista", "vlmevalkit"): "Hint: x\nQuestion: Which bar?",
    ("ai2d", "lmms-eval"): "Which eats?\nA. fox\nB. grass\nC. sun\nD. soil\nAnswer with the option's letter from the given choices directly.",
    ("chartqa", "lmms-eval"): "How many?\nAnswer the question with a single word.",
    ("chartqa", "vlmevalkit"): "How many?\nAnswer the question using a single word or phrase.",
    ("docvqa", "lmms-eval"): "What is the date?\nAnswer the question using a single word or phrase.",
    ("mmstar", "lmms-eval"): "Which colour?\nOptions: A: red, B: blue, C: green, D: black\nAnswer with the option's letter from the given choices directly",
    ("mmstar", "vlmevalkit"): "Question: Which colour?\nOptions:\nA. red\nB. blue\nC. green\nD. black\nPlease select the correct answer from the options above. \n",
    ("realworldqa", "lmms-eval"): "What is it?\nA. A dog\nB. A cat\nPlease answer directly with only the letter of the correct option and nothing else.",
    ("ocrbench", "lmms-eval"): "What is written?",
}  # fmt: skip


@pytest.mark.parametrize(("name", "protocol"), PROMPTS, ids=" ".join)
def test_prompts_are_those_of_the_reference(name, protocol, tmp_path):
    case = next(make(name, write_hub(tmp_path, name), protocol=protocol).cases())
    assert isinstance(case, Case)
    assert case.prompt == PROMPTS[name, protocol]


@pytest.mark.parametrize("name", PLANTED)
def test_a_suffix_replaces_the_instruction(name, tmp_path):
    case = next(make(name, write_hub(tmp_path, name), prompt_suffix=" Brief!").cases())
    assert case.prompt.count("Brief!") == 1
    assert "directly" not in case.prompt
    assert "single word" not in case.prompt


def test_images_stand_where_the_text_names_them(tmp_path):
    first, _, third = make("mmmu", write_hub(tmp_path, "mmmu")).cases()
    parts = first.conversation.turns[0].parts
    assert [part.source if isinstance(part, ImagePart) else part.text[:8] for part in parts] == [
        "Compare ", png("blue"), " with ", png("red"), ".\nA. fir",
    ]  # fmt: skip
    assert [type(part) for part in third.conversation.turns[0].parts] == [
        TextPart, ImagePart, TextPart, ImagePart, TextPart,
    ]  # fmt: skip
    assert first.labels["domain"] == "Art and Design"
    assert first.category == "Art_Theory"


def test_options_with_commas_stay_whole(tmp_path):
    _, second, _ = make("mmstar", write_hub(tmp_path, "mmstar")).cases()
    assert second.options["B"] == "right, up"


def test_a_macro_mean_stands_beside_the_micro_one(tmp_path):
    benchmark = make("mmstar", tmp_path)
    rows = [{"score": 1, "labels": {"l2_category": "a"}}] * 3 + [{"score": 0, "labels": {"l2_category": "b"}}]
    assert benchmark.figures(rows) == {"mean_over_l2_categories": 50.0}


def test_bad_rows_are_told_and_end_nothing(tmp_path):
    for name in ("gqa", "chartqa", "realworldqa"):
        bad = [case for case in make(name, write_hub(tmp_path, name)).cases() if isinstance(case, BadCase)]
        assert len(bad) == 1
        assert ".parquet:" in bad[0].reason
    assert (
        "'gone' is not among the 2 images"
        in [case.reason for case in make("gqa", tmp_path).cases() if isinstance(case, BadCase)][0]
    )


def test_an_answer_that_is_no_option_is_a_bad_row(tmp_path, monkeypatch):
    file, columns = HUB["ai2d"]
    monkeypatch.setitem(HUB, "ai2d", (file, columns | {"answer": ["4", "2"]}))
    bad, good = make("ai2d", write_hub(tmp_path, "ai2d")).cases()
    assert isinstance(bad, BadCase)
    assert bad.reason.endswith(
        "ai2d/test-00000-of-00001.parquet:1: answer index 4 but 4 options (0..3). The data is malformed; the row is not "
        "scored. Mend the data."
    )
    assert isinstance(good, Case)


@pytest.mark.parametrize("name", HUB)
def test_a_missing_column_is_named_with_what_was_found(name, tmp_path, monkeypatch):
    file, columns = HUB[name]
    missing = "decoded_image" if name == "mathvista" else "image_1" if name == "mmmu" else "image"
    monkeypatch.setitem(HUB, name, (file, {key: value for key, value in columns.items() if key != missing}))
    with pytest.raises(DataError, match=f"lacks the columns {missing}; found .*question"):
        list(make(name, write_hub(tmp_path, name)).cases())


def test_another_split_is_not_taken_for_the_one_asked_for(tmp_path):
    write_hub(tmp_path, "chartqa")
    with pytest.raises(ConfigError, match="holds the splits test of chartqa, not val"):
        list(make("chartqa", tmp_path, split="val").cases())


def test_the_data_of_another_benchmark_is_not_taken(tmp_path):
    """DocVQA's columns would do for Infographic VQA; the folder says whose they are."""
    write_hub(tmp_path, "docvqa")
    for name in ("infovqa", "ai2d"):
        with pytest.raises(ConfigError, match=f"no Parquet files for {name}"):
            list(make(name, tmp_path).cases())
    (tmp_path / "docvqa").rename(tmp_path / "infovqa")
    assert len(list(make("infovqa", tmp_path, config="DocVQA").cases())) == 2


def test_data_root_may_be_the_folder_itself(tmp_path):
    for name in ("docvqa", "gqa", "seed"):
        root = write_hub(tmp_path, name) / name
        root.rename(tmp_path / "elsewhere")
        assert list(make(name, tmp_path / "elsewhere").cases())
        (tmp_path / "elsewhere").rename(tmp_path / f"done {name}")
    write_saved(tmp_path, "seed")
    assert len(list(make("seed", tmp_path / "seed").cases())) == 2
    assert len(list(make("seed", tmp_path / "seed" / "test").cases())) == 2


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"no Parquet files for gqa .* nor a TSV file GQA_TestDev_Balanced.tsv"):
        list(make("gqa", tmp_path).cases())
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(make("gqa", tmp_path).cases())


@pytest.mark.parametrize("name", ["chartqa", "docvqa", "science_qa"])
@pytest.mark.parametrize(
    "layout", ["{name}", "{owner}/{name}", "{owner}--{name}", "datasets--{owner}--{name}/snapshots/abc"]
)
@pytest.mark.parametrize("moved", [False, True])
def test_downloads_of_the_hub_are_found_as_they_lie(name, layout, moved, tmp_path):
    owner, _, dataset = benchmark_nodes([name])[name].hub_id.partition("/")
    assert owner == "lmms-lab-encoder"
    folder = tmp_path / "root" / layout.format(owner="lmms-lab" if moved else owner, name=dataset)
    folder.parent.mkdir(parents=True)
    write_hub(tmp_path, name)
    (tmp_path / name).rename(folder)
    for file in list(folder.glob("*.parquet")):  # without configurations, the hub's files lie in `data`
        (folder / "data").mkdir(exist_ok=True)
        file.rename(folder / "data" / file.name)
    assert list(make(name, tmp_path / "root").cases())


def test_the_folder_and_the_file_of_a_benchmark_may_be_in_other_case(tmp_path):
    write_hub(tmp_path, "chartqa")
    (tmp_path / "chartqa").rename(tmp_path / "CHARTqa")
    assert list(make("chartqa", tmp_path).cases())
    stem, _ = TSV["ocrbench"]
    write_tsv(tmp_path, "ocrbench")
    (tmp_path / f"{stem}.tsv").rename(tmp_path / f"{stem.lower()}.tsv")
    assert list(make("ocrbench", tmp_path).cases())


def test_a_dataset_of_several_benchmarks_gives_each_its_configuration(tmp_path):
    write_hub(tmp_path, "docvqa")
    (tmp_path / "docvqa").rename(tmp_path / "DocVQA")
    assert list(make("docvqa", tmp_path).cases())
    with pytest.raises(ConfigError, match="no Parquet files for infovqa"):
        list(make("infovqa", tmp_path).cases())
    file = next((tmp_path / "DocVQA").rglob("*.parquet"))
    (tmp_path / "DocVQA" / "InfographicVQA").mkdir()
    (tmp_path / "DocVQA" / "InfographicVQA" / file.name).write_bytes(file.read_bytes())
    assert list(make("infovqa", tmp_path).cases())
    (tmp_path / "DocVQA" / "InfographicVQA" / file.name).unlink()
    file.rename(tmp_path / "DocVQA" / file.name)  # it does not say whose it is
    with pytest.raises(ConfigError, match="no Parquet files for infovqa"):
        list(make("infovqa", tmp_path).cases())


def test_data_that_is_not_found_is_told_with_its_folder_and_what_lies_there(tmp_path):
    (tmp_path / "POPE-data").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError) as caught:
        list(make("pope", tmp_path).cases())
    assert f"no Parquet files for pope in {tmp_path}/pope (there is no such folder), nor a TSV" in str(caught.value)
    assert f"{tmp_path} holds POPE-data/, notes.txt. Download" in str(caught.value)
    (tmp_path / "Pope").mkdir()
    with pytest.raises(
        ConfigError, match=rf"no Parquet files for pope in {tmp_path}/Pope, .* {tmp_path}/Pope is empty\."
    ):
        list(make("pope", tmp_path).cases())
    with pytest.raises(ConfigError, match=rf"{tmp_path}/none is not there\."):
        list(make("pope", tmp_path / "none").cases())


def test_a_tsv_image_may_be_a_path_or_broken(tmp_path):
    (tmp_path / "OCRBench.tsv").write_text(
        "index\timage\timage_path\tquestion\tanswer\tcategory\n"
        "1\t\tpics/a.png\tRead!\t['EXIT']\tRegular Text Recognition\n"
        "2\t\t../a.png\tRead!\t['EXIT']\tRegular Text Recognition\n"
        f"3\t{'#' * 80}\t\tRead!\t['EXIT']\tRegular Text Recognition\n"
    )
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(png())
    good, outside, broken = make("ocrbench", tmp_path).cases()
    assert isinstance(good, Case)
    assert "OCRBench.tsv:2: image '../a.png' is not there under" in outside.reason
    assert "OCRBench.tsv:3: column 'image' holds no base64" in broken.reason


def test_unknown_protocols_are_refused():
    with pytest.raises(ConfigError, match="benchmark_options.chartqa.protocol must be one of lmms-eval, vlmevalkit"):
        make("chartqa", "x", protocol="house")


def test_every_yaml_but_the_drawn_one_is_tested_here():
    named = {path.stem for path in (conf_dir() / "eval").glob("*.yaml") if "hub_id" in yaml.safe_load(path.read_text())}
    assert set(PLANTED) <= named
    assert len(PICTURE) > 64
