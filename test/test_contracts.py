"""The judgement of an instruction that all who take one share, and what differs between two policies."""

from dataclasses import replace

import pytest

from sqap_vla_ros.contracts import PolicyInfo, printable, unreadable
from sqap_vla_ros.policy.costs import size_in_words


@pytest.mark.parametrize(
    "instruction",
    [
        "pick up the can",
        "7",
        "\0pick",
        ":-)",
        "\u628a\u676f\u5b50\u62ff\u8d77\u6765",
        "\u0434\u0430",
        "ramasse la bo\u00eete!",
    ],
)
def test_what_can_be_read_in_any_language_is_an_instruction(instruction):
    assert unreadable(instruction) is None


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "\0", "\x1b\x07", "\u200b\u200d\ufeff", "\u3164", "\u2800", "\u202e", "\u0301", "\ud800"],
)
def test_what_nobody_can_read_is_no_instruction(text):
    problem = unreadable(text)
    assert "say what to do" in problem
    assert problem.isascii()  # nothing of it reaches a terminal or a log
    assert problem.isprintable()


def test_a_text_of_unknown_origin_does_no_harm_to_a_terminal():
    assert printable("cam\u00e9ra \u6f22") == "cam\u00e9ra \u6f22"
    assert printable("a\nb\x1b[31m\udce9") == r"a\nb\x1b[31m\udce9"
    assert printable("a" * 5000 + ": name another") == "a" * 300 + " ... " + "a" * 286 + ": name another"


def test_what_differs_between_two_policies_is_said_briefly():
    first = PolicyInfo("/models/first.safetensors", "a" * 64, "fp32", 10, 16, 0.2, 224, (16, 16), "bridge_orig", "")
    assert first.differences(first) == ""
    assert replace(first, recipe="sqap_w4a8").differences(first) == "recipe sqap_w4a8, was fp32"
    second = replace(first, checkpoint="/models/second.pt", checkpoint_sha256="b" * 64, recipe="sqap", horizon=8)
    said = second.differences(first)
    assert said == "checkpoint …els/second.pt, was …t.safetensors; recipe sqap, was fp32; 2 more"
    assert len(said) <= 100
    steps = [f"ddim {count} steps, guidance 1.5, tokenizer ef24b3e7" for count in (10, 2)]
    said = replace(first, settings=steps[1]).differences(replace(first, settings=steps[0]))
    assert said == "settings … 2 steps, guid…, was … 10 steps, gui…"
    costs = {"bits_per_parameter": 4.5, "weight_mb": 10.0}
    said = replace(first, costs={**costs, "weight_mb": 12.0}).differences(replace(first, costs=costs))
    assert said == "costs weight_mb 12.0, was 10.0"
    assert replace(first, costs=costs).differences(first) == "costs bits_per_parameter 4.5, was none"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "nothing"), (700, "0.7 KiB"), (2**19, "0.50 MiB"), (3 * 2**29, "1.50 GiB"), (2**30 - 2**24, "1008.00 MiB")],
)
def test_a_size_has_a_unit_that_shows_it(count, words):
    assert size_in_words(count) == words
