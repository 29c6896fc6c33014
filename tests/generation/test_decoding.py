"""Decoded together, packed, rows leaving and entering: token for token what stock `generate` gives for each prompt alone."""

from __future__ import annotations

import random

import pytest
import torch

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.errors import VlmkitError
from vlmkit.generation import decoding
from vlmkit.generation.ahead import Ahead
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.decoding import Decoder
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.generation.live import LiveBackend
from vlmkit.processing.encode import encode_prompt

NEW_TOKENS = 12
WORDS = [
    "what",
    "which",
    "colour",
    "shape",
    "red",
    "blue",
    "circle",
    "is",
    "are",
    "the",
    "there",
    "left",
    "of",
    "how",
    "many",
    "and",
    "or",
    "a",
    "why",
    "below",
]


def ask(*parts):
    return Conversation((Turn("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),))


@pytest.fixture(scope="module")
def questions(pictures, clip):
    """Text, a still, several stills, a video, and mixtures, in seeded order and length."""
    rng = random.Random(3)
    kinds = [(), ("image",), ("image", "image"), ("video",), ("image", "video"), ("video", "image", "image")]
    asked = []
    for number in range(12):
        parts = [ImagePart(rng.choice(pictures)) if k == "image" else VideoPart(clip) for k in kinds[number % 6]]
        parts.insert(rng.randint(0, len(parts)), " ".join(rng.choices(WORDS, k=rng.randint(1, 30))))
        asked.append(ask(*parts))
    answered = (Turn("assistant", (TextPart("three"),)), Turn("user", (TextPart("and why?"),)))
    asked.append(Conversation((*asked[1].turns, *answered)))
    return asked


@pytest.fixture(scope="module")
def backend(tiny):
    """Its head drawn anew: tied to the embeddings, an untrained model says its last token for ever."""
    made = HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=2)
    head = torch.nn.Linear(made.model.lm_head.in_features, made.model.lm_head.out_features, bias=False)
    torch.nn.init.normal_(head.weight, std=1.0, generator=torch.Generator().manual_seed(5))
    made.model.lm_head = head
    return made


@pytest.fixture(scope="module")
def alone(backend, questions, tiny):
    """What the stock model's own `generate` gives for each question alone, no token ending it."""
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_pretrained(tiny.vision_language, dtype=torch.float32).eval()
    stock.lm_head = backend.model.lm_head
    answers = []
    for question in questions:
        prompt = encode_prompt(question, backend.processor)
        whole = stock.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        answers.append(whole[0, prompt["input_ids"].shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module")
def ends(alone):
    """Two tokens that end these answers early and late, and some never."""
    return planted(alone)


def planted(answers, num=2):
    """Tokens that give the most different lengths of answers."""
    tokens = sorted({token for answer in answers for token in answer})
    chosen = []
    for _ in range(num):
        chosen.append(max(tokens, key=lambda token: (len(set(lengths(answers, [*chosen, token]))), -token)))
    return chosen


def lengths(answers, ends):
    return [len(cut(answer, ends)) for answer in answers]


def cut(answer, ends):
    end = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[:end]


def decode(
    backend, questions, ends, *, num_rows, check_every=1, enter_at=1, pack_tokens=8192, most=NEW_TOKENS, window=64
):
    decoder = Decoder(
        packed=backend.decoder.packed,
        processor=backend.processor,
        ends=ends,
        check_every=check_every,
        enter_at=enter_at,
        pack_tokens=pack_tokens,
    )
    prompts = Ahead(processor=backend.processor, workers=2)(questions, window=window, ready=num_rows)
    with torch.inference_mode():
        told = [one for some in decoder.answer(prompts, num_rows=num_rows, max_new_tokens=most) for one in some]
    assert sorted(one.number for one in told) == list(range(len(questions)))
    return [one.tokens for one in sorted(told, key=lambda one: one.number)]


def test_the_planted_ends_end_answers_at_different_times(alone, ends):
    assert len(set(lengths(alone, ends))) >= 4
    assert NEW_TOKENS in lengths(alone, ends)


@pytest.mark.parametrize(
    "how",
    [
        {"num_rows": 1},
        {"num_rows": 8},
        {"num_rows": 3, "check_every": 5},
        {"num_rows": 8, "check_every": 4, "enter_at": 8},
        {"num_rows": 5, "enter_at": 2, "pack_tokens": 100},
        {"num_rows": 40, "check_every": 100},
        {"num_rows": 4, "window": 5},
    ],
    ids=str,
)
def test_answers_are_those_of_each_prompt_alone(backend, questions, alone, ends, how):
    assert decode(backend, questions, ends, **how) == [cut(answer, ends) for answer in alone]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_most_new_tokens_is_exact(backend, questions, alone, most):
    found = decode(backend, questions, [], num_rows=6, check_every=3, most=most)
    assert found == [answer[:most] for answer in alone]


def too_much(limit, hidden_states):
    """Prompts of more than so many tokens together really ask for more memory than any machine has."""

    def run(batch, *, cache):
        if batch["input_ids"].shape[1] > limit:
            torch.empty(1 << 50)
        return hidden_states(batch, cache=cache)

    return run


def test_too_little_memory_for_prompts_halves_the_rows(backend, questions, alone, ends, monkeypatch, caplog):
    packed = backend.decoder.packed
    longest = max(encode_prompt(question, backend.processor)["input_ids"].shape[1] for question in questions)
    monkeypatch.setattr(packed, "hidden_states", too_much(2 * longest, packed.hidden_states))
    assert decode(backend, questions, ends, num_rows=8) == [cut(answer, ends) for answer in alone]
    assert "Memory does not suffice for 8 answers at a time: 4 from now on." in caplog.text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["cuda", "python"]
)
def test_too_little_memory_for_a_step_begins_again_with_half(
    backend, questions, alone, ends, monkeypatch, error, caplog
):
    step = decoding.RowCache.step

    def limited(cache, places, longest):
        if len(places) > 3:
            raise error
        step(cache, places, longest)

    monkeypatch.setattr(decoding.RowCache, "step", limited)
    found = decode(backend, questions, ends, num_rows=8, check_every=2)
    assert found == [cut(answer, ends) for answer in alone]
    assert [record.args for record in caplog.records][-1][1] in (2, 3)


def test_one_prompt_that_does_not_fit_costs_itself_unless_it_is_the_first(backend, questions, alone, ends, monkeypatch):
    sizes = [encode_prompt(question, backend.processor)["input_ids"].shape[1] for question in questions]
    packed, largest = backend.decoder.packed, sizes.index(max(sizes))
    monkeypatch.setattr(packed, "hidden_states", too_much(max(sizes) - 1, packed.hidden_states))
    order = [0, largest]  # each a window of its own, so that the larger one is not the first
    decoder = Decoder(
        packed=packed, processor=backend.processor, ends=ends, check_every=1, enter_at=1, pack_tokens=8192
    )

    def told(numbers):
        prompts = Ahead(processor=backend.processor, workers=1)([questions[n] for n in numbers], window=1, ready=1)
        with torch.inference_mode():
            return [one for some in decoder.answer(prompts, num_rows=1, max_new_tokens=NEW_TOKENS) for one in some]

    first, second = told(order)
    assert (first.tokens, first.error) == (cut(alone[0], ends), None)
    assert second.error == f"memory does not suffice for its {max(sizes)} tokens and {NEW_TOKENS} new ones"
    with pytest.raises(VlmkitError, match="The first question cannot be answered: memory does not suffice"):
        told([largest])


def test_another_error_is_not_taken_for_want_of_memory(backend, questions, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(backend.decoder.packed, "hidden_states", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        decode(backend, questions[:2], [], num_rows=2)


def test_a_model_in_training_answers_alike(backend, questions, alone, ends):
    live = LiveBackend(model=backend.model, processor=backend.processor, step=3)
    live.decoder.ends = frozenset(ends)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = live.generate(questions, GenerationParams(max_new_tokens=NEW_TOKENS, batch_size=5))
        assert torch.is_autocast_enabled("cpu")
    assert [one.num_tokens for one in answers] == lengths(alone, ends)
    decode_text = backend.processor.hf.tokenizer.decode
    assert [one.text for one in answers] == [
        decode_text(cut(answer, ends), skip_special_tokens=True) for answer in alone
    ]
    assert live.identity["weights"] == "step 3"
