"""`load_policy` of the Python API: a shipped policy, a checkpoint on disk, or the policy of a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqap_vla_ros.compression import load
from sqap_vla_ros.contracts import TRAINED_POLICY, Policy
from sqap_vla_ros.serving.defaults import INSTALL
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.shipped import SHIPPED

if TYPE_CHECKING:
    import torch

    from sqap_vla_ros.policy.settings import CheckpointSettings
    from sqap_vla_ros.serving.remote import RemotePolicy


def load_policy(
    checkpoint: str | os.PathLike[str] = TRAINED_POLICY,
    recipe: str | os.PathLike[str] = "fp32",
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    unnorm_key: str | None = None,
    settings: CheckpointSettings | None = None,
    seed: int = 0,
) -> Policy:
    """Return the policy of a checkpoint, compressed as the recipe says.

    checkpoint: the name of a shipped policy (`tabletop`, `libero_object`, `micro`), a checkpoint folder, a
        `.safetensors` file, or the address of a server (ws://host:port), which has chosen everything else itself.
    recipe, device, dtype, unnorm_key, settings, seed: as `compression.load.load_policy` takes them.

    A recipe that calibrates a shipped policy does so once: the result is kept in the user's cache folder.

    Raises FileNotFoundError for a checkpoint that is not there, RecipeError for a recipe that does not fit it,
    ValueError for a device that PyTorch cannot use and for another argument that cannot be, and RemoteError for a
    server that cannot be reached.
    """
    for name, value in (("checkpoint", checkpoint), ("recipe", recipe)):
        if not isinstance(value, str | os.PathLike):
            raise ValueError(f"{name} must be a name or a path, got {type(value).__name__}")
    checkpoint, recipe = os.fspath(checkpoint), os.fspath(recipe)
    if is_remote(checkpoint):
        return remote_policy(checkpoint)
    from sqap_vla_ros.compression.files.kept import KeptPolicies, default_folder  # loads torch

    return load.load_policy(
        checkpoint,
        recipe,
        shipped=SHIPPED,
        device=device,
        dtype=dtype,
        unnorm_key=unnorm_key,
        settings=settings,
        seed=seed,
        kept=KeptPolicies(default_folder()),
    )


def remote_policy(address: str) -> RemotePolicy:
    """Return the policy of a server. Raises RemoteError, and ValueError where the library for it is missing."""
    try:
        from sqap_vla_ros.serving.remote import RemotePolicy  # needs a library that nothing else here does
    except ModuleNotFoundError as error:
        raise ValueError(f"the policy of a server needs {error.name}: {INSTALL}") from error
    return RemotePolicy(address)
