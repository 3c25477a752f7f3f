"""Files and folders that are not checkpoints this package reads: one sentence that says what each is and what works.

Nothing is loaded to find out: names, the first bytes, `config.json` and the names of tensors tell.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path

from sqap_vla_ros.git_lfs import is_pointer

_READ = "a published CogACT folder, its checkpoints/*.pt, or a .safetensors file of this package"
_OLD_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's magic number before it wrote zip archives

_MERGE = (
    "merge the adapter into its base model (peft: merge_and_unload), save it as the CogACT training code does, "
    "and give that folder"
)
# what a Hugging Face config.json calls the model (the beginning of model_type) -> what it is and what works
_MODEL_TYPES = (
    ("openvla", "an OpenVLA model, which writes its actions as text tokens and has no diffusion head: give a CogACT"),
    ("dexbotic", "a Dexbotic model, built on another vision tower and language model than CogACT's: give CogACT's own"),
    (
        "cogact",
        "a CogACT model in the form of Hugging Face's transformers, not read here: give its training code's own",
    ),
    ("prismatic", "a vision-language model without an action head: give a CogACT checkpoint that was trained from it"),
)
# substrings of tensor names -> the same
_TENSOR_NAMES = (
    (("lora_A", "lora_B", ".base_layer."), f"the weights of LoRA layers that are not merged: {_MERGE}"),
    (("qwen_vl_interface.",), "a starVLA model, built on Qwen-VL: give a CogACT checkpoint"),
    (("mm_vision_tower", "mm_projector"), "a Dexbotic model, built on other towers: give a CogACT checkpoint"),
    (("language_model.model.layers",), "an OpenVLA or another Hugging Face model: give a CogACT checkpoint"),
)


def file_problem(path: Path) -> str | None:
    """Say what makes a file unreadable as a checkpoint, judged by its first bytes; None where they look right."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return f"{path} is empty: copy or download it again"
    if is_pointer(path):
        return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    if start.startswith(_OLD_PICKLE):
        return (
            f"{path} is in PyTorch's format before version 1.6, which is not read: save it again with "
            f"`torch.save(torch.load({path.name!r}, weights_only=True), 'new.pt')`"
        )
    if start.lstrip()[:1] == b"<" or (path.suffix == ".safetensors" and start[:1] == b"{"):
        return f"{path} is a web page or another text, not the file itself: download it again"
    return None


def kind_of(path: Path) -> str:
    """Say what an existing path is: "a file", "a folder", "a device", "a pipe" or "a socket"."""
    mode = path.stat().st_mode
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def is_archive(path: Path) -> bool:
    """Return whether a file begins as a zip archive does, whole or not."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def tensors_problem(path: Path, names: Iterable[str]) -> str:
    """Say what a file of bare tensors is by their names."""
    listed = sorted(names)
    for parts, what in _TENSOR_NAMES:
        if any(part in name for name in listed for part in parts):
            return f"{path} holds {what}"
    shown = ", ".join(map(repr, listed[:2])) or "none"
    return f"{path} holds bare tensors of another model (names: {shown}, …; {len(listed)} in all): give {_READ}"


def location_problem(path: Path) -> str:
    """Say what a folder or file is that has no place among the checkpoints which are read."""
    if path.is_file():
        if path.name.startswith("adapter_"):
            return f"{path} is part of a LoRA adapter: {_MERGE}"
        if path.name.endswith(".index.json") or (path.parent / "model.safetensors.index.json").is_file():
            return _hugging_face(path.parent) or f"{path} is part of a model in several files: give {_READ}"
        return f"{path} is not a checkpoint: give {_READ}"
    if snapshots := sorted((path / "snapshots").glob("*/")):
        return f"{path} is a model in Hugging Face's cache: give the folder {snapshots[0]} in it"
    if (path / "adapter_config.json").is_file():
        return f"{path} is a LoRA adapter, which holds only changes to another model: {_MERGE}"
    if known := _hugging_face(path):
        return known
    if _is_starvla(path):
        return f"{path} is a starVLA run, whose model is built on Qwen-VL: give a CogACT checkpoint"
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        names = ", ".join(sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))[:3])
        return f"{path} is a folder of weights ({names}) and not a CogACT folder: give {_READ}, or name one file"
    return ""


def _hugging_face(folder: Path) -> str | None:
    """Return the sentence for a Hugging Face model folder, None for another."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or "vla" in config or not {"model_type", "architectures"} & set(config):
        return None
    named = [config.get("model_type"), *(a for a in [config.get("architectures")] if isinstance(a, list) for a in a)]
    kind = next((name for name in named if isinstance(name, str)), "unknown")
    for beginning, what in _MODEL_TYPES:
        if kind.lower().startswith(beginning):
            return f"{folder} holds {what} checkpoint"
    return f"{folder} is a Hugging Face model of type {kind!r}, which is not CogACT: give {_READ}"


def _is_starvla(folder: Path) -> bool:
    try:
        text = (folder / "config.yaml").read_text()[:100_000]
    except (OSError, ValueError):
        return False
    return any(line.startswith("framework:") for line in text.splitlines())
