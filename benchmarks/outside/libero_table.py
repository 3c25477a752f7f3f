"""Compare recipes on LIBERO through vla-eval's runner: the same initial states for each, paired; goes on where it was.

    python benchmarks/outside/libero_table.py --out out/libero/table                the policy that ships
    python benchmarks/outside/libero_table.py policy.safetensors --demonstrations demonstrations --out table

Runs in the package's environment and starts LIBERO's own (LIBERO_VENV, made by libero_environment.sh) for the
benchmark. Recipes that quantise are compressed once, calibrated on the pictures that ship or on some of the
demonstrations. Each of --jobs processes of the benchmark has a server of its own, so that a policy never predicts for
two together and the number of processes changes no bit. vla-eval keeps the episodes and what is left to do in
OUT/SUITE-RECIPE: a run that was interrupted repeats the episodes that were under way. Its reports lie there too;
OUT/episodes.jsonl and OUT/table.md have all rows that lie in OUT, those of former calls too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sqap_vla_ros.compression.calibration import INSTRUCTIONS_FILE, folder_observations
from sqap_vla_ros.compression.files.job import observations_digest
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson
from sqap_vla_ros.processes import signals_raise
from sqap_vla_ros.shipped import LIBERO_OBJECT, LIBERO_PICTURES, SHIPPED

HERE = Path(__file__).parent
SUITES = ("libero_object", "libero_object_swap")
RECIPES = ("fp32", "w4a4", "w4a8", "coverage_w4a8", "sqap", "qvla_w4a8", "fastv", "random_drop")
ORDER = (SUITES, RECIPES)  # of the rows
TASKS = 10  # of each of these suites
CALIBRATION_PICTURES = 48
EVALUATION = "table"  # vla-eval's name of it, in the name of its database
COMMAND = (sys.executable, "-m", "sqap_vla_ros.cli")


def calibration(demonstrations: Path, folder: Path) -> Path:
    """Write pictures of the demonstrations, spread over their shards, as a folder that `compress` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    instructions = json.loads((demonstrations / "dataset.json").read_text())["instructions"]
    shards = sorted(demonstrations.glob("shard[0-9][0-9][0-9][0-9]"))
    if not shards:
        raise SystemExit(f"{demonstrations} holds no shards to calibrate on")
    lines = []
    for number in range(CALIBRATION_PICTURES):
        shard = shards[number % len(shards)]
        images = np.load(shard / "image.npy", mmap_mode="r")
        row = number * 37 % len(images)
        asked = int(np.load(shard / "instruction.npy")[row, 0])
        Image.fromarray(np.asarray(images[row])).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png\t{instructions[asked]}")
    (folder / INSTRUCTIONS_FILE).write_text("\n".join(lines) + "\n")
    return folder


def compressed(checkpoint: Path, recipe: str, pictures: Path, out: Path) -> Path:
    """Return the file to serve: the checkpoint, or what the recipe makes of it, which is written once."""
    quantization = load_recipe(recipe).quantization
    if quantization is None or not quantization.needs_calibration:
        return checkpoint
    path = out / f"{recipe}.safetensors"
    if not path.is_file():
        arguments = ("--checkpoint", checkpoint, "--recipe", recipe, "--calibration", pictures, "--out", path)
        count = ("--observations", str(CALIBRATION_PICTURES))
        run([*COMMAND, "compress", *arguments, *count])
    return path


@contextmanager
def served(checkpoint: Path, recipe: str, camera: Path | None, horizon: int, logs: list[Path]) -> Iterator[list[str]]:
    """Serve a policy while the block runs, once for each log; gives the addresses.

    camera: projects the tool's pose for recipes that keep tokens around it; clients need not send a pose without it.
    """
    arguments = ["--checkpoint", checkpoint, "--recipe", recipe, "--execution-horizon", horizon, "--threads", 1]
    arguments += ["--action-space", "libero", "--image-key", "agentview"]
    arguments += [] if camera is None else ["--simulator-camera", camera, "--mirrored"]
    servers: list[tuple[subprocess.Popen[bytes], int, Path]] = []
    try:
        for log in logs:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with log.open("a") as file:
                command = [*COMMAND, "serve", *map(str, arguments), "--port", str(port)]
                servers.append((subprocess.Popen(command, stdout=file, stderr=file), port, log))
        for server, port, log in servers:
            while not _healthy(port):
                if server.poll() is not None:
                    raise SystemExit(f"the server ended: {log.read_text()[-500:]}")
                time.sleep(0.5)
        yield [f"ws://127.0.0.1:{port}/vla-eval" for _, port, _ in servers]
    finally:
        for server, _, _ in servers:
            server.terminate()
        for server, _, _ in servers:
            server.wait(30)


def _healthy(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy leads elsewhere
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except OSError:
        return False


def run(command: Sequence[Any], **how: Any) -> None:
    """Run a command to its end; one that is interrupted is ended in its own way. Raises CalledProcessError."""
    process = subprocess.Popen([*map(str, command)], **how)
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait(60)
        raise
    if status:
        raise subprocess.CalledProcessError(status, [*map(str, command)])


def environment_of_libero() -> Path:
    """Return the folder of LIBERO's environment. Raises SystemExit where there is none."""
    venv = Path(os.environ.get("LIBERO_VENV", "out/libero/venv")).resolve()
    if not (venv / "bin" / "vla-eval").is_file():
        raise SystemExit(f"{venv} is no environment of LIBERO: make it with libero_environment.sh, or set LIBERO_VENV")
    return venv


def environment(out: Path, jobs: int = 1) -> dict[str, str]:
    """Return the variables for LIBERO's own interpreter, of which `jobs` run at a time."""
    values = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if jobs >= (os.cpu_count() or 1):
        values["LP_NUM_THREADS"] = "0"  # Mesa draws in the process's own thread
    values |= {
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "MUJOCO_GL": "osmesa",
        "PYTHONPATH": str(HERE),
    }
    return {**values, "LIBERO_CONFIG_PATH": str(out / "config")}


class Run:
    """The episodes of one suite with one recipe, kept by vla-eval in a database. folder: where that is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = folder / f"recording-{EVALUATION}.sqlite"

    def _rows(self, query: str) -> list[Any]:
        if not self._database.is_file():
            return []
        connection = sqlite3.connect(self._database, timeout=60.0)
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # made, but without tables yet
            return []
        finally:
            connection.close()

    def progress(self) -> tuple[int, int]:
        """Return how many episodes are done, and of how many; 0 of 0 before the first start."""
        found = self._rows("SELECT COALESCE(SUM(done), 0), COUNT(*) FROM work_queue")
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def finished(self) -> bool:
        """Return whether every episode is done and none failed to run."""
        done, total = self.progress()
        return 0 < total == done and not self.failure()

    def failure(self) -> str:
        """Return why an episode could not be run; empty where all could."""
        rows = self._rows(
            "SELECT task_name, failure_reason, failure_detail FROM episode_results WHERE status = 'error'"
        )
        return "" if not rows else f"{rows[0][0]}: {rows[0][1]}, {str(rows[0][2]).strip().splitlines()[-1]}"

    def release(self) -> None:
        """Give back the episodes that a process took and did not finish, and those that could not be run."""
        if not self._database.is_file():
            return
        connection = sqlite3.connect(self._database, timeout=60.0)
        with connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"work_queue", "episode_results"} <= tables:
                return
            failed = "FROM episode_results WHERE status = 'error'"
            for context, episode in connection.execute(f"SELECT context, episode_id {failed}").fetchall():
                task = json.loads(context)["task_idx"]
                item = "SELECT item FROM work_queue WHERE task_idx = ? ORDER BY item LIMIT 1 OFFSET ?"
                connection.execute(f"UPDATE work_queue SET done = 0 WHERE item = ({item})", (task, episode))
            connection.execute(f"DELETE {failed}")
            connection.execute("UPDATE work_queue SET shard_id = NULL WHERE done = 0")
        connection.close()

    def records(self) -> list[dict[str, Any]]:
        """Return one record for each episode, in order. One that was repeated came out the same."""
        rows = self._rows("SELECT task_name, episode_id, status, steps FROM episode_results WHERE status != 'error'")
        found = {
            (task, episode): {"task": task, "episode": episode, "success": status == "success", "steps": steps}
            for task, episode, status, steps in rows
        }
        return [found[key] for key in sorted(found)]

    def go_on(self, venv: Path, suite: str, urls: list[str], args: argparse.Namespace, bar: tqdm[Any]) -> None:
        """Run what is left, one process for each server. Raises SystemExit where it cannot be run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.release()
        params = {"suite": suite, "send_state": True, "picture_every": args.execution_horizon}
        entry = {"benchmark": "libero_benchmark:OneCamera", "subname": suite, "episodes_per_task": args.episodes}
        entry |= {"params": params, "max_tasks": args.max_tasks, "max_steps": args.max_steps}
        entry["recording"] = {"record_step": False}
        config = self._folder / "run.json"
        config.write_text(json.dumps({"server": {"url": urls[0], "timeout": 300}, "benchmarks": [entry]}, indent=1))
        program = venv / "bin" / "vla-eval"
        command = [program, "run", "--no-docker", "--render", "cpu", "--config", config, "--output-dir", self._folder]
        command += ["--eval-id", EVALUATION, "--num-shards", len(urls)]
        log = self._folder / "vla-eval.log"
        before = self.progress()[0]
        with log.open("ab") as file:
            processes = [
                subprocess.Popen(
                    [*map(str, command), "--shard-id", str(number), "--server-url", url],
                    env=environment(args.out, len(urls)),
                    stdout=file,
                    stderr=file,
                )
                for number, url in enumerate(urls)
            ]
            try:
                while any(process.poll() is None for process in processes):
                    time.sleep(1.0)
                    done = self.progress()[0]
                    bar.update(done - before)
                    before = done
                    if any(process.poll() for process in processes) or self.failure():
                        break
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait(60)
            if not self.finished():
                raise SystemExit(f"{suite}: {self.failure() or 'vla-eval ended early'}; see {log}")
            bar.update(self.progress()[0] - before)
            export = [program, "export", self._database, "--output-dir", self._folder]
            run(export, env=environment(args.out), stdout=file, stderr=file)


def table(records: list[dict[str, Any]], against: str = "fp32") -> str:
    """Return Markdown: success with its Wilson interval, and the difference from a recipe over the same episodes."""
    lines = [f"| suite | recipe | solved | success, % (95 %) | difference from {against}, points | McNemar p |"]
    lines.append("|---|---|---|---|---|---|")
    results: dict[tuple[str, str], dict[tuple[str, int], bool]] = {}
    for r in records:
        results.setdefault((r["suite"], r["recipe"]), {})[r["task"], r["episode"]] = r["success"]
    for (suite, recipe), own in results.items():
        rate = wilson(sum(own.values()), len(own))
        row = f"| {suite} | {recipe} | {sum(own.values())} of {len(own)} "
        row += f"| {100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f}) "
        reference = results.get((suite, against), {})
        shared = sorted(own.keys() & reference.keys())
        if recipe == against or not shared:
            lines.append(f"{row}| | |")
            continue
        pairs = PairedOutcomes.of([own[key] for key in shared], [reference[key] for key in shared])
        gap = pairs.difference()
        lines.append(
            f"{row}| {100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) | {pairs.mcnemar():.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the options and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = SHIPPED[LIBERO_OBJECT].weights
    parser.add_argument("checkpoint", type=Path, nargs="?", default=shipped, help="default: the policy that ships")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--demonstrations", type=Path, help="shards whose pictures calibrate recipes; default: the pictures that ship"
    )
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--episodes", type=int, default=20, help="of each task, at most 50")
    parser.add_argument("--execution-horizon", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of the benchmark; 2 GB each")
    parser.add_argument("--against", default="fp32", help="recipe that the others are compared with")
    parser.add_argument("--max-tasks", type=int, help="for a trial")
    parser.add_argument("--max-steps", type=int, help="for a trial")
    args = parser.parse_args()
    if not args.checkpoint.is_file():
        parser.error(f"{args.checkpoint} is no file: name a .safetensors file, or none for the policy that ships")
    with signals_raise():  # so that servers and benchmarks end too
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Run what is missing, then print the table."""
    args.out = args.out.resolve()
    venv = environment_of_libero()
    args.out.mkdir(parents=True, exist_ok=True)
    same_settings(args)
    suites, recipes = args.suites.split(","), args.recipes.split(",")
    runs = {(suite, recipe): Run(args.out / f"{suite}-{recipe}") for suite in suites for recipe in recipes}
    pictures = calibration(args.demonstrations, args.out / "calibration") if args.demonstrations else LIBERO_PICTURES
    for recipe in recipes:
        same_recipe(args.out, recipe, pictures)
    each = args.episodes * min(TASKS, args.max_tasks or TASKS)
    done = sum(one.progress()[0] for one in runs.values())
    with tqdm(total=each * len(runs), initial=done, unit="episode", smoothing=0.05) as bar:
        for (suite, recipe), one in runs.items():
            if one.finished():
                continue
            bar.set_postfix_str(f"{suite} {recipe}")
            camera = camera_of(suite, args.out, venv)
            policy = compressed(args.checkpoint, recipe, pictures, args.out)
            logs = [args.out / f"serve{number}.log" for number in range(args.jobs)]
            with served(policy, recipe, camera, args.execution_horizon, logs) as urls:
                one.go_on(venv, suite, urls, args, bar)
            write(args.out)
    print(write(args.out, args.against))


def camera_of(suite: str, out: Path, venv: Path) -> Path:
    """Return the file with the pose of the suite's camera. Raises SystemExit where there is none, or more than one."""
    folder = out / "cameras" / suite
    if not (folder / "camera_0.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        script = [venv / "bin" / "python", HERE / "libero_camera.py", suite, folder]
        done = subprocess.run(script, env=environment(out), input="n\n", text=True, stderr=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"{suite}: {(done.stderr.strip().splitlines() or ['libero_camera.py failed'])[-1]}")
    if (folder / "camera_1.json").is_file():
        raise SystemExit(f"{suite} has a camera for each kind of scene, this table one for a suite: use libero.sh")
    return folder / "camera_0.json"


def same_settings(args: argparse.Namespace) -> None:
    """Refuse to go on with other settings than those that OUT was begun with: its episodes would not be comparable."""
    names = ("episodes", "execution_horizon", "max_tasks", "max_steps")
    wanted = {name: getattr(args, name) for name in names}
    wanted["checkpoint"] = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    begun_with(args.out / "settings.json", wanted)


def same_recipe(out: Path, recipe: str, pictures: Path) -> None:
    """Refuse to go on with a recipe that was changed since, or calibrated on other pictures."""
    known = load_recipe(recipe)
    wanted = {"recipe": known.digest}
    if known.quantization is not None and known.quantization.needs_calibration:
        observations = folder_observations(pictures, CALIBRATION_PICTURES)
        wanted["calibration"] = observations_digest(observations)
    begun_with(out / f"{recipe}.json", wanted)


def begun_with(file: Path, wanted: dict[str, Any]) -> None:
    """Keep the settings that a folder is begun with in `file`. Raises SystemExit where it was begun with others."""
    if not file.is_file():
        file.write_text(json.dumps(wanted, indent=1) + "\n")
    found = json.loads(file.read_text())
    for name, value in json.loads(json.dumps(wanted)).items():
        if found.get(name) != value:
            before, now = (str(one)[:30] for one in (found.get(name), value))
            raise SystemExit(
                f"{file.parent} was begun with another {name} ({before}, not {now}): choose another --out, or the same "
                "settings"
            )


def write(out: Path, against: str = "fp32") -> str:
    """Write the episodes so far and their table, of every run that lies in `out`; return the table."""

    def place(run: tuple[str, str]) -> tuple[int, ...]:
        return tuple(known.index(name) if name in known else len(known) for name, known in zip(run, ORDER, strict=True))

    folders = {database.parent.name for database in out.glob(f"*-*/recording-{EVALUATION}.sqlite")}
    runs = sorted((suite, recipe) for suite, _, recipe in (name.partition("-") for name in folders))
    records = [
        {"suite": suite, "recipe": recipe, **record}
        for suite, recipe in sorted(runs, key=place)
        for record in Run(out / f"{suite}-{recipe}").records()
    ]
    (out / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = table(records, against)
    (out / "table.md").write_text(shown)
    return shown


if __name__ == "__main__":
    main()
