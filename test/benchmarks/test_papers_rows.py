"""The rows of the papers' tables: each can be found and understood by itself."""

import csv
import importlib
import json
from collections import Counter
from pathlib import Path

import pytest

from sqap_vla_ros.compression.recipe import load_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STUDY = BENCHMARKS / "results" / "closed_loop"


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("papers_rows")


def test_every_row_is_named_without_its_neighbours(rows):
    for section in rows.SECTIONS:
        words = [entry.words for entry in section.entries]
        assert len(set(words)) == len(words), section.key
        assert [each for each in words if "the same" in each] == []  # as what? tables.md may be read from the middle


def test_what_the_tables_hold_as_csv_is_a_row_of_the_page_too(rows):
    page = (STUDY / "tables.md").read_text()
    words = {entry.name: entry.words for section in rows.SECTIONS for entry in section.entries}
    with (STUDY / "tables.csv").open() as file:
        methods = {line["method"] for line in csv.DictReader(file)}
    assert {"coverage_w4a8_full", "coverage_w4a8_head8"} <= methods
    assert [method for method in sorted(methods) if f"| {words[method]} |" not in page] == []


def test_run_asks_for_the_episodes_that_are_stored(rows):
    """Beside what was stopped before its end, which docs/benchmark.md names."""
    asked: dict[tuple[str, str], int] = {}
    for section in rows.SECTIONS:
        for name in (entry.name for entry in section.entries):
            asked[name, section.suite] = max(asked.get((name, section.suite), 0), 6 * section.episodes_of(name))
        assert set(section.other_counts) <= {entry.name for entry in section.entries}, section.key
    stored: Counter[tuple[str, str]] = Counter()
    for file in (STUDY / "episodes").glob("*.jsonl"):
        stored.update((file.stem, json.loads(line)["suite"]) for line in file.read_text().splitlines())
    stopped = {("fp32_h1", rows.VM), ("qvla_w2.5a8", rows.VM), ("qvla_w2.5a8", rows.VA)}
    stopped |= {("w2a8_weighted", rows.VM), ("w2a8_weighted", rows.VA)}
    assert {key for key in {*asked, *stored} if asked.get(key, 0) != stored[key]} == stopped


def test_the_row_with_an_eight_bit_head_differs_from_the_shipped_recipe_in_the_head_alone(rows):
    """Its episodes are of `coverage_w4a8_full` as it was first, whose digest was this."""
    (entry,) = [entry for entry in rows.INTEGER_TOWERS if entry.name == "coverage_w4a8_head8"]
    recipe, shipped = entry.recipe(), load_recipe("coverage_w4a8_full")
    assert recipe.digest == "913dec900d4cd4fe80f26246f9dab4d22db2e9bb612e1b30bc4bff9e3afabef5"
    assert dict(recipe.quantization.parts) == dict(shipped.quantization.parts) | {"action_head": 8}
    assert (recipe.pruning, recipe.head_dtype) == (shipped.pruning, shipped.head_dtype)
