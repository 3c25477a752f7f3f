"""Load a policy from a checkpoint on disk.

Loading reads and converts one tensor at a time, so the memory never holds much more than the finished model.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.policy.actions import ActionStatistics, choose_dataset, require_channels, statistics_notes
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError, Contents
from sqap_vla_ros.policy.checkpoints.one_file import open_one_file
from sqap_vla_ros.policy.checkpoints.published import open_published
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy, Provenance
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.policy.decoder import replace_parameter
from sqap_vla_ros.policy.prompt import PromptTokenizer

_LOG = logging.getLogger(__name__)


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
    ema: bool = False,
    layers_in_file: bool = False,
) -> CogACTPolicy:
    """Load a policy from a published folder (or its `.pt`) or from this package's `.safetensors`.

    dtype: of towers, projector and decoder; the action head stays fp32, as it was trained.
    tokenizer: file or folder; None takes the one that came with the checkpoint.
    dt_s: seconds between actions, where the statistics do not say.
    crop: see `ImageTransform`; None takes what the file says, "none" where it says nothing.
    config: geometry of a published-format folder that is not one of the published sizes.
    ema: take the action head that was averaged over training steps, where the file holds one.
    layers_in_file: leave the decoder's layers in the file, for a caller that takes them one by one
        (`Decoder.layer_in_memory`).
    What is assumed because the checkpoint does not say it is logged as a warning.
    Raises CheckpointError, ValueError, FileNotFoundError.
    """
    contents = open_checkpoint(path, config, ema=ema)
    key, statistics, tokenize = read_header(contents, unnorm_key=unnorm_key, dt_s=dt_s, tokenizer=tokenizer)
    for note in statistics_notes(key, contents.datasets[key]):
        _LOG.warning("note: %s", note)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, contents.path)  # reads ahead of the loader
        model = assemble(contents, device=device, dtype=dtype, layers_in_file=layers_in_file)
        provenance = Provenance(str(path), digest.result(), averaged=ema)
    return CogACTPolicy(
        model,
        tokenize,
        {key: statistics},
        unnorm_key=key,
        selector=selector,
        crop=contents.crop if crop is None else crop,
        provenance=provenance,
    )


def read_header(
    contents: Contents,
    *,
    unnorm_key: str | None = None,
    dt_s: float | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[str, ActionStatistics, PromptTokenizer]:
    """Return dataset, statistics and tokenizer; options as in `load_checkpoint`. No weight is touched.

    Raises CheckpointError for missing tensors and for whole numbers, ValueError for statistics or a tokenizer that
    cannot be used.
    """
    require_whole(contents)
    for name in contents.names:
        _require_floats(contents, name, contents.form(name))
    key = choose_dataset(contents.datasets, unnorm_key)
    statistics = ActionStatistics.from_dataset(key, contents.datasets[key], dt_s)
    require_channels(key, statistics, contents.config.head.channels)
    return key, statistics, _tokenizer(contents, tokenizer)


def require_whole(contents: Contents) -> None:
    """Raise CheckpointError where the file lacks tensors of the model."""
    with torch.device("meta"):
        wanted = CogACT(contents.config).state_dict()
    missing = [name for name in wanted if name not in contents.names]
    if missing:
        raise CheckpointError(
            f"{contents.path} lacks {len(missing)} of {len(wanted)} tensors, the first is "
            f"{contents.stored_name(missing[0])!r}: the file is incomplete or of another model"
        )


def open_checkpoint(path: str | Path, config: PolicyConfig | None = None, *, ema: bool = False) -> Contents:
    """Read the headers alone; no weight is touched. Options as in `load_checkpoint`."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors" and path.is_file():
        if ema:
            raise CheckpointError(
                f"{path} holds one action head: name the published folder with --ema, or convert it so"
            )
        return open_one_file(path)
    return open_published(path, config, ema=ema)


def assemble(contents: Contents, *, device: str, dtype: torch.dtype, layers_in_file: bool = False) -> CogACT:
    """Build the model without memory and fill it tensor by tensor.

    Raises CheckpointError for a missing tensor, a wrong shape, numbers of another kind, NaN and infinity.
    """
    require_whole(contents)
    with torch.device("meta"):
        model = CogACT(contents.config)
    wanted = model.state_dict()
    total = sum(tensor.numel() for tensor in wanted.values())
    # tqdm(disable=None): no bar where standard error is not a terminal
    with tqdm(total=total, desc="loading", unit="param", unit_scale=True, disable=None, file=sys.stderr) as bar:
        for name, expected in wanted.items():
            form = contents.form(name)
            if form.shape != expected.shape:
                raise CheckpointError(
                    f"{contents.path}: {contents.stored_name(name)!r} has shape {list(form.shape)}, the "
                    f"{contents.config.name} geometry needs {list(expected.shape)}"
                )
            _require_floats(contents, name, form)
            if not (layers_in_file and name.startswith("decoder.layers.")):
                target = torch.float32 if name.startswith("action_head.") else dtype
                replace_parameter(model, name, _read_finite(contents, name, target).to(device))
            bar.update(form.numel())
    if layers_in_file:

        def read(name: str) -> Tensor:
            return _read_finite(contents, f"decoder.{name}", dtype)

        model.decoder.read = read
    # the one buffer of the model is not stored
    positions = model.vision.siglip.embeddings
    positions.position_ids = torch.arange(contents.config.vision.tokens, device=device)[None]
    return model.eval()


def _read_finite(contents: Contents, name: str, dtype: torch.dtype) -> Tensor:
    """Return one tensor in `dtype`. Raises CheckpointError for NaN and infinity."""
    stored = contents.read(name)
    tensor = stored.to(dtype).contiguous()
    if not torch.stack(torch.aminmax(tensor)).isfinite().all():
        narrower = dtype == torch.float16 and stored.dtype != dtype
        raise CheckpointError(
            f"{contents.path}: {contents.stored_name(name)!r} holds values that are not finite in "
            f"{_kind(tensor)}: the file is damaged{', or needs --dtype bfloat16' if narrower else ''}"
        )
    return tensor


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a whole file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(contents: Contents, path: str | Path | None) -> PromptTokenizer:
    prompt, vocabulary = contents.config.prompt, contents.config.decoder.vocabulary
    if path is not None:
        return PromptTokenizer.load(path, prompt, vocabulary)
    if contents.tokenizer is None:
        raise CheckpointError(
            f"no tokenizer came with {contents.path}: put Llama-2's {' or '.join(PromptTokenizer.FILES)} into the "
            "checkpoint's folder, or name it as tokenizer (--tokenizer)"
        )
    return PromptTokenizer(prompt, vocabulary, *contents.tokenizer)


def is_plain(stored: Tensor) -> bool:
    """Return whether a tensor holds floating-point numbers, each in its place."""
    return stored.layout == torch.strided and stored.is_floating_point()


def _require_floats(contents: Contents, name: str, stored: Tensor) -> None:
    if not is_plain(stored):
        raise CheckpointError(
            f"{contents.path}: {contents.stored_name(name)!r} holds {_kind(stored)} numbers, not plain floating-point "
            "ones: a file that another tool quantised or packed; name the one it was made from"
        )


def _kind(tensor: Tensor) -> str:
    """Return the type of a tensor's numbers, and their layout where it is not the plain one, in PyTorch's words."""
    words = (tensor.dtype,) if tensor.layout == torch.strided else (tensor.layout, tensor.dtype)
    return " ".join(str(word).removeprefix("torch.") for word in words)
