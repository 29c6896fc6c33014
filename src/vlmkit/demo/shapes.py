"""Drawn images with questions on colour, shape, count and place: a LLaVA manifest and a benchmark, made in place.

An image holds one to four shapes of one kind and one colour, each inside a cell of a 3 x 3 grid. Kind, colour, number
and cells are drawn uniformly and independently, so that no question can be answered without looking.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from vlmkit.demo.cache import cache_root, recipe_key, written_once

IMAGE_PIXELS = 96
CELL_PIXELS = 32
KINDS = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 80, 200),
    "yellow": (240, 200, 0),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
}
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""Names of the cells, row by row."""
QUESTIONS = {
    "color": "What color do you see?",
    "shape": "What shape do you see?",
    "count": "How many shapes do you see?",
    "place": "Where is the shape?",
}
"""The question of each category. None tells the number of shapes, but the place is asked of a single shape only."""
SHAPES_SHARES = {1: 0.7, 2: 0.1, 3: 0.1, 4: 0.1}
"""How often each number of shapes is drawn for training: mostly one, since only then there is a place to ask for."""
_RADII = range(10, 15)
_SUPERSAMPLING = 2

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one shape is: its centre and the radius of the circle around it, in pixels."""

    x: int
    y: int
    radius: int

    @property
    def cell(self) -> int:
        """Number of the cell that holds the centre, row by row from 0."""
        return self.y // CELL_PIXELS * (IMAGE_PIXELS // CELL_PIXELS) + self.x // CELL_PIXELS


@dataclass(frozen=True, slots=True)
class Scene:
    """All that an image shows: shapes of one kind and colour on a grey background (0 to 255)."""

    kind: str
    color: str
    spots: tuple[Spot, ...]
    background: int

    def answer(self, category: str) -> str:
        """The right answer to `QUESTIONS[category]`.

        Raises:
            ValueError: the category is unknown, or it is `place` and there is more than one shape.
        """
        if category == "place" and len(self.spots) != 1:
            raise ValueError(f"{len(self.spots)} shapes have no one place")
        answers = {
            "color": self.color,
            "shape": self.kind,
            "count": str(len(self.spots)),
            "place": PLACES[self.spots[0].cell],
        }
        if category not in answers:
            raise ValueError(f"unknown category {category!r}; there are {sorted(answers)}")
        return answers[category]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Where the drawn data lies.

    Attributes:
        root: Directory that the image paths of both files are relative to.
        train: LLaVA manifest (JSON array): `id`, `image`, `conversations`.
        held_out: Questions on other images (JSONL): `id`, `image`, `question`, `answer`, `category`.
    """

    root: Path
    train: Path
    held_out: Path


def shapes(cache_dir: Path | None = None, *, seed: int = 0, num_train: int = 4000, num_held_out: int = 240) -> Shapes:
    """Draw the training and held-out images once, and give their paths.

    The held-out questions depend on `seed` and their own number only; each has an image of its own, which occurs
    nowhere else.

    Args:
        cache_dir: Directory to keep them in; the user's cache where None.
        seed: Of everything that is drawn.
        num_train: Training images, each one row with several questions.
        num_held_out: Held-out images, each with one question; the four categories in turn.

    Raises:
        VlmkitError: the cache cannot be written, or files were deleted from it.
    """
    settings = {"seed": seed, "num_train": num_train, "num_held_out": num_held_out}
    root = (cache_dir or cache_root()) / f"shapes-{recipe_key(__file__, **settings)}"
    written_once(root, lambda aside: _write(aside, **settings))
    return Shapes(root=root, train=root / "train.json", held_out=root / "held_out.jsonl")


def shapes_manifest(cache_dir: Path | None = None, *, seed: int = 0, num_train: int = 4000) -> Path:
    """Path of the training manifest; image paths are relative to its directory. See `shapes`."""
    return shapes(cache_dir, seed=seed, num_train=num_train).train


def shapes_benchmark(cache_dir: Path | None = None, *, seed: int = 0, num_train: int = 4000) -> Path:
    """Path of the held-out questions that belong to `shapes_manifest` of the same arguments. See `shapes`."""
    return shapes(cache_dir, seed=seed, num_train=num_train).held_out


def train_scenes(seed: int, *, num_train: int, num_held_out: int) -> list[Scene]:
    """The scenes behind the rows of the manifest, in their order."""
    unseen = set(held_out_scenes(seed, num_held_out=num_held_out))
    rng = random.Random(f"train {seed}")
    scenes: list[Scene] = []
    while len(scenes) < num_train:
        scene = _draw_scene(rng, _draw_number(rng))
        if scene not in unseen:
            scenes.append(scene)
            unseen.add(scene)  # no image twice either
    return scenes


def held_out_scenes(seed: int, *, num_held_out: int) -> list[Scene]:
    """The scenes behind the held-out questions, in their order."""
    rng = random.Random(f"held out {seed}")
    scenes: dict[Scene, None] = {}
    while len(scenes) < num_held_out:
        single = _category(len(scenes)) == "place"
        scenes.setdefault(_draw_scene(rng, 1 if single else rng.randint(1, max(SHAPES_SHARES))))
    return list(scenes)


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 96 x 96 pixels."""
    side = IMAGE_PIXELS * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), (scene.background,) * 3)
    draw = ImageDraw.Draw(image)
    for spot in scene.spots:
        x, y, radius = (value * _SUPERSAMPLING for value in (spot.x, spot.y, spot.radius))
        _DRAWERS[scene.kind](draw, x, y, radius, COLORS[scene.color])
    return image.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BOX)


def text_only_guesser(train_rows: Iterable[Mapping[str, object]], held_out_rows: Sequence[Mapping[str, str]]) -> float:
    """Share of held-out questions that are answered right without a look at the image.

    The guesser says to each question what was the most frequent answer to the same text in training.

    Args:
        train_rows: Rows of the LLaVA manifest.
        held_out_rows: Rows of the benchmark.

    Returns:
        A share from 0 to 1.
    """
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train_rows:
        for question, answer in _exchanges(row["conversations"]):  # type: ignore[arg-type]
            seen[question][answer] += 1
    guesses = {question: answers.most_common(1)[0][0] for question, answers in seen.items()}
    return sum(guesses.get(row["question"]) == row["answer"] for row in held_out_rows) / len(held_out_rows)


def _exchanges(turns: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        yield human["value"].replace("<image>", "").strip(), gpt["value"]


def _write(root: Path, *, seed: int, num_train: int, num_held_out: int) -> None:
    held_out = held_out_scenes(seed, num_held_out=num_held_out)
    train = train_scenes(seed, num_train=num_train, num_held_out=num_held_out)
    rng = random.Random(f"questions {seed}")
    train_rows = [_train_row(number, scene, rng) for number, scene in enumerate(train)]
    held_out_rows = [_held_out_row(number, scene) for number, scene in enumerate(held_out)]
    for folder, scenes in (("train", train), ("held_out", held_out)):
        (root / folder).mkdir()
        for number, scene in enumerate(scenes):
            render(scene).save(root / _image_path(folder, number), compress_level=1)
    (root / "train.json").write_text(json.dumps(train_rows, indent=1), encoding="utf-8")
    (root / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in held_out_rows), encoding="utf-8")


def _train_row(number: int, scene: Scene, rng: random.Random) -> Row:
    turns: list[Row] = []
    for category in _categories(scene, rng):
        turns.append({"from": "human", "value": QUESTIONS[category]})
        turns.append({"from": "gpt", "value": scene.answer(category)})
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": f"shapes-{number:05d}", "image": _image_path("train", number), "conversations": turns}


def _categories(scene: Scene, rng: random.Random) -> list[str]:
    """What is asked of a scene, in a random order that never tells the number of shapes before it is asked."""
    general = ["color", "shape", "count"]
    rng.shuffle(general)
    if len(scene.spots) > 1:
        return general
    if rng.random() < 0.5:
        return [*general, "place"]
    return ["place", *(category for category in general if category != "count")]


def _held_out_row(number: int, scene: Scene) -> Row:
    category = _category(number)
    return {
        "id": f"held-out-{number:04d}",
        "image": _image_path("held_out", number),
        "question": QUESTIONS[category],
        "answer": scene.answer(category),
        "category": category,
    }


def _category(number: int) -> str:
    return list(QUESTIONS)[number % len(QUESTIONS)]


def _image_path(folder: str, number: int) -> str:
    return f"{folder}/{number:05d}.png"


def _draw_scene(rng: random.Random, num_shapes: int) -> Scene:
    cells = rng.sample(range(len(PLACES)), num_shapes)
    return Scene(
        kind=rng.choice(KINDS),
        color=rng.choice(list(COLORS)),
        spots=tuple(_draw_spot(rng, cell) for cell in sorted(cells)),
        background=rng.randint(225, 255),
    )


def _draw_number(rng: random.Random) -> int:
    return rng.choices(list(SHAPES_SHARES), weights=list(SHAPES_SHARES.values()))[0]


def _draw_spot(rng: random.Random, cell: int) -> Spot:
    radius = rng.choice(_RADII)
    slack = CELL_PIXELS // 2 - radius - 1  # neighbours never touch
    row, column = divmod(cell, IMAGE_PIXELS // CELL_PIXELS)
    x, y = (CELL_PIXELS * index + CELL_PIXELS // 2 + rng.randint(-slack, slack) for index in (column, row))
    return Spot(x=x, y=y, radius=radius)


def _circle(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, color: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _square(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, color: tuple[int, int, int]) -> None:
    draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=color)


def _triangle(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, color: tuple[int, int, int]) -> None:
    draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)


def _cross(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, color: tuple[int, int, int]) -> None:
    arm = math.ceil(radius / 3)
    draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
    draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)


_DRAWERS = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
