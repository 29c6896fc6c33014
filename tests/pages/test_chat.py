"""The page to talk with a model: in a browser as a person uses it, and over the wire as nobody else may."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from vlmkit.conversation import ImagePart, VideoPart
from vlmkit.errors import ConfigError, DataError
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.pages.chat import ChatServer
from vlmkit.pages.seen import look


@pytest.fixture(scope="module")
def backend(tiny):
    return HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1)


@pytest.fixture
def server(backend):
    with ChatServer(backend=backend, model="tiny", max_new_tokens=6, system=None, port=0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def said(*turns) -> str:
    return json.dumps({"turns": [{"role": role, "text": text, "media": media} for role, text, media in turns]})


def test_an_image_is_put_in_asked_about_and_answered(server, browser, pictures, tmp_path):
    with browser.page(server.url) as page:
        page.drop("#said", pictures[0])
        page.wait("document.querySelectorAll('#seen .item').length === 1")
        assert "96 x 64 pixels, seen at 96 x 64: 6 tokens" in page.ask("document.querySelector('#seen').innerText")
        assert page.ask("document.querySelector('#seen img').naturalWidth") == 96
        page.point("#question", click=True)
        page.type("what is it?")
        page.point("#send", click=True)
        page.wait("document.querySelectorAll('.turn.assistant .facts')[0]?.innerText.includes('tokens')")
        facts = page.ask("document.querySelector('.turn.assistant .facts').innerText")
        assert "6 of them visual" in facts
        assert "first token after" in facts
        assert page.ask("document.querySelector('.turn.assistant .bubble').innerText.length") > 0
        page.type("and now?")
        page.point("#send", click=True)
        page.wait("document.querySelectorAll('.turn.assistant .facts')[1]?.innerText.includes('tokens')")
        for width in (1280, 400):
            page.resize(width, 800)
            assert page.ask("document.documentElement.scrollWidth") <= width
            page.screenshot(tmp_path / f"{width}.png")
        assert 0 < page.ask("document.querySelectorAll('.turn.assistant .token').length") <= 12
        plain = page.ask("getComputedStyle(document.querySelector('.token')).backgroundColor")
        page.point("#tokens", click=True)
        assert page.ask("getComputedStyle(document.querySelector('.token')).backgroundColor") != plain
        page.point("#clear", click=True)
        assert page.ask("document.querySelectorAll('.turn').length") == 0
        assert page.faults == []
        assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {
            f"127.0.0.1:{server.server_port}"
        }


def test_a_file_that_is_no_image_is_told_and_not_added(server, browser, tmp_path):
    (tmp_path / "words.png").write_text("no image")
    with browser.page(server.url) as page:
        page.drop("#said", tmp_path / "words.png")
        page.wait("!document.querySelector('#problem').hidden")
        assert page.ask("document.querySelector('#problem').innerText").startswith("words.png: ")
        assert page.ask("document.querySelectorAll('#pending figure, #seen .item').length") == 0


def test_a_long_answer_can_be_stopped(server, browser, backend):
    server.max_new_tokens = 100_000
    with browser.page(server.url) as page:
        page.point("#question", click=True)
        page.type("speak")
        page.point("#send", click=True)
        page.wait("document.querySelector('.turn.assistant .bubble')?.innerText.length > 0")
        page.point("#stop", click=True)
        page.wait("document.documentElement.dataset.busy === 'false'")
        assert page.ask("document.querySelector('.turn.assistant .facts').innerText") == "stopped"
    assert server.answering.acquire(timeout=60)  # the model has stopped
    server.answering.release()


def test_only_the_page_may_ask(server):
    port = server.server_port
    assert ask(server, "GET", "/")[0] == 200
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403
    assert ask(server, "POST", "/ask", said(("user", "hello", [])))[0] == 403
    assert ask(server, "POST", "/ask", said(("user", "hello", [])), **{"X-Vlmkit-Token": "guessed"})[0] == 403
    assert ask(server, "GET", "/../secret")[0] == 404
    status, body = ask(server, "POST", "/ask", said(("user", "hello", [])), **{"X-Vlmkit-Token": server.token})
    assert status == 200
    *pieces, told = [json.loads(line) for line in body.splitlines()]
    assert "".join(piece["text"] for piece in pieces) == told["told"]["text"]
    assert told["told"]["num_tokens"] <= 6
    assert server.server_address == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("no json", 400, "not readable"),
        (said(), 400, "last turn must be the user's"),
        (said(("assistant", "hello", [])), 400, "last turn must be the user's"),
        (said(("system", "obey", []), ("user", "hello", [])), 400, "user or assistant"),
        (said(("user", "hello", ["gone"])), 410, "earlier start"),
    ],
)
def test_a_strange_question_is_refused_with_the_reason(server, body, status, words):
    found, told = ask(server, "POST", "/ask", body, **{"X-Vlmkit-Token": server.token})
    assert found == status
    assert words in json.loads(told)["error"]


def test_one_answer_at_a_time(server):
    with server.answering:
        status, told = ask(server, "POST", "/ask", said(("user", "x", [])), **{"X-Vlmkit-Token": server.token})
    assert status == 409
    assert "Wait for its end" in json.loads(told)["error"]


def test_a_taken_port_is_told(backend, server):
    with pytest.raises(ConfigError, match=rf"port={server.server_port}: nothing can be served there"):
        ChatServer(backend=backend, model="tiny", max_new_tokens=6, system=None, port=server.server_port)


def test_kept_videos_go_with_the_server(backend, clip):
    server = ChatServer(backend=backend, model="tiny", max_new_tokens=6, system=None, port=0)
    _, part = server.keep(clip.read_bytes(), "Drawn.MP4")
    assert isinstance(part, VideoPart)
    assert look(part, backend.processor).kind == "video"
    server.server_close()
    assert not part.source.exists()


def test_what_is_shown_is_what_the_model_gets(processor, pictures, clip, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    drawn = np.kron(colours, np.ones((16, 16, 1), dtype=np.uint8))  # so few colours that the page has a PNG
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    seen = look(ImagePart(tmp_path / "drawn.png"), processor)
    assert (seen.height, seen.width, seen.original, seen.num_frames) == (64, 96, (64, 96), 1)
    assert seen.num_visual_tokens == 6
    shown = Image.open(io.BytesIO(base64.b64decode(seen.frames[0].partition(",")[2]))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(shown), drawn)
    video = look(VideoPart(clip), processor)
    assert (video.kind, video.num_frames, len(video.frames), len(video.stamps)) == ("video", 6, 6, 6)
    assert video.stamps == sorted(video.stamps, key=float)
    with pytest.raises(DataError, match="not found"):
        look(ImagePart(pictures[0].with_name("gone.png")), processor)
