"""A streamed answer is the answer of a batch, piece by piece, with what was read and why it ended."""

from __future__ import annotations

import threading

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.errors import DataError
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.chat import Chat, medium
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.generation.streaming import Told, stream_answer


@pytest.fixture(scope="module")
def backend(tiny):
    return HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1)


def question(*parts) -> Conversation:
    return Conversation((Turn("user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts)),))


def streamed(items) -> tuple[list[str], Told]:
    *pieces, told = items
    assert isinstance(told, Told)
    return pieces, told


def test_pieces_joined_are_the_answer_of_a_batch(backend, pictures, clip):
    for conversation in (question("hello"), question(ImagePart(pictures[0]), "what?"), question(VideoPart(clip), "?")):
        [whole] = backend.generate([conversation], GenerationParams(max_new_tokens=9, batch_size=1))
        pieces, told = streamed(stream_answer(backend, conversation, max_new_tokens=9))
        assert "".join(pieces) == told.text == whole.text
        assert told.num_tokens == whole.num_tokens
        assert told.ended == ("limit" if whole.num_tokens == 9 else "end")


def test_visual_tokens_are_counted(backend, pictures):
    _, text = streamed(stream_answer(backend, question("what?"), max_new_tokens=1))
    _, image = streamed(stream_answer(backend, question(ImagePart(pictures[0]), "what?"), max_new_tokens=1))
    assert text.num_visual_tokens == 0
    assert image.num_visual_tokens == 6  # 64 x 96 pixels, 32 x 32 a token
    assert image.num_prompt_tokens - text.num_prompt_tokens == 6 + 2  # with the marks around it


def test_the_end_token_ends_it_and_is_not_shown(backend, monkeypatch):
    conversation = question("hello")
    free = backend.generate([conversation], GenerationParams(max_new_tokens=3, batch_size=1))[0]
    first = backend.processor.hf.tokenizer(free.text, add_special_tokens=False)["input_ids"][0]
    monkeypatch.setattr(backend, "ends", [first])
    pieces, told = streamed(stream_answer(backend, conversation, max_new_tokens=9))
    assert (pieces, told.text, told.num_tokens, told.ended) == ([], "", 1, "end")


def test_a_character_of_several_tokens_comes_whole(backend, monkeypatch):
    tokenizer = backend.processor.hf.tokenizer
    ids = tokenizer("né 客🏈.", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("né 客🏈.")

    def generate(*, input_ids, streamer, **_):
        streamer.put(input_ids)
        for token in ids:
            streamer.put(torch.tensor([token]))
        streamer.end()

    monkeypatch.setattr(backend.model, "generate", generate)
    pieces, told = streamed(stream_answer(backend, question("hello"), max_new_tokens=99))
    assert "".join(pieces) == told.text == "né 客🏈."
    assert not any("\ufffd" in piece for piece in pieces)
    assert "客" in pieces


def test_it_can_be_stopped_and_the_model_stops_too(backend):
    stop = threading.Event()
    items = stream_answer(backend, question("hello"), max_new_tokens=100_000, stop=stop)
    next(items)
    stop.set()
    _, told = streamed(items)
    assert told.ended == "stopped"
    assert told.num_tokens < 100_000
    items = stream_answer(backend, question("hello"), max_new_tokens=100_000)
    next(items)
    items.close()  # returns only when the model has stopped
    assert not [thread for thread in threading.enumerate() if thread.name == "answer"]


def test_an_error_of_the_model_reaches_whoever_asked(backend, monkeypatch):
    def generate(**_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(backend.model, "generate", generate)
    with pytest.raises(RuntimeError, match="no memory"):
        list(stream_answer(backend, question("hello"), max_new_tokens=3))


def test_a_chat_remembers_and_forgets(backend, pictures, tmp_path):
    chat = Chat(backend=backend, max_new_tokens=3, system="Be brief.")
    assert chat.attach(medium(pictures[0])) == 6
    with pytest.raises(DataError, match=r"gone\.png'.*no such file"):
        medium(tmp_path / "gone.png")
    _, first = streamed(chat.ask("what?"))
    _, second = streamed(chat.ask("and?"))
    assert [turn.role for turn in chat.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert second.num_prompt_tokens > first.num_prompt_tokens
    assert second.num_visual_tokens == first.num_visual_tokens == 6
    chat.clear()
    assert [turn.role for turn in chat.turns] == ["system"]
    _, third = streamed(chat.ask("what?"))
    assert third.num_visual_tokens == 0


def test_what_cannot_be_read_is_not_attached(backend, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    chat = Chat(backend=backend, max_new_tokens=3)
    with pytest.raises(DataError, match=r"text\.png"):
        chat.attach(medium(tmp_path / "text.png"))
    assert chat.pending == ()
    assert isinstance(medium(tmp_path.joinpath("text.png")), ImagePart)
