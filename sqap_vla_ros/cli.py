"""`sqap-vla`: the tools around the node. Each room adds its own sub-commands.

A room's `commands.py` has `register(subparsers)`, which adds parsers and sets `run` on each:
`parser.set_defaults(run=function)`, where `function(args) -> int | None` gives the exit status. `commands.py` imports
nothing heavy at its top, so that `sqap-vla --help` answers at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from sqap_vla_ros import __version__

# In the order of --help.
ROOMS = ("evaluation", "training", "compression", "policy", "pruning")


def build_parser() -> argparse.ArgumentParser:
    """The parser with the sub-commands of every room."""
    parser = argparse.ArgumentParser(
        prog="sqap-vla", description="Compressed vision-language-action policies: demo, compression and inspection."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole Python traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in ROOMS:
        importlib.import_module(f"sqap_vla_ros.{room}.commands").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit status is 2 for bad input and 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        if args.traceback:
            raise
        print(f"sqap-vla: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
