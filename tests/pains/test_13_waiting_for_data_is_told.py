"""Data loading is the bottleneck, device idle: more than 5 % of the time is told in words, with what to do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import said
from tests.training.conftest import lines, run, small
from vlmkit.training.callbacks.steplog import wait_in_words


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
def test_a_little_waiting_is_not_worth_a_word(share):
    assert wait_in_words(share) is None


def test_more_is_told_with_the_remedies():
    assert wait_in_words(0.234) == (
        "23% of the time went by waiting for samples while the device idled. Raise data.num_workers, lower "
        "data.image_max_pixels, or put the media on a faster disk."
    )


@pytest.mark.slow
def test_a_run_on_heavy_images_says_that_it_waits(corpus, tmp_path):
    """Photographs of 12 megapixels scaled down to 32 x 32: decoding takes nearly all of a step."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(corpus.root / "photo.jpg")
    path = corpus.write([said("<image> what?", image="photo.jpg")] * 12)
    output = run("train", *small(path, tmp_path / "run", "data.image_max_pixels=1024", "trainer.max_epochs=1"))
    share = lines(tmp_path / "run")[-1]["data_wait"]
    assert share > 0.05
    assert wait_in_words(share) in output
    assert output.count("of the time went by waiting for samples") == 2, "once while it runs, and at its end"
