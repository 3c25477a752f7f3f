"""One door to a policy: a checkpoint (or `micro`, or `tabletop`) and a recipe in, something that predicts out.

The node's worker, the command line and the evaluation all come through here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.compression.calibration import simulator_observations, synthetic_observations
from sqap_vla_ros.compression.recipe import Recipe, RecipeError, load_recipe
from sqap_vla_ros.contracts import Observation, Policy

if TYPE_CHECKING:
    import torch

    from sqap_vla_ros.policy.cogact import CogACTPolicy

MICRO, TABLETOP = "micro", "tabletop"
SHIPPED = {TABLETOP: Path(__file__).parents[1] / "policy" / "assets" / "tabletop.safetensors"}  # name -> weights
CALIBRATION_OBSERVATIONS = {MICRO: 8, TABLETOP: 48}
RANKING_OBSERVATIONS = 8  # for EfficientVLA, which chooses layers


def load_policy(
    checkpoint: str,
    recipe: str = "fp32",
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    unnorm_key: str | None = None,
    seed: int = 0,
) -> Policy:
    """Load a policy and do to it what the recipe says.

    Recipes that look at observations calibrate policies of the geometries `micro` and `tabletop` on the spot: on
    made-up scenes, and in the simulator. Other policies are compressed to a file once.

    checkpoint: `tabletop` (the trained policy that ships), `micro` (a small policy, random weights, seeded), a
        checkpoint folder, or a `.safetensors` file, also one made by `sqap-vla compress`. Such a file follows its own
        recipe; a recipe that only prunes replaces its pruning (`fastv` on a `w4a4` file), and so does one that
        quantises the same way (`sqap` on a `w4a4` file).
    recipe: a name of `config/recipes` or a YAML file.
    dtype: overrides the recipe's; not for compressed files.
    unnorm_key: which dataset's statistics turn the normalised chunk into metres and radians.
    seed: of the micro policy's weights.
    """
    chosen = load_recipe(recipe)
    if checkpoint != MICRO:
        path = checkpoint_path(checkpoint)
        from sqap_vla_ros.compression.files.storage import is_compressed

        if is_compressed(path):
            return _load_compressed(path, chosen, device, unnorm_key)
    first = device if chosen.quantization is None else "cpu"  # quantising happens on the CPU
    policy = load_uncompressed(checkpoint, chosen, device=first, dtype=dtype, unnorm_key=unnorm_key, seed=seed)
    if chosen.quantization is not None:
        policy = _quantize_in_memory(policy, chosen, checkpoint, device)
    return _finish(policy, chosen)


def checkpoint_path(checkpoint: str) -> Path:
    """Where a checkpoint is, also for the name of a shipped one; raises FileNotFoundError when it is not there."""
    path = SHIPPED.get(checkpoint, Path(checkpoint).expanduser())
    if path.exists():
        return path
    if checkpoint in SHIPPED:
        raise FileNotFoundError(
            f"the trained policy {checkpoint!r} is not in this installation ({path} is missing): reinstall the "
            f"package, or use {MICRO!r}"
        )
    raise FileNotFoundError(
        f"checkpoint {path} does not exist; give a folder, a .safetensors file, {', '.join(map(repr, SHIPPED))} or "
        f"{MICRO!r}"
    )


def own_observations(policy: CogACTPolicy, count: int | None = None) -> list[Observation]:
    """Calibration observations for a policy whose scenes the package can make itself; none for others."""
    name = policy.model.config.name
    count = count or CALIBRATION_OBSERVATIONS.get(name, 0)
    if name == TABLETOP:
        return simulator_observations(count)
    return synthetic_observations(count) if name == MICRO else []


def load_uncompressed(
    checkpoint: str,
    recipe: Recipe,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    unnorm_key: str | None = None,
    seed: int = 0,
    mapped_layers: bool = False,
) -> CogACTPolicy:
    """The policy before quantisation and without a selector, in the recipe's dtypes.

    dtype: another one; the action head then stays in float32.
    mapped_layers: see `policy.checkpoints.checkpoint.load_checkpoint`.
    """
    import torch

    resolved = getattr(torch, str(dtype or recipe.dtype).removeprefix("torch."))
    if checkpoint == MICRO:
        from sqap_vla_ros.policy.micro.policy import micro_policy

        policy = micro_policy(seed=seed)
        for part in (policy.model.vision, policy.model.projector, policy.model.decoder):
            part.to(resolved)
        policy.model.to(device)
    else:
        from sqap_vla_ros.policy.checkpoints.checkpoint import load_checkpoint

        path = checkpoint_path(checkpoint)
        policy = load_checkpoint(
            path, device=device, dtype=resolved, unnorm_key=unnorm_key, mapped_layers=mapped_layers
        )
        policy.provenance = dataclasses.replace(policy.provenance, checkpoint=checkpoint)
    policy.model.action_head.to(getattr(torch, recipe.head_dtype if dtype is None else "float32"))
    policy.provenance = dataclasses.replace(policy.provenance, recipe=recipe.name)
    return policy


def _quantize_in_memory(policy: CogACTPolicy, recipe: Recipe, checkpoint: str, device: str) -> CogACTPolicy:
    from sqap_vla_ros.compression.compress import compress
    from sqap_vla_ros.compression.policy import CompressedPolicy
    from sqap_vla_ros.quantization.streamline import make_ready

    calibrated = recipe.quantization is not None and recipe.quantization.needs_calibration
    observations = own_observations(policy) if calibrated else []
    if calibrated and not observations:
        raise RecipeError(
            f"recipe {recipe.name!r} needs calibration: run `sqap-vla compress --checkpoint {checkpoint} "
            f"--recipe {recipe.name} --calibration ... --out policy.safetensors` once and load that file"
        )
    compress(policy, recipe, observations)
    policy.model.to(device)
    make_ready(policy.model)
    return CompressedPolicy.of(policy)


def _load_compressed(path: Path, recipe: Recipe, device: str, unnorm_key: str | None) -> Policy:
    from sqap_vla_ros.compression.files.storage import CompressedFile, load_compressed

    own = CompressedFile(path).header.recipe
    if recipe.quantization not in (None, own.quantization):
        raise RecipeError(
            f"{path} was compressed with recipe {own.name!r}, which quantises otherwise than {recipe.name!r}; "
            f"use recipe {own.name!r} or compress the checkpoint anew"
        )
    if recipe.quantization is None and recipe.pruning is None:
        recipe = own
    elif recipe.quantization is None:
        recipe = dataclasses.replace(own, name=f"{own.name}+{recipe.name}", pruning=recipe.pruning)
    policy = load_compressed(path, device=device, unnorm_key=unnorm_key)
    policy.provenance = dataclasses.replace(policy.provenance, recipe=recipe.name)
    return _finish(policy, recipe)


def _finish(policy: CogACTPolicy, recipe: Recipe) -> Policy:
    """Make a policy as quick as it can be, and put the recipe's token selector or accelerator on it."""
    from sqap_vla_ros.quantization.prepacked import prepack

    prepack(policy.model)
    if recipe.pruning is None:
        return policy
    from sqap_vla_ros.compression.accelerators import with_pruning

    # EfficientVLA ranks layers on observations; recipes for other policies name the layers instead
    ranks = recipe.pruning.selector == "efficient_vla" and recipe.pruning.parameters.get("removed_layers") is None
    return with_pruning(policy, recipe.pruning, own_observations(policy, RANKING_OBSERVATIONS) if ranks else [])
