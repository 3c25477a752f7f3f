"""Fuzzing of everything that reads a user's file: recordings, pictures, calibrations, checkpoints, recipes, URDFs, ...

Every case is made from its number (test/support/fuzzing), so a finding is repeated by its number alone. Reading may
succeed or raise ValueError or OSError. A finding is another exception, a crash, more than 20 s of processor time, or
more than 1.5 GiB of memory (3 GiB reserved). Results are added to benchmarks/results/fuzz.json, and the next run goes
on behind them.

    python benchmarks/fuzz.py                        all targets, a minute each
    python benchmarks/fuzz.py bag --seconds 600      one target, for so much processor time
    python benchmarks/fuzz.py recipe --case 4711     one case, with its traceback
    python benchmarks/fuzz.py --again                the findings once more: what becomes of them now
    python benchmarks/fuzz.py --afresh 1000000       count cases and time anew, from this number; findings stay
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "test" / "support")]

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
SECONDS_PER_CASE = 20  # of processor time
MOST_MEMORY, MOST_RESERVED = 3 * 2**29, 3 * 2**30  # bytes more than before the case
_NOTHING: dict[str, Any] = {"first": 0, "cases": 0, "refused": 0, "cpu_s": 0.0}
BLOCK, BLOCK_SECONDS = 10_000, 120  # cases and processor time of one process, whichever ends first
HANGS_S = 3600  # a block that runs longer than this hangs where Python's signals do not reach


def main() -> None:
    from fuzzing.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each target")
    parser.add_argument("--case", type=int, help="run this case alone and show what happens")
    parser.add_argument("--again", action="store_true", help="run the cases that were findings once more")
    parser.add_argument("--afresh", type=int, metavar="FIRST", help="count anew, from this case")
    args = parser.parse_args()
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[args.targets[0]](Path(folder), args.case)
        print("no refusal")
    else:
        for target in args.targets:
            if args.afresh is not None:
                store(target, {**_NOTHING, "first": args.afresh, "findings": found(target)["findings"]})
            again(target) if args.again else fuzz(target, args.seconds)
        report()


def fuzz(target: str, seconds: float) -> None:
    """Run blocks of cases, each in a process of its own, until the time is used."""
    spent = 0.0
    while spent < seconds:
        known = found(target)
        done = _in_process(target, known["first"] + known["cases"], min(BLOCK_SECONDS, seconds - spent))
        known["cases"] += done["cases"]
        known["refused"] += done["refused"]
        known["cpu_s"] = round(known["cpu_s"] + done["cpu_s"], 1)
        seen = {finding["what"] for finding in known["findings"]}
        for finding in done["findings"]:
            if finding["what"] not in seen:
                known["findings"].append(finding)
                seen.add(finding["what"])
        spent += done["cpu_s"]
        store(target, known)


def again(target: str) -> None:
    """Run each finding once more and write beside it what becomes of it now."""
    known = found(target)
    for finding in known["findings"]:
        done = _in_process(target, finding["case"], 0.0)
        what = done["findings"][0]["what"] if done["findings"] else None
        finding["now"] = what or ("refused" if done["refused"] else "read")
    if known["findings"]:
        store(target, known)


def results() -> dict[str, Any]:
    """Return what earlier runs found, by target."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def found(target: str) -> dict[str, Any]:
    """Return what is known of one target. first: the number of its first case."""
    return {**_NOTHING, "findings": [], **results().get(target, {})}


def store(target: str, known: dict[str, Any]) -> None:
    """Write what is known of one target beside what is known of the others."""
    RESULTS.write_text(json.dumps({**results(), target: known}, indent=1) + "\n")


def report() -> None:
    """Print a line for each target and one for each finding."""
    for target, known in results().items():
        share = known["refused"] / max(1, known["cases"])
        print(
            f"{target:12s} {known['cases']:8d} cases, {share:4.0%} refused, {known['cpu_s']:8.1f} s of processor time"
        )
        for finding in known["findings"]:
            print(f"    case {finding['case']}: {finding['what']}; now {finding.get('now', 'not tried again')}")


def _in_process(target: str, first: int, within: float) -> dict[str, Any]:
    """Run one block in a fork, which has the libraries already; a crash is a finding, and the block ends there."""
    with tempfile.TemporaryDirectory() as folder:
        shown, errors = Path(folder, "shown"), Path(folder, "errors")
        sys.stdout.flush()
        if (process := os.fork()) == 0:
            code = 1
            try:
                for descriptor, path in ((1, shown), (2, errors)):  # native parsers quote the damaged bytes there
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
                run_block(target, range(first, first + BLOCK), within)
                sys.stdout.flush()
                code = 0
            except BaseException:  # the fuzzer's own
                traceback.print_exc()
            finally:
                os._exit(code)
        began = time.monotonic()
        ended, status, used = os.wait4(process, os.WNOHANG)
        while not ended:
            time.sleep(0.05)
            if time.monotonic() - began > HANGS_S:
                os.kill(process, signal.SIGKILL)
            ended, status, used = os.wait4(process, os.WNOHANG)
        if status == 0:
            return dict(json.loads(shown.read_text(errors="replace").splitlines()[-1]))
        said = errors.read_text(errors="replace")
    at = next((int(line.split()[1]) for line in reversed(said.splitlines()) if line[:5] == "case "), first)
    what = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said[-300:]
    cpu_s = used.ru_utime + used.ru_stime
    return {"cases": at - first + 1, "refused": 0, "cpu_s": cpu_s, "findings": [{"case": at, "what": what}]}


def run_block(target: str, cases: range, within: float) -> None:
    """Run cases until their end or that of the processor time, at least one; print what happened as a line of JSON."""
    import torch
    from fuzzing.targets import REFUSALS, TARGETS

    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _too_long)
    findings: list[dict[str, Any]] = []
    refused, began = 0, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            print(f"case {case}", file=sys.stderr, flush=True)
            before = _resident()
            resource.setrlimit(resource.RLIMIT_AS, (_reserved() + MOST_RESERVED, resource.RLIM_INFINITY))
            signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CASE)
            try:
                TARGETS[target](Path(folder), case)
            except REFUSALS:
                refused += 1
            except KeyboardInterrupt:
                raise
            except TooLong as error:
                findings.append({"case": case, "what": _described(error)})
                within = 0.0  # native code that was broken off may be in any state: a new process goes on
            except BaseException as error:  # panics of native libraries are no Exception
                findings.append({"case": case, "what": _described(error)})
            signal.setitimer(signal.ITIMER_PROF, 0)
            if _peak() - before > MOST_MEMORY:
                findings.append({"case": case, "what": f"took {(_peak() - before) / 2**30:.1f} GiB"})
                break  # the peak is of the whole process
            if time.process_time() - began >= within:
                break
    done = case - cases[0] + 1
    print(json.dumps({"cases": done, "refused": refused, "cpu_s": time.process_time() - began, "findings": findings}))


class TooLong(BaseException):
    """A case took longer than it may."""


def _too_long(number: int, frame: object) -> None:
    raise TooLong(f"more than {SECONDS_PER_CASE} s of processor time")


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


def _reserved() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()
