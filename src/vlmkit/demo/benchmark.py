"""The held-out questions of the drawn shapes, as a benchmark."""

from __future__ import annotations

import json

from vlmkit.demo.shapes import shapes, text_only_guesser
from vlmkit.evaluation.benchmarks.jsonl import JsonlBenchmark


def shapes_benchmark(*, prompt_suffix: str | None) -> JsonlBenchmark:
    """Held-out questions, with the score of a guesser that never sees an image."""
    drawn = shapes()
    train = json.loads(drawn.train.read_text(encoding="utf-8"))
    held_out = [json.loads(line) for line in drawn.held_out.read_text(encoding="utf-8").splitlines()]
    guessed = round(100 * text_only_guesser(train, held_out), 4)
    return JsonlBenchmark(
        name="shapes",
        path=drawn.held_out,
        root=drawn.root,
        rule="exact_match",
        prompt_suffix=prompt_suffix,
        baselines={"text_only_guesser": guessed},
    )
