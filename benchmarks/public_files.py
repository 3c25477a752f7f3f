"""Files of public repositories, given to the commands as a stranger would: what each says of them.

benchmarks/results/public_files.json lists the files. "before" is what was said before the work on strangers' files
(commit bd78341), or, of files that were added later, null. This writes "now" and the exit status beside it, and the
table public_files.md.

    git clone --bare https://github.com/OWNER/NAME CLONES/OWNER/NAME     for each repository in the list
    python benchmarks/public_files.py CLONES [--only NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "public_files.json"
INTERRUPTED = (130, 143)
SHOWN = 200  # characters of what was said
HEAD = """# Files of public repositories

What the commands say of files that others made: before the work on strangers' files (commit bd78341; – where a file was
added to the list later) and now. The files are not committed here. Statistics, tokenizers and calibrations were tried
with a small model of random weights; files of 4 MiB and more were left out of the clones, so that some films are
missing. Written by benchmarks/public_files.py.

| repository | file | command | before | now |
|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path, help="folder of clones, OWNER/NAME each")
    parser.add_argument("--only", default="", help="repositories with this in their name")
    parser.add_argument("--left", action="store_true", help="those alone whose status is null")
    args = parser.parse_args()
    entries = json.loads(RESULTS.read_text())
    for entry in entries:
        if args.only in entry["repository"] and not (args.left and entry["status"] is not None):
            with tempfile.TemporaryDirectory() as folder:
                result = tried(entry, args.clones, Path(folder))
            if result["status"] in INTERRUPTED:
                break
            entry |= result
            print(f"{entry['status']} {entry['repository']} {entry['file']}: {entry['now']}", flush=True)
            RESULTS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    rows = [
        (e["repository"], shown_file(e), e["command"], e["before"] or "–", f"{e['now']} ({e['status']})")
        for e in entries
    ]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows]
    RESULTS.with_suffix(".md").write_text(HEAD + "".join(lines))


def shown_file(entry: dict[str, Any]) -> str:
    options = f", `{' '.join(entry['options'])}`" if entry["options"] else ""
    return entry["file"] + options + (f" ({entry['is']})" if entry.get("is") else "")


def tried(entry: dict[str, Any], clones: Path, folder: Path) -> dict[str, Any]:
    """Return status and sentence of one command."""
    from sqap_vla_ros.cli import main as command

    file = taken(clones / entry["repository"], entry["file"], folder)
    if file is None:
        return {"status": entry.get("status"), "now": entry.get("now", "not at hand")}
    shown, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
        try:
            status: Any = command([*arguments(entry, file, folder), *entry["options"]])
        except BaseException as error:  # whatever it is, it belongs into the table
            status = f"TRACEBACK {type(error).__name__}: {error}"
    lines = [line.strip() for line in (shown.getvalue() + errors.getvalue()).splitlines() if line.strip()]
    told = [n for word in ("error", str(file)) for n, line in enumerate(lines) if word in line]
    said = "works" if status == 0 else " ".join(lines[told[0] if told else 0 :])
    if status == 0 and entry["command"] == "replay":
        records = [json.loads(line) for line in (folder / "out/fp32/frames.jsonl").read_text().splitlines()]
        said = f"replayed: {sum('deltas' in record for record in records)} of {len(records)} images"
    for name in (f"{folder}/files ", f"{file}: ", f"{file}/", f"{file} ", str(file), f"{folder}/", "sqap-vla: error: "):
        said = said.replace(name, "")
    said = " ".join(said.split()).removeprefix("error: ")
    return {"status": status, "now": said if len(said) <= SHOWN else said[:SHOWN].rstrip() + "…"}


def taken(clone: Path, name: str, folder: Path) -> Path | None:
    """Copy a file, or the files of a folder that the clone has, out of a clone; None where there is none."""
    target = folder / "files"
    if (clone / name).exists() and not (clone / "HEAD").exists():  # not bare
        if (clone / name).is_dir():
            shutil.copytree(clone / name, target / name, dirs_exist_ok=True)
        else:
            (target / name).parent.mkdir(parents=True)
            shutil.copy(clone / name, target / name)
        return target / name
    listed = subprocess.run(
        ["git", "-C", clone, "ls-tree", "-r", "-z", "--name-only", "HEAD", name.rstrip("/") or "."],
        capture_output=True,
        check=False,
    )
    for each in filter(None, listed.stdout.decode(errors="surrogateescape").split("\0")):
        content = subprocess.run(["git", "-C", clone, "show", f"HEAD:{each}"], capture_output=True, check=False)
        if content.returncode == 0:
            (target / each).parent.mkdir(parents=True, exist_ok=True)
            (target / each).write_bytes(content.stdout)
    return target / name if (target / name).exists() else None


def arguments(entry: dict[str, Any], file: Path, folder: Path) -> list[str]:
    """Return the command for a file."""
    from PIL import Image

    from sqap_vla_ros.policy.checkpoints.published import save_published
    from sqap_vla_ros.policy.micro.policy import micro_policy

    kind, out = entry["kind"], str(folder / "out")
    if kind == "recording":
        options = ["--recipes", "fp32", "--no-video", "--out", out]
        given = "--instruction" in entry["options"]
        return ["replay", str(file), *options, *([] if given else ["--instruction", "pick up the can"])]
    if kind == "checkpoint":
        return ["inspect", str(file.parent if entry.get("folder") else file)]
    if kind == "tokenizer":
        return ["convert", "tabletop", f"{out}.safetensors", "--tokenizer", str(file)]
    picture = folder / "picture.png"
    view = ["--image", str(picture), "--instruction", "pick up the can"]
    if kind == "calibration":
        Image.new("RGB", tuple(entry["size"])).save(picture)
        return ["predict", "--checkpoint", "micro", *view, "--camera-info", str(file), "--gripper-point", "0", "0", "1"]
    Image.new("RGB", (64, 48)).save(picture)
    save_published(micro_policy(), folder / "model")
    (folder / "model/dataset_statistics.json").write_bytes(file.read_bytes())
    return ["predict", "--checkpoint", str(folder / "model"), *view]


if __name__ == "__main__":
    main()
