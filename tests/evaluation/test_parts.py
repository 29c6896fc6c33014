"""Nothing answered is lost: killed at any moment, continued by any number of ranks, the records are those of one whole run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from dataclasses import replace

import pytest
import torch

from vlmkit.evaluation.benchmarks.jsonl import JsonlBenchmark
from vlmkit.evaluation.parts import Share, answered_already, join_parts, parts_of
from vlmkit.evaluation.records import append_records, read_records
from vlmkit.evaluation.runner import RunSettings, answer_benchmark, await_ranks, run_benchmark, score_records
from vlmkit.generation import cache, decoding
from vlmkit.generation.backend import Generation, GenerationParams
from vlmkit.generation.hf_backend import HFBackend

BATCH = 4


@pytest.fixture(scope="module")
def backend(tiny):
    """Answers of 1 to 10 tokens: its head is drawn anew, and every 13th token ends an answer."""
    made = HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=2)
    made.identity  # noqa: B018  # hashed here once, not in every process of a test
    head = made.model.lm_head = torch.nn.Linear(made.model.lm_head.in_features, 1024, bias=False)
    torch.nn.init.normal_(head.weight, std=1.0, generator=torch.Generator().manual_seed(5))
    made.decoder.ends = frozenset(range(0, 1024, 13))
    return made


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory, pictures):
    """30 questions, two of which cannot be asked."""
    folder = tmp_path_factory.mktemp("asked")
    rows = []
    for number in range(30):
        row = {"id": f"q{number}", "question": "what is it? " * (1 + number % 5), "answer": "a"}
        if number % 3:
            row["image"] = str(pictures[number % 3])
        rows.append(row)
    rows[7]["image"] = str(folder / "gone.png")
    del rows[11]["answer"]
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlBenchmark(name="asked", path=path, root="/", rule="contains", prompt_suffix=None)


@pytest.fixture
def settings(tmp_path):
    params = GenerationParams(max_new_tokens=10, batch_size=BATCH)
    return RunSettings(output_dir=tmp_path, max_samples=None, params=params, verbose=False, progress=False)


@pytest.fixture(scope="module")
def whole(backend, benchmark, tmp_path_factory):
    params = GenerationParams(max_new_tokens=10, batch_size=BATCH)
    out = tmp_path_factory.mktemp("whole")
    how = RunSettings(output_dir=out, max_samples=None, params=params, verbose=False, progress=False)
    return timeless(run_benchmark(benchmark, backend, how))


def timeless(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def in_a_process(work, *arguments):
    """Fork, and run it there; its exit status: 0, or that it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


def killed_at(moment, benchmark, backend, settings, begun):
    """Answer, until the n-th time that something is computed, or written: then SIGKILL."""
    count = 0

    def counted(work):
        def told(*arguments, **named):
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **named)

        return told

    enter = decoding._Decoding._enter

    def entered(self, prompts):
        with begun.open("a") as file:
            file.write(len(prompts) * "x")
        enter(self, prompts)

    cache.RowCache.update = counted(cache.RowCache.update)
    os.fsync = counted(os.fsync)
    decoding._Decoding._enter = entered
    run_benchmark(benchmark, backend, settings)


def test_a_kill_at_any_moment_loses_at_most_one_batch(backend, benchmark, settings, whole, tmp_path):
    rng, begun = random.Random(0), tmp_path / "begun"
    moments = []
    for number in range(5):
        own = replace(settings, output_dir=tmp_path / str(number))
        path = own.path(benchmark)
        for most in (40, 12):
            begun.write_text("")
            before = len(read_records(path))
            moments.append(1 + rng.randrange(most))
            if in_a_process(killed_at, moments[-1], benchmark, backend, own, begun) == 0:
                break
            asked = [record for record in read_records(path)[before:] if not record.get("error")]
            assert len(begun.read_text()) - len(asked) <= BATCH
        assert timeless(run_benchmark(benchmark, backend, own)) == whole
        assert timeless(read_records(path)) == whole
    assert len(moments) >= 8  # nearly all were killed, most of them twice


def test_the_answers_have_many_lengths_and_bad_cases_are_told(whole):
    assert len({record["tokens"] for record in whole}) >= 5
    assert [record["id"] for record in whole if record.get("error")] == ["q7", "q11"]
    assert "gone.png' not found" in whole[7]["error"]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_batch_size_changes_no_record(backend, benchmark, settings, whole, batch_size):
    params = GenerationParams(max_new_tokens=10, batch_size=batch_size)
    assert timeless(run_benchmark(benchmark, backend, replace(settings, params=params))) == whole


def test_two_ranks_make_the_records_of_one(backend, benchmark, settings, whole):
    ranks = [replace(settings, share=Share(rank=rank, num_ranks=2)) for rank in range(2)]
    other = multiprocessing.get_context("fork").Process(target=answer_benchmark, args=(benchmark, backend, ranks[1]))
    other.start()
    answer_benchmark(benchmark, backend, ranks[0])
    await_ranks(benchmark, backend, ranks[0])
    other.join(60)
    parts = parts_of(settings.path(benchmark))
    assert [len(read_records(part)) for part in parts.values()] == [15, 15]
    assert timeless(score_records(benchmark, ranks[0])) == whole
    assert parts_of(settings.path(benchmark)) == {}


def test_another_number_of_ranks_continues(backend, benchmark, settings, whole):
    killed = replace(settings, share=Share(rank=2, num_ranks=3))
    answer_benchmark(benchmark, backend, killed)
    path = settings.path(benchmark)
    torn = path.with_name("records.rank-2.jsonl")
    torn.write_bytes(torn.read_bytes() + b'{"torn')
    for rank in (1, 0):
        answer_benchmark(benchmark, backend, replace(settings, share=Share(rank=rank, num_ranks=2)))
    assert sum(len(read_records(part)) for part in parts_of(path).values()) == 30
    assert timeless(run_benchmark(benchmark, backend, settings)) == whole


def test_records_of_another_key_are_set_aside_by_whose_they_are(tmp_path):
    path = tmp_path / "records.jsonl"
    for name, key in (("records.jsonl", "new"), ("records.rank-0.jsonl", "old"), ("records.rank-1.jsonl", "old")):
        append_records(tmp_path / name, [{"id": name, "key": key}])
    first, second = Share(rank=0, num_ranks=2), Share(rank=1, num_ranks=2)
    assert answered_already(path, "new", second) == (
        {"records.jsonl"},
        [tmp_path / "records.rank-1.old-1.jsonl"],
    )
    assert answered_already(path, "new", first) == ({"records.jsonl"}, [tmp_path / "records.rank-0.old-1.jsonl"])
    join_parts(path)
    assert [record["id"] for record in read_records(path)] == ["records.jsonl"]


class Parrot:
    """Answers a batch after the other, as a backend that does not stream."""

    identity = {"weights": "w"}

    def __init__(self):
        self.sizes = []

    def generate(self, conversations, params):
        self.sizes.append(len(conversations))
        return [Generation(text="a", num_tokens=1, seconds=0.1) for _ in conversations]


def test_a_backend_that_does_not_stream_is_asked_batch_by_batch(benchmark, settings):
    parrot = Parrot()
    records = run_benchmark(benchmark, parrot, settings)
    assert parrot.sizes == [4] * 7 + [1]
    assert [record["id"] for record in records] == [f"q{number}" for number in range(30)]
    assert sum(record["score"] for record in records) == 29


def test_the_bar_counts_cases_and_what_is_left_alone(benchmark, settings, capsys):
    some = replace(settings, max_samples=12)
    run_benchmark(benchmark, Parrot(), some)
    run_benchmark(benchmark, Parrot(), replace(settings, progress=True, verbose=True))
    output = capsys.readouterr()
    assert "30/30" in output.err
    assert "cases/s" in output.err
    assert "q29: what is it?" in output.out
    assert "expected 'a', answered 'a': right" in output.out
    assert "q3:" not in output.out
