"""Good files of every kind, small, to be damaged as copies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image as Picture

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.checkpoints.published import save_published
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import MICRO, ActionHeadConfig, DecoderConfig, PolicyConfig, TowerConfig, VisionConfig
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer


def tiny_policy() -> CogACTPolicy:
    """A CogACT of a few thousand weights: its files are damaged where it hurts."""
    config = PolicyConfig(
        name="tiny",
        vision=VisionConfig(
            dino=TowerConfig(8, 2, 2, 16, registers=1), siglip=TowerConfig(8, 2, 2, 16), image_size=28, patch_size=14
        ),
        projector_width=16,
        decoder=DecoderConfig(width=16, depth=2, heads=2, mlp_width=32, vocabulary=512),
        head=ActionHeadConfig(width=16, depth=1, heads=2, horizon=2),
        prompt=MICRO.prompt,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CogACT(config)
    return CogACTPolicy(model, micro_tokenizer(), micro_policy().statistics)


def moving_policy() -> CogACTPolicy:
    """The same with an action head that is not new: a new one's last layer is zero, and so is every gradient."""
    policy = tiny_policy()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.action_head.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return policy


@cache
def originals(folder: Path) -> dict[str, Path]:
    """Write one good file of each kind; they are damaged as copies."""
    from bag_factory import write_bag

    folder.mkdir(parents=True, exist_ok=True)
    policy = tiny_policy()
    save_checkpoint(policy, folder / "one.safetensors")
    save_published(policy, folder / "published")
    recipe = folder / "tiny.yaml"
    recipe.write_text("quantization: {weight_bits: 4, activation_bits: 8}\n")
    compress_to_file(policy, load_recipe(recipe), [], folder / "packed.safetensors")
    write_bag(folder / "mcap", frames=2)
    as_sqlite(folder / "mcap", folder / "sqlite")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for name in ("png", "jpg", "bmp", "webp", "gif", "tiff"):
        Picture.fromarray(pixels).save(folder / f"picture.{name}")
    cv2.imwrite(str(folder / "deep.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "float.tiff"), pixels.astype(np.float32) / 255)
    return {path.name: path for path in folder.iterdir()}


_MIXED = {
    "rows": "{activation_bits: 8, rounding: gptq, hessian: weighted, row_bits: {average: 4.0, vision: 4.0}}",
    "gptq": "{weight_bits: 4, activation_bits: 4, rotation: hadamard, rounding: gptq, activation_clip: null}",
    "parts": "{weight_bits: 4, activation_bits: 8, parts: {vision: 8, projector: 8}}",
}


@cache
def mixed_files(folder: Path) -> dict[str, Path]:
    """Write a compressed file of each scheme that changes what is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, text in _MIXED.items():
        recipe, path = folder / f"{name}.yaml", folder / f"{name}.safetensors"
        recipe.write_text(f"quantization: {text}\n")
        compress_to_file(moving_policy(), load_recipe(recipe), synthetic_observations(4, size=28), path)
        found[path.name] = path
    return found


def as_sqlite(source: Path, target: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    with Reader(source) as reader, Writer(target, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        known = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store) for c in reader.connections}
        for connection, stamp, data in reader.messages():
            writer.write(known[connection.id], stamp, data)
