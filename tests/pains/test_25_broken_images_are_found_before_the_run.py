"""One broken image or extreme shape kills a run, or alters it without a word: a check names each, by file and row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from vlmkit.cli.findings import Report
from vlmkit.config import conf_dir

GOOD = 30


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Report, Path]:
    """What a check says of 30 good rows with boxes in pixels, and four with a fault each."""
    from vlmkit.cli.checking import check

    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)

    def draw(name: str, width: int, height: int, **more) -> str:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name, **more)
        return name

    def row(image: str, answer: str) -> dict:
        return {
            "image": image,
            "conversations": [{"from": "human", "value": "<image> Where?"}, {"from": "gpt", "value": answer}],
        }

    box = json.dumps({"bbox_2d": [10, 10, 190, 140]})
    rows = [row(draw(f"{number}.jpg", 200, 150), box) for number in range(GOOD)]
    turned = Image.new("RGB", (64, 32)).getexif()
    turned[0x0112] = 8
    rows.append(row(draw("turned.jpg", 64, 32, exif=turned), "there"))
    rows.append(row(draw("flat.png", 402, 2), "nowhere"))
    rows.append(row(draw("cut.jpg", 96, 96), "half"))
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-3000])
    (folder / "text.jpg").write_text("no image")
    rows.append(row("text.jpg", "none"))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    overrides = ["data=llava", f"data.sources=[{path}]", "data.num_workers=0", "check.decode=true", "run_dir=x"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check(compose("check", overrides=overrides), folder / "run"), path


def told(report: Report, mark: str) -> str:
    data = next(section for section in report.sections if section.name == "data")
    return "\n".join("\n".join((one.message, *one.details)) for one in data.findings if one.mark == mark)


def test_headers_tell_of_extreme_shapes_and_of_what_is_no_image(report):
    found, path = report
    errors = told(found, "error")
    assert "2 of 34 rows cannot be used." in errors
    assert f"{path}:32: image '{path.parent / 'flat.png'}' is 402 x 2: its aspect ratio exceeds 200." in errors
    assert f"{path}:34: image '{path.parent / 'text.jpg'}' cannot be read as an image" in errors


def test_decoding_tells_of_a_file_that_is_cut_short(report):
    found, path = report
    assert "1 row failed to decode (all rows with media were tried)" in told(found, "error")
    assert f"{path}:33: image '{path.parent / 'cut.jpg'}' cannot be decoded" in told(found, "error")


def test_exif_rotation_is_counted(report):
    assert "1 image among these turned or mirrored by EXIF" in told(report[0], "note")


def test_boxes_in_the_wrong_frame_are_a_warning(report):
    assert told(report[0], "warning").startswith(
        "30 grounding boxes in 30 rows: they lie within the pixels of their images, so they seem to be in pixels; "
        "Qwen3-VL counts 0..1000 along width and height."
    )


def test_the_run_would_not_start(report):
    assert not report[0].starts
    assert report[0].verdict().startswith("This run would fail (2 errors).")
