"""Fuzzing of everything that reads a user's file: bags, pictures, calibrations, checkpoints, recipes, tokenizers.

Every case is made from its number (test/support/fuzzing/targets.py), so a finding is repeated by its number alone.
Reading may succeed or raise ValueError or OSError; another exception, a crash, more than 20 s or more than 1.5 GiB of
memory is a finding. Results are added to benchmarks/results/fuzz.json, and the next run goes on behind them.

    python benchmarks/fuzz.py                        all targets, a minute each
    python benchmarks/fuzz.py bag --seconds 600      one target, for so much processor time
    python benchmarks/fuzz.py recipe --case 4711     one case, with its traceback
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "test" / "support")]

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
SECONDS_PER_CASE, MOST_MEMORY, BLOCK = 20, 3 * 2**29, 500


def main() -> None:
    from fuzzing.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each target")
    parser.add_argument("--case", type=int, help="run this case alone and show what happens")
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)  # first case of a block, in a process of its own
    args = parser.parse_args()
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[args.targets[0]](Path(folder), args.case)
        print("no refusal")
    elif args.block is not None:
        run_block(args.targets[0], args.block)
    else:
        for target in args.targets:
            fuzz(target, args.seconds)
        report()


def fuzz(target: str, seconds: float) -> None:
    """Run blocks of cases, each in a process of its own, until the time is used."""
    spent = 0.0
    while spent < seconds:
        known = results().get(target, {"cases": 0, "refused": 0, "cpu_s": 0.0, "findings": []})
        done = json.loads(_in_process(target, known["cases"]))
        known["cases"] += done["cases"]
        known["refused"] += done["refused"]
        known["cpu_s"] = round(known["cpu_s"] + done["cpu_s"], 1)
        seen = {finding["what"] for finding in known["findings"]}
        known["findings"] += [finding for finding in done["findings"] if finding["what"] not in seen]
        spent += done["cpu_s"]
        RESULTS.write_text(json.dumps({**results(), target: known}, indent=1) + "\n")


def results() -> dict[str, Any]:
    """Return what earlier runs found, by target."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def report() -> None:
    """Print a line for each target and one for each finding."""
    for target, known in results().items():
        share = known["refused"] / max(1, known["cases"])
        print(
            f"{target:12s} {known['cases']:8d} cases, {share:4.0%} refused, {known['cpu_s']:8.1f} s of processor time"
        )
        for finding in known["findings"]:
            print(f"    case {finding['case']}: {finding['what']}")


def _in_process(target: str, first: int) -> str:
    """Run one block; a crash is a finding, and the block ends there."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, target, "--block", str(first)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode == 0:
        return process.stdout.splitlines()[-1]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    at = next((int(line.split()[1]) for line in reversed(process.stderr.splitlines()) if line[:5] == "case "), first)
    what = f"ended by signal {-process.returncode}" if process.returncode < 0 else process.stderr[-300:]
    cpu_s = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    found = {"cases": at - first + 1, "refused": 0, "cpu_s": cpu_s, "findings": [{"case": at, "what": what}]}
    return json.dumps(found)


def run_block(target: str, first: int) -> None:
    """Run cases first ... first + BLOCK - 1 and print what happened as one line of JSON."""
    import torch
    from fuzzing.targets import REFUSALS, TARGETS

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    findings, refused, began = [], 0, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(first, first + BLOCK):
            print(f"case {case}", file=sys.stderr, flush=True)
            before = _resident()
            signal.alarm(SECONDS_PER_CASE)
            try:
                TARGETS[target](Path(folder), case)
            except REFUSALS:
                refused += 1
            except BaseException as error:  # panics of native libraries are no Exception
                findings.append({"case": case, "what": _described(error)})
            signal.alarm(0)
            if _peak() - before > MOST_MEMORY:
                findings.append({"case": case, "what": f"took {(_peak() - before) / 2**30:.1f} GiB"})
                break  # the peak is of the whole process
    done = case - first + 1
    print(json.dumps({"cases": done, "refused": refused, "cpu_s": time.process_time() - began, "findings": findings}))


class TooLong(BaseException):
    """A case took longer than it may."""


def _too_long(number: int, frame: object) -> None:
    raise TooLong(f"more than {SECONDS_PER_CASE} s")


def _described(error: BaseException) -> str:
    """Return type, message and the last place in this package."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "sqap_vla_ros" in frame.filename]
    place = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:150]}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return _peak()


if __name__ == "__main__":
    main()
