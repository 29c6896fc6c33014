"""`vlmkit-check`: what it says of a run is what the run would do, and all faults are told at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from tests.training.conftest import run, write_manifest
from vlmkit.config import conf_dir


def look(*overrides: str, run_dir: Path | str = "runs/never", **more):
    """Check in this process."""
    from vlmkit.cli.checking import check

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "check", overrides=["data.num_workers=0", "log.progress=false", *overrides, f"run_dir={run_dir}"]
        )
    return check(config, Path(run_dir).absolute(), **more)


def section(report, name):
    return next(one for one in report.sections if one.name == name)


def told(report, name, mark):
    """Messages and details of a section's findings of a mark."""
    return "\n".join(
        "\n".join((one.message, *one.details)) for one in section(report, name).findings if one.mark == mark
    )


def llava(*manifests: Path) -> list[str]:
    return ["data=llava", f"data.sources=[{','.join(map(str, manifests))}]", "data.batch_size=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A good manifest of 24 rows, four of them text only."""
    path = tmp_path_factory.mktemp("check")
    write_manifest(path, 24, text_only=frozenset({1, 6, 11, 17}))
    return path


@pytest.fixture(scope="module")
def good(folder) -> Path:
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def bad(folder) -> Path:
    """Twelve rows of which seven cannot be used, two by one reason."""
    rows = json.loads((folder / "manifest.json").read_text())[:12]
    rows[2]["image"] = "gone.png"
    rows[3]["image"] = "gone-too.png"
    rows[4]["image"] = "../0.png"
    rows[5]["conversations"][0]["value"] = "<image><image> two?"
    rows[6]["conversations"][0]["from"] = "robot"
    rows[7] = {"messages": []}
    path = folder / "bad.jsonl"
    path.write_text("\n".join([json.dumps(row) for row in rows[:11]] + ['{"id": ']) + "\n")
    return path


# --- as users run it --------------------------------------------------------------------------------------------------


def test_fields_that_are_not_read_are_listed_with_their_counts(folder):
    rows = json.loads((folder / "manifest.json").read_text())
    path = folder / "fields.jsonl"
    path.write_text(
        "\n".join(json.dumps(row | {"source": "web"} | ({"score": 1} if n < 3 else {})) for n, row in enumerate(rows))
    )
    report = look(*llava(path))
    assert "2 fields of the rows not read:\nsource: 24 rows\nscore: 3 rows" in told(report, "data", "note")
    assert section(report, "data").figures["unread_fields"] == {"source": 24, "score": 3}


def test_a_run_that_would_start(good, tmp_path):
    output = run(
        "check", *llava(good), "data.num_workers=0", "stage=stage1", f"run_dir={tmp_path / 'run'}", cwd=tmp_path
    )
    assert output.splitlines()[-1] == "This run would start: 10 steps."
    assert "24 rows read from 1 manifest, 20 usable" in output
    assert "4 rows without media left out" in output
    assert [line for line in output.splitlines() if line.isalpha()] == ["config", "model", "data", "plan", "resources"]
    assert list(tmp_path.iterdir()) == [], "a check writes nothing but the index"


def test_a_run_that_would_fail_tells_every_fault_as_json(bad, good, tmp_path):
    overrides = [*llava(bad, good), "optim.lr=-1", "data.max_tokens=5", "check.format=json", "data.num_workers=0"]
    report = json.loads(run("check", *overrides, f"run_dir={tmp_path}", status=1))
    assert report["schema"] == "vlmkit.check/1"
    assert report["starts"] is False
    assert [error["section"] for error in report["errors"]] == ["config", "data", "data", "plan"]
    config, unusable, overlong, plan = (error["message"] for error in report["errors"])
    assert "optim.lr=-1: wanted a number of at least 0." in config
    assert unusable.startswith("7 of 36 rows cannot be used.")
    assert "data.on_bad_row=skip" in unusable
    assert "longer than data.max_tokens=5" in overlong
    assert plan.startswith("data: none of the 36 rows can be trained on")
    figures = report["sections"]["data"]["figures"]
    assert figures["verdicts"]["missing_media"] == 2
    assert sum(figures["verdicts"].values()) == figures["rows"] == 36


def test_the_readme_lists_the_fields_of_the_json(good):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = readme.split("schema `vlmkit.check/1`:", 1)[1].split("\n## ", 1)[0]
    report = look(*llava(good), "check.limit=2", "check.decode=false").to_json()
    assert report.pop("schema") == "vlmkit.check/1"
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(report)
    for name, told in report["sections"].items():
        assert f"`{name}`" in table
        assert told.keys() == {"mark", "findings", "figures"}
        assert {key for one in told["findings"] for key in one} == {"mark", "message", "details"}


# --- the data ---------------------------------------------------------------------------------------------------------


def test_all_bad_rows_are_told_by_reason_even_where_the_first_would_stop_the_run(bad):
    report = look(*llava(bad), "data.on_bad_row=error")
    errors = told(report, "data", "error")
    lines = errors.splitlines()
    assert lines[0].startswith("7 of 12 rows cannot be used.")
    reasons = {"missing_media": 2, "path_leaves_root": 1, "placeholder_count": 1, "unknown_role": 1}
    reasons |= {"no_conversations": 1, "bad_json": 1}
    assert dict(re.findall(r"^(\w+): (\d+)$", errors, flags=re.MULTILINE)) == {
        reason: str(count) for reason, count in reasons.items()
    }
    for row in (3, 4, 5, 6, 7, 8, 12):
        assert f"{bad}:{row}: " in errors
    assert "disagree in 1 row " in told(report, "data", "note")
    assert not report.starts
    assert report.num_steps == 3, "what is left is planned: five rows, two a pack"


def test_more_bad_rows_than_may_be_skipped_are_an_error(bad):
    report = look(*llava(bad), "data.on_bad_row=skip", "check.decode=false")
    assert not report.starts
    error = told(report, "data", "error")
    assert "7 bad rows are more than data.max_bad_rows=0.01 allows (0 of 12)" in error
    assert "vlmkit-check check.bad_rows=bad.jsonl lists all" in error


@pytest.mark.parametrize(
    "model", [[], ["model=qwen3_vl", "model.path=/nowhere"]], ids=["counted", "without a processor"]
)
def test_every_bad_row_is_listed_in_a_file(bad, model, folder, tmp_path):
    rows = [json.loads(line) for line in bad.read_text().splitlines()[:11]]
    many = folder / "many.jsonl"
    many.write_text("\n".join(json.dumps(row) for row in rows + [rows[2] | {"image": f"no-{n}.png"} for n in range(9)]))
    overrides = ["data=llava", f"data.sources=[{many}]", "data.batch_size=2", "check.decode=false", *model]
    listed = tmp_path / "new" / "bad.jsonl"
    report = look(*overrides, f"check.bad_rows={listed}")
    assert f"15 bad rows listed in {listed}" in told(report, "data", "note")
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [entry["row"] for entry in entries] == [3, 4, 5, 6, 7, 8, *range(12, 21)]
    assert {entry["file"] for entry in entries} == {str(many)}
    assert [entry["reason"] for entry in entries][:3] == ["missing_media", "missing_media", "path_leaves_root"]
    assert entries[-1]["finding"].startswith(f"image '{folder / 'no-8.png'}' not found")
    assert not list(listed.parent.glob(".*"))


def test_the_list_of_a_clean_manifest_is_empty(good, tmp_path):
    report = look(*llava(good), "check.decode=false", f"check.bad_rows={tmp_path / 'bad.jsonl'}")
    assert (tmp_path / "bad.jsonl").read_bytes() == b""
    assert "0 bad rows listed" in told(report, "data", "note")


def test_bad_rows_that_may_be_skipped_are_a_warning(bad):
    report = look(*llava(bad), "data.on_bad_row=skip", "data.max_bad_rows=7")
    assert report.starts
    assert "7 of 12 rows cannot be used. They are skipped" in told(report, "data", "warning")
    assert report.verdict() == "This run would start: 3 steps (1 warning above)."


def test_a_manifest_that_is_broken_as_a_whole_does_not_hide_the_others(good, bad, tmp_path):
    (tmp_path / "cut.json").write_text('[{"id": 1}, {"id"')
    report = look(*llava(tmp_path / "cut.json", good, bad))
    assert "cut.json:1: the manifest begins as a JSON array" in told(report, "data", "error")
    assert "7 of 36 rows cannot be used" in told(report, "data", "error")


@pytest.mark.parametrize(
    ("policy", "mark", "words"),
    [
        ("error", "error", "Raise it"),
        ("drop", "warning", "0 made to fit, 1 dropped"),
        ("drop_turns", "note", "1 made to fit, 0 dropped"),
    ],
)
def test_overlong_rows_are_told_with_what_becomes_of_them(policy, mark, words, tmp_path):
    turns = [("human", "short"), ("gpt", "yes"), ("human", "word " * 200), ("gpt", "no")]
    rows = [
        {"conversations": [{"from": who, "value": text} for who, text in turns]},
        {"conversations": [{"from": who, "value": text} for who, text in turns[:2]]},
    ]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(rows))
    report = look(*llava(path), "data.max_tokens=60", f"data.overlong={policy}")
    message = told(report, "data", mark)
    assert "1 row (50.0%) longer than data.max_tokens=60" in message
    assert words in message
    assert f"{path}:1: " in message
    assert report.starts is (policy != "error")


def test_limit_looks_at_the_first_rows_of_each_source(good, bad):
    report = look(*llava(good, bad), "check.limit=2")
    assert section(report, "data").figures["rows"] == 4
    assert report.verdict().startswith("This run would start on the first 2 rows of each source: 2 steps")


def test_a_truncated_image_is_an_error_before_the_run(folder):
    rng = np.random.default_rng(0)
    path = folder / "cut.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    row = {
        "image": "cut.jpg",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}],
    }
    (folder / "cut.json").write_text(json.dumps([row]))
    manifest = folder / "cut.json"
    assert "1 row failed to decode" in told(look(*llava(manifest)), "data", "error")
    assert f"{manifest}:1: image" in told(look(*llava(manifest), "check.decode=true"), "data", "error")
    assert look(*llava(manifest), "check.decode=false").starts, "headers alone do not tell"


def test_the_figures_are_those_of_the_plan_and_the_index(good):
    report = look(*llava(good), "data.tokens_per_batch=200", "trainer.max_epochs=2")
    data, plan = section(report, "data").figures, section(report, "plan").figures
    assert data["supervised_tokens"] < data["tokens"]
    assert sum(data["tokens_per_row"]["counts"]) == 24
    assert sum(data["patches_per_row"]["counts"]) == 20, "four rows have no media"
    assert plan["fill"] == pytest.approx(2 * data["tokens"] / (plan["packs"] * 200))
    assert sum(plan["steps_per_epoch"]) == plan["steps"] == report.num_steps == plan["packs"]
    assert plan["sources"]["manifest"]["rows"] == 48


def test_data_that_end_before_the_steps_asked_for_are_told(good):
    report = look(*llava(good), "trainer.max_steps=100", "check.decode=false")
    assert report.num_steps == 12
    assert "the data end before trainer.max_steps=100" in told(report, "plan", "note")


def test_large_images_on_a_cpu_and_few_steps_are_told_with_what_helps(tmp_path):
    write_manifest(tmp_path, 4)
    for number in range(4):
        Image.new("RGB", (640, 640)).save(tmp_path / f"{number}.png")
    settings = [*llava(tmp_path / "manifest.json"), "trainer.accelerator=cpu", "check.decode=false"]
    told_of = told(look(*settings), "plan", "note")
    assert "data.image_max_pixels=65536 makes images of 256 patches: about 6 times less work" in told_of
    assert "in 2 steps little is learnt; trainer.max_epochs=25 gives more" in told_of
    assert not told(look(*settings, "data.image_max_pixels=65536", "trainer.max_epochs=25"), "plan", "note")


def test_steps_are_those_that_a_run_takes_on_more_ranks(good):
    more = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.accumulate_grad_batches=2"]
    report = look(*llava(good), *more)
    assert report.num_steps == 3  # 12 packs, 4 a step
    assert "largest over mean" in told(report, "plan", "ok") + told(report, "plan", "warning")


def test_the_training_that_follows_finds_the_counts(good, tmp_path):
    report = look(*llava(good), f"data.cache_dir={tmp_path}")
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("index-*.bin")}
    assert len(kept) == 1
    output = run("train", *llava(good), f"data.cache_dir={tmp_path}", "data.num_workers=0", "trainer.max_steps=1",
                 f"run_dir={tmp_path / 'run'}", "log.progress=false")  # fmt: skip
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("index-*.bin")} == kept
    assert "24 rows read, 2 trained" in output
    trained = json.loads((tmp_path / "run" / "report.json").read_text())
    assert trained["hashes"]["plan"] == section(report, "plan").figures["plan"], "the same packs"
    kernel = section(report, "config").figures["attention"]
    assert {part: set(ran) for part, ran in trained["attention"].items()} == {
        "vision_encoder": {kernel},
        "language_model": {kernel},
    }
    assert f"Attention: {kernel} in the vision encoder, {kernel} in the language model." in output


# --- config, model, resources -----------------------------------------------------------------------------------------


def test_faults_of_many_settings_are_told_at_once(tmp_path):
    report = look(
        "model=qwen3_vl",
        "data=llava",
        "data.sources=[no.json,nor.json]",
        "data.order=random",
        "freeze.vision_encoder=true",
        "freeze.merger=true",
        "freeze.language_model=true",
        "optim.schedule=steep",
        "trainer.max_steps=0",
        "trainer.accelerator=tpu",
        "resume_from=nowhere",
    )
    errors = told(report, "config", "error")
    for message in (
        "trainer.max_steps=0: wanted a whole number",
        "model.path must be given",
        "data.order=random: choose one of shuffled, grouped, sequential.",
        "data.sources[0]: no file at 'no.json'",
        "data.sources[1]: no file at 'nor.json'",
        "all three parts are frozen",
        "optim.schedule=steep: choose one of cosine, linear, constant.",
        "trainer: ",
        "resume_from=nowhere: no checkpoint there",
    ):
        assert message in errors
    assert report.verdict().startswith("This run would fail (")
    assert "not looked at" in told(report, "plan", "note")


def test_what_a_run_would_overwrite_is_told(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("x")
    assert "not empty and not written by vlmkit" in told(look(run_dir=tmp_path), "config", "error")


def test_a_directory_with_another_run_is_refused(good, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert not told(look(*llava(good), "check.decode=false", run_dir=tmp_path), "config", "error")
    (tmp_path / "hf").mkdir()
    found = told(look(*llava(good), "check.decode=false", run_dir=tmp_path), "config", "error")
    assert f"run_dir={tmp_path}: the model of another run is in this directory (hf). Name another" in found
    (tmp_path / "checkpoints" / "step-000003.ckpt").touch()
    found = told(look(*llava(good), "check.decode=false", run_dir=tmp_path), "config", "error")
    assert f"run_dir={tmp_path}: another run is in this directory, its newest checkpoint step-000003.ckpt. Res" in found


def test_a_model_directory_without_weights_still_tells_whether_the_tokenizer_fits(tiny, tmp_path):
    import shutil

    place = Path(shutil.copytree(tiny.vision_language, tmp_path / "model"))
    for weights in place.glob("*.safetensors"):
        weights.unlink()
    content = json.loads((place / "config.json").read_text())
    content["image_token_id"] += 1
    (place / "config.json").write_text(json.dumps(content))
    errors = told(look("model=qwen3_vl", f"model.path={place}", "data.limit=8"), "model", "error")
    assert "lacks model.safetensors" in errors
    assert "image_token_id is" in errors


def test_rows_are_looked_at_even_where_the_model_is_not_there(bad, tmp_path):
    (tmp_path / "cut.json").write_text('[{"id": 1}, {"id"')
    report = look("model=qwen3_vl", "model.path=/nowhere", *llava(tmp_path / "cut.json", bad))
    assert "'/nowhere'" in told(report, "model", "error")
    errors = told(report, "data", "error")
    assert "cut.json: the manifest begins as a JSON array" in errors
    assert "7 of 12 rows cannot be used." in errors
    assert f"{bad}:5: image '../0.png' leaves data.root" in errors
    assert not report.starts


def test_a_forecast_is_made_on_demand_as_the_run_would_make_it(good, tmp_path):
    """Same callback, same settings, same steps; nothing is written."""
    report = look(*llava(good), "check.forecast=true", "trainer.max_epochs=2", run_dir=tmp_path / "run")
    figures = section(report, "resources").figures
    made = figures["forecast"]
    assert made["num_steps"] == report.num_steps == 24
    assert figures["tried_packs"] == len(made["calibrations"]) == 2
    assert {len(one["seconds"]) for one in made["calibrations"]} == {3}
    assert figures["forecast_seconds"] == made["seconds"] > made["epoch_seconds"] > 0
    assert figures["peak_bytes"] == made["peak_bytes"] > made["resting_bytes"] > figures["weights_bytes"]
    words = told(report, "resources", "ok")
    assert "Forecast: 24 steps in " in words
    assert "Measured on cpu: forward and backward of 2 packs, 3 times after warming up (" in words
    assert not (tmp_path / "run").exists()
    json.dumps(report.to_json())


def test_a_running_average_is_part_of_the_memory_that_is_forecast(good):
    """In between, that is: what a process keeps for itself grows a little with every look."""
    resting = [
        section(look(*llava(good), "check.forecast=true", *more), "resources").figures["forecast"]["resting_bytes"]
        for more in ((), (), ("callbacks=average",), ())
    ]
    trained = 4 * 2_928_768
    assert resting[2] - (resting[1] + resting[3]) / 2 == pytest.approx(trained, rel=0.6)


@pytest.mark.parametrize(
    ("trainer", "peak_is_known", "words"),
    [
        ("ddp", True, "One process ran alone, 2 will train: what they exchange, and that they share the processors"),
        ("fsdp", False, "so peak memory is not forecast here"),
    ],
)
def test_of_several_ranks_it_is_said_what_one_process_cannot_know(good, trainer, peak_is_known, words):
    report = look(
        *llava(good), "check.forecast=true", f"trainer={trainer}", "trainer.devices=2", "trainer.accelerator=cpu"
    )
    figures = section(report, "resources").figures
    assert words in told(report, "resources", "ok")
    assert (figures["peak_bytes"] is not None) == peak_is_known
    assert figures["forecast"]["num_steps"] == report.num_steps == 6
    assert figures["forecast"]["ranks"]["measured"] == 1


def test_a_forecast_that_the_run_leaves_out_is_not_made(good):
    report = look(*llava(good), "check.forecast=true", "callbacks.forecast=null")
    assert "callbacks.forecast=null leaves it out" in told(report, "resources", "note")


def test_the_forecast_can_be_another_function(good):
    def forecast(run, section):
        section.add("ok", f"{len(run.data.plan)} packs take a while")

    assert "12 packs take a while" in told(
        look(*llava(good), "check.forecast=true", forecast=forecast), "resources", "ok"
    )
