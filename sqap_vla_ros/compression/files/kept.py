"""Policies that were calibrated on the spot, kept as compressed files: the same command need not calibrate again.

A file is named by everything that decides about its content: weights, settings, recipe, calibration scenes, and this
package's own code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sqap_vla_ros
from sqap_vla_ros.compression.files.job import compress_to_file, policy_digest, weights_digest
from sqap_vla_ros.compression.files.storage import CompressedFile, CompressedFileError
from sqap_vla_ros.compression.layer_work import OnProgress
from sqap_vla_ros.compression.recipe import Recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.cogact import CogACTPolicy

_MOST = 8  # files; the ones that were not used for longest go


def default_folder() -> Path:
    """Return the folder of this user's kept policies, as the XDG base directories have it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sqap_vla_ros" / "calibrated"


@dataclass(frozen=True)
class KeptPolicies:
    """The folder of kept policies. progress: called as (stage, done, total) while one is made."""

    folder: Path
    progress: OnProgress | None = None

    def file(
        self, policy: CogACTPolicy, recipe: Recipe, scenes: str, count: int, observe: Callable[[int], list[Observation]]
    ) -> Path | None:
        """Return the compressed file, made now where it is not there; None where the folder cannot be written.

        The policy is spent where the file had to be made. scenes: what `observe` shows, in words.
        """
        digest = dataclasses.replace(recipe, pruning=None, accelerator=None).digest  # put on when it is loaded
        dtype = str(policy.model.decoder.embed_tokens.weight.dtype)
        said = [weights_digest(policy), policy_digest(policy), dtype, digest, scenes, count, _code_digest()]
        name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        file = self.folder / f"{name}.safetensors"
        if file.is_file():
            if _whole(file):
                os.utime(file)
                return file
            file.unlink()  # cut off or damaged: made anew
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        if not os.access(self.folder, os.W_OK):
            return None
        if self.progress is not None:
            self.progress("drawing observations", 0, count)
        observations = observe(count)
        if self.progress is not None:
            self.progress("drawing observations", count, count)
        own = self.folder / f"{name}.{os.getpid()}.safetensors"  # another command may be making the same
        compress_to_file(policy, recipe, observations, own, calibration={"source": scenes}, progress=self.progress)
        own.replace(file)
        for old in sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)[:-_MOST]:
            old.unlink(missing_ok=True)
        return file


def _whole(file: Path) -> bool:
    try:
        kept = CompressedFile(file)
        for name in kept.names:
            kept.tensor(name)
    except CompressedFileError:
        return False
    return True


@cache
def _code_digest() -> str:
    """Return the sha256 of this package's sources, so that a changed program makes new files."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(Path(sqap_vla_ros.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
