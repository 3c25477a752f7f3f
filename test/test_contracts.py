"""The judgement of an instruction that all who take one share."""

import pytest

from sqap_vla_ros.contracts import unreadable


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
