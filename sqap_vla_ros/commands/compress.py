"""`sqap-vla compress`: a checkpoint and a recipe become one file for the robot, with a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqap_vla_ros.compression.recipe import Recipe
    from sqap_vla_ros.contracts import Observation

HELD_OUT_SEED = 950_000  # of the simulator's layouts, beside those that it calibrates on


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the room's sub-commands."""
    parser = subparsers.add_parser(
        "compress",
        help="compress a checkpoint into one file",
        description="Compress a checkpoint into one .safetensors file that the node, `predict` and `replay` load. "
        "Interrupted runs go on where they stopped.",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="`tabletop`, `micro`, a CogACT folder or a .safetensors file"
    )
    parser.add_argument("--recipe", default="sqap", help="a name of config/recipes or a YAML file (default: sqap)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, policy.safetensors")
    parser.add_argument(
        "--calibration",
        help="folder of images with instructions.txt, a rosbag, `simulator` or `synthetic` (`simulator:64`: that many, "
        "whatever --observations says); needed by recipes that look at data",
    )
    parser.add_argument("--observations", type=int, default=16, help="calibration observations to use (default: 16)")
    parser.add_argument("--instruction", default="", help="what the robot was told, for bags without a topic for it")
    parser.add_argument("--image-topic", help="which images of a bag, where it has several")
    parser.add_argument("--unnorm-key", help="dataset whose statistics the robot will use")
    parser.add_argument("--report", type=Path, help="folder for report.json and report.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compress, write, optionally report; 0 when all is well."""
    from tqdm import tqdm

    from sqap_vla_ros.compression.compress import require_calibration
    from sqap_vla_ros.compression.files.job import compress_to_file
    from sqap_vla_ros.compression.files.storage import check_target
    from sqap_vla_ros.compression.load import checkpoint_path, load_uncompressed
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.shipped import SHIPPED

    recipe = load_recipe(args.recipe)
    check_target(args.out)
    observations, held_out = _observations(args)
    require_calibration(recipe, observations)
    # the report predicts with the whole policy first; without it, and with layers to quantise, they stay in the file
    lies_in_a_file = checkpoint_path(args.checkpoint, SHIPPED) is not None
    mapped = lies_in_a_file and args.report is None and recipe.quantization is not None
    policy = load_uncompressed(
        args.checkpoint, recipe, shipped=SHIPPED, unnorm_key=args.unnorm_key, mapped_layers=mapped
    )
    before = None
    if args.report:
        from sqap_vla_ros.compression.report import module_bytes, probe

        before = probe(policy, held_out), module_bytes(policy, [])
    with tqdm(total=0, unit="layer", disable=None) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        header = compress_to_file(
            policy,
            recipe,
            observations,
            args.out,
            calibration={"source": args.calibration or "none"},
            progress=progress,
            mapped_layers=mapped,
        )
    del policy
    packed = sum(row["stored_bytes"] for row in header.report)
    print(
        f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, of it packed decoder linears {packed / 2**20:.1f} MiB"
    )
    if before is not None:
        _report(args.report, args.out, recipe, before, held_out)
    return 0


def _report(
    folder: Path, out: Path, recipe: Recipe, before: tuple[object, dict[str, int]], held_out: list[Observation]
) -> None:
    from sqap_vla_ros.compression.files.storage import CompressedFile, load_compressed
    from sqap_vla_ros.compression.report import Probe, module_bytes, probe, summarize, write_report

    was, sizes = before
    assert isinstance(was, Probe)
    report = CompressedFile(out).header.report
    policy = load_compressed(out)
    now = probe(policy, held_out)
    summary = summarize(was, now, {"before": sizes, "after": module_bytes(policy, report)}, report)
    write_report(folder, was, now, summary, f"{out.name}: {recipe.name}, {recipe.description}")
    error = summary["held_out"]["rms_action_error"]
    print(
        f"{folder / 'report.png'}: rms action error on {len(held_out)} held-out observations {error:.4f} (normalised)"
    )


def _observations(args: argparse.Namespace) -> tuple[list[Observation], list[Observation]]:
    """For calibration (empty when none was named), and held out for the report."""
    from sqap_vla_ros.compression.calibration import SYNTHETIC, load_observations, synthetic_observations
    from sqap_vla_ros.shipped import CALIBRATION_SOURCES, SIMULATOR
    from sqap_vla_ros.simulation.observations import expert_observations

    held_out_count = 8
    source = (args.calibration or "").partition(":")[0]
    if source == SIMULATOR:
        held_out = expert_observations(held_out_count, seed=HELD_OUT_SEED) if args.report else []
        return load_observations(args.calibration, args.observations, CALIBRATION_SOURCES), held_out
    if source in ("", SYNTHETIC):
        found = load_observations(args.calibration, args.observations, CALIBRATION_SOURCES) if source else []
        return found, synthetic_observations(held_out_count, seed=1)
    path = Path(args.calibration).expanduser()
    wanted = args.observations + (held_out_count if args.report else 0)
    if path.is_file() or (path / "metadata.yaml").is_file():
        found = _from_bag(path, args, wanted)
    else:
        found = load_observations(args.calibration, wanted, CALIBRATION_SOURCES)
    if len(found) <= held_out_count or not args.report:
        return found[: args.observations], found[:held_out_count]
    # spread over the recording, so that both see all of it
    held = set(range(0, len(found), max(2, len(found) // held_out_count)))
    return [o for i, o in enumerate(found) if i not in held], [o for i, o in enumerate(found) if i in held]


def _from_bag(path: Path, args: argparse.Namespace, wanted: int) -> list[Observation]:
    from sqap_vla_ros.compression.calibration import CalibrationError
    from sqap_vla_ros.nodes.bags.bag import Bag
    from sqap_vla_ros.nodes.bags.observations import IMAGE_TYPES, BagObservations, ReplaySpec

    with Bag(path) as bag:
        topic = bag.choose(args.image_topic, IMAGE_TYPES, "the image", "--image-topic")
        stride = 1 if topic is None else max(1, topic.count // wanted)
        frames = BagObservations(
            bag, ReplaySpec(image_topic=args.image_topic, instruction=args.instruction, stride=stride)
        )
        found = [frame.observation for frame in frames if frame.observation is not None]
        if not found:
            problems = ", ".join(f"{count} times: {why}" for why, count in frames.counters.problems.items())
            raise CalibrationError(f"{path} gave no observation to calibrate on ({problems or 'it has no images'})")
    return found[:wanted]
