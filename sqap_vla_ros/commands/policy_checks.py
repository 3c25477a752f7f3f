"""Checks of a policy's options, before it is loaded: what costs nothing first, then what its headers tell.

`require_policy` reads small files alone and imports neither torch nor transformers, which take seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqap_vla_ros.commands.options import UsageError

if TYPE_CHECKING:
    from sqap_vla_ros.policy.config import PolicyConfig
    from sqap_vla_ros.policy.settings import CheckpointSettings


def require_device(device: str, checkpoint: str = "") -> None:
    """Raise UsageError where `device` is a GPU that PyTorch does not see. Imports torch for a GPU only.

    checkpoint: where it is a server's address, the policy does not run here, and any device passes.
    """
    from sqap_vla_ros.policy.devices import device_problem
    from sqap_vla_ros.serving.frames import is_remote

    if is_remote(checkpoint):
        return
    if problem := device_problem(device):
        raise UsageError(f"--device {device}: {problem}; use --device cpu or install a CUDA build")


def require_policy(
    checkpoint: str, *recipes: str, settings: CheckpointSettings | None = None, server: bool = True
) -> None:
    """Raise FileNotFoundError or ValueError for what cannot become a policy, as far as small files tell.

    A server's address counts as there where its name resolves. It has chosen the rest itself: that is not looked at.
    settings: checked against the geometry and the data sets that the checkpoint states; None stands for its own.
    server: the command can use the policy of one.
    """
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.policy.settings import CheckpointSettings
    from sqap_vla_ros.serving.frames import is_remote

    if is_remote(checkpoint) and not server:
        raise UsageError(
            f"--checkpoint {checkpoint}: this needs the policy here, not a server's: give its folder or file"
        )
    if is_remote(checkpoint):
        require_server(checkpoint)
        return
    for recipe in recipes:
        load_recipe(recipe)
    _require_settings(checkpoint, settings or CheckpointSettings())


def _require_settings(checkpoint: str, settings: CheckpointSettings) -> None:
    from sqap_vla_ros.compression.files.kind import is_compressed
    from sqap_vla_ros.compression.load import checkpoint_path
    from sqap_vla_ros.policy.actions import choose_dataset
    from sqap_vla_ros.policy.checkpoints.one_file import open_one_file
    from sqap_vla_ros.policy.checkpoints.published_folder import read_folder
    from sqap_vla_ros.policy.config import COGACT_BASE, named_config
    from sqap_vla_ros.policy.prompt import PromptTokenizer
    from sqap_vla_ros.shipped import SHIPPED

    path = checkpoint_path(checkpoint, SHIPPED)
    config = COGACT_BASE  # sampler, prompt and vocabulary are those of every published size
    if path is None:
        config = named_config(checkpoint)
        choose_dataset((checkpoint,), settings.unnorm_key)
    elif is_compressed(path):
        return  # its header is read with its layers
    elif path.suffix == ".safetensors" and path.is_file():
        contents = open_one_file(path)
        config = contents.config
        choose_dataset(contents.datasets, settings.unnorm_key)
    else:
        folder = read_folder(path)
        config = folder.config or config
        choose_dataset(folder.datasets, settings.unnorm_key)
    settings.sampling(config.diffusion)
    if settings.tokenizer is not None:
        PromptTokenizer.load(settings.tokenizer, config.prompt, config.decoder.vocabulary)


def require_fitting(checkpoint: str, recipes: Iterable[str]) -> None:
    """Raise RecipeError where a recipe asks for layers that the checkpoint lacks, or for a calibration that it needs.

    Imports torch. A server has judged its recipe itself.
    """
    from sqap_vla_ros.serving.frames import is_remote

    if is_remote(checkpoint):
        return
    from sqap_vla_ros.compression import load
    from sqap_vla_ros.policy.config import named_config
    from sqap_vla_ros.shipped import SHIPPED

    path = load.checkpoint_path(checkpoint, SHIPPED)
    config = named_config(checkpoint) if path is None else load.geometry(path)
    for recipe in recipes:
        load.require_fitting(checkpoint, load.applied_recipe(checkpoint, recipe, SHIPPED), config, SHIPPED)


def require_mover(checkpoint: str, settings: CheckpointSettings) -> None:
    """Raise FileNotFoundError or ValueError for a policy that cannot be loaded by its headers or that moves no arm."""
    from sqap_vla_ros.policy.actions import require_arm_actions
    from sqap_vla_ros.serving.frames import is_remote
    from sqap_vla_ros.shipped import SHIPPED

    if is_remote(checkpoint) or checkpoint in SHIPPED:
        return
    if (config := readable_config(checkpoint, settings)) is not None:
        require_arm_actions(checkpoint, config.head.channels)


def require_server(address: str) -> None:
    """Raise UsageError for --checkpoint ws://... that is no address or whose host nobody knows."""
    from sqap_vla_ros.serving.frames import host_and_port, uses_proxy

    try:
        host, port = host_and_port(address)
        if uses_proxy(address):  # which may know names that are not known here
            return
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, OSError) as error:
        raise UsageError(f"--checkpoint {address}: {getattr(error, 'strerror', None) or error}") from error


def readable_config(checkpoint: str, settings: CheckpointSettings) -> PolicyConfig | None:
    """Return the geometry of a checkpoint whose headers show that it can be loaded; None for a compressed file.

    Imports torch for a file. Raises ValueError and FileNotFoundError.
    """
    from sqap_vla_ros.compression.files.kind import is_compressed
    from sqap_vla_ros.compression.load import checkpoint_path
    from sqap_vla_ros.policy.config import named_config
    from sqap_vla_ros.shipped import SHIPPED

    path = checkpoint_path(checkpoint, SHIPPED)
    if path is not None and is_compressed(path):
        return None
    if path is None:
        config = named_config(checkpoint)
    else:
        from sqap_vla_ros.policy.checkpoints.load import open_checkpoint, read_header

        contents = open_checkpoint(path, ema=settings.ema)
        read_header(contents, unnorm_key=settings.unnorm_key, dt_s=settings.dt_s, tokenizer=settings.tokenizer)
        config = contents.config
    settings.sampling(config.diffusion)
    return config
