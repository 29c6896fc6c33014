"""A whole evaluation, vlmkit's beside a loop over `generate`: cases a second.

Both read the same JSONL benchmark and its images, encode, answer, score and record, with the same weights on the same
threads, in turn in one process. The loop is what most evaluations run: one case after the other through the stock model's
`generate`, with its KV cache; it is given vlmkit's way from a file to a prompt, which is faster than the stock processor's, so that
what is compared is the answering.

The model has 209 million parameters (width 512, 8 layers a side, vocabulary 151,936), random weights and fp32. Cases are
drawn images of eight sizes, 256 x 256 to 640 x 480 (64 to 300 visual tokens), every eighth is text alone. Answers are
long as in a mixture of benchmarks, many short and some that run on: one token and an exponential of mean 11 more, to
`max_new_tokens` at most. An untrained model does not end its answers: tokens it does say are declared end tokens, chosen
so that the lengths of its answers come close to that. `python bench/generate.py --help` for the options.

Printed, and checked (exit status 1 where missed), medians over the rounds: cases a second over the loop's, at least 1.7;
and that every answer is the same.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from step import VOCABULARY, make_model
from transformers import AutoModelForImageTextToText

from vlmkit.demo import tiny_checkpoints
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.jsonl import JsonlBenchmark
from vlmkit.evaluation.runner import RunSettings, run_benchmark
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.processing.encode import encode_prompt
from vlmkit.processing.processor import load_processor

MIN_SPEED = 1.7
MEAN_TOKENS = 12
EMBEDDING_GAIN = 8.0
SIZES = ((640, 480), (480, 640), (640, 427), (512, 384), (448, 448), (320, 240), (336, 336), (256, 256))
WORDS = ["what", "which", "colour", "shape", "left", "of", "the", "sign", "how", "many", "people", "is", "in", "above"]


def main() -> int:
    """Draw, plant, measure in turns, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--width", type=int, default=512, help="of the language model; the rest follows")
    parser.add_argument("--quick", action="store_true", help="few cases and a small model; speed is not judged")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.rounds, options.width, options.batch_size, options.max_new_tokens = 8, 1, 256, 4, 8
    params = GenerationParams(max_new_tokens=options.max_new_tokens, batch_size=options.batch_size)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        benchmark = draw_benchmark(folder, options.cases)
        directory = save_model(folder, options.width)
        backend = HFBackend(directory=directory, device="cpu", dtype="float32", workers=1)
        stock = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        plant_ends(backend, benchmark, params)
        same, fast = compare(folder, benchmark, backend, stock, params, options.rounds)
        return 0 if same and (fast or options.quick) else 1


def compare(
    folder: Path, benchmark: Any, backend: HFBackend, stock: Any, params: GenerationParams, num_rounds: int
) -> tuple[bool, bool]:
    """Both ways in turn; whether all answers are the same, and whether the target is met."""
    sides: dict[str, Callable[[Path], dict[str, tuple[str, int]]]] = {
        "generate, one by one": lambda out: one_by_one(benchmark, backend, stock, params, out),
        "vlmkit": lambda out: evaluation(benchmark, backend, params, out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, dict[str, tuple[str, int]]] = {}
    for number in range(num_rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            answers[name] = run(folder / f"{name} {number}")
            seconds[name].append(time.perf_counter() - started)
    lengths = sorted(tokens for _, tokens in answers["vlmkit"].values())
    print(f"{len(lengths)} cases, answers of {lengths[0]} to {lengths[-1]} tokens, mean {statistics.mean(lengths):.1f}")
    for name, took in seconds.items():
        spread = "  ".join(f"{one:.1f}" for one in took)
        print(f"  {name:<22} {len(lengths) / statistics.median(took):6.2f} cases/s   ({spread} s)")
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    speed, same = statistics.median(ratios), len({json.dumps(one, sort_keys=True) for one in answers.values()}) == 1
    fine = speed >= MIN_SPEED
    told = "  ".join(f"{one:.2f}" for one in ratios)
    print(f"  {'speed':<22} {speed:.2f} times ({told})   at least {MIN_SPEED}{'' if fine else '   MISSED'}")
    print(f"  {'same answers':<22} {'all' if same else 'NOT ALL'}")
    return same, fine


def evaluation(benchmark: Any, backend: HFBackend, params: GenerationParams, out: Path) -> dict[str, tuple[str, int]]:
    """What `vlmkit-eval` runs."""
    settings = RunSettings(output_dir=out, max_samples=None, params=params, verbose=False, progress=False)
    return {one["id"]: (one["answer"], one["tokens"]) for one in run_benchmark(benchmark, backend, settings)}


def one_by_one(
    benchmark: Any, backend: HFBackend, stock: Any, params: GenerationParams, out: Path
) -> dict[str, tuple[str, int]]:
    """One case after the other, each recorded when it is answered, as it is done most often."""
    found: dict[str, tuple[str, int]] = {}
    out.mkdir()
    with (out / "records.jsonl").open("w") as file, torch.inference_mode():
        for case in benchmark.cases():
            assert isinstance(case, Case)
            prompt = encode_prompt(case.conversation, backend.processor)
            whole = stock.generate(
                **prompt,
                max_new_tokens=params.max_new_tokens,
                do_sample=False,
                eos_token_id=backend.ends,
                pad_token_id=0,
            )
            tokens = whole[0, prompt["input_ids"].shape[1] :].tolist()
            answer = backend.processor.hf.tokenizer.decode(tokens, skip_special_tokens=True)
            score = benchmark.score(case, answer)
            file.write(json.dumps({"id": case.id, "answer": answer, "score": score.value}) + "\n")
            file.flush()
            found[case.id] = answer, len(tokens)
    return found


def draw_benchmark(folder: Path, num_cases: int) -> JsonlBenchmark:
    """Questions of 3 to 25 words on drawn images, every eighth on none."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    rows: list[dict[str, str]] = []
    for number in range(num_cases):
        question = " ".join(rng.choices(WORDS, k=rng.randint(3, 25))) + "?"
        rows.append({"id": str(number), "question": question, "answer": "three"})
        if number % 8 != 7:
            width, height = rng.choice(SIZES)
            coarse = Image.fromarray(noise.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
            rows[-1]["image"] = f"{number}.jpg"
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlBenchmark(name="bench", path=str(path), root=str(folder), rule="contains", prompt_suffix="")


def save_model(folder: Path, width: int) -> Path:
    """A model between the demo's and the real one, as a Hugging Face directory."""
    source = load_processor(tiny_checkpoints().vision_language)
    model = make_model(source, width=width, depth=8, vocabulary=VOCABULARY)
    head = torch.nn.Linear(width, VOCABULARY, bias=False)  # tied, an untrained model repeats its last token for ever
    model.lm_head, model.config.tie_word_embeddings = head, False
    with torch.no_grad():  # and what it said last must count, or it goes in circles
        model.model.language_model.embed_tokens.weight.mul_(EMBEDDING_GAIN)
    model.save_pretrained(folder / "model")
    source.save(folder / "model")
    return folder / "model"


def plant_ends(backend: HFBackend, benchmark: Any, params: GenerationParams) -> None:
    """Declare tokens as end tokens so that the lengths of the answers come close to those of real ones."""
    said: dict[int, list[int]] = {}
    backend.decoder.ends = frozenset()
    prompts = backend.ahead((case.conversation for case in benchmark.cases()), window=64, ready=8)
    with torch.inference_mode():
        for told in backend.decoder.answer(prompts, num_rows=8, max_new_tokens=params.max_new_tokens):
            said |= {one.number: one.tokens for one in told}
    rng = random.Random(1)
    most = params.max_new_tokens
    wanted = sorted(min(most, 1 + int(rng.expovariate(1 / (MEAN_TOKENS - 1)))) for _ in said)
    ends: list[int] = []
    distance = missed(said, ends, wanted, most)
    while True:
        tokens = sorted({token for one in said.values() for token in one} - set(ends))
        found = {token: missed(said, [*ends, token], wanted, most) for token in tokens}
        best = min(found, key=lambda token: (found[token], token))
        if found[best] >= distance:
            break
        ends.append(best)
        distance = found[best]
    backend.ends = ends
    backend.decoder.ends = frozenset(ends)


def missed(said: dict[int, list[int]], ends: list[int], wanted: list[int], most: int) -> int:
    """How far lengths are from those wanted, summed."""
    lengths = sorted(next((n + 1 for n, token in enumerate(one) if token in ends), most) for one in said.values())
    return sum(abs(one - other) for one, other in zip(lengths, wanted, strict=True))


if __name__ == "__main__":
    sys.exit(main())
