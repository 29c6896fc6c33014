"""sweep.html and the page of a sweep's comparison in a real browser: order, selection, sorting, hostile names, small screens."""

from __future__ import annotations

import json

import pytest

from tests.pages.conftest import HOSTILE
from tests.pages.test_inspection import CONTRAST
from tests.sweeps.test_standing import held_out
from vlmkit.pages.standings import write_standings
from vlmkit.pages.sweep import write_sweep_page
from vlmkit.sweeps.job import Job, Outcome
from vlmkit.sweeps.standing import contenders, standings
from vlmkit.sweeps.table import make_table

RANKS = "[...document.querySelectorAll('#runs tbody tr')].map((one) => one.dataset.run)"


def sweep(folder, num_rates=4):
    """Runs of some learning rates with two freezes; one failed, one waits, one was pruned."""
    runs = []
    for n, rate in enumerate(f"{10 ** (n - 6):.0e}" for n in range(num_rates)):
        for m, freeze in enumerate(("merger_only", HOSTILE)):
            name = f"lr-{rate}_freeze-{m}"
            (folder / name).mkdir(parents=True)
            lines = [
                {"step": step, "loss": 3.0 - n / 4 + m + 1 / step, "tokens_per_second": 9.0} for step in range(1, 40)
            ]
            (folder / name / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            told = [
                {"step": step, "metrics": {"val/loss": 3.0 - n / 4 + m + 1 / step}, "stderr": {"val/loss": 0.1}}
                for step in (10, 20)
            ]
            (folder / name / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
            (folder / name / "report.json").write_text("{}")
            job = Job(name=name, run_dir=folder / name, settings={"optim.lr": rate, "freeze": freeze}, command=())
            runs.append((job, Outcome(state="finished", seconds=60.0 * n, attempts=1)))
    runs[0] = (runs[0][0], Outcome(state="failed", error=HOSTILE, seconds=5.0, attempts=1))
    runs[3] = (runs[3][0], Outcome(state="pruned", error="behind", seconds=5.0, attempts=1))
    (folder / "w").mkdir()
    runs.append(
        (
            Job(name="w", run_dir=folder / "w", settings={"optim.lr": "1", "freeze": "none"}, command=()),
            Outcome(state="waiting"),
        )
    )
    return make_table(folder, runs, metric=None)


@pytest.fixture
def page(tmp_path):
    return write_sweep_page(sweep(tmp_path), tmp_path / "sweep.html")


def test_the_page_ranks_sorts_and_selects(page, browser):
    with browser.page(page) as opened:
        assert opened.faults == []
        ranked = opened.ask(RANKS)
        assert ranked[0] == "lr-1e-03_freeze-0"
        assert ranked[-3:] == ["lr-1e-05_freeze-1", "w", "lr-1e-06_freeze-0"]
        assert HOSTILE in opened.ask("document.querySelector('#runs').textContent")
        assert opened.ask("window.pwned === undefined")
        assert opened.ask("document.querySelectorAll('.effect').length") == 2
        assert opened.ask("document.querySelectorAll('.effect .dot.best').length") == 2
        opened.press("j")
        assert opened.ask("document.querySelector('tr[aria-selected=true]').dataset.run") == ranked[0]
        assert opened.ask("document.querySelectorAll('.dot.on').length") == 2
        assert opened.ask("document.querySelectorAll('.curve.on').length") == 1
        opened.point("#runs th:nth-child(2) button", click=True)
        rates = [name.split("_")[0] for name in opened.ask(RANKS)]
        assert rates == sorted(rates, key=lambda name: 1 if name == "w" else float(name.removeprefix("lr-")))
        assert opened.ask("document.querySelector('th[aria-sort]').textContent") == "lr"
        links = opened.ask("[...document.querySelectorAll('#runs a')].map((one) => one.getAttribute('href'))")
        assert "lr-1e-03_freeze-0/report.json" in links
        assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_are_legible(page, tmp_path, browser, dark):
    runs = [held_out(tmp_path / "held" / name, [1.0 + n / 10] * 8) for n, name in enumerate(("a", "b" * 60, "c"))]
    compared = write_standings(tmp_path / "compare.html", standings(*contenders(runs, None), seed=0), title=HOSTILE)
    for one in (page, compared):
        with browser.page(one, dark=dark) as opened:
            assert opened.faults == []
            assert opened.ask(CONTRAST) >= 4.5
            assert opened.ask("document.documentElement.scrollWidth <= innerWidth")
        with browser.page(one, dark=dark, width=360) as opened:
            assert opened.ask("document.documentElement.scrollWidth <= innerWidth")
            assert opened.ask(CONTRAST) >= 4.5
            assert opened.ask("window.pwned === undefined")


@pytest.mark.slow
def test_the_plots_say_what_they_show(page, browser):
    with browser.page(page) as opened:
        assert opened.ask("document.querySelector('.effect p').textContent") == "val/loss, lower is better"
        legend = opened.ask("document.getElementById('legend').textContent")
        for meaning in ("the best", "ended early", "95\xa0% intervals"):
            assert meaning in legend
        labels = "[...document.querySelectorAll('#curves .end')].filter((one) => !one.hasAttribute('hidden')).map((one) => one.textContent)"
        assert opened.ask(labels) == ["#1"]
        opened.press("j")
        opened.press("j")
        assert opened.ask(labels) == ["#2"], "the label of the best would lie under that of the chosen run"
        assert "steps" in opened.ask("[...document.querySelectorAll('#curves text')].map((one) => one.textContent)")


@pytest.mark.slow
def test_runs_that_are_as_good_as_the_best_are_counted(tmp_path, browser):
    runs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
        job = Job(name=name, run_dir=tmp_path / name, settings={"optim.lr": name}, command=())
        runs.append((job, Outcome(state="finished", seconds=1.0, attempts=1)))
    page = write_sweep_page(make_table(tmp_path, runs, metric=None), tmp_path / "sweep.html")
    with browser.page(page) as opened:
        assert "as good1 other run" in opened.ask("document.getElementById('stats').textContent").replace(" 1", "1")


@pytest.mark.slow
def test_many_values_of_a_setting_make_an_axis(tmp_path, browser):
    with browser.page(write_sweep_page(sweep(tmp_path, 9), tmp_path / "sweep.html")) as opened:
        assert opened.faults == []
        dots = opened.ask("[...document.querySelectorAll('.effect')][0].querySelectorAll('.dot').length")
        assert dots == 17


def test_a_sweep_that_has_not_begun_has_a_page_too(tmp_path):
    job = Job(name="a", run_dir=tmp_path / "a", settings={"optim.lr": "1"}, command=())
    table = make_table(tmp_path, [(job, Outcome(state="waiting"))], metric=None)
    assert "data-runs" in write_sweep_page(table, tmp_path / "sweep.html").read_text()
