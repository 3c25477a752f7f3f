"""Everything that a GPU is asked, in one command of under nine minutes: `make gpu`.

    python benchmarks/gpu.py [--out benchmarks/results/gpu] [--seconds 510]

Parts run one after the other, each in a process of its own with a share of the time:

* exact: backend triton's kernels against their definitions (triton_exactness.py);
* linear: one decoder linear, launched and captured (linear.py --device cuda);
* geometry: the whole 7B geometry, one variant after the other (full_geometry.py --device cuda).

Each writes its result as soon as it has one, and its whole output to a file beside it. A part that fails or takes too
long does not keep the next from running, and no variant of the geometry the next one; table.md is written anew after
each part, and printed even where the disk is full. Results of an earlier run are kept as *.earlier. Tiles that were
chosen are in the output of `linear`. Needs torch, transformers, triton and a C compiler for Triton's launcher, no
network and no set-up. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORTH_STARTING_S = 20.0  # a part with less time than this is left out


@dataclass(frozen=True)
class Part:
    """A script and the share of the time that is left when its turn comes.

    result: the file it writes in the folder of results; none for a part that only passes or fails.
    """

    name: str
    command: tuple[str, ...]
    share: float
    result: str = ""


VARIANTS = (
    "bf16",
    "bf16_prepared",
    "w4a8",
    "sqap_w4a8",
    "sqap_qvla",
    "coverage_w4a8_full",
    "w4a4",
    "sqap",
    "qvla_w3a8",
    "bf16_pruned",
)
PARTS = (
    Part("exact", ("triton_exactness.py", "cuda"), 0.35),
    Part("linear", ("linear.py", "--device", "cuda", "--repeats", "9"), 0.35, "linear_cuda.json"),
    Part(
        "geometry",
        ("full_geometry.py", "--device", "cuda", "--rounds", "20", "--limit", "120", "--variants", *VARIANTS),
        1.0,
        "full_geometry_cuda.json",
    ),
)


def run(parts: Sequence[Part], folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Run the parts within `seconds`; return for each how it ended. summary.json and table.md follow every part."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    ended: dict[str, dict[str, Any]] = {}
    for part in parts:
        started = time.monotonic()
        left = deadline - started
        put_aside(folder / part.result if part.result else None)
        if left < WORTH_STARTING_S:
            ended[part.name] = {"status": "left out, no time", "seconds": 0.0}
        else:
            status = run_part(part, folder, part.share * left)
            ended[part.name] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
        keep(folder / "summary.json", json.dumps(ended, indent=1) + "\n")
        keep(folder / "table.md", table(parts, folder, ended))
        print(f"{part.name}: {ended[part.name]['status']}, {ended[part.name]['seconds']:.0f} s", flush=True)
    return ended


def put_aside(result: Path | None) -> None:
    """Rename the result of an earlier run, which would be taken for this one's."""
    if result is not None and result.exists():
        result.replace(result.with_name(f"{result.name}.earlier"))


def keep(path: Path, text: str) -> None:
    """Write a file, or say why it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        print(f"{path} is not written: {error}", flush=True)


def run_part(part: Part, folder: Path, seconds: float) -> str:
    """Run one part, ended after `seconds`; return "done", or why there is no result or only a part of it."""
    script, *arguments = part.command
    command = [sys.executable, "-u", str(HERE / script), *arguments]
    if part.result:
        command += ["--out", str(folder / part.result)]
    paths = (str(HERE.parent), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",  # so that nothing waits for a network that is not there
    }
    try:
        log = (folder / f"{part.name}.log").open("w")
    except OSError as error:
        return f"not started: {error}"
    with log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        finally:  # at Ctrl-C too, which does not reach another session
            if process.poll() is None:
                os.killpg(process.pid, 9)  # with the processes that it started
                process.wait()
    return "done" if status == 0 else f"failed with status {status}, see {part.name}.log"


def table(parts: Sequence[Part], folder: Path, ended: dict[str, dict[str, Any]]) -> str:
    """Return what is known so far, as Markdown."""
    lines = ["| part | result | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {each['status']} | {each['seconds']:.0f} |" for name, each in ended.items()]
    for part in parts:
        path = folder / part.result
        if part.result and path.is_file():
            try:
                content = json.loads(path.read_text())
            except ValueError:  # its process was ended while it wrote
                lines += ["", f"{part.name}: {part.result} is cut off"]
                continue
            rows = linear_rows(content) if "rows" in content else geometry_rows(content)
            lines += ["", f"{part.name}, {content['machine']['device']}:", "", *rows]
    return "\n".join(lines) + "\n"


def linear_rows(content: dict[str, Any]) -> list[str]:
    """Return a row for every linear and number of tokens: median milliseconds of every contender."""
    rows = content["rows"]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row["median_ms"]))  # a contender may fail in some
    lines = [f"| linear | tokens | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        medians = row["median_ms"]
        cells = " | ".join(f"{medians[name]:.4f}" if name in medians else "" for name in names)
        lines.append(f"| {row['linear']} | {row['tokens']} | {cells} |")
    return lines


def geometry_rows(content: dict[str, Any]) -> list[str]:
    """Return a row for every variant: milliseconds, ratios to eager and captured bf16, peak memory, stages."""
    lines = [
        "| variant | ms | over eager bf16 | over captured bf16 | peak GiB | stages, ms |",
        "|---|---|---|---|---|---|",
    ]
    medians = {
        name: statistics.median(each["total_ms"]) for name, each in content["variants"].items() if "total_ms" in each
    }
    for name, each in content["variants"].items():
        if name not in medians:
            lines.append(f"| {name} | failed | | | | |")
            continue
        ratios = [
            f"{medians[base] / medians[name]:.2f}" if base in medians else "" for base in ("bf16", "bf16_prepared")
        ]
        stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in each["stages_ms"].items())
        cells = [name, f"{medians[name]:.2f}", *ratios, f"{each['peak_gib']:.1f}", stages]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def gpu_problem() -> str:
    """Return why PyTorch cannot measure on a GPU here, "" where it can."""
    try:
        import torch
    except Exception as error:  # not installed, or its libraries do not load: ImportError, OSError, ValueError, …
        return (
            f"make gpu needs PyTorch, which cannot be imported: {first_line(error)}; name a Python that has it, "
            "as in make gpu PYTHON=python3"
        )
    try:
        if not torch.cuda.is_available():
            return "PyTorch sees no CUDA device here, so there is nothing to measure."
        torch.zeros(1, device="cuda")  # a driver may count devices that it cannot use
    except Exception as error:
        return (
            f"PyTorch cannot use the GPU here: {first_line(error)}; nvidia-smi has to work, and the driver has to be "
            "new enough for the CUDA of this build of PyTorch"
        )
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, the name of its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def main() -> int:
    """Run all parts where there is a GPU; status 1 when one of them did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=510.0, help="for everything together")
    args = parser.parse_args()
    if problem := gpu_problem():
        print(problem)
        return 1
    ended = run(PARTS, args.out.absolute(), args.seconds)
    print(table(PARTS, args.out.absolute(), ended))
    return 0 if all(each["status"] == "done" for each in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
