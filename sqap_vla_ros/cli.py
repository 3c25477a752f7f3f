"""`sqap-vla`: the tools around the node, one file of `commands/` for each sub-command.

Each file has `register(subparsers)`, which adds a parser whose `run(args) -> int | None` returns the exit status. They
import nothing heavy at their top, so that `sqap-vla --help` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from sqap_vla_ros import __version__
from sqap_vla_ros.commands import (
    bops,
    compress,
    convert,
    demo,
    evaluate,
    inspect,
    predict,
    serve,
    tokens,
    train,
)
from sqap_vla_ros.commands.options import CommandParser, option_naming
from sqap_vla_ros.commands.recordings import record_demo, replay
from sqap_vla_ros.commands.robot import check, operate
from sqap_vla_ros.contracts import printable
from sqap_vla_ros.processes import Terminated, signals_raise

# In the order of --help.
COMMANDS = (
    demo,
    evaluate,
    record_demo,
    replay,
    train,
    compress,
    predict,
    serve,
    check,
    operate,
    inspect,
    convert,
    tokens,
    bops,
)


def build_parser() -> CommandParser:
    """Return the parser with every sub-command."""
    parser = CommandParser(
        prog="sqap-vla", description="Compressed vision-language-action policies: demo, compression and inspection."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole Python traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status.

    2 for bad input: nothing was done (`sqap-vla: error: ...`). 1 where some of the work, or all of it, failed after it
    was begun (`error: ...`). 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    args = argparse.Namespace(traceback=False, resumes=False, parser=None)
    try:
        args = build_parser().parse_args(argv)
        with signals_raise():
            return int(args.run(args) or 0)
    except (KeyboardInterrupt, Terminated) as error:
        ended = "terminated" if isinstance(error, Terminated) else "interrupted"
        print(f"{ended}{': the same command goes on from here' if args.resumes else ''}", file=sys.stderr)
        return int(error.code or 1) if isinstance(error, Terminated) else 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if args.traceback:
            raise
        print(f"sqap-vla: error: this needs {error.name}, which is not installed here", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        if args.traceback:
            raise
        from sqap_vla_ros.policy.checkpoints.writing import described

        target = str(vars(args).get("out", "standard output"))
        named = option_naming(args, getattr(error, "filename", None))
        said = f"{named}{described(error, resumes=args.resumes, target=target)}"
        print("sqap-vla: error:", "\n".join(printable(line, 4000) for line in said.split("\n")), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
