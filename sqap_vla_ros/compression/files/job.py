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
from sqap_vla_ros.compression.sensitivity.unfinished import Scoring
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
    """The digests that say whether unfinished work belongs to this compression.

    scores: of what scores and Hessians depend on in the recipe, see `scores_digest`.
    """

    recipe: str
    source: str
    calibration: str
    policy: str
    scores: str | None = None


_WORDS = {  # what differs where a digest of `JobIdentity` does
    "source": "checkpoint",
    "recipe": "recipe",
    "calibration": "set of calibration observations",
    "policy": "setting of the checkpoint (--ddim-steps and the like)",
}
_AFTER_SCORES = (  # keys of a quantisation, and of its row_bits, that nothing before the choice of widths looks at
    (
        "weight_bits",
        "activation_bits",
        "activation_clip",
        "activation_granularity",
        "text_activation_bits",
        "overrides",
    ),
    ("average", "widths", "method", "by_parameters", "ties", "zero_share"),
)


def scores_digest(recipe: Recipe) -> str | None:
    """Return the sha256 of all in a recipe that its scores depend on; None where it has none.

    Each width is scored by itself, so the widths do not count: scores of the wanted ones can be among others.
    """
    if recipe.quantization is None or not recipe.quantization.looks_at_the_action:
        return None
    content = {key: value for key, value in recipe.to_dict().items() if key not in ("name", "description", "pruning")}
    scheme, rows = content["quantization"], content["quantization"].get("row_bits") or {}
    for section, names in zip((scheme, rows), _AFTER_SCORES, strict=True):
        for name in names:
            section.pop(name, None)
    if "vision" in rows:
        rows["vision"] = True  # whether the towers are scored; their average comes after
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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

    Where that run had another recipe, but one that the same scores serve, it goes on from these.
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
        recipe.digest,
        weights_digest(policy),
        observations_digest(observations),
        policy_digest(policy),
        scores_digest(recipe),
    )
    source = {"checkpoint": policy.provenance.checkpoint, "sha256": identity.source}
    source |= {"head": "averaged"} if policy.provenance.averaged else {}
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

        if work.has_scores_of_another_recipe and progress is not None:
            progress("taking over an unfinished compression with another recipe", 0, 1)

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
        progress("writing files", 0, 1)
    write_file(out, tensors, header.to_metadata())
    if progress is not None:
        progress("writing files", 1, 1)
    return header


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _mapping_in(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class _Workspace:
    """The folder of unfinished work. Raises `CompressedFileError` where it holds that of another compression.

    has_scores_of_another_recipe: it held that of another recipe, of which the scores, which this one shares, are left.
    """

    def __init__(self, folder: Path, identity: JobIdentity) -> None:
        self.folder = folder
        self.identity = identity
        self.has_scores_of_another_recipe = False
        self._remedy = f"remove {folder} and start again"
        if folder.exists() and not folder.is_dir():
            raise CompressedFileError(f"{folder} is a file where a folder for unfinished work should be; remove it")
        file = folder / "plan.json"
        if file.is_file():
            begun = _mapping_in(file)
            if begun is None:
                raise CompressedFileError(f"{file} is damaged; {self._remedy}")
            others = [name for name in _WORDS if begun.get(name) != getattr(identity, name)]
            if others == ["recipe"] and identity.scores is not None and begun.get("scores") == identity.scores:
                self._keep_scores_alone()
            elif others:
                if "source" in others:
                    others = [name for name in others if name != "policy"]  # it follows from the checkpoint
                words = " and another ".join(_WORDS[name] for name in others)
                raise CompressedFileError(
                    f"{folder} holds an unfinished compression with another {words}; remove that folder or choose "
                    "another --out"
                )
        else:
            if folder.is_dir() and any(folder.glob("*.safetensors")):
                raise CompressedFileError(f"{file} is missing, so it is unknown whose work this is; {self._remedy}")
            folder.mkdir(exist_ok=True)
            self._say_whose()

    def _say_whose(self) -> None:
        file = self.folder / "plan.json"
        temporary = file.with_suffix(".writing")
        temporary.write_text(json.dumps(dataclasses.asdict(self.identity), indent=1))
        temporary.replace(file)

    def _keep_scores_alone(self) -> None:
        """Remove what another recipe made of the scores: first the work, so that an interruption leaves none of it."""
        for pattern in ("layer_*.safetensors", "inputs_*.safetensors", "row_bits.safetensors"):
            for path in sorted(self.folder.glob(pattern)):
                path.unlink()
        self._say_whose()
        self.has_scores_of_another_recipe = True

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
            store.write(Scoring(0, [], [], dict(plan.scores)))  # for a recipe that differs in what follows
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
