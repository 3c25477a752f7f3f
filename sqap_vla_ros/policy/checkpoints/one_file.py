"""This package's own checkpoint: one `.safetensors` whose header carries configuration, statistics and tokenizer."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError, Contents
from sqap_vla_ros.policy.checkpoints.foreign import file_problem, location_problem, tensors_problem
from sqap_vla_ros.policy.checkpoints.reading import SafetensorsFile
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.config import PolicyConfig

if TYPE_CHECKING:
    from sqap_vla_ros.policy.cogact import CogACTPolicy

FORMAT = "sqap_vla_ros/cogact/1"


def open_one_file(path: Path) -> Contents:
    """Read the header; torch is imported when the first tensor is read. Raises CheckpointError."""
    if problem := file_problem(path):
        raise CheckpointError(problem)
    if (
        path.name.startswith("adapter_")
        or (path.parent / f"{path.stem.split('-')[0]}.safetensors.index.json").is_file()
    ):
        raise CheckpointError(location_problem(path))
    try:
        file = SafetensorsFile(path)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): copy it again") from error
    metadata, names = file.metadata, frozenset(file.names)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a full-precision CogACT checkpoint: its format is {metadata.get('format')!r}, "
            f"{FORMAT!r} is needed; it {tensors_problem(path, names).removeprefix(f'{path} ')}"
        )
    try:
        config = PolicyConfig.from_dict(json.loads(metadata["config"]))
        datasets = json.loads(metadata["statistics"])
        if not isinstance(datasets, dict):
            raise ValueError(f"statistics must be a mapping of data sets, got {type(datasets).__name__}")
        tokenizer = None
        if "tokenizer" in metadata:
            tokenizer = metadata["tokenizer_name"], base64.b64decode(metadata["tokenizer"], validate=True)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error

    return Contents(
        path=path,
        format="sqap_vla_ros",
        config=config,
        datasets=datasets,
        names=names,
        form=file.form,
        read=file.read,
        stored_name=str,
        tokenizer=tokenizer,
        crop=metadata.get("crop", "none"),
    )


def save_checkpoint(policy: CogACTPolicy, path: str | Path) -> None:
    """Write the policy in the dtypes it has. A write that fails leaves nothing; OSError says why."""
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint file ends in .safetensors, got {path}")
    name, data = policy.tokenize.file
    metadata = {
        "format": FORMAT,
        "config": json.dumps(policy.model.config.to_dict()),
        "statistics": json.dumps({key: value.to_dict() for key, value in policy.statistics.items()}),
        "crop": policy.transform.crop,
        "tokenizer_name": name,
        "tokenizer": base64.b64encode(data).decode(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.model.state_dict().items()}
    with written_aside(path) as partial:
        save_file(tensors, str(partial), metadata=metadata)
