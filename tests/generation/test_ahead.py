"""Prompts come in order of length, no further ahead than asked for, equal to those of one thread; bad ones are told."""

from __future__ import annotations

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.generation.ahead import Ahead, Prompt, Unready
from vlmkit.processing import encode
from vlmkit.processing.encode import encode_question


def ask(*parts):
    return Conversation((Turn("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),))


@pytest.fixture
def questions(pictures):
    """Some say a special token, which is text: a tokenizer shared by threads must not take it for one."""
    return [
        ask(*([ImagePart(pictures[n % 3])] if n % 2 else []), "why? " * (1 + n % 7) + "<|im_end|>" * (n % 3))
        for n in range(20)
    ]


def test_prompts_of_a_window_come_longest_first(processor, questions):
    found = list(Ahead(processor=processor, workers=3)(iter(questions), window=8, ready=3))
    assert sorted(one.number for one in found) == list(range(20))
    for start in range(0, 20, 8):
        window = found[start : start + 8]
        assert {one.number for one in window} == set(range(20)[start : start + 8])
        assert [one.length for one in window] == sorted((one.length for one in window), reverse=True)
    for one in found:
        alone = encode_question(questions[one.number], processor)
        assert all(torch.equal(one.sample[key], alone[key]) for key in alone)


def test_no_more_are_encoded_or_taken_than_asked_for(processor, questions, monkeypatch):
    encoded, taken = [], []
    whole = encode.encode_question

    def counted(conversation, processor):
        encoded.append(conversation)
        return whole(conversation, processor)

    def source():
        for question in questions:
            taken.append(question)
            yield question

    monkeypatch.setattr("vlmkit.generation.ahead.encode_question", counted)
    prompts = Ahead(processor=processor, workers=2)(source(), window=4, ready=3)
    for got, _ in enumerate(prompts, start=1):
        assert len(encoded) <= got + 2
        assert len(taken) <= got + 2 + 2 * 4
    assert len(encoded) == 20


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(processor, questions, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(b"no video")
    bad = [
        ask(ImagePart(broken), "what?"),
        ask(ImagePart(tmp_path / "gone.png"), "what?"),
        ask(VideoPart(torn), "what?"),
    ]
    found = {
        one.number: one for one in Ahead(processor=processor, workers=2)([*questions[:3], *bad], window=6, ready=2)
    }
    assert [type(found[number]) for number in range(6)] == [Prompt] * 3 + [Unready] * 3
    assert [found[3 + n].reason.split("'")[1].rsplit("/", 1)[1] for n in range(3)] == [
        "broken.png", "gone.png", "torn.mp4",
    ]  # fmt: skip


def test_threads_compute_alone_and_this_one_as_before(processor, questions, monkeypatch):
    seen = set()

    def looked(conversation, processor):
        seen.add(torch.get_num_threads())
        return encode_question(conversation, processor)

    monkeypatch.setattr("vlmkit.generation.ahead.encode_question", looked)
    mine = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(Ahead(processor=processor, workers=2)(questions, window=8, ready=4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(mine)
    assert seen == {1}


def test_a_number_of_workers_is_asked_for(processor):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Ahead(processor=processor, workers=0)
