"""`vlmkit-chat` as its users run it: one question, a talk, wrong turns, the page from another process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.training.conftest import environment, run, start

QUICK = ["max_new_tokens=4", "device=cpu"]


def test_one_question_about_an_image(tiny, pictures, tmp_path):
    output = run("chat", f"ckpt={tiny.vision_language}", f"image={pictures[0]}", "question=what?", *QUICK, cwd=tmp_path)
    assert f"{pictures[0]}: 6 visual tokens" in output
    assert re.search(r"\(\d+ tokens read, 6 of them visual; first token after \d+\.\d\d s; 4 tokens in ", output)
    assert list(tmp_path.iterdir()) == []


def test_a_talk_goes_on_after_wrong_turns(tiny, pictures, tmp_path):
    lines = ["/image gone.png", f"/image {pictures[1]}", "what?", "/image", "/dance", "/clear", "and?", "/quit"]
    process = subprocess.run(
        [sys.executable, "-m", "vlmkit.cli.chat", f"ckpt={tiny.vision_language}", *QUICK],
        input="\n".join(lines), cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    told = process.stdout
    assert "'gone.png': there is no such file" in told
    assert "/image needs the path of a file." in told
    assert "/dance is no command." in told
    assert "Forgotten." in told
    read = [int(number) for number in re.findall(r"\((\d+) tokens read", told)]
    assert len(read) == 2
    assert read[0] > read[1]  # the second question stands alone, without the image


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("image=gone.png", "image=gone.png: there is no such file"),
        ("ckpt=gone", "ckpt=gone: no model there"),
        ("max_new_tokens=0", "max_new_tokens=0: wanted a whole number of at least 1"),
        ("port=70000", "port=70000: wanted a whole number"),
        ("qestion=hi", "Did you mean question?"),
    ],
)
def test_wrong_turns(override, words, tmp_path):
    assert words in run("chat", override, cwd=tmp_path, status=1)


def test_the_page_is_served_until_it_is_told_to_end(tiny, tmp_path):
    process = start("chat", f"ckpt={tiny.vision_language}", "--serve", "port=0", *QUICK, cwd=tmp_path)
    assert process.stdout is not None
    told = process.stdout.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+/", told)
    assert url, told
    with urllib.request.urlopen(url[0], timeout=60) as answer:
        assert b"Talk with a model" in answer.read()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
