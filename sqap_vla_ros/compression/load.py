"""One door to a policy: a checkpoint (or `micro`) and a recipe in, something that predicts out.

The node's worker, the command line and the evaluation all come through here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.recipe import Recipe, RecipeError, load_recipe
from sqap_vla_ros.contracts import Policy, TokenSelector

if TYPE_CHECKING:
    import torch

    from sqap_vla_ros.policy.cogact import CogACTPolicy

MICRO = "micro"
CALIBRATION_OBSERVATIONS = 8  # made-up ones, for the micro policy


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

    checkpoint: `micro` (a small policy with random weights, seeded), a checkpoint folder, or a file made by
        `sqap-vla compress`.
    recipe: a name of `config/recipes` or a YAML file.
    dtype: overrides the recipe's.
    unnorm_key: which dataset's statistics turn the normalised chunk into metres and radians.
    seed: of the micro policy's weights.
    """
    chosen = load_recipe(recipe)
    policy = load_full_precision(checkpoint, chosen, device=device, dtype=dtype, unnorm_key=unnorm_key, seed=seed)
    spec = chosen.quantization
    if spec is not None:
        if spec.needs_calibration and checkpoint != MICRO:
            raise RecipeError(
                f"recipe {chosen.name!r} needs calibration: run `sqap-vla compress --checkpoint {checkpoint} "
                f"--recipe {chosen.name} --calibration ... --out policy.safetensors` once and load that file"
            )
        observations = synthetic_observations(CALIBRATION_OBSERVATIONS) if spec.needs_calibration else []
        from sqap_vla_ros.compression.compress import compress
        from sqap_vla_ros.quantization.linear import use_backend

        compress(policy, chosen, observations)
        use_backend(policy.model)
    policy.selector = selector_of(chosen)
    return policy


def selector_of(recipe: Recipe) -> TokenSelector | None:
    """The recipe's token selector, ready to use; None when it keeps every token."""
    if recipe.pruning is None:
        return None
    from sqap_vla_ros.pruning import make_selector

    return make_selector(recipe.pruning.selector, **recipe.pruning.parameters)


def load_full_precision(
    checkpoint: str,
    recipe: Recipe,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    unnorm_key: str | None = None,
    seed: int = 0,
) -> CogACTPolicy:
    """The policy before any quantisation, in the recipe's dtype unless another is given."""
    import torch

    resolved = getattr(torch, str(dtype or recipe.dtype).removeprefix("torch."))
    if checkpoint == MICRO:
        from sqap_vla_ros.policy.micro import micro_policy

        policy = micro_policy(seed=seed)
        policy.model.to(device=device, dtype=resolved)
        policy.model.action_head.float()
        policy.provenance = dataclasses.replace(policy.provenance, recipe=recipe.name)
        return policy
    from sqap_vla_ros.policy.checkpoint import load_checkpoint

    path = Path(checkpoint).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; give a folder, a .safetensors file, or {MICRO!r}")
    return load_checkpoint(path, device=device, dtype=resolved, unnorm_key=unnorm_key)
