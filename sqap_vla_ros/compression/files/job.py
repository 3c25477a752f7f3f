"""Compressing to a file, layer by layer, so that an interruption loses one layer at most.

Beside `policy.safetensors` lives `policy.safetensors.partial/` until the job is done: `plan.json` says which
compression it belongs to, every finished decoder layer is a file, and so are the calibration inputs of the next one.
Files appear whole (written aside, then renamed), so that what is there can be trusted after an interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sqap_vla_ros.compression.compress import (
    CompressedLayer,
    compress_layers,
    make_plan,
    prepare_stream,
    quantize_towers,
    require_calibration,
    require_loadable,
    require_plannable,
)
from sqap_vla_ros.compression.files.kind import check_target
from sqap_vla_ros.compression.files.storage import (
    CheckedFile,
    CompressedFileError,
    Header,
    Read,
    tokenizer_tensors,
    write_file,
)
from sqap_vla_ros.compression.files.unfinished_scoring import StoredScoring, file_name, linear_of, open_sealed
from sqap_vla_ros.compression.layer_work import OnProgress
from sqap_vla_ros.compression.layers import LinearReport
from sqap_vla_ros.compression.parts import AFTER_DECODER, quantize_parts
from sqap_vla_ros.compression.recipe import Recipe
from sqap_vla_ros.compression.recipe_sections.errors import errors_name
from sqap_vla_ros.compression.sensitivity.soundness import ScoringError
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.checkpoints.writing import WriteError
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.quantization.reordered_weights import give_back_freed_memory

if TYPE_CHECKING:
    from sqap_vla_ros.compression.sensitivity.plan import RowPlan

_PLANNED = "planned"  # metadata of a plan
_NO_LINEAR = "none"  # a tensor beside the widths: there may be none, and an empty file cannot be read


def observations_digest(observations: Sequence[Observation]) -> str:
    """Return the sha256 of images, instructions and gripper pixels."""
    digest = hashlib.sha256()
    for observation in observations:
        digest.update(repr((observation.image.shape, observation.instruction, observation.gripper_pixel)).encode())
        digest.update(observation.image.tobytes())
    return digest.hexdigest()


def weights_digest(policy: CogACTPolicy) -> str:
    """Return the source checkpoint's sha256, or that of the weights where there is no checkpoint file."""
    if policy.provenance.sha256:
        return policy.provenance.sha256
    digest = hashlib.sha256()
    for name, tensor in policy.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def policy_digest(policy: CogACTPolicy) -> str:
    """Return the sha256 of what the header says about the policy, and of the action head, which --ema exchanges."""
    statistics = {key: value.to_dict() for key, value in policy.statistics.items()}
    said = [policy.model.config.to_dict(), statistics, policy.transform.crop, policy.tokenize.file[0]]
    digest = hashlib.sha256(json.dumps(said).encode() + policy.tokenize.file[1])
    for tensor in policy.model.action_head.state_dict().values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class JobIdentity:
    """The digests that say whether unfinished work belongs to this compression."""

    recipe: str
    source: str
    calibration: str
    policy: str


def compress_to_file(
    policy: CogACTPolicy,
    recipe: Recipe,
    observations: Sequence[Observation],
    out: Path,
    *,
    calibration: dict[str, Any] | None = None,
    progress: OnProgress | None = None,
    after_layer: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> Header:
    """Compress a policy into `out`, going on where an earlier run of the same compression stopped.

    The policy is changed in place and is spent afterwards: load the file.
    calibration: summary for the header (what the observations were).
    after_layer: called with the index of every layer once it is safely on disk.
    overwrite: replace `out` where it exists.
    Raises CompressedFileError, RecipeError; ScoringError where the policy's rows cannot be scored, and OSError where
    nothing can be written, and then nothing stays behind.
    """
    require_calibration(recipe, observations)
    require_loadable(recipe, len(policy.model.decoder.layers))
    require_plannable(recipe, policy.model.config.decoder)
    check_target(out, overwrite=overwrite)
    identity = JobIdentity(
        recipe.digest, weights_digest(policy), observations_digest(observations), policy_digest(policy)
    )
    source = {"checkpoint": policy.provenance.checkpoint, "sha256": identity.source}
    work = _Workspace(out.with_name(out.name + ".partial"), identity)
    try:
        header = _compress(policy, recipe, observations, out, work, source, calibration, progress, after_layer)
    except (WriteError, ScoringError):  # neither would end better from here
        work.remove()
        raise
    except OSError as error:  # what is read raises CompressedFileError
        work.remove()
        raise WriteError(f"{out} cannot be written ({error}): is the disk full?") from error
    work.remove()
    return header


def _compress(
    policy: CogACTPolicy,
    recipe: Recipe,
    observations: Sequence[Observation],
    out: Path,
    work: _Workspace,
    source: dict[str, str],
    calibration: dict[str, Any] | None,
    progress: OnProgress | None,
    after_layer: Callable[[int], None] | None,
) -> Header:
    """Do the work of `compress_to_file` in a workspace."""
    decoder = policy.model.decoder
    beside: list[LinearReport] = []
    if recipe.quantization is not None:
        spec = recipe.quantization
        hidden, beside = prepare_stream(policy, spec, observations)

        def make(store: StoredScoring) -> RowPlan | None:
            return make_plan(policy, spec, hidden, observations, store=store, progress=progress)

        with errors_name(recipe.name):
            plan = work.plan(make)
        towers, inputs = quantize_towers(policy, spec, hidden, observations, plan)
        beside += towers
        start = work.finished_layers(calibrated=bool(observations), depth=len(decoder.layers))
        if start and inputs is not None:
            inputs = work.read_hidden(start)
        for layer in compress_layers(decoder, spec, inputs, start=start, plan=plan, progress=progress):
            state = decoder.layers[layer.index].state_dict()
            work.store(layer, {f"decoder.layers.{layer.index}.{name}": tensor for name, tensor in state.items()})
            decoder.layers[layer.index] = torch.nn.Identity()  # it is on disk now
            give_back_freed_memory()
            if after_layer is not None:
                after_layer(layer.index)
        beside += quantize_parts(policy.model, spec, AFTER_DECODER)
    report, stored = work.finished()
    report += [linear.to_dict() for linear in beside]
    tensors: dict[str, Read] = {
        name: partial(_itself, tensor)
        for name, tensor in {**policy.model.state_dict(), **tokenizer_tensors(policy)}.items()
        if not (recipe.quantization is not None and name.startswith("decoder.layers."))
    }
    tensors |= stored
    header = Header(
        config=policy.model.config,
        recipe=recipe,
        statistics=policy.statistics,
        source=source,
        calibration={"observations": len(observations), "digest": work.identity.calibration, **(calibration or {})},
        report=report,
        crop=policy.transform.crop,
    )
    if progress is not None:
        progress("writing", 0, 1)
    write_file(out, tensors, header.to_metadata())
    if progress is not None:
        progress("writing", 1, 1)
    return header


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


class _Workspace:
    """The folder of unfinished work. Raises `CompressedFileError` where it holds that of another compression."""

    def __init__(self, folder: Path, identity: JobIdentity) -> None:
        self.folder = folder
        self.identity = identity
        self._remedy = f"remove {folder} and start again"
        content = json.dumps(dataclasses.asdict(identity), indent=1)
        if folder.exists() and not folder.is_dir():
            raise CompressedFileError(f"{folder} is a file where a folder for unfinished work should be; remove it")
        file = folder / "plan.json"
        if file.is_file():
            if not _is_json(file):
                raise CompressedFileError(f"{file} is damaged; {self._remedy}")
            if file.read_text() != content:
                raise CompressedFileError(
                    f"{folder} holds an unfinished compression of another checkpoint, recipe or calibration set; "
                    "remove that folder or choose another --out"
                )
        else:
            if folder.is_dir() and any(folder.glob("*.safetensors")):
                raise CompressedFileError(f"{file} is missing, so it is unknown whose work this is; {self._remedy}")
            folder.mkdir(exist_ok=True)
            temporary = file.with_suffix(".writing")
            temporary.write_text(content)
            temporary.replace(file)

    def plan(self, make: Callable[[StoredScoring], RowPlan | None]) -> RowPlan | None:
        """Return the plan of an earlier run, or make and keep it. None where the recipe needs none.

        make: plans, and keeps what it finishes where it is told.
        """
        path, store = self.folder / "row_bits.safetensors", StoredScoring(self.folder, self._remedy)
        if path.is_file():
            from sqap_vla_ros.compression.sensitivity.plan import RowPlan

            file = self._open(path)
            if _PLANNED not in file.metadata:
                raise CompressedFileError(f"{path} holds no plan; {self._remedy}")
            planned = json.loads(file.metadata[_PLANNED])
            kept = set(map(file_name, store.hessians))
            if lost := [name for name in planned["hessians"] if name not in kept]:
                raise CompressedFileError(f"{self.folder} lacks the Hessian of {lost[0]}; {self._remedy}")
            bits = {name: file.tensor(name) for name in file.names if name != _NO_LINEAR}
            damage = planned["damage"]
            for name, each in damage.items():
                if not all(math.isfinite(value) for value in each.values()):
                    raise CompressedFileError(f"{path} holds a damage of {name} that is not finite; {self._remedy}")
            return RowPlan(
                {linear_of(name): tensor for name, tensor in bits.items()},
                store.hessians,
                {linear_of(name): {int(k): v for k, v in each.items()} for name, each in damage.items()},
            )
        plan = make(store)
        if plan is not None:
            bits = {file_name(linear): tensor.contiguous() for linear, tensor in plan.bits.items()}
            damage = {file_name(linear): dict(each) for linear, each in plan.damage.items()}
            planned = {"damage": damage, "hessians": list(map(file_name, store.hessians))}
            self._save(path, {_NO_LINEAR: torch.zeros(1), **bits}, {_PLANNED: json.dumps(planned)})
            store.remove()
        return plan

    def _open(self, path: Path) -> CheckedFile:
        return open_sealed(path, self._remedy)

    def _layer(self, index: int) -> Path:
        return self.folder / f"layer_{index:03d}.safetensors"

    def _hidden(self, index: int) -> Path:
        return self.folder / f"inputs_{index:03d}.safetensors"

    def finished_layers(self, *, calibrated: bool, depth: int) -> int:
        """Return the number of layers that need not be computed again.

        Raises `CompressedFileError` for damaged ones.
        """
        done = 0
        while done < depth and self._layer(done).is_file():
            file = self._open(self._layer(done))
            for name in file.names:
                file.tensor(name)
                if not name.startswith(f"decoder.layers.{done}."):
                    raise CompressedFileError(f"{self._layer(done)} holds {name} of another layer; {self._remedy}")
            done += 1
        while done and calibrated and done < depth and not self._hidden(done).is_file():
            done -= 1  # without its calibration inputs a layer cannot follow
        return done

    def store(self, layer: CompressedLayer, tensors: dict[str, torch.Tensor]) -> None:
        """Write a finished layer and the inputs of the next: the new inputs come first, the old ones go last."""
        if layer.outputs is not None:
            save = {str(i): tensor.contiguous() for i, tensor in enumerate(layer.outputs)}
            self._save(self._hidden(layer.index + 1), save, {})
        report = json.dumps([linear.to_dict() for linear in layer.linears])
        self._save(self._layer(layer.index), {k: v.contiguous() for k, v in tensors.items()}, {"report": report})
        self._hidden(layer.index).unlink(missing_ok=True)

    @staticmethod
    def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        write_file(path, {name: partial(_itself, tensor) for name, tensor in tensors.items()}, metadata)

    def read_hidden(self, index: int) -> list[torch.Tensor] | None:
        """Return the calibration inputs of layer `index`; None after the last layer."""
        path = self._hidden(index)
        if not path.is_file():
            return None
        file = self._open(path)
        return [file.tensor(str(i)) for i in range(len(file.names))]

    def finished(self) -> tuple[list[dict[str, Any]], dict[str, Read]]:
        """Return the reports of all layers, and name -> function that reads the tensor."""
        report: list[dict[str, Any]] = []
        tensors: dict[str, Read] = {}
        for path in sorted(self.folder.glob("layer_*.safetensors")):
            file = self._open(path)
            report += json.loads(file.metadata["report"])
            tensors |= {name: partial(file.tensor, name) for name in file.names}
        return report, tensors

    def remove(self) -> None:
        shutil.rmtree(self.folder)
