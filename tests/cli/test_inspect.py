"""vlmkit-inspect as a console command, with the settings of a training run."""

from __future__ import annotations

import json

import pytest

from tests.training.conftest import run, small, write_manifest


def samples_of(path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('id="data-samples">', 1)[1].split("</script>", 1)[0])


@pytest.mark.slow
def test_the_overrides_of_a_run_give_its_page(tmp_path):
    manifest = write_manifest(tmp_path, 24, text_only=frozenset({1, 6, 11, 17}))
    out = tmp_path / "page.html"
    told = run(
        "inspect", *small(manifest, tmp_path / "run"), "freeze=merger_only", f"inspect.out={out}", "inspect.rows=[2,'manifest.json:5']"
    )  # fmt: skip
    assert "24 rows read (20 trained, 4 text_only); 2 shown" in told
    assert out.as_uri() in told
    assert not (tmp_path / "run").exists()
    first, second = samples_of(out)
    assert (first["row"], first["verdict"], second["row"], second["verdict"]) == (1, "text_only", 4, "trained")


@pytest.mark.slow
def test_bad_rows_are_shown_where_a_run_would_stop(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"conversations": 3}\n')
    told = run(
        "inspect", "data=llava", f"data.sources=[{bad}]", "data.num_workers=0", f"inspect.out={tmp_path / 'a.html'}"
    )  # fmt: skip
    assert "would stop before it trains: 1 row is of no use and data.on_bad_row=error; no row is left" in told
    assert samples_of(tmp_path / "a.html")[0]["raw"] == '{"conversations": 3}'
    told = run("inspect", "inspect.pick=worst", f"inspect.out={tmp_path / 'b.html'}", "data.limit=4", status=1)
    assert "vlmkit-inspect: inspect.pick=worst: choose one of first, random, longest." in told
