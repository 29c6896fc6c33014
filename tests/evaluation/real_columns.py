"""Small files with the columns that the benchmarks' data has on the hub and in VLMEvalKit's TSV files."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


def image(color: str = "red") -> dict:
    return {"bytes": png(color), "path": f"{color}.png"}


RED, BLUE, GREEN, GONE = image("red"), image("blue"), image("green"), {"bytes": None, "path": None}
METADATA = {
    "category": "math", "context": "chart", "grade": "high school", "img_height": 48, "img_width": 64,
    "language": "english", "skills": ["arithmetic"], "source": "x", "split": "testmini", "task": "figure qa",
}  # fmt: skip

HUB: dict[str, tuple[str, dict[str, list]]] = {
    "science_qa": (
        "ScienceQA-IMG/test-00000-of-00001.parquet",
        {
            "image": [RED, RED, None],
            "question": ["Which is red?", "Which is round?", "Which is text?"],
            "choices": [["this", "that"], ["ball", "box", "bar"], ["yes", "no"]],
            "answer": [0, 1, 1],
            "hint": ["", "Look at it.", ""],
            "task": ["closed choice"] * 3,
            "grade": ["grade2"] * 3,
            "subject": ["natural science", "natural science", "language science"],
            "topic": ["physics", "physics", "verbs"],
            "category": ["x"] * 3,
            "skill": ["x"] * 3,
            "lecture": [""] * 3,
            "solution": [""] * 3,
        },
    ),
    "textvqa": (
        "validation-00000-of-00001.parquet",
        {
            "image_id": ["a", "b"],
            "question_id": [7, 8],
            "question": ["what does NATO say?", "what brand?"],
            "question_tokens": [["what"], ["what"]],
            "image": [RED, BLUE],
            "image_width": [64, 64],
            "image_height": [48, 48],
            "answers": [["stop"] * 3 + ["go"] * 7, ["acme"] * 10],
            "image_classes": [["x"], ["x"]],
            "set_name": ["val", "val"],
            "ocr_tokens": [["STOP", "GO"], []],
        },
    ),
    "mmmu": (
        "validation-00000-of-00001.parquet",
        {
            "id": ["validation_Art_Theory_1", "validation_Math_2", "validation_Math_3"],
            "question": ["Compare <image 2> with <image 1>.", "How much is <image 1>?", "Which?<image 1>"],
            "options": ["['first', 'second']", "[]", "['<image 2>', 'none']"],
            "explanation": [""] * 3,
            "image_1": [RED, RED, RED],
            "image_2": [BLUE, None, GREEN],
            **{f"image_{number}": [None] * 3 for number in range(3, 8)},
            "img_type": ["['Photographs']"] * 3,
            "answer": ["B", "['3.5', '7/2']", "A"],
            "topic_difficulty": ["Easy", "Hard", "Hard"],
            "question_type": ["multiple-choice", "open", "multiple-choice"],
            "subfield": ["x", "y", "y"],
        },
    ),
    "seed": (
        "test-00000-of-00001.parquet",
        {
            "answer": ["A", "B", "C"],
            **{f"choice_{letter}": [f"option {letter}"] * 3 for letter in "abcd"},
            "data_id": ["1", "2", "3"],
            "data_type": ["image", "video", "image"],
            "question": ["What?", "What happens?", "How many?"],
            "question_id": ["101", "102", "103"],
            "question_type_id": [1, 10, 5],
            "image": [[RED], [RED, BLUE], [BLUE]],
            "segment": [None, ["0", "3"], None],
        },
    ),
    "mathvista": (
        "testmini-00000-of-00001.parquet",
        {
            "pid": ["1", "2", "3", "4"],
            "question": ["Which bar?", "How many?", "What mean?", "Which two?"],
            "image": ["images/1.jpg"] * 4,
            "decoded_image": [RED, RED, BLUE, GREEN],
            "choices": [["left", "right"], None, None, None],
            "unit": [None, None, "cm", None],
            "precision": [None, 1.0, 2.0, None],
            "answer": ["right", "12", "1.25", "[1, 2]"],
            "question_type": ["multi_choice", "free_form", "free_form", "free_form"],
            "answer_type": ["text", "integer", "float", "list"],
            "metadata": [METADATA] * 4,
            "query": ["Hint: x\nQuestion: Which bar?"] * 4,
        },
    ),
    "ai2d": (
        "test-00000-of-00001.parquet",
        {
            "question": ["Which eats?", "What is C?"],
            "options": [["fox", "grass", "sun", "soil"], ["moon", "star", "sun", "sky"]],
            "answer": ["0", "2"],
            "image": [RED, BLUE],
        },
    ),
    "chartqa": (
        "test-00000-of-00001.parquet",
        {
            "type": ["human_test", "human_test", "augmented_test"],
            "question": ["How many?", "Gone?", "Which year?"],
            "answer": ["14", "1", "2020"],
            "image": [RED, GONE, BLUE],
        },
    ),
    "docvqa": (
        "DocVQA/validation-00000-of-00001.parquet",
        {
            "questionId": ["49153", "24580"],
            "question": ["What is the date?", "Who signed?"],
            "question_types": [["form", "layout"], ["handwritten"]],
            "image": [RED, RED],
            "docId": [1, 1],
            "ucsf_document_id": ["x", "x"],
            "ucsf_document_page_no": ["1", "1"],
            "answers": [["1/8/93", "1 / 8 / 93"], ["Paul"]],
            "data_split": ["val", "val"],
        },
    ),
    "mmstar": (
        "val-00000-of-00001.parquet",
        {
            "index": [0, 1, 2],
            "question": [
                "Which colour?\nOptions: A: red, B: blue, C: green, D: black",
                "Where?\nOptions: A: left, B: right, up, C: down, D: none",
                "Why?\nOptions: A: x, B: y, C: z, D: w",
            ],
            "image": [RED, BLUE, GREEN],
            "answer": ["A", "B", "D"],
            "category": ["coarse perception", "coarse perception", "math"],
            "l2_category": ["image scene and topic", "image scene and topic", "geometry"],
            "meta_info": [{"source": "x", "split": "val", "image_path": "1.jpg"}] * 3,
        },
    ),
    "realworldqa": (
        "test-00000-of-00001.parquet",
        {
            "question": [
                "What is it?\nA. A dog\nB. A cat\nPlease answer directly with only the letter of the correct option and "
                "nothing else.",
                "Gone?",
                "Where to? ",
            ],
            "answer": ["B", "A", "Downhill"],
            "image": [RED, GONE, BLUE],
            "image_path": ["1.webp", "2.webp", "3.webp"],
        },
    ),
    "ocrbench": (
        "test-00000-of-00001.parquet",
        {
            "dataset": ["IIIT5K", "HME100k", "docVQA"],
            "question": ["What is written?", "Write the formula.", "What is the total?"],
            "question_type": [
                "Regular Text Recognition",
                "Handwritten Mathematical Expression Recognition",
                "Doc-oriented VQA",
            ],
            "answer": [["CENTRE"], ["x ^ 2"], ["12.50", "12,50"]],
            "image": [RED, BLUE, GREEN],
        },
    ),
}
"""File below the benchmark's folder, and its columns; GQA has two files and stands in `write_hub`."""

PLANTED: dict[str, tuple[dict[str, str], float, float]] = {
    "gqa": ({"201": "Yes.", "202": "two dogs", "203": "No"}, 100 / 3, 2 / 3),
    "science_qa": ({"0": "A", "1": "B. box", "2": "A"}, 200 / 3, 1.0),
    "textvqa": ({"7": "Stop.", "8": "ACME"}, 95.0, 1.0),
    "mmmu": ({"validation_Art_Theory_1": "(B)", "validation_Math_2": "It is 3.5", "validation_Math_3": "who knows"}, 200 / 3, 2 / 3),
    "seed": ({"101": "The answer is A.", "103": "no idea whatsoever"}, 50.0, 0.5),
    "mathvista": ({"1": "(B)", "2": "12", "3": "1.251", "4": "one and two"}, 75.0, 0.75),
    "ai2d": ({"0": "fox", "1": "B"}, 50.0, 1.0),
    "chartqa": ({"0": "14.5", "2": "1000"}, 100 / 3, 2 / 3),
    "docvqa": ({"49153": "1/8/93", "24580": "Pau"}, 87.5, 1.0),
    "mmstar": ({"0": "A", "1": "C", "2": "D. w"}, 200 / 3, 1.0),
    "realworldqa": ({"0": "a cat", "2": "Downhill."}, 200 / 3, 2 / 3),
    "ocrbench": ({"0": "It says Centre", "1": "x^2 + 1", "2": "13"}, 200 / 3, 1.0),
}  # fmt: skip
"""Planted answers by case id, the score in percent they earn, and the share that is understood."""


GQA = {
    "testdev_balanced_instructions/testdev-00000-of-00001.parquet": {
        "id": ["201", "202", "203"],
        "imageId": ["n1", "n2", "gone"],
        "question": ["Is it red?", "What is there?", "Is it there?"],
        "answer": ["yes", "dog", "no"],
        "fullAnswer": ["Yes, it is.", "A dog.", "No."],
        "isBalanced": [True] * 3,
    },
    "testdev_balanced_images/testdev-00000-of-00001.parquet": {"id": ["n1", "n2"], "image": [RED, BLUE]},
}
"""Files and columns of GQA: questions and images lie in two configurations."""


def files_of(name: str) -> dict[str, dict[str, list]]:
    """Columns of each Parquet file of a benchmark, by its path below the benchmark's folder."""
    return dict([HUB[name]]) if name != "gqa" else GQA


def write_hub(root: Path, name: str) -> Path:
    """The Parquet files of a benchmark under `root/<name>`, as its repository on the hub lays them out."""
    for file, columns in files_of(name).items():
        write_columns(root / name / file, columns)
    return root


def write_saved(root: Path, name: str) -> Path:
    """The same rows as `datasets` saves them, `<config>/<split>`, images as its own feature."""
    from datasets import Dataset, Image, Sequence

    for file, columns in files_of(name).items():
        columns = {key: [None if value == GONE else value for value in values] for key, values in columns.items()}
        data = Dataset(pa.table(columns))
        for column, values in columns.items():
            first = next((value for value in values if value), None)
            if isinstance(first, dict) and "bytes" in first:
                data = data.cast_column(column, Image())
            elif isinstance(first, list) and isinstance(first[0], dict) and "bytes" in first[0]:
                data = data.cast_column(column, Sequence(Image()))
        folder, split = (root / name / file).parent, Path(file).stem.split("-")[0]
        data.save_to_disk(str(folder / split))
    return root


def write_columns(path: Path, columns: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


PICTURE = base64.b64encode(png("blue")).decode()
CHOICES = {"A": "a dog", "B": "a cat", "category": "animals", "l2-category": "nature"}
TSV: dict[str, tuple[str, list[dict[str, str]]]] = {
    "gqa": ("GQA_TestDev_Balanced", [{"question": "Is it red?", "answer": "yes", "category": "x"}]),
    "science_qa": ("ScienceQA_TEST", [{"question": "Which?", "answer": "B", "hint": "Look.", **CHOICES}]),
    "textvqa": ("TextVQA_VAL", [{"question": "Which Brand?", "answer": str(["acme"] * 10)}]),
    "mmmu": (
        "MMMU_DEV_VAL",
        [
            {"question": "Is <image 1> it?", "answer": "B", "split": "validation", **CHOICES},
            {"question": "Not this one", "answer": "A", "split": "dev", **CHOICES},
            {"question": "How much?", "answer": "3.5", "split": "validation"},
        ],
    ),
    "seed": ("SEEDBench_IMG", [{"question": "Which?", "answer": "B", **CHOICES}]),
    "mathvista": (
        "MathVista_MINI",
        [
            {
                "question": "Hint: x\nQuestion: Which?",
                "answer": "a cat",
                "answer_option": "B",
                "choices": "['a dog', 'a cat']",
                "question_type": "multi_choice",
                "answer_type": "text",
                "task": "figure qa",
                "skills": "['x']",
            }
        ],
    ),
    "ai2d": ("AI2D_TEST", [{"question": "Which?", "answer": "B", **CHOICES}]),
    "chartqa": ("ChartQA_TEST", [{"question": "How much?", "answer": "[12, 13]", "split": "test_human"}]),
    "docvqa": ("DocVQA_VAL", [{"question": "Who?", "answer": "['Paul', 'Paula']"}]),
    "mmstar": ("MMStar", [{"question": "Which?", "answer": "B", **CHOICES}]),
    "realworldqa": ("RealWorldQA", [{"question": "Which?", "answer": "B", **CHOICES}]),
    "ocrbench": ("OCRBench", [{"question": "Read!", "answer": "['EXIT']", "category": "Regular Text Recognition"}]),
}
"""Name of the file and its rows, without index and image."""
TSV_RIGHT = {
    "gqa": ["yes"], "science_qa": ["B"], "textvqa": ["Acme."], "mmmu": ["B", "3.5"], "seed": ["a cat"], "mathvista": ["(B)"],
    "ai2d": ["The answer is B"], "chartqa": ["12.4"], "docvqa": ["paula"], "mmstar": ["B"], "realworldqa": ["a cat"],
    "ocrbench": ["the EXIT sign"],
}  # fmt: skip
"""An answer to each case of these files that earns everything by the default protocol."""


def write_tsv(root: Path, name: str) -> Path:
    """VLMEvalKit's file of a benchmark; its second row refers to the image of the first."""
    stem, rows = TSV[name]
    full = [{"index": str(100 + n), "image": PICTURE if n == 0 else "100", **row} for n, row in enumerate(rows)]
    columns = list(dict.fromkeys(column for row in full for column in row))
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{stem}.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(full)
    return root
