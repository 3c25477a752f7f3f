"""Checkpoints on disk: the published CogACT folder, and our one-file safetensors form.

Published folder: `config.json`, `dataset_statistics.json`, one `checkpoints/*.pt`. The Llama-2 tokenizer is not part of
it: put `tokenizer.json` or `tokenizer.model` into the folder, or name it.
Our form: one `.safetensors` whose header carries configuration, statistics and tokenizer.

Loading maps the file and converts one tensor at a time; pages that were read are given back, so the resident memory
never holds much more than the finished model.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import hashlib
import json
import mmap
import pickle
import struct
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.official import GROUPS, Groups, head_config, source_of, to_groups
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy, Provenance, choose_dataset
from sqap_vla_ros.policy.config import COGACT_BASE, COGACT_LARGE, COGACT_SMALL, PolicyConfig
from sqap_vla_ros.policy.prompt import PromptTokenizer

FORMAT = "sqap_vla_ros/cogact/1"
_TOWERS = "dinosiglip-224px"  # in the name of every base model with the published two towers
Read = Callable[[str], Tensor]  # name of ours -> stored tensor, mapped from the file


class CheckpointError(ValueError):
    """A file that is not the checkpoint it should be: names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Contents:
    """An opened checkpoint: what it says about itself, and its tensors under our names.

    names: our names that the file holds; read: one tensor, still in the file's dtype.
    """

    path: Path
    kind: str
    config: PolicyConfig
    datasets: dict[str, Any]
    names: frozenset[str]
    read: Read
    tokenizer: tuple[str, bytes] | None
    crop: str = "none"


def load_checkpoint(
    path: str | Path,
    *,
    selector: TokenSelector | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    unnorm_key: str | None = None,
    tokenizer: str | Path | None = None,
    dt_s: float | None = None,
    config: PolicyConfig | None = None,
    crop: str | None = None,
    mapped_layers: bool = False,
) -> CogACTPolicy:
    """A policy from a published folder (or its `.pt`) or from our `.safetensors`.

    dtype: of towers, projector and decoder; the action head stays fp32, as it was trained.
    tokenizer: file or folder; None takes the one that came with the checkpoint.
    dt_s: seconds between actions, where the statistics do not say.
    crop: see `ImageTransform`; None takes what the file says, "none" where it says nothing.
    config: geometry of a published-format folder that is not one of the published sizes.
    mapped_layers: leave the decoder's layers in the file, in its dtype, for who takes them one by one (`compress`).
    Raises CheckpointError, FileNotFoundError.
    """
    contents = open_checkpoint(path, config)
    key = choose_dataset(contents.datasets, unnorm_key)
    statistics = {key: ActionStatistics.from_dataset(key, contents.datasets[key], dt_s)}
    tokenize = _tokenizer(contents, tokenizer)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, contents.path)  # reads ahead of the loader
        model = assemble(contents, device=device, dtype=dtype, mapped_layers=mapped_layers)
        provenance = Provenance(str(path), digest.result())
    return CogACTPolicy(
        model,
        tokenize,
        statistics,
        unnorm_key=key,
        selector=selector,
        crop=contents.crop if crop is None else crop,
        provenance=provenance,
    )


def open_checkpoint(path: str | Path, config: PolicyConfig | None = None) -> Contents:
    """Reads headers only; no weight is touched."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_official(path, config)


def assemble(contents: Contents, *, device: str, dtype: torch.dtype, mapped_layers: bool = False) -> CogACT:
    """Builds the model without memory and fills it tensor by tensor.

    Raises CheckpointError for a missing tensor or a wrong shape.
    """
    with torch.device("meta"):
        model = CogACT(contents.config)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in contents.names]
    if missing:
        raise CheckpointError(
            f"{contents.path} lacks {len(missing)} of {len(wanted)} tensors, the first is "
            f"{_stored(contents, missing[0])!r}: the file is incomplete or of another model"
        )
    total = sum(tensor.numel() for tensor in wanted.values())
    # tqdm(disable=None): no bar where standard error is not a terminal
    with tqdm(total=total, desc="loading", unit="param", unit_scale=True, disable=None, file=sys.stderr) as bar:
        for name, expected in wanted.items():
            stored = contents.read(name)
            if stored.shape != expected.shape:
                raise CheckpointError(
                    f"{contents.path}: {_stored(contents, name)!r} has shape {list(stored.shape)}, the "
                    f"{contents.config.name} geometry needs {list(expected.shape)}"
                )
            if mapped_layers and name.startswith("decoder.layers."):
                _replace_parameter(model, name, stored)
                continue
            target = torch.float32 if name.startswith("action_head.") else dtype
            tensor = stored.to(device=device, dtype=target, copy=True)
            _replace_parameter(model, name, tensor)
            release(stored)
            bar.update(tensor.numel())
    # the one buffer of the model is not stored
    positions = model.vision.siglip.embeddings
    positions.position_ids = torch.arange(contents.config.vision.tokens, device=device)[None]
    return model.eval()


def save_checkpoint(policy: CogACTPolicy, path: str | Path) -> None:
    """Writes our one-file form, in the dtypes the policy has."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint file ends in .safetensors, got {path}")
    tokenizer = getattr(policy.tokenize, "file", None)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(policy.model.config.to_dict()),
        "statistics": json.dumps({key: value.to_dict() for key, value in policy.statistics.items()}),
        "crop": policy.transform.crop,
    }
    if tokenizer is not None:
        metadata["tokenizer_name"], data = tokenizer
        metadata["tokenizer"] = base64.b64encode(data).decode()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.model.state_dict().items()}
    partial = path.with_name(path.name + ".partial")  # an interrupted write leaves no file that looks whole
    save_file(tensors, str(partial), metadata=metadata)
    partial.replace(path)


def save_official(policy: CogACTPolicy, folder: str | Path) -> Path:
    """Writes the published folder layout; the tokenizer goes beside it. Returns the `.pt` file."""
    folder = Path(folder)
    weights = folder / "checkpoints" / "model.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": f"prism-{_TOWERS}+7b"}}, indent=2) + "\n")
    datasets = {key: value.to_dict() for key, value in policy.statistics.items()}
    (folder / "dataset_statistics.json").write_text(json.dumps(datasets, indent=2) + "\n")
    tokenizer = getattr(policy.tokenize, "file", None)
    if tokenizer is not None:
        (folder / tokenizer[0]).write_bytes(tokenizer[1])
    torch.save({"model": to_groups(policy.model)}, weights)
    return weights


def sha256_of(path: Path) -> str:
    """Of the whole file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_safetensors(path: Path) -> Contents:
    try:
        file = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): copy it again") from error
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a full-precision CogACT checkpoint: its format is {metadata.get('format')!r}, "
            f"{FORMAT!r} is needed"
        )
    try:
        config = PolicyConfig.from_dict(json.loads(metadata["config"]))
        datasets = json.loads(metadata["statistics"])
        tokenizer = None
        if "tokenizer" in metadata:
            tokenizer = metadata["tokenizer_name"], base64.b64decode(metadata["tokenizer"], validate=True)
    except (KeyError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    crop = metadata.get("crop", "none")
    return Contents(path, "safetensors", config, datasets, frozenset(file.keys()), file.get_tensor, tokenizer, crop)


def _open_official(path: Path, config: PolicyConfig | None) -> Contents:
    folder, weights = _official_files(path)
    base = _json(folder / "config.json").get("vla", {}).get("base_vlm", "")
    if config is None and _TOWERS not in str(base):
        raise CheckpointError(
            f"{folder / 'config.json'} names base_vlm {base!r}; CogACT is built on a {_TOWERS} model: another model"
        )
    groups = _read_groups(weights)
    if config is None:
        try:
            head = head_config(groups["action_model"])
        except ValueError as error:
            raise CheckpointError(f"{weights}: {error}") from error
        config = next(c for c in (COGACT_SMALL, COGACT_BASE, COGACT_LARGE) if c.head == head)

    def read(name: str) -> Tensor:
        source = source_of(name)
        if source.part == "absent":
            return torch.zeros(1, config.vision.dino.width)
        return source.read(groups[source.group][source.key])

    with torch.device("meta"):
        ours = list(CogACT(config).state_dict())
    sources = {name: source_of(name) for name in ours}
    held = {n for n, s in sources.items() if s.part == "absent" or s.key in groups[s.group]}
    datasets = _json(folder / "dataset_statistics.json")
    tokenizer = next(((f.name, f.read_bytes()) for f in _tokenizer_files(folder) if f.is_file()), None)
    return Contents(weights, "official", config, datasets, frozenset(held), read, tokenizer)


def _official_files(path: Path) -> tuple[Path, Path]:
    """The folder and its one weights file."""
    if path.is_file():
        if path.suffix != ".pt" or path.parent.name != "checkpoints":
            raise CheckpointError(
                f"{path} is not a checkpoint: give a published CogACT folder, its checkpoints/*.pt "
                "or a .safetensors file"
            )
        return path.parent.parent, path
    found = sorted((path / "checkpoints").glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(f"{path / 'checkpoints'} must hold exactly one .pt file, found {names}")
    return path, found[0]


def _read_groups(weights: Path) -> Groups:
    """The dict of dicts, each tensor still in the file."""
    try:
        model = torch.load(weights, map_location="cpu", mmap=True, weights_only=True)["model"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{weights} holds more than tensors, or is not a checkpoint: it is not loaded") from error
    except (RuntimeError, EOFError, OSError, struct.error) as error:
        raise CheckpointError(f"{weights} is truncated or not a PyTorch file ({error}): copy it again") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{weights} has no 'model' entry: not a CogACT checkpoint") from error
    lacking = [group for group in GROUPS if not isinstance(model, dict) or not isinstance(model.get(group), dict)]
    if lacking:
        raise CheckpointError(f"{weights} lacks the part {lacking[0]!r} of a CogACT checkpoint")
    return model


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a published CogACT folder has it beside checkpoints/")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _tokenizer_files(folder: Path) -> Iterable[Path]:
    return (folder / name for name in PromptTokenizer.FILES)


def _tokenizer(contents: Contents, path: str | Path | None) -> PromptTokenizer:
    prompt, vocabulary = contents.config.prompt, contents.config.decoder.vocabulary
    if path is not None:
        return PromptTokenizer.load(path, prompt, vocabulary)
    if contents.tokenizer is None:
        raise CheckpointError(
            f"no tokenizer came with {contents.path}: put Llama-2's {' or '.join(PromptTokenizer.FILES)} into the "
            "checkpoint's folder, or name it (`sqap-vla convert --tokenizer`)"
        )
    return PromptTokenizer(prompt, vocabulary, *contents.tokenizer)


def _stored(contents: Contents, name: str) -> str:
    """The name as it is in the file, for messages."""
    if contents.kind != "official":
        return name
    source = source_of(name)
    return f"{source.group}/{source.key}"


def _replace_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def release(mapped: Tensor) -> None:
    """Tells the kernel that the file pages behind a tensor are not needed now: they leave the resident memory.

    Only for tensors mapped from a file: other memory would be wiped.
    """
    if not sys.platform.startswith("linux") or mapped.device.type != "cpu" or mapped.numel() == 0:
        return
    start = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this tensor only
    end = (mapped.data_ptr() + mapped.numel() * mapped.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
