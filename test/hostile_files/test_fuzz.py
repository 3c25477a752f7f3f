"""A short slice of `benchmarks/fuzz.py`: damaged and hostile files are read or refused in one sentence."""

import contextlib

import pytest
from fuzzing.targets import REFUSALS, TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

# What the fuzzer found, by its numbers there: other exceptions than refusals, and gigabytes for a hundred bytes.
FOUND = {
    "bag": (19, 82, 176, 207, 228, 1633),
    "checkpoint": (339, 4637, 10_220),
    "clicks": (36, 223),
    "compressed": (27, 53, 98, 117, 289, 427, 439, 31_756, 32_633),
    "frames": (257,),
    "headers": (4192, 5400),
    "image": (18_786, 30_091),
    "lerobot": (60, 79, 277),
    "messages": (803_500_010,),
    "posts": (279,),
    "ros1": (1186, 17_509),
    "tokenizer": (2676, 6396, 9264, 12_738),
    "recipe": (5, 56, 73, 99, 246, 314, 375),
}


EXAMPLES = {"partial": 3}  # a third of a second each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", FOUND)
def test_what_the_fuzzer_found_is_refused(target, folder):
    for case in FOUND[target]:
        with contextlib.suppress(*REFUSALS):
            TARGETS[target](folder, case)


@pytest.mark.parametrize("target", TARGETS)
def test_other_damage_is_refused_too(target, folder):
    @settings(max_examples=EXAMPLES.get(target, 20), derandomize=True, deadline=None, database=None)
    @given(st.integers(10**6, 2**31))
    def run(case):
        with contextlib.suppress(*REFUSALS):
            TARGETS[target](folder, case)

    run()
