"""The page of vlmkit-inspect in a real browser: no fault, highlights equal the labels, nothing of the data runs."""

from __future__ import annotations

import json

import pytest

from tests.pages.test_samples import batch_of
from vlmkit.pages.inspection import Inspection, write_inspection

HIGHLIGHTED = "[...document.querySelectorAll('.tok.sup')].flatMap((one) => one.dataset.id.split(' ').map(Number))"
TOKENS = "[...document.querySelectorAll('.tok, .fold')].reduce((sum, one) => sum + Number(one.dataset.length), 0)"
PLACES = (
    "[...document.querySelectorAll('.tok.sup')].flatMap((one) => "
    "Array.from({length: Number(one.dataset.length)}, (_, n) => Number(one.dataset.token) + n))"
)


def write(data, path, **changes):
    settings = {
        "data": data, "processor": data.processor, "rows": range(9), "num_packs": 4, "stops": "", "settings": {"Overrides": "a=b"},
    }  # fmt: skip
    return write_inspection(Inspection(**(settings | changes)), path)


@pytest.fixture
def page(prepare, tmp_path):
    data = prepare()
    return data, write(data, tmp_path / "deep" / "inspect.html")


def test_the_page_opens_and_its_highlights_are_the_labels(page, browser):
    data, path = page
    with browser.page(path) as opened:
        for number in range(9):
            assert opened.ask("document.querySelector('.sample h2').textContent") == f"rows.json:{number + 1}"
            if data.judgement.verdict[number] == 0:
                batch = batch_of(data, number)
                assert opened.ask(HIGHLIGHTED) == batch["targets"].tolist()
                assert opened.ask(PLACES) == (batch["supervised_positions"] + 1).tolist()
                assert opened.ask(TOKENS) == batch["input_ids"].shape[1]
            opened.press("j")
        assert opened.faults == []
        assert opened.ask("window.pwned === undefined && document.querySelectorAll('script').length") == 4
        assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.slow
def test_keys_walk_rows_and_switch_what_is_shown(page, browser):
    with browser.page(page[1], "#2") as opened:
        heading = "document.querySelector('.sample h2').textContent"
        assert opened.ask(heading) == "rows.json:2"
        for key, row in (("j", 3), ("ArrowRight", 4), ("k", 3), ("ArrowLeft", 2), ("k", 1), ("k", 9), ("j", 1)):
            opened.press(key)
            assert opened.ask(heading) == f"rows.json:{row}"
            assert opened.ask("location.hash") == f"#{row}"
        for key, name in (("g", "grid"), ("b", "edges"), ("i", "ids"), ("p", "positions")):
            opened.press(key)
            assert opened.ask(f"document.documentElement.classList.contains('show-{name}')")
            assert opened.ask(f"document.querySelector('[data-switch={name}]').getAttribute('aria-pressed')") == "true"
        for key, part in (("2", "packs"), ("3", "refused"), ("4", "settings"), ("1", "samples")):
            opened.press(key)
            shown = opened.ask(
                "[...document.querySelectorAll('main > section')].filter((one) => !one.hidden).map((one) => one.id)"
            )
            assert shown == [part]
        opened.press("?")
        assert opened.ask("document.getElementById('help').open")
        assert opened.ask("document.querySelectorAll('#help-keys tr').length") > 8
        opened.press("Escape")
        assert opened.faults == []


@pytest.mark.slow
def test_media_unfold_and_the_pointer_tells_of_tokens(page, browser):
    data, path = page
    with browser.page(path, "#1") as opened:
        batch = batch_of(data, 0)
        assert (
            opened.ask("document.querySelector('.fold').textContent")
            == f"<|image_pad|> × {len(batch['visual_positions'])}"
        )
        opened.point(".fold", click=True)
        positions = "[...document.querySelectorAll('.unfolded .tok')].map((one) => one.dataset.at)"
        wanted = batch["position_ids"][1:, 0, batch["visual_positions"]].T.tolist()
        assert opened.ask(positions) == [",".join(map(str, one)) for one in wanted]
        opened.point(".tok.sup")
        told = opened.ask("document.getElementById('reading').textContent")
        assert "supervised" in told
        assert f"id {batch['targets'][0]}" in told
        opened.point(".canvas")
        assert "visual token" in opened.ask("document.getElementById('reading').textContent")
        assert opened.ask("document.querySelectorAll('.cell.on').length") == 1
        assert opened.faults == []


@pytest.mark.slow
def test_bars_are_the_packs_of_the_plan(page, browser):
    data, path = page
    with browser.page(path, "#packs") as opened:
        bars = opened.ask(
            "[...document.querySelectorAll('.held')].map((bar) => [...bar.children].map((one) => Number(one.dataset.row)))"
        )
        assert bars == [list(data.plan[number].rows) for number in range(len(bars))]
        assert len(bars) == min(4, len(data.plan))
        widths = opened.ask(
            "[...document.querySelectorAll('.held')].map((bar) => [...bar.children].reduce((sum, one) => sum + parseFloat(one.style.width), 0))"
        )
        assert widths == pytest.approx([100 * tokens / 800 for tokens in data.plan.num_tokens[: len(bars)].tolist()])
        told = opened.ask("document.getElementById('packs').textContent")
        assert f"{100 * data.plan.fill:.1f} %" in told


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_light_and_dark_are_legible_and_switch(page, browser, dark):
    with browser.page(page[1], dark=dark) as opened:
        ground = "getComputedStyle(document.body).backgroundColor"
        before = opened.ask(ground)
        assert opened.ask(CONTRAST) >= 4.5
        opened.press("d")
        opened.press("d") if not dark else None
        assert opened.ask(ground) != before
        assert opened.ask(CONTRAST) >= 4.5


@pytest.mark.slow
def test_nothing_sticks_out_on_a_narrow_screen(page, browser):
    with browser.page(page[1], width=360, height=700) as opened:
        for part in ("1", "2", "3", "4"):
            opened.press(part)
            assert opened.ask("document.documentElement.scrollWidth <= innerWidth")


def test_of_a_long_video_each_pair_that_is_shown_has_its_own_frames_and_time(prepare, tmp_path, browser, monkeypatch):
    monkeypatch.setattr("vlmkit.pages.samples.MAX_FRAME_PAIRS", 2)
    data = prepare()
    path = write(data, tmp_path / "film.html", rows=[4])
    (shown,) = json.loads(path.read_text().split('id="data-samples">', 1)[1].split("</script>", 1)[0])
    medium = shown["media"][0]
    assert medium["num_pairs"] == 3
    with browser.page(path) as opened:
        assert opened.ask(
            "[...document.querySelectorAll('.pair')].map((one) => one.querySelectorAll('img').length)"
        ) == [2, 2]
        told = opened.ask("[...document.querySelectorAll('.pair p')].map((one) => one.textContent)")
        assert told == [
            f"{stamp} s · frames {medium['numbers'][2 * n]}, {medium['numbers'][2 * n + 1]}"
            for n, stamp in enumerate(medium["stamps"][:2])
        ]
        assert "1 frame pair more" in opened.ask("document.querySelector('.film').textContent")


def test_the_page_says_why_a_run_would_stop_and_stands_without_a_plan(prepare, tmp_path, browser):
    data = prepare()
    data.judgement.verdict[:] = data.judgement.words.index("overlong")
    path = write(data, tmp_path / "none.html", stops="It would stop.", rows=[0])
    with browser.page(path, "#packs") as opened:
        assert opened.faults == []
        assert opened.ask("document.getElementById('stops').textContent") == "It would stop."
        assert "no packs" in opened.ask("document.getElementById('packs').textContent")


CONTRAST = """(() => {
  const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  const rgb = (color) => { context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
  const light = (color) => rgb(color).slice(0, 3).map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [.2126, .7152, .0722][n], 0);
  const ground = (one) => { for (; one; one = one.parentElement) { const color = getComputedStyle(one).backgroundColor; if (rgb(color)[3] === 255) return color; } return 'white'; };
  let least = 99;
  for (const one of document.querySelectorAll('main *, header *')) {
    if (!one.offsetParent || ![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
    least = Math.min(least, (a + .05) / (b + .05));
  }
  return least;
})()"""
"""Least contrast of text to its ground (WCAG 2.2, success criterion 1.4.3)."""


def test_the_data_in_the_page_are_whole(page):
    text = page[1].read_text(encoding="utf-8")
    blocks = {
        name: json.loads(text.split(f'id="data-{name}">', 1)[1].split("</script>", 1)[0])
        for name in ("told", "plan", "samples")
    }
    assert [sample["row"] for sample in blocks["samples"]] == list(range(9))
    assert blocks["told"]["counts"] == {
        "trained": 5,
        "missing_media": 1,
        "no_conversations": 1,
        "overlong": 1,
        "placeholder_count": 1,
    }
    assert {reason["reason"] for reason in blocks["told"]["refused"]} == set(blocks["told"]["counts"]) - {"trained"}
