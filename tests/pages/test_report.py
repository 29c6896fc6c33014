"""report.html and compare.html in a real browser: figures, filters, search, ten thousand cases, hostile answers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.pages.conftest import HOSTILE
from tests.pages.test_inspection import CONTRAST
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.benchmarks.jsonl import JsonlBenchmark
from vlmkit.evaluation.comparison import compare, read_evaluation
from vlmkit.evaluation.provenance import scored_with
from vlmkit.evaluation.records import replace_records
from vlmkit.evaluation.report import write_reports
from vlmkit.pages.answers import pictures_of_page
from vlmkit.pages.comparison import write_comparison
from vlmkit.pages.report import write_report

OUTCOMES = ("right", "wrong", "unparsed", "partial", "failed")
SHOWN = "[...document.querySelectorAll('.case')].map((one) => one.dataset.id)"
VIEW = "[...document.querySelectorAll('.filters .button')].map((one) => one.textContent.trim())"


def benchmark(folder, num_cases: int) -> JsonlBenchmark:
    """Questions on three images; two questions share one."""
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = [
        {
            "id": str(n), "image": f"{n // 2 % 3}.png", "question": f"Question {n} {HOSTILE}", "answer": f"expected {n}",
            "category": f"kind {n % 3}",
        }
        for n in range(num_cases)
    ]  # fmt: skip
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlBenchmark(
        name="drawn",
        path=folder / "cases.jsonl",
        root=None,
        rule="exact_match",
        prompt_suffix=None,
        baselines={"guesser": 12.5},
    )


def answered(cases: JsonlBenchmark, offset: int = 0) -> list[dict]:
    """A record for each case; outcomes in turn."""
    found = []
    for number, case in enumerate(cases.cases()):
        outcome = OUTCOMES[(number + offset) % 5]
        found.append({
            "schema": "vlmkit.record/1", "key": "k", "id": case.id, "benchmark": "drawn", "prompt": case.prompt,
            "media": list(case.media), "answer": f"answer {number} {HOSTILE}", "extracted": None, "expected": case.expected,
            "score": {"right": 1.0, "partial": 0.5}.get(outcome, 0.0), "outcome": outcome, "tokens": 3, "seconds": 0.1,
            "category": case.category, **({"error": HOSTILE} if outcome == "failed" else {}),
        })  # fmt: skip
    return found


def evaluated(folder, cases, *, offset=0, max_pictures=600):
    """An evaluation directory with its page."""
    records = answered(cases, offset)
    replace_records(folder / "drawn" / "records.jsonl", records)
    figures = {"drawn": aggregate(cases, records)}
    write_reports(folder, checkpoint={"path": "model"}, benchmarks=figures)
    return write_report(
        folder, checkpoint={"path": "model"}, figures=figures, records={"drawn": records}, benchmarks=[cases],
        max_pictures=max_pictures,
    )  # fmt: skip


@pytest.fixture
def page(tmp_path):
    return evaluated(tmp_path, benchmark(tmp_path, 50))


def test_the_report_shows_every_outcome_and_finds_answers(page, browser):
    with browser.page(page) as opened:
        assert opened.faults == []
        assert opened.ask(VIEW) == ["all 50", "right 10", "partial 10", "wrong 10", "unparsed 10", "failed 10"]
        card = opened.ask("document.querySelector('.card').textContent")
        assert re.search(r"30\.0 ± \d+\.\d %", card), card
        assert "50 cases · " in card
        assert "95\xa0% intervals: 1.96 standard errors" in opened.ask("document.getElementById('how').textContent")
        for _ in range(3):
            opened.press("f")
        assert opened.ask(SHOWN)[:3] == ["1", "6", "11"]
        opened.press("j")
        assert opened.ask("document.querySelector('.full h3').textContent") == "6"
        assert HOSTILE in opened.ask("document.querySelector('.full').textContent")
        opened.press("/")
        opened.type("answer 31 ")
        opened.wait("document.querySelectorAll('.case').length === 1")
        assert opened.ask(SHOWN) == ["31"]
        assert opened.ask("window.pwned === undefined")
        assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.slow
def test_categories_have_bars_and_filter(page, browser):
    with browser.page(page) as opened:
        assert opened.ask("[...document.querySelectorAll('.category .name')].map((one) => one.textContent)") == [
            "kind 0",
            "kind 1",
            "kind 2",
        ]
        opened.point(".category", click=True)
        assert opened.ask(VIEW)[0] == "all 17"
        assert opened.ask(SHOWN)[:3] == ["0", "3", "6"]
        opened.point(".category", click=True)
        assert opened.ask(VIEW)[0] == "all 50"


@pytest.mark.slow
def test_ten_thousand_cases_are_not_in_the_document_at_once(tmp_path, browser):
    with browser.page(evaluated(tmp_path, benchmark(tmp_path, 10_000))) as opened:
        assert opened.ask(VIEW)[0] == "all 10,000"
        assert 5 < len(opened.ask(SHOWN)) < 40
        opened.ask("document.querySelector('.viewport').scrollTop = 76 * 5000")
        opened.settle()
        shown = opened.ask(SHOWN)
        assert "5000" in shown
        assert len(shown) < 40
        opened.ask("document.querySelector('.viewport').focus()")
        opened.press("End")
        assert opened.ask("document.querySelector('.full h3').textContent") == "9999"
        opened.press("/")
        opened.type("question 777 ")
        opened.wait("document.querySelectorAll('.case').length === 11")
        assert opened.ask(SHOWN) == ["777", *(str(number) for number in range(7770, 7780))]
        assert opened.faults == []


def numbers(page, name):
    return json.loads(page.read_text(encoding="utf-8").split(f'id="data-{name}">', 1)[1].split("</script>", 1)[0])


def test_an_image_is_copied_once_and_files_stand_in_beyond_the_limit(tmp_path):
    cases = benchmark(tmp_path, 50)
    page = evaluated(tmp_path, cases)
    assert len(numbers(page, "pictures")) == 3
    assert all(len(case["pictures"]) == 1 for case in numbers(page, "benchmarks")[0]["cases"])
    page = evaluated(tmp_path, cases, max_pictures=1)
    told = numbers(page, "benchmarks")[0]["cases"]
    assert len(numbers(page, "pictures")) == 1
    assert [case["id"] for case in told if case["pictures"]] == ["1"]
    assert told[4]["files"] == [(tmp_path / "2.png").as_uri()]
    assert numbers(evaluated(tmp_path, cases, max_pictures=0), "pictures") == []


@pytest.mark.slow
def test_pictures_beyond_the_limit_are_seen_from_their_files(tmp_path, browser):
    with browser.page(evaluated(tmp_path, benchmark(tmp_path, 8), max_pictures=0)) as opened:
        opened.wait(
            "[...document.querySelectorAll('img.thumb')].filter((one) => one.complete && one.naturalWidth === 96).length === 8"
        )
        assert opened.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_legible(page, browser, dark):
    with browser.page(page, dark=dark) as opened:
        assert opened.ask(CONTRAST) >= 4.5
    with browser.page(page, dark=dark, width=360) as opened:
        assert opened.ask("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def compared(tmp_path):
    cases = benchmark(tmp_path, 50)
    found = []
    for offset, name in enumerate("ab"):
        evaluated(tmp_path / name, cases, offset=offset)
        found.append(read_evaluation(tmp_path / name))
    differences = compare(*found, seed=0)
    return differences, write_comparison(tmp_path / "compare.html", *found, differences, max_pictures=10)


@pytest.mark.slow
def test_the_comparison_shows_the_cases_that_changed(compared, browser):
    (one,), page = compared
    with browser.page(page) as opened:
        assert opened.faults == []
        view = opened.ask(VIEW)
        assert view[1:3] == [f"B better {one.better}", f"B worse {one.worse}"]
        assert view[5] == "all 50"
        row = opened.ask("document.querySelector('#forest tbody tr').textContent")
        assert f"{one.first:.1f}" in row
        assert f"{one.p:.4f}" in row
        opened.press("f")
        assert opened.ask("document.querySelectorAll('.full .chip').length") >= 3
        assert HOSTILE in opened.ask("document.querySelector('.full').textContent")
        assert opened.ask("window.pwned === undefined")
        assert opened.ask(CONTRAST) >= 4.5
        opened.resize(360, 700)
        opened.settle()
        assert opened.ask("document.documentElement.scrollWidth <= innerWidth")
        hidden = "[...document.querySelectorAll('#forest td')].filter((one) => one.getBoundingClientRect().right > innerWidth || !one.offsetParent).length"
        assert opened.ask(hidden) == 0


@pytest.mark.slow
def test_the_comparison_opens_at_a_benchmark_that_changed_and_an_empty_list_takes_no_room(tmp_path, browser):
    cases = benchmark(tmp_path, 50)
    for name in "ab":
        evaluated(tmp_path / name, cases)
    found = [read_evaluation(tmp_path / name) for name in "ab"]
    (alike,) = compare(*found, seed=0)
    page = write_comparison(tmp_path / "compare.html", *found, [alike], max_pictures=0)
    with browser.page(page) as opened:
        assert opened.ask(VIEW)[0] == "changed 0"
        assert opened.ask("document.querySelector('.shelf').getBoundingClientRect().height") < 150
        opened.press("f"), opened.press("f"), opened.press("f")
        assert opened.ask("document.querySelector('.shelf').getBoundingClientRect().height") > 300


def test_images_that_are_no_files_come_from_the_reports(tmp_path):
    """As with every benchmark of a data set: its images are bytes."""
    cases = benchmark(tmp_path, 10)
    for name in "ab":
        evaluated(tmp_path / name, cases, offset="ab".index(name))
        path = tmp_path / name / "drawn" / "records.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        replace_records(path, [row | {"media": [f"sha256:{row['id']} (7 bytes)"]} for row in rows])
    found = [read_evaluation(tmp_path / name) for name in "ab"]
    differences = compare(*found, seed=0)
    page = write_comparison(tmp_path / "compare.html", *found, differences, max_pictures=10)
    assert len(numbers(page, "pictures")) == 3
    assert all(len(case["pictures"]) == 1 for case in numbers(page, "differences")[0]["cases"])
    assert numbers(write_comparison(page, *found, differences, max_pictures=0), "pictures") == []
    for name in "ab":
        (tmp_path / name / "report.html").write_text('<script type="application/json" id="data-benchmarks">[{"na')
    page = write_comparison(tmp_path / "compare.html", *found, differences, max_pictures=10)
    assert numbers(page, "pictures") == []


def test_a_page_that_was_tampered_with_gives_no_address(tmp_path):
    page = tmp_path / "report.html"
    told = [{"name": "drawn", "cases": [{"id": "1", "pictures": [0]}, {"id": "2", "pictures": [1]}]}]
    uris = ["https://elsewhere/x.png", "data:image/png;base64,AAAA"]
    page.write_text("".join(
        f'<script type="application/json" id="data-{name}">{json.dumps(data)}</script>'
        for name, data in (("benchmarks", told), ("pictures", uris))
    ))  # fmt: skip
    assert pictures_of_page(page, "drawn") == {"2": ["data:image/png;base64,AAAA"]}
    assert pictures_of_page(page, "other") == {}
    assert pictures_of_page(tmp_path / "gone.html", "drawn") == {}


@pytest.mark.slow
def test_how_a_score_was_made_can_be_unfolded(tmp_path, browser):
    cases = benchmark(tmp_path, 10)
    records = answered(cases)
    made = {
        "backend": "hf", "template": "0123456789ab", "pixel_limits": {"image_max_pixels": 1024, "video_fps": None},
        "decoding": {"strategy": "greedy", "max_new_tokens": 8, "dtype": None},
    } | scored_with(records, protocol="vlmkit", preset="paper, changed: prompt_suffix")  # fmt: skip
    figures = {"drawn": made | aggregate(cases, records)}
    page = write_report(
        tmp_path, checkpoint={"path": "model", "weights": "ab" * 32}, figures=figures, records={"drawn": records},
        benchmarks=[cases], max_pictures=3,
    )  # fmt: skip
    with browser.page(page, width=360) as opened:
        assert opened.faults == []
        opened.point(".made summary", click=True)
        text = opened.ask("document.querySelector('.made').innerText")
        for told in (
            "paper, changed: prompt_suffix",
            "0123456789ab",
            "image max pixels 1,024",
            "max new tokens 8",
            "20.0 %",
        ):
            assert told in text, told
        assert "video fps" not in text
        assert "none" in text
        assert opened.ask("document.getElementById('origin').textContent").endswith("weights abababababab…")
        assert opened.ask("document.documentElement.scrollWidth <= innerWidth")
        assert opened.ask(CONTRAST) >= 4.5


def test_the_comparison_s_data_are_whole(compared):
    (one,), page = compared
    (told,) = numbers(page, "differences")
    assert (told["n"], len(told["cases"]), told["difference"]) == (50, 50, pytest.approx(one.difference))
    assert len(numbers(page, "pictures")) == 3
