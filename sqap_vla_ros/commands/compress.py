"""`sqap-vla compress`: compress a checkpoint by a recipe into one file for the robot, with a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_checkpoint,
    add_checkpoint_settings,
    add_command,
    add_recipe,
    add_sampling,
    add_threads,
    add_unnorm_key,
    checkpoint_settings,
    instruction,
    integer,
    progress_bar,
    use_threads,
)
from sqap_vla_ros.commands.policy_checks import readable_config, require_policy
from sqap_vla_ros.commands.recordings.bags import (
    BAG_OPTIONS,
    add_bag_frames,
    add_bag_topics,
    bag_spec,
    ignored_bag_options,
)
from sqap_vla_ros.policy.costs import costs_in_words

if TYPE_CHECKING:
    from sqap_vla_ros.compression.calibration import ReportObservations
    from sqap_vla_ros.compression.files.estimate import Estimate
    from sqap_vla_ros.compression.recipe import Recipe
    from sqap_vla_ros.contracts import Observation

_COMPARED = 8  # observations that the report compares on


def register(subparsers: Any) -> None:
    """Add the `compress` sub-command."""
    parser = add_command(
        subparsers,
        "compress",
        run,
        summary="compress a checkpoint into one file",
        description="Compress a checkpoint into one .safetensors file that the node, `predict` and `replay` load. "
        "Interrupted runs go on where they stopped.",
        resumes=True,
    )
    add_checkpoint(parser, None, server=False)
    add_recipe(parser, "coverage_w4a8")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, policy.safetensors")
    parser.add_argument(
        "--calibration",
        help="folder of images with instructions.txt, a rosbag, a LeRobot dataset, `simulator` or `synthetic` "
        "(`simulator:64`: that many, whatever --observations says); needed by recipes that look at data",
    )
    parser.add_argument("--observations", type=integer(1), default=16, help="calibration observations to use")
    parser.add_argument(
        "--instruction", type=instruction, help="what the robot was told, for recordings that do not say it"
    )
    parser.add_argument("--image-key", help="which camera of a LeRobot dataset, where it has several")
    add_bag_topics(parser.add_argument_group("topics of a bag (the only one of its type is found by itself)"))
    add_bag_frames(parser.add_argument_group("frames of a bag"))
    add_unnorm_key(parser)
    add_checkpoint_settings(parser)
    add_sampling(parser)
    add_threads(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check recipe, checkpoint, calibration, disk and memory; write nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    parser.add_argument("--report", type=Path, help="folder for report.json, report.png and bits.png")


def run(args: argparse.Namespace) -> int:
    """Check everything, compress, write, optionally report; 0 when all is well."""
    from sqap_vla_ros.compression.files.kind import check_target
    from sqap_vla_ros.compression.load import checkpoint_path, load_uncompressed
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.policy.checkpoints.writing import check_folder
    from sqap_vla_ros.shipped import SHIPPED

    recipe = load_recipe(args.recipe)
    settings = checkpoint_settings(args)
    require_policy(args.checkpoint, settings=settings, server=False)
    check_target(args.out, overwrite=args.overwrite, source=checkpoint_path(args.checkpoint, SHIPPED))
    if args.report is not None:
        if args.report.absolute() == args.out.absolute():
            raise UsageError(f"--report {args.report} is the file of --out: give a folder of its own")
        check_folder(args.report)
    _require_source(args)
    from sqap_vla_ros.compression.compress import require_calibration, require_loadable, require_plannable
    from sqap_vla_ros.compression.files.estimate import estimate, require_room
    from sqap_vla_ros.compression.files.job import compress_to_file

    require_loadable(recipe)
    config = readable_config(args.checkpoint, settings)
    if config is None:
        raise UsageError(f"--checkpoint {args.checkpoint} is compressed already: name the one that it was made from")
    require_loadable(recipe, config.decoder.depth)
    require_plannable(recipe, config.decoder)
    # the report predicts with the whole policy first; without it, and with layers to quantise, they stay in the file
    lies_in_a_file = checkpoint_path(args.checkpoint, SHIPPED) is not None
    in_file = lies_in_a_file and args.report is None and recipe.quantization is not None
    use_threads(args.threads)
    note(ignored_options(args, recipe))
    observations, compared = _observations(args)
    require_calibration(recipe, observations)
    note(_observation_notes(args, recipe, len(observations), compared))
    needs = estimate(config, recipe, len(observations), layers_in_file=in_file)
    require_room(needs, recipe, args.out)
    if args.dry_run:
        _print_plan(args, recipe, len(observations), compared, needs)
        return 0
    policy = load_uncompressed(args.checkpoint, recipe, shipped=SHIPPED, settings=settings, layers_in_file=in_file)
    before = None
    if args.report:
        from sqap_vla_ros.compression.costs import weight_bytes
        from sqap_vla_ros.compression.report import probe

        assert compared is not None
        before = probe(policy, compared.observations), weight_bytes(policy.model)
    with progress_bar() as progress:
        header = compress_to_file(
            policy,
            recipe,
            observations,
            args.out,
            calibration={"source": args.calibration or "none"},
            progress=progress,
            overwrite=args.overwrite,
        )
    del policy
    packed = sum(row["stored_bytes"] for row in header.report)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, of it packed linears {packed / 2**20:.1f} MiB")
    _print_costs(args.out)
    if before is not None and compared is not None:
        _report(args.report, args.out, recipe, before, compared)
    return 0


def _kind(calibration: str | None) -> str:
    """Return what --calibration names: "nothing", "scenes", "dataset", "bag" or, where nothing else fits, "folder"."""
    from sqap_vla_ros.nodes.bags.store import is_recording
    from sqap_vla_ros.recordings.lerobot.layout import is_dataset
    from sqap_vla_ros.shipped import CALIBRATION_SOURCES

    if not calibration:
        return "nothing"
    if calibration.partition(":")[0] in CALIBRATION_SOURCES:
        return "scenes"
    path = Path(calibration).expanduser()
    return "dataset" if is_dataset(path) else "bag" if is_recording(path) else "folder"


def _require_source(args: argparse.Namespace) -> None:
    """Raise ValueError where --calibration or --observations ask for what cannot be."""
    from sqap_vla_ros.compression.calibration import MOST_OBSERVATIONS, require_source
    from sqap_vla_ros.shipped import CALIBRATION_SOURCES

    if args.observations > MOST_OBSERVATIONS:
        raise UsageError(f"--observations: must be at most {MOST_OBSERVATIONS}, got {args.observations}")
    if _kind(args.calibration) in ("scenes", "folder"):
        require_source(args.calibration, args.observations, CALIBRATION_SOURCES)


def ignored_options(args: argparse.Namespace, recipe: Recipe) -> list[str]:
    """Return a sentence for each option that was typed and has no effect."""
    spec, kind = recipe.quantization, _kind(args.calibration)
    looks = spec is not None and (spec.needs_calibration or spec.looks_at_the_action)
    if not looks and args.report is None and kind != "nothing":
        about = (*BAG_OPTIONS, "--calibration", "--camera-info", "--image-key", "--instruction", "--observations")
        return ignored(args, (about, True, f"recipe {recipe.name} looks at no observations"))
    said = ignored(
        args,
        ((*BAG_OPTIONS, "--camera-info"), kind != "bag", "--calibration names no bag"),
        (("--image-key",), kind != "dataset", "--calibration names no LeRobot dataset"),
        (("--instruction",), kind not in ("bag", "dataset"), "--calibration names no recording"),
        (("--observations",), kind == "nothing", "there is no --calibration"),
        (("--observations",), kind == "scenes" and ":" in args.calibration, "--calibration says how many"),
    )
    return said + (ignored_bag_options(args) if kind == "bag" else [])


def _print_plan(
    args: argparse.Namespace, recipe: Recipe, observations: int, compared: ReportObservations | None, needs: Estimate
) -> None:
    from sqap_vla_ros.compression.files.estimate import available_memory

    available = available_memory()
    rows = {
        "recipe": recipe.in_words,
        "checkpoint": args.checkpoint,
        "calibration": f"{observations} observations from {args.calibration}" if observations else "none",
        **({} if compared is None else {"report": f"in {args.report}, on {compared.words}"}),
        "file": f"{args.out}, about {needs.file / 2**20:.1f} MiB",
        "disk while working": f"about {(needs.file + needs.work) / 2**20:.1f} MiB",
        "memory": f"about {needs.memory / 2**30:.2f} GiB"
        + (f" of {available / 2**30:.1f} GiB available" if available is not None else ""),
    }
    for name, value in rows.items():
        print(f"{name:<18}  {value}")
    print("everything fits; nothing was written (--dry-run)")


def _print_costs(out: Path) -> None:
    from sqap_vla_ros.compression.bits import parts_in_words
    from sqap_vla_ros.compression.costs import costs_of_file
    from sqap_vla_ros.compression.files.storage import CompressedFile

    file = CompressedFile(out)
    for name, words in (costs_in_words(costs_of_file(file)) | parts_in_words(file.header.report)).items():
        print(f"{name}: {words}")


def _report(
    folder: Path, out: Path, recipe: Recipe, before: tuple[object, dict[str, int]], compared: ReportObservations
) -> None:
    from sqap_vla_ros.compression.bits import linear_widths, part_widths, weights_by_module, width_summary
    from sqap_vla_ros.compression.costs import costs_of_file, weight_bytes
    from sqap_vla_ros.compression.files.storage import CompressedFile, load_compressed
    from sqap_vla_ros.compression.report import CALIBRATED_ON, HELD_OUT, Probe, probe, summarize, write_report

    was, sizes = before
    assert isinstance(was, Probe)
    file = CompressedFile(out)
    header = file.header
    report, widths = header.report, linear_widths(header.report, header.config)
    policy = load_compressed(out)
    now = probe(policy, compared.observations)
    weights = {"before": sizes, "after": weight_bytes(policy.model)}
    summary = summarize(was, now, weights, report, held_out=compared.held_out)
    summary["costs"] = costs_of_file(file)
    summary |= width_summary(widths, recipe, header.config, weights_by_module(report))
    summary["parts"] = {part: found.to_dict() for part, found in part_widths(report).items()}
    write_report(folder, was, now, summary, f"{out.name}: {recipe.in_words}", widths)
    error = summary[HELD_OUT if compared.held_out else CALIBRATED_ON]["rms_action_error"]
    print(f"{folder / 'report.png'}: rms action error on {compared.words} {error:.4f} (normalised)")
    if widths:
        scored = "widths, sizes and sensitivity" if any(each.damage for each in widths) else "widths and sizes"
        print(f"{folder / 'bits.png'}: {scored} by linear")


def _observation_notes(
    args: argparse.Namespace, recipe: Recipe, count: int, compared: ReportObservations | None
) -> list[str]:
    """Return what is said about the observations that calibrate, and about those that the report compares on."""
    from sqap_vla_ros.compression.compress import ADVISABLE, advisable_observations, observations_in_words

    spec, notes = recipe.quantization, []
    few = spec is not None and spec.looks_at_the_action and count < ADVISABLE[0]
    if count and spec is not None and (compared is not None or few):
        said = observations_in_words(spec, count)
        notes.append(f"{said}; {advisable_observations()} (--observations)" if few else said)
    if count and compared is not None and not compared.held_out:
        notes.append(
            f"the report compares on observations that calibrate, because {args.calibration} has no others: give more "
            "of them, or fewer --observations, for an error on held-out ones"
        )
    return notes


def _observations(args: argparse.Namespace) -> tuple[list[Observation], ReportObservations | None]:
    """Return observations for calibration (none where none were named), and those of the report where one is asked for.

    The former are the same with a report as without.
    """
    from sqap_vla_ros.compression.calibration import (
        ReportObservations,
        load_observations,
        report_observations,
        synthetic_observations,
    )
    from sqap_vla_ros.shipped import CALIBRATION_SOURCES, SIMULATOR

    kind = _kind(args.calibration)
    if kind in ("nothing", "scenes"):
        source = args.calibration or ""
        found = load_observations(source, args.observations, CALIBRATION_SOURCES) if source else []
        if args.report is None:
            return found, None
        if source.partition(":")[0] != SIMULATOR:
            return found, ReportObservations(synthetic_observations(_COMPARED, seed=1), held_out=True)
        from sqap_vla_ros.simulation.observations import HELD_OUT_SEED, expert_observations

        return found, ReportObservations(expert_observations(_COMPARED, seed=HELD_OUT_SEED), held_out=True)
    calibrated = _recorded(args, kind, args.observations)
    if args.report is None:
        return calibrated, None
    more = _recorded(args, kind, args.observations + _COMPARED)
    return calibrated, report_observations(calibrated, more, _COMPARED)


def _recorded(args: argparse.Namespace, kind: str, wanted: int) -> list[Observation]:
    """Return up to `wanted` observations of the folder, bag or dataset that --calibration names."""
    from sqap_vla_ros.compression.calibration import load_observations
    from sqap_vla_ros.shipped import CALIBRATION_SOURCES

    path = Path(args.calibration).expanduser()
    if kind == "dataset":
        from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
        from sqap_vla_ros.recordings.lerobot.spec import NONE, DatasetSpec

        # Calibration looks at images and instructions: faults of other numbers are none of its business.
        spec = DatasetSpec(args.image_key, NONE, NONE, instruction=args.instruction or "")
        return DatasetFrames(path, spec).sample(wanted)
    if kind == "bag":
        from sqap_vla_ros.nodes.bags.observations import sample_observations

        return sample_observations(path, wanted, bag_spec(args))
    return load_observations(args.calibration, wanted, CALIBRATION_SOURCES)
