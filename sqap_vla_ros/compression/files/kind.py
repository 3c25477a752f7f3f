"""Tells compressed policies from other files, and says whether one can be written, without torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from sqap_vla_ros.policy.checkpoints.foreign import file_problem
from sqap_vla_ros.policy.checkpoints.writing import check_free

FORMAT = "sqap_vla_ros compressed policy"


class CompressedFileError(ValueError):
    """A file that is not a usable compressed policy; the message says why and what to do."""


def is_compressed(path: Path) -> bool:
    """Return whether a file says that it is a compressed policy. Raises `CompressedFileError` for a truncated one."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    if problem := file_problem(path):
        raise CompressedFileError(problem)
    try:
        with safe_open(str(path), framework="np") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError) as error:
        raise CompressedFileError(f"{path} is truncated or not a safetensors file ({error}); copy it again") from error


def check_target(path: Path, *, overwrite: bool = False, source: Path | None = None) -> None:
    """Raise `CompressedFileError` or OSError when nothing can be written there, before an hour of work.

    overwrite: an existing file may be replaced, except `source`, the checkpoint that is read.
    """
    if path.suffix != ".safetensors":
        raise CompressedFileError(f"a compressed policy is a .safetensors file, got {path}")
    if not path.absolute().parent.is_dir():
        raise CompressedFileError(f"folder {path.absolute().parent} does not exist")
    if path.is_file() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or give --overwrite to replace it")
    if source is not None and path.is_file() and path.samefile(source):
        raise FileExistsError(f"{path} is the checkpoint that is to be compressed: choose another --out")
    check_free(path, overwrite=overwrite)
