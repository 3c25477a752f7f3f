"""The options of every sub-command, from its parser, and the answer to what is typed."""

import argparse

from sqap_vla_ros import cli

GIVEN = {  # what each command needs before any option is tried
    "record-demo": ["OUT"],
    "replay": ["BAG"],
    "train": ["--out", "OUT"],
    "compress": ["--checkpoint", "micro", "--out", "OUT"],
    "predict": ["--image", "IMAGE", "--instruction", "pick up the can"],
    "inspect": ["CHECKPOINT"],
    "convert": ["CHECKPOINT", "OUTPUT"],
    "inspect-tokens": ["--image", "IMAGE"],
}


def parsers():
    (subparsers,) = (a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return subparsers.choices.items()


def options():
    for name, parser in parsers():
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and "--help" not in action.option_strings:
                yield name, action.option_strings[-1], action.nargs if isinstance(action.nargs, int) else 1


def answer(arguments, capsys):
    status = cli.main(arguments)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    if status == 2:
        said = [line for line in shown.err.splitlines() if not line.startswith("note: ")]
        assert said[0].startswith("sqap-vla: error: "), shown.err
        assert len(said) <= 13, shown.err  # a list of candidates may follow
    return status
