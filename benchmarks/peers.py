#!/usr/bin/env python3
"""Time decoder layers of the 7B geometry under this package, OpenVINO, llama.cpp and torchao, taken in turn.

Each peer runs in a process and in an environment of its own, made below `--cache` where it is missing; the project's
environment is only read. All compute the same layer with the same random weights (`peer_layers/stack.py`), 277
tokens as in a whole prefill and 175 as behind SQAP's pruning. What a variant computes is compared with float32 before
it is timed: a peer that is fast because it computes something else would show there. With rounding of random weights
and without calibration these errors say nothing else; recipes of this package round better than the rows here.

    python benchmarks/peers.py --cache out/peers --prepare     make environments and files: some minutes, once
    python benchmarks/peers.py --cache out/peers               time: two minutes, on a machine that does nothing else

Of a peer that cannot be installed, and of a variant that cannot be loaded, the table says why. Raw results go to
results/peers.json, the picture to results/peers.png; those of one thread are results/peers_1_threads.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_layers.stack import LAYERS, tokens, torch_stack
from processor import processor

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TOKENS = (277, 175)  # nothing pruned; 154 visual tokens kept of 256
BASELINE = ("this_package", "bf16")
PAUSE_S = 0.3  # until the threads of the one before have stopped spinning


@dataclass(frozen=True)
class Peer:
    """A contender's process.

    name: of its script in `peer_layers`, and of its environment. title: in tables. packages: to be installed; none for
    this package, which runs in the present environment. shares: the present environment's packages are seen as well,
    PyTorch among them. options, variables: of pip's call.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ()
    shares: bool = True
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


PEERS = (
    Peer("this_package", "this package"),
    Peer("openvino_layers", "OpenVINO", ("openvino==2026.4.1", "nncf==3.4.0")),
    Peer(
        "llama_layers",
        "llama.cpp",
        ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
        shares=False,
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
    Peer("torchao_layers", "torchao", ("torchao==0.18.0",), options=("--no-deps",)),
)


def environment(peer: Peer, cache: Path) -> Path:
    """Return the peer's Python, its environment made where it is missing. Raises CalledProcessError."""
    if not peer.packages:
        return Path(sys.executable)
    folder = cache / "environments" / peer.name
    python, ready = folder / "bin" / "python", folder / "ready.json"
    if ready.is_file() and json.loads(ready.read_text()) == list(peer.packages):
        return python
    print(f"installing {', '.join(peer.packages)} into {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    if peer.shares:
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(own) / "present_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", *peer.options, *peer.packages],
        check=True,
        stdout=sys.stderr,
        env=os.environ | peer.variables,
    )
    ready.write_text(json.dumps(peer.packages))
    return python


class Process:
    """A peer's process: asked one thing at a time, idle otherwise."""

    def __init__(self, peer: Peer, python: Path, cache: Path, threads: int) -> None:
        self.peer = peer
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        kept = cache / "files" / peer.name
        paths = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH"))))
        self._child = subprocess.Popen(
            [python, HERE / "peer_layers" / f"{peer.name}.py", kept],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | limits | {"PYTHONPATH": paths, "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor")},
        )
        self.about = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, {"error": why} where the process has ended."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with status {self._child.wait()}"}

    def close(self) -> None:
        """Let the process end."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.wait()


@contextlib.contextmanager
def started(peers: Sequence[Peer], cache: Path, threads: int) -> Iterator[tuple[list[Process], dict[str, str]]]:
    """Start the peers' processes; also returns why some are missing."""
    processes: list[Process] = []
    missing: dict[str, str] = {}
    try:
        for peer in peers:
            try:
                process = Process(peer, environment(peer, cache), cache, threads)
            except subprocess.CalledProcessError as error:
                missing[peer.title] = f"not installed: pip ended with status {error.returncode}"
                continue
            processes.append(process)
            if "error" in process.about:
                missing[peer.title] = f"does not start: {process.about['error']}"
        yield [process for process in processes if "error" not in process.about], missing
    finally:
        for process in processes:
            process.close()


def reference(cache: Path, count: int) -> Path:
    """Return the file of the float32 result for `count` tokens, computed where it is missing."""
    path = cache / "files" / f"reference_{count}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            result = torch_stack("float32")(torch.from_numpy(tokens(count))[None])
        np.save(path, result[0].numpy())
    return path


def loaded(processes: Sequence[Process], cache: Path, rows: dict[str, dict[str, Any]]) -> list[tuple[Process, str]]:
    """Load every variant and compare it with float32; the rows of those that fail say why."""
    contenders = []
    for process in processes:
        for variant in process.about["variants"]:
            row = rows[f"{process.peer.title}: {variant}"] = {"peer": process.peer.name, "variant": variant}
            row |= process.ask(load=variant)
            if "error" not in row:
                row |= process.ask(compare=variant, tokens=TOKENS[0], **{"with": str(reference(cache, TOKENS[0]))})
            print(f"{process.peer.title}: {variant}: {row}", file=sys.stderr)
            if "error" not in row:
                contenders.append((process, variant))
    return contenders


def take_turns(
    contenders: Sequence[tuple[Process, str]], rounds: int, rows: dict[str, dict[str, Any]]
) -> Iterator[int]:
    """Time the contenders, one after the other in every round: milliseconds a layer, by tokens, in their rows.

    Yields after every round, so that it can be saved.
    """
    for number in range(rounds):
        for count in TOKENS:
            for process, variant in contenders:
                time.sleep(PAUSE_S)
                row = rows[f"{process.peer.title}: {variant}"]
                answer = process.ask(run=variant, tokens=count, passes=2)
                if "error" in answer:
                    row["error"] = answer["error"]
                    continue
                row.setdefault("ms_a_layer", {}).setdefault(str(count), []).extend(ms / LAYERS for ms in answer["ms"])
        yield number


def measure(peers: Sequence[Peer], cache: Path, threads: int, rounds: int, out: Path) -> dict[str, dict[str, Any]]:
    """Return a row for each variant, and one for each peer that is missing; written to `out` after every round."""
    rows: dict[str, dict[str, Any]] = {}
    load_before = os.getloadavg()[0]
    with started(peers, cache, threads) as (processes, missing):
        contenders = loaded(processes, cache, rows)
        rows |= {title: {"peer": title, "variant": "", "error": why} for title, why in missing.items()}
        versions = {name: version for process in processes for name, version in process.about["versions"].items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        for _ in take_turns(contenders, rounds, rows):
            machine = {
                "processor": processor(),
                "threads": threads,
                "load_average": [load_before, os.getloadavg()[0]],
                "versions": versions,
            }
            out.write_text(json.dumps({"machine": machine, "tokens": TOKENS, "rows": rows}, indent=1) + "\n")
    return rows


def medians(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's median milliseconds a layer by tokens; empty where there are none."""
    return {count: statistics.median(times) for count, times in row.get("ms_a_layer", {}).items()}


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the Markdown table."""
    base = medians(next((row for row in rows.values() if (row["peer"], row["variant"]) == BASELINE), {}))
    lines = ["| | " + " | ".join(f"{count} tokens, ms a layer" for count in TOKENS) + " | error against float32 |"]
    lines.append("|---|" + "---|" * (len(TOKENS) + 1))
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} |" + " |" * len(TOKENS))
            continue
        found = medians(row)
        cells = [
            f"{found[str(count)]:.1f} ({base[str(count)] / found[str(count)]:.2f}×)"
            if base
            else f"{found[str(count)]:.1f}"
            for count in TOKENS
        ]
        notes = f" ({row['notes']})" if row.get("notes") else ""
        lines.append(f"| {name}{notes} | " + " | ".join(cells) + f" | {row['relative_error']:.3f} |")
    return lines


def figure(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the medians as bars, fastest last, with the quartiles of the passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {name: row for name, row in rows.items() if "ms_a_layer" in row and "error" not in row}
    order = sorted(shown, key=lambda name: medians(shown[name])[str(TOKENS[0])])
    panels, axes = plt.subplots(
        1, len(TOKENS), figsize=(10, 0.6 + 0.32 * len(order)), sharey=True, layout="constrained"
    )
    for axis, count in zip(axes, TOKENS, strict=True):
        for place, name in enumerate(order):
            times = shown[name]["ms_a_layer"][str(count)]
            low, middle, high = np.percentile(times, (25, 50, 75))
            own = shown[name]["peer"] == BASELINE[0]
            axis.barh(place, middle, color="#0072b2" if own else "#b0b0b0", xerr=[[middle - low], [high - middle]])
            axis.text(high, place, f" {middle:.0f}", va="center", fontsize=9)
        axis.set_title(f"{count} tokens", fontsize=10)
        axis.set_xlabel("ms a layer")
        axis.set_xlim(0, 1.12 * max(medians(row)[str(count)] for row in shown.values()))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(order)), order)
    panels.savefig(path, dpi=120)


def main() -> int:
    """Prepare or measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("out/peers"), help="environments and models, 6 GB")
    parser.add_argument("--prepare", action="store_true", help="make what is missing there, and time nothing")
    parser.add_argument("--only", nargs="*", choices=[peer.name for peer in PEERS], help="peers (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="make picture and table from --out again, and time nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    args = parser.parse_args()
    wanted = [peer for peer in PEERS if not args.only or peer.name in args.only]
    if args.draw:
        if not args.out.is_file():
            parser.error(f"--out {args.out}: no such file; measure first, without --draw")
        rows = json.loads(args.out.read_text())["rows"]
    elif args.prepare:
        with started(wanted, args.cache.resolve(), args.threads) as (processes, missing):
            loaded(processes, args.cache.resolve(), {})
        print("\n".join(f"{title}: {why}" for title, why in missing.items()))
        return 0
    else:
        rows = measure(wanted, args.cache.resolve(), args.threads, args.rounds, args.out)
    print("\n".join(table(rows)))
    figure(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
