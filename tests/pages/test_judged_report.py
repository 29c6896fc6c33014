"""report.html of a judged evaluation: who judged, how many judgements failed, what the judge replied to each answer."""

from __future__ import annotations

from tests.pages.conftest import HOSTILE
from tests.pages.test_inspection import CONTRAST
from tests.pages.test_report import answered, benchmark
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.judging import judging_figures
from vlmkit.pages.report import write_report


def judged(folder):
    """Twenty records: those that failed, failed for want of a judgement; the first one had no need of a judge."""
    cases = benchmark(folder, 20)
    records = answered(cases)
    for record in records[1:]:
        record["judgement"] = {
            "judge": "judge-1", "served": ["judge-1-x"], "prompts": ["p/1"], "replies": [f"reply {HOSTILE}"], "requests": 1,
            "prompt_tokens": 10, "completion_tokens": 2,
        }  # fmt: skip
        if record.pop("error", None):
            record["judgement"]["error"] = f"the judge's reply {HOSTILE} is not a letter"
    counts = judging_figures(records, input_price=None, output_price=None)
    figures = aggregate(cases, records) | {"judge": {"model": "judge-1", "prompts": {"p/1": "0"}}, "judging": counts}
    return write_report(
        folder, checkpoint={"path": "model"}, figures={"drawn": figures}, records={"drawn": records}, benchmarks=[cases],
        max_pictures=10,
    )  # fmt: skip


def test_the_report_says_who_judged_and_what_was_replied(tmp_path, browser):
    with browser.page(judged(tmp_path)) as opened:
        assert opened.faults == []
        card = opened.ask("document.querySelector('.card').textContent")
        assert "judged by judge-1; 4 of 19 judgements failed" in card
        opened.press("j")
        opened.press("j")
        told = opened.ask("document.querySelector('.full').textContent")
        assert "the judge replied" in told
        assert f"reply {HOSTILE}" in told
        opened.press("/")
        opened.type("question 4 ")
        opened.wait("document.querySelectorAll('.case').length === 1")
        opened.press("Escape")
        opened.press("j")
        assert "is not a letter" in opened.ask("document.querySelector('.full').textContent")
        assert opened.ask("window.pwned === undefined")
        assert opened.ask(CONTRAST) >= 4.5
