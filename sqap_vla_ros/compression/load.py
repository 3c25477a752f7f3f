"""`load_policy` is the one door to a policy: it takes a checkpoint (or a shipped policy's name) and a recipe.

The node's worker, the command line and the evaluation all come through here. Which policies ship, and what their scenes
look like, is the caller's to say: a table of `ShippedPolicy`, everyday `sqap_vla_ros.shipped.SHIPPED`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.compression.calibration import ObservationSource, synthetic_observations
from sqap_vla_ros.compression.files.kind import is_compressed
from sqap_vla_ros.compression.recipe import Recipe, RecipeError, load_recipe
from sqap_vla_ros.contracts import Observation, Policy, checked_seed
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.devices import device_problem

if TYPE_CHECKING:
    import torch

    from sqap_vla_ros.compression.files.kept import KeptPolicies
    from sqap_vla_ros.policy.cogact import CogACTPolicy
    from sqap_vla_ros.policy.config import PolicyConfig
    from sqap_vla_ros.policy.settings import CheckpointSettings

MICRO = "micro"
DTYPES = ("float32", "bfloat16", "float16")  # that a policy can be loaded in


@dataclass(frozen=True)
class ShippedPolicy:
    """A policy that can be named in place of a checkpoint, and whose scenes the package can show.

    Its name is also that of its geometry (`PolicyConfig.name`), so a file with the same geometry is calibrated alike.
    One that is made has one data set, of this name too.

    observations: how many -> observations of its scenes.
    scenes: what these observations show, in words.
    calibration_count: how many of them a recipe calibrates on.
    ranking_count: how many of them an accelerator ranks decoder layers on.
    weights: its checkpoint; None where `make` builds it.
    make: seed -> the policy in float32 on the CPU; None where `weights` holds it.
    """

    observations: ObservationSource
    scenes: str
    calibration_count: int
    ranking_count: int = 8
    weights: Path | None = None
    make: Callable[[int], CogACTPolicy] | None = None

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.make is None):
            raise ValueError(f"a shipped policy has weights or is made, one of the two; got {self}")


def _micro(seed: int) -> CogACTPolicy:
    from sqap_vla_ros.policy.micro.policy import micro_policy

    return micro_policy(seed=seed)


RANDOM_WEIGHTS: Mapping[str, ShippedPolicy] = {
    MICRO: ShippedPolicy(synthetic_observations, "made-up scenes, which represent no task", 8, make=_micro)
}


def load_policy(
    checkpoint: str,
    recipe: str = "fp32",
    *,
    shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    unnorm_key: str | None = None,
    settings: CheckpointSettings | None = None,
    seed: int = 0,
    kept: KeptPolicies | None = None,
) -> Policy:
    """Load a policy and do to it what the recipe says.

    Recipes that look at observations calibrate policies of the shipped geometries on the spot, on scenes of their own.
    Other policies are compressed to a file once.

    checkpoint: a name in `shipped`, a checkpoint folder, or a `.safetensors` file. A file made by `sqap-vla compress`
        follows its own recipe; a recipe that only prunes replaces its pruning (`fastv` on a `w4a4` file), and so does
        one that quantises the same way (`sqap` on a `w4a4` file).
    recipe: a name of `config/recipes` or a YAML file.
    shipped: name -> policy that can be named in place of a checkpoint. By default `micro` alone, which needs nothing.
    dtype: one of DTYPES, which overrides the recipe's; refused for compressed files.
    device: cpu, cuda or cuda:N; ValueError where PyTorch cannot use it. On CUDA, a prediction is captured as a graph
        wherever it can be (see `cuda_graphs`).
    unnorm_key: which dataset's statistics turn the normalised chunk into metres and radians.
    settings: what is taken instead of the checkpoint's own; includes `unnorm_key`, which is then left out.
    seed: of random weights.
    kept: where policies that are calibrated on the spot are kept; None calibrates anew every time.
    """
    from sqap_vla_ros.compression.compress import require_loadable
    from sqap_vla_ros.policy.settings import CheckpointSettings

    if problem := device_problem(str(device)):
        raise ValueError(f"device {str(device)!r}: {problem}; use device='cpu', or install a CUDA build of PyTorch")
    if dtype is not None and _dtype_name(dtype) not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES)} or None, which takes the recipe's, got {dtype!r:.60}")
    seed = checked_seed(seed)
    if not isinstance(settings, CheckpointSettings | None):
        raise ValueError(
            "settings must be CheckpointSettings(...) of sqap_vla_ros.policy.settings or None, got "
            f"{type(settings).__name__}"
        )
    settings = settings or _settings(unnorm_key)
    chosen = applied_recipe(checkpoint, recipe, shipped)
    require_loadable(chosen)
    path = checkpoint_path(checkpoint, shipped)
    if path is not None:
        require_fitting(checkpoint, chosen, geometry(path), shipped)
        from sqap_vla_ros.compression.files.storage import load_compressed

        if is_compressed(path):
            if settings.ema:
                raise ValueError(f"{path} is compressed and holds one action head: compress the checkpoint with --ema")
            if dtype is not None:
                raise ValueError(f"{path} is compressed, and its types of numbers with it: leave out the dtype {dtype}")
            policy: CogACTPolicy = load_compressed(path, device=device, unnorm_key=settings.unnorm_key)
            settings.apply(policy)
            policy.provenance = dataclasses.replace(policy.provenance, recipe=chosen.name)
            return _finish(policy, chosen, shipped, device)
    first = device if chosen.quantization is None else "cpu"  # quantising happens on the CPU
    policy = load_uncompressed(
        checkpoint, chosen, shipped=shipped, device=first, dtype=dtype, settings=settings, seed=seed
    )
    if chosen.quantization is not None:
        policy = _quantize(policy, chosen, shipped, checkpoint, device, kept)
    return _finish(policy, chosen, shipped, device)


def checkpoint_path(checkpoint: str, shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS) -> Path | None:
    """Return where a checkpoint lies, or None for a shipped policy that is made and lies nowhere.

    Raises FileNotFoundError when it is not there, and ValueError for an empty name.
    """
    if not checkpoint.strip():  # the path of no name is the current folder
        raise ValueError("checkpoint is empty: name a file, a folder, a server's address or a shipped policy")
    known = shipped.get(checkpoint)
    if known is not None and known.weights is None:
        return None
    path = Path(checkpoint).expanduser() if known is None or known.weights is None else known.weights
    if path.exists():
        return path
    if known is not None:
        raise FileNotFoundError(
            f"the trained policy {checkpoint!r} is not in this installation ({path} is missing): reinstall the package"
        )
    raise FileNotFoundError(
        _elsewhere(checkpoint)
        or f"checkpoint {path} does not exist; give a folder, a .safetensors file, or one of {', '.join(shipped)}"
    )


def geometry(path: Path) -> PolicyConfig:
    """Return the geometry of a checkpoint, from its headers alone."""
    if is_compressed(path):
        from sqap_vla_ros.compression.files.storage import CompressedFile

        return CompressedFile(path).header.config
    from sqap_vla_ros.policy.checkpoints.load import open_checkpoint

    return open_checkpoint(path).config


def require_fitting(
    checkpoint: str, recipe: Recipe, config: PolicyConfig, shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS
) -> None:
    """Raise `RecipeError` where `load_policy` could not put the recipe on this checkpoint, before it is loaded.

    recipe: as `applied_recipe` gives it. config: the checkpoint's geometry.
    """
    from sqap_vla_ros.compression.accelerators.table import make_accelerator
    from sqap_vla_ros.compression.compress import require_loadable, require_plannable

    require_loadable(recipe, config.decoder.depth)
    has_scenes = config.name in shipped
    if recipe.accelerator is not None and not has_scenes:
        accelerator = make_accelerator(recipe.accelerator.name, **recipe.accelerator.parameters)
        if accelerator.needs_calibration:
            raise RecipeError(
                f"recipe {recipe.name!r}: {accelerator.name} looks at observations, and {checkpoint} has none: give "
                "the parameters that make it look at none"
            )
    path = checkpoint_path(checkpoint, shipped)
    if recipe.quantization is None or (path is not None and is_compressed(path)):
        return
    require_plannable(recipe, config.decoder)
    if recipe.quantization.needs_calibration and not has_scenes:
        raise RecipeError(
            f"recipe {recipe.name!r} needs calibration: run `sqap-vla compress --checkpoint {shlex.quote(checkpoint)} "
            f"--recipe {shlex.quote(recipe.name)} --calibration ... --out policy.safetensors` once and load that file"
        )


def _elsewhere(checkpoint: str) -> str:
    """Say how to fetch what is named as on the Hugging Face hub; "" for another name."""
    address = re.fullmatch(r"(?i:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+)/?", checkpoint)
    if address is not None and address[1].partition("/")[0] not in (".", "..") and not Path(checkpoint).parent.is_dir():
        repository = address[1]
        folder = repository.rpartition("/")[2]
        return (
            f"checkpoint {checkpoint} is not on this computer, and nothing is downloaded by itself: fetch it with "
            f"`hf download {repository} --local-dir {folder}` and give the folder {folder}"
        )
    if checkpoint.lower().startswith(("ws://", "wss://")):
        return f"checkpoint {checkpoint} is a server's address, where no weights are to be had: give the folder or file"
    if re.match(r"[a-z][a-z0-9+.-]*://", checkpoint.lower()):
        return f"checkpoint {checkpoint} is an address: download it and give the folder or file, or ws://HOST:PORT"
    return ""


def checkpoint_digest(checkpoint: str, shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS) -> str:
    """Return the sha256 of the trained weights, or the given name where they are not one file.

    A compressed file answers with that of the checkpoint it was made from: compressing again gives the same policy, but
    not always the same bytes.
    """
    from sqap_vla_ros.compression.files.storage import CompressedFile
    from sqap_vla_ros.policy.checkpoints.load import sha256_of

    path = checkpoint_path(checkpoint, shipped)
    if path is None or not path.is_file():
        return checkpoint
    return CompressedFile(path).header.source["sha256"] if is_compressed(path) else sha256_of(path)


def applied_recipe(checkpoint: str, recipe: str, shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS) -> Recipe:
    """Return the whole recipe that `load_policy` applies: a compressed file's own counts too.

    Raises `RecipeError` where the file was quantised otherwise than `recipe` asks for.
    """
    chosen, path = load_recipe(recipe), checkpoint_path(checkpoint, shipped)
    if path is None or not is_compressed(path):
        return chosen
    from sqap_vla_ros.compression.files.storage import CompressedFile

    own = CompressedFile(path).header.recipe
    if chosen.quantization not in (None, own.quantization):
        raise RecipeError(
            f"{path} was compressed with recipe {own.name!r}, which quantises otherwise than {chosen.name!r}; "
            f"use recipe {own.name!r} or compress the checkpoint anew"
        )
    if chosen.quantization is not None:
        return chosen
    if chosen.pruning is None and chosen.accelerator is None:
        return own
    return dataclasses.replace(
        own, name=f"{own.name}+{chosen.name}", pruning=chosen.pruning, accelerator=chosen.accelerator
    )


def load_uncompressed(
    checkpoint: str,
    recipe: Recipe,
    *,
    shipped: Mapping[str, ShippedPolicy] = RANDOM_WEIGHTS,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    settings: CheckpointSettings | None = None,
    seed: int = 0,
    layers_in_file: bool = False,
) -> CogACTPolicy:
    """Load a policy without quantisation and without a selector, in the recipe's dtypes.

    dtype: another one; the action head then stays in float32.
    settings: see `load_policy`.
    layers_in_file: see `policy.checkpoints.load.load_checkpoint`.
    """
    import torch

    settings = settings or _settings(None)
    resolved = getattr(torch, _dtype_name(dtype or recipe.dtype))
    known = shipped.get(checkpoint)
    if known is not None and known.make is not None:
        from sqap_vla_ros.policy.cogact import choose_dataset

        if settings.ema:
            raise ValueError(f"{checkpoint} has random weights and no averaged action head: leave out --ema")
        policy = known.make(seed)
        policy.unnorm_key = choose_dataset(policy.statistics, settings.unnorm_key)
        for part in (policy.model.vision, policy.model.projector, policy.model.decoder):
            part.to(resolved)
        policy.model.to(device)
    else:
        path = checkpoint_path(checkpoint, shipped)
        assert path is not None
        policy = COGACT.load(
            path,
            device=device,
            dtype=resolved,
            unnorm_key=settings.unnorm_key,
            tokenizer=settings.tokenizer,
            dt_s=settings.dt_s,
            crop=settings.crop,
            ema=settings.ema,
            layers_in_file=layers_in_file,
        )
        policy.provenance = dataclasses.replace(policy.provenance, checkpoint=checkpoint)
    settings.apply(policy)
    policy.model.action_head.to(getattr(torch, recipe.head_dtype if dtype is None else "float32"))
    policy.provenance = dataclasses.replace(policy.provenance, recipe=recipe.name)
    return policy


def _dtype_name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _settings(unnorm_key: str | None) -> CheckpointSettings:
    from sqap_vla_ros.policy.settings import CheckpointSettings  # loads torch

    return CheckpointSettings(unnorm_key=unnorm_key)


def _quantize(
    policy: CogACTPolicy,
    recipe: Recipe,
    shipped: Mapping[str, ShippedPolicy],
    checkpoint: str,
    device: str,
    kept: KeptPolicies | None,
) -> CogACTPolicy:
    from sqap_vla_ros.compression.compress import compress
    from sqap_vla_ros.quantization.layer_fusion import prepare_inference

    require_fitting(checkpoint, recipe, policy.model.config, shipped)  # before observations are drawn
    observations: list[Observation] = []
    if recipe.quantization is not None and recipe.quantization.needs_calibration:
        known = shipped[policy.model.config.name]
        count = known.calibration_count
        file = kept.file(policy, recipe, known.scenes, count, known.observations) if kept is not None else None
        if file is not None:
            from sqap_vla_ros.compression.files.storage import load_compressed

            stored = load_compressed(file, device=device, unnorm_key=policy.unnorm_key)
            stored.provenance = policy.provenance
            return stored
        observations = known.observations(count)
    compress(policy, recipe, observations)
    policy.model.to(device)
    prepare_inference(policy.model)
    return policy


def _finish(policy: CogACTPolicy, recipe: Recipe, shipped: Mapping[str, ShippedPolicy], device: str) -> Policy:
    """Prepare the weights, equip the policy with a selector or accelerator, and capture it where that is possible."""
    from sqap_vla_ros.compression.costs import costs_of_model
    from sqap_vla_ros.compression.cuda_graphs import with_graphs
    from sqap_vla_ros.compression.parts import fuse_parts
    from sqap_vla_ros.quantization.reordered_weights import reorder_weights

    reorder_weights(policy.model)
    fuse_parts(policy.model)
    known = shipped.get(policy.model.config.name)
    equipped = equip(policy, recipe, lambda: [] if known is None else known.observations(known.ranking_count))
    policy.provenance = dataclasses.replace(
        policy.provenance, recipe_digest=recipe.digest, costs=costs_of_model(policy.model, recipe)
    )
    return with_graphs(equipped, device)


def equip(
    policy: CogACTPolicy, recipe: Recipe, observations: Callable[[], Sequence[Observation]] = lambda: ()
) -> Policy:
    """Put the recipe's token selector or accelerator on `policy`, which is changed, and return the one that predicts.

    observations: makes those that an accelerator looks at; called only where it does.
    """
    policy.selector = None
    if recipe.accelerator is not None:
        from sqap_vla_ros.compression.accelerators.table import accelerate, make_accelerator

        accelerator = make_accelerator(recipe.accelerator.name, **recipe.accelerator.parameters)
        return accelerate(policy, accelerator, observations() if accelerator.needs_calibration else ())
    if recipe.pruning is not None:
        from sqap_vla_ros.pruning import make_selector

        policy.selector = make_selector(recipe.pruning.selector, **recipe.pruning.parameters)
    return policy
