"""The page on families tells what the code knows."""

from __future__ import annotations

from pathlib import Path

from tests.families.fixtures import GRADIENTS
from tests.families.test_published import NODES, SIZES
from vlmkit.model.families import FAMILIES

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(): [cell.strip() for cell in cells[1:]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and len(cells := line.strip("| ").split(" | ")) == len(FAMILIES) + 1
}


def test_the_table_has_a_column_for_every_family():
    names = next(line for line in PAGE.splitlines() if line.startswith("| |")).strip("| ").split(" | ")
    assert names == [f"`{name}`" for name in FAMILIES]
    assert ROWS["class in transformers"] == [f"`{family.model_class}`" for family in FAMILIES.values()]
    assert [cell != "refused" for cell in ROWS["`model.kernels=liger`"]] == [each.liger for each in FAMILIES.values()]


def test_every_published_size_stands_in_the_column_of_its_family():
    told = [{word.strip("`") for word in cell.split(", ")} for cell in ROWS["published sizes, `model=`"]]
    assert set.union(*told) == set(SIZES)
    for family, names in zip(FAMILIES, told, strict=True):
        assert all(name.startswith(family.removesuffix("_moe")) for name in names)
        assert all(("_a" in name) == FAMILIES[family].experts for name in names)
    assert all(f"model={name} " in PAGE for name in ("qwen3_vl_8b", "vision32b_llm14b")), NODES.keys()


def test_what_it_names_exists():
    import re

    for path in re.findall(r"`((?:src|tests|conf|docs)/[\w/.]+)`", PAGE):
        assert (REPOSITORY / path).exists(), path


def test_the_tolerances_it_tells_are_those_of_the_tests():
    assert {f"{value:.0e}".replace("e-0", "e-").replace("e-10", "e-10") for value in GRADIENTS.values()} == {
        "1e-10",
        "1e-9",
        "2e-6",
    }
    assert all(value in PAGE for value in ("1e-10", "1e-9", "2e-6"))
