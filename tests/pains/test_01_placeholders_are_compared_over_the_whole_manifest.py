"""Image features and image tokens do not match: the count of both is compared for every row, before anything is trained."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from vlmkit.cli.validating import make_data
from vlmkit.config import conf_dir


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """200 rows of which four have more or fewer placeholders than media."""
    folder = tmp_path_factory.mktemp("rows")
    for number, size in enumerate([(64, 64), (96, 32), (33, 70)]):
        Image.new("RGB", size, "red").save(folder / f"{number}.png")
    rows = []
    for number in range(200):
        text = {50: "<image><image> two", 120: "none", 121: "<video> one", 199: "<image>\n<image>"}.get(
            number, "<image> one"
        )
        rows.append(
            {
                "image": f"{number % 3}.png",
                "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}],
            }
        )
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def overrides(manifest, tmp_path):
    return ["data=llava", f"data.sources=[{manifest}]", "data.num_workers=0", f"data.cache_dir={tmp_path}", "run_dir=x"]


def test_each_row_is_told_with_both_numbers(manifest, tmp_path):
    from vlmkit.cli.checking import check

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        report = check(compose("check", overrides=overrides(manifest, tmp_path)), tmp_path / "run")
    data = next(section for section in report.sections if section.name == "data")
    assert data.figures["verdicts"] == {"trained": 196, "placeholder_count": 4}
    text = data.to_text()
    assert "placeholders and media disagree in 4 rows" in text
    for row, finding in (
        (51, "turn 1 has 2 <image> placeholders but the row lists 1 image."),
        (121, "no turn has a <image> placeholder but the row lists 1 image."),
        (122, "no turn has a <image> placeholder but the row lists 1 image."),
        (200, "turn 1 has 2 <image> placeholders but the row lists 1 image."),
    ):
        assert f"{manifest}:{row}: {finding}" in text


def test_every_usable_row_has_as_many_image_tokens_as_its_grid_says(manifest, tmp_path, tiny):
    from vlmkit.processing.encode import encode_example
    from vlmkit.processing.processor import load_processor

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "train", overrides=[*overrides(manifest, tmp_path), "data.on_bad_row=skip", "data.max_bad_rows=null"]
        )
    data = make_data(config.data)
    processor = load_processor(tiny.vision_language, budget=data.budget)
    data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    rows = data.judgement.plan_rows().row.tolist()
    assert len(rows) == 196
    for row in rows[::7]:
        sample = encode_example(data.index.conversation(row), processor, pixels="uint8")
        wanted = int(sample["grid_thw"].prod(-1).sum()) // processor.geometry.merge_size**2
        assert int((sample["input_ids"] == processor.image_token_id).sum()) == wanted
        assert len(sample["input_ids"]) == data.index.num_tokens[row]
