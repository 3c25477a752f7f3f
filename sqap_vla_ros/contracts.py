"""The data that travels between the rooms, and the protocols of those who exchange it: observation in, chunk out.

Nothing here imports ROS or torch at run time, so the nodes' parent process and the model's worker share these types.
"""

from __future__ import annotations

import enum
import operator
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

NS_PER_S = 1_000_000_000
MOST_PIXELS = 2**26  # of an image: a header of a few bytes must not reserve gigabytes
TRAINED_POLICY = "tabletop"  # name of the trained policy that ships, see shipped.py
JOINS = ("path", "clock")  # ways to enter a late chunk, the default first, see robot/joining.py
REAL_TIME_CHUNKING = ("replace", "guided")  # chunks that repeat what is executed meanwhile
CONTINUATIONS = ("none", *REAL_TIME_CHUNKING, "best_of_8")  # see policy/sampling/continuing.py
CROPS = ("none", "deployment")  # see policy/preprocessing.py
STEP_S = (1e-3, 10.0)  # shortest and longest time between two actions of a chunk
LARGEST_SEED = 2**63 - 1
ACTION_DIM = 7  # dx dy dz, droll dpitch dyaw, gripper
Query = Literal["cognition", "instruction"]
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol of Unicode that show nothing


def unreadable(instruction: str) -> str | None:
    """Return why a text tells a policy nothing, or None: an instruction has a character that can be seen."""
    if any("\ud800" <= one <= "\udfff" for one in instruction):
        fault = "holds characters that are no Unicode text"
    elif any(unicodedata.category(one)[0] in "LNPS" and one not in _BLANK for one in instruction):
        return None
    else:
        fault = f"has no visible character ({instruction[:20]!a})" if instruction.strip() else "is empty"
    return f"the instruction {fault}: say what to do, for example 'pick up the can'"


def printable(text: str, longest: int = 600) -> str:
    """Return a text of unknown origin for a terminal or log: no control characters, its middle left out if too long."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def step_problem(whose: str, dt_s: float) -> str | None:
    """Return what is wrong with the seconds between two actions, or None. whose: "chunk" or "policy"."""
    shortest, longest = STEP_S
    if shortest <= dt_s <= longest:
        return None
    return f"the {whose}'s time step must lie between {shortest:g} and {longest:g} s, got {dt_s}"


class PictureError(ValueError):
    """A picture that is not whole, or whose values have no known meaning; the message names it and the fault."""


def upright_rgb(picture: Image, name: str) -> NDArray[np.uint8]:
    """Return a PIL picture of any mode as [H, W, 3] uint8 RGB, turned as its EXIF data say. name: for the errors.

    Sixteen bits are scaled to eight as the node scales them; floating point is taken as 0 (black) to 1 (white).
    Raises PictureError.
    """
    from PIL import ImageOps

    try:
        picture = ImageOps.exif_transpose(picture)
    except TypeError as error:  # a rotation that is no number
        raise PictureError(f"{name} has damaged EXIF data: {error}") from error
    except (OSError, SyntaxError) as error:  # Pillow's for broken PNG files is a SyntaxError
        raise PictureError(f"{name} is damaged: {error}") from error
    if picture.mode == "F" or picture.mode.startswith("I"):  # Pillow would cut the values off at 255
        values = np.asarray(picture, dtype=np.float64)
        return eight_bits(np.repeat(values[..., None], 3, axis=2), 1.0 if picture.mode == "F" else 65535.0, name)
    plain = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode)  # Pillow converts premultiplied ones to those
    return np.asarray(picture.convert(plain).convert("RGB"))


def eight_bits(values: NDArray[Any], white: float, name: str) -> NDArray[np.uint8]:
    """Return a picture's values from 0 to `white` as 0 to 255. Raises PictureError for values outside."""
    if not np.isfinite(values).all():
        raise PictureError(f"{name} has pixels that are not finite numbers")
    if values.size and (values.min() < 0.0 or values.max() > white):
        raise PictureError(
            f"{name} has pixels from {values.min():g} to {values.max():g}, where 0 to {white:g} are expected"
        )
    return np.rint(255.0 / white * values).astype(np.uint8)


class UnfitObservation(ValueError):
    """An observation that a policy predicts nothing from; the text tells whoever sent it what to change."""


def checked_seed(seed: int) -> int:
    """Return the seed of a prediction or of weights. Raises ValueError for what is none, here and at a server alike."""
    whole = operator.index(seed) if hasattr(seed, "__index__") else -1
    if not 0 <= whole <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r:.40}")
    return whole


class Reason(enum.IntEnum):
    """The reason a visual token was kept. The values are those of `sqap_vla_ros/msg/TokenSelection`."""

    ATTENTION = 0
    RING = 1
    SPATIAL = 2
    RANDOM = 3
    GRID = 4
    DIVERSITY = 5
    MERGED = 6
    ALL = 7


@dataclass(frozen=True)
class Commitment:
    """The motion under way, which the next chunk is to go on from.

    actions: [n, 7] as in `ActionChunk.deltas`, that will be executed or are planned from the image on.
    executed: how many of them will have been executed when the new chunk takes effect.
    continuation: how the chunk agrees with them, one of `CONTINUATIONS` but `none`.
    """

    actions: NDArray[np.float64]
    executed: int
    continuation: str

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.actions.shape[1] != ACTION_DIM or not np.isfinite(self.actions).all():
            raise ValueError(f"a commitment's actions must be finite [n, {ACTION_DIM}], got {list(self.actions.shape)}")
        if not 0 <= self.executed <= len(self.actions):
            raise ValueError(f"of a commitment's {len(self.actions)} actions {self.executed} cannot be executed")
        if self.continuation not in CONTINUATIONS[1:]:
            named = ", ".join(CONTINUATIONS[1:])
            raise ValueError(f"a commitment's continuation must be one of {named}, got {self.continuation!r}")


@dataclass(frozen=True)
class Observation:
    """One camera image with the instruction and the pose of the tool when it was taken: the input of a policy.

    image: [H, W, 3] uint8, RGB, as the camera delivered it (no resize, no crop).
    stamp_ns: time at which the image was taken, nanoseconds.
    instruction: the task in words, see `unreadable`.
    gripper_pixel: (u, v) of the tool frame in `image`, pixels, x right and y down; None when it is not in view.
    base_from_tool: [4, 4] pose of the tool frame in the base frame at `stamp_ns`; None where nothing will be executed.
    commitment: what the chunk goes on from; None where it is free.
    """

    image: NDArray[np.uint8]
    stamp_ns: int
    instruction: str
    gripper_pixel: tuple[float, float] | None = None
    base_from_tool: NDArray[np.float64] | None = None
    commitment: Commitment | None = None

    @classmethod
    def of(
        cls,
        image: Image | NDArray[np.uint8],
        instruction: str,
        *,
        stamp_ns: int = 0,
        gripper_pixel: tuple[float, float] | None = None,
        base_from_tool: NDArray[np.float64] | None = None,
    ) -> Observation:
        """Return the observation of a PIL picture, read as by `upright_rgb`, or of an array [H, W, 3] of uint8 in RGB.

        The other fields are as in the class; the stamp matters only where time goes on while the policy thinks.
        Raises ValueError where the image is neither, or has values that no picture of its mode has.
        """
        if not isinstance(image, np.ndarray):
            from PIL import Image as pil

            if not isinstance(image, pil.Image):
                raise ValueError(
                    f"image must be a PIL image or an array [H, W, 3] of uint8 in RGB, got {type(image).__name__}: "
                    "open a file with PIL.Image.open first"
                )
            image = upright_rgb(image, "image")
        return cls(np.ascontiguousarray(image), stamp_ns, instruction, gripper_pixel, base_from_tool)

    def __post_init__(self) -> None:
        image = self.image
        fits = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        if not fits or 0 in image.shape:
            got = f"shape {image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(
                f"image must be [H, W, 3] uint8 RGB, got {got}: convert the array, or give Observation.of a PIL image"
            )
        if not isinstance(self.instruction, str):
            raise ValueError(f"instruction must be a text that says what to do, got {type(self.instruction).__name__}")
        if not (isinstance(self.stamp_ns, int | np.integer) and abs(self.stamp_ns) < 2**63):
            raise ValueError(f"stamp_ns must be a whole number of nanoseconds, got {self.stamp_ns!r:.40}")
        if self.gripper_pixel is not None and not _finite(self.gripper_pixel, (2,)):
            raise ValueError(f"gripper_pixel must be (u, v), both finite, or None, got {self.gripper_pixel!r:.200}")
        if self.base_from_tool is not None and not _finite(self.base_from_tool, (4, 4)):
            raise ValueError(f"base_from_tool must be a finite [4, 4] pose or None, got {self.base_from_tool!r:.400}")
        if self.base_from_tool is not None and not _rigid(np.asarray(self.base_from_tool, dtype=np.float64)):
            raise ValueError(
                "base_from_tool must be a rotation and a translation over the row 0 0 0 1, or None, got "
                f"{self.base_from_tool!r:.400}"
            )


def _finite(values: object, shape: tuple[int, ...]) -> bool:
    """Return whether something is as many finite numbers."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # the last for a whole number beyond float64
        return False
    return numbers.shape == shape and bool(np.isfinite(numbers).all())


def _rigid(pose: NDArray[np.float64]) -> bool:
    """Return whether a [4, 4] matrix is a rigid pose, as far as one that was written down with four digits is."""
    rotation = pose[:3, :3]
    orthogonal = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3
    return bool(orthogonal and np.linalg.det(rotation) > 0.0 and (pose[3] == (0.0, 0.0, 0.0, 1.0)).all())


@dataclass(frozen=True)
class TokenSelection:
    """The visual tokens kept for one image.

    indices: [budget] int32, row-major in the grid, ascending.
    reasons: [budget] uint8, a `Reason` for each.
    grid: (rows, cols) of the patch grid.
    method: the selector's name, "none" when nothing was pruned.
    prune_layer: tokens were dropped before this decoder layer (0: before the decoder).
    gripper_patch: (row, col) of the gripper, None when it was not in view.
    """

    indices: NDArray[np.int32]
    reasons: NDArray[np.uint8]
    grid: tuple[int, int]
    method: str
    prune_layer: int
    gripper_patch: tuple[int, int] | None = None


@dataclass(frozen=True)
class ActionChunk:
    """A chunk of end-effector actions: the output of a policy.

    stamp_ns: the observation's stamp; action i is due at `stamp_ns + (i + 1) * dt_s`.
    deltas: [T, 7] float64: dx dy dz in metres along the base frame's axes, droll dpitch dyaw in radians (extrinsic xyz,
        composed on the left: R_next = R_delta @ R), gripper opening (0 closed, 1 open).
    dt_s: seconds between actions.
    normalized: [T, 7] float64, the head's output before clipping and un-normalisation.
    selection: which visual tokens were kept; None for a policy without visual tokens.
    timings_ms: stage name -> milliseconds, in order of execution; `total` is the whole prediction.
    seed: seed of the diffusion noise.
    """

    stamp_ns: int
    deltas: NDArray[np.float64]
    dt_s: float
    normalized: NDArray[np.float64]
    selection: TokenSelection | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


_SHOWN = 14  # characters of a value that is one of two that differ


@dataclass(frozen=True)
class PolicyInfo:
    """The facts about a loaded policy that logs, reports and the model_info topic give.

    image_size, crop: the policy's preprocessing (`policy.preprocessing.ImageTransform.of`).
    unnorm_key: the dataset whose statistics un-normalise the chunk.
    stateful: a chunk depends on earlier observations, through a cache across time steps or a selector with memory.
    settings: what else was set beside the checkpoint and changes chunks: sampling, action head, tokenizer.
    costs: memory, widths and operations, by the names in `compression.costs`; empty where they are not known.
    """

    checkpoint: str
    checkpoint_sha256: str
    recipe: str
    parameters: int
    horizon: int
    dt_s: float
    image_size: int
    grid: tuple[int, int]
    unnorm_key: str
    selector: str
    stateful: bool = False
    crop: str = "none"
    settings: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def looks_at_gripper(self) -> bool:
        """True when tokens are selected, which may depend on the gripper's pixel."""
        return self.selector not in ("", "none")

    def differences(self, before: PolicyInfo) -> str:
        """Return in what this policy is another one than `before`, in about a hundred characters; "" if it is not."""
        names = [name for name, value in vars(self).items() if value != getattr(before, name)]
        names.sort(key=lambda name: name == "checkpoint_sha256")  # says the least
        said = [f"{name} {_change(getattr(self, name), getattr(before, name))}" for name in names[:2]]
        more = [f"{len(names) - 2} more"] if len(names) > 2 else []
        return "; ".join([*said, *more])


def _change(value: object, before: object) -> str:
    """Return two values that differ as "this, was that"; of long ones the ends, or where they begin to differ."""
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        name = next(name for name in {**value, **before} if value.get(name) != before.get(name))
        return f"{name} {_change(value.get(name, ''), before.get(name, ''))}"
    texts = [str(one) or "none" for one in (value, before)]
    shown = [text if len(text) <= _SHOWN else f"…{text[1 - _SHOWN :]}" for text in texts]  # names of files end so
    if shown[0] == shown[1]:
        pairs = enumerate(zip(*texts, strict=False))
        begin = max(0, next((at for at, (a, b) in pairs if a != b), min(map(len, texts))) - 1)
        shown = [f"…{text[begin : begin + _SHOWN]}…" for text in texts]
    return f"{shown[0]}, was {shown[1]}"


class Policy(Protocol):
    """Predicts an action chunk from an observation. Deterministic for a given observation and seed.

    One that cannot go on from a commitment raises ValueError where an observation has one.
    """

    @property
    def info(self) -> PolicyInfo: ...

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk: ...

    def reset(self) -> None:
        """Forget earlier observations; called at the start of an episode."""


@runtime_checkable
class BatchPolicy(Policy, Protocol):
    """A policy that can predict observations of several streams in one call."""

    def unbatchable(self) -> str:
        """Return why observations must be predicted one at a time, "" where they may share a call."""

    def batch_key(self, observation: Observation) -> int:
        """Return a number: observations for which it is equal may share a call. Raises ValueError as `predict` does."""

    def predict_batch(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> list[ActionChunk]:
        """Predict a chunk for each observation; row b is `predict(observations[b], seed=seeds[b])`, up to rounding."""


@dataclass(frozen=True)
class SelectionContext:
    """The facts a `TokenSelector` chooses by, for B images of N = rows * cols visual tokens.

    grid: (rows, cols).
    gripper_patch: B entries of (row, col) or None.
    attention: [B, N] fp32, the selector's `query`'s attention to the visual tokens in the layer before the drop, mean
        over heads.
    hidden: [B, N, D], the visual tokens where they are dropped.
    saliency: [B, N] fp32, attention of the DINOv2 tower's CLS token to the patches.
    seed: of the selectors that draw at random.
    gripper_on_device: [B, 2] int32 (row, col), negative where the gripper is not in view; replaces `gripper_patch`
        where the host must not take part (`TokenSelector.select_on_device`), None elsewhere.
    `attention`, `hidden` and `saliency` are None unless the selector `needs` them.
    """

    grid: tuple[int, int]
    gripper_patch: Sequence[tuple[int, int] | None]
    attention: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    saliency: torch.Tensor | None = None
    seed: int = 0
    gripper_on_device: torch.Tensor | None = None


@dataclass(frozen=True)
class SelectedTokens:
    """A selector's answer for a batch.

    indices: [B, budget] int64, ascending in each row.
    reasons: [B, budget] uint8, a `Reason` for each.
    merged: [B, budget, D] features that replace those of the kept tokens (merging methods); None leaves them.
    sizes: [B, budget] fp32, number of tokens each kept one stands for, itself included: later layers attend to it as to
        so many equal tokens. None counts each as one.
    """

    indices: torch.Tensor
    reasons: torch.Tensor
    merged: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


class TokenSelector(Protocol):
    """Chooses which visual tokens survive: deterministic, and always exactly `budget(N)` of them.

    `pruning.base.Selector` implements everything here but `select`.

    name: as in recipes and messages.
    prune_layer: tokens are dropped before this decoder layer; 0 drops them before the decoder.
    needs: the optional fields of `SelectionContext` that must be filled ("attention", "hidden", "saliency").
    query: whose attention `attention` is: the cognition token's, or the mean over the instruction's tokens.
    draws_at_random: the choice depends on the context's seed, which all images of a batch share.
    stateful: the choice depends on earlier frames, so observations must come in order, one at a time.
    runs_on_device: `select_on_device` is implemented.
    """

    @property
    def name(self) -> str: ...

    @property
    def prune_layer(self) -> int: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def query(self) -> Query: ...

    @property
    def draws_at_random(self) -> bool: ...

    @property
    def stateful(self) -> bool: ...

    @property
    def runs_on_device(self) -> bool: ...

    def budget(self, tokens: int) -> int:
        """Return the number of tokens kept of `tokens`."""

    def select(self, context: SelectionContext) -> SelectedTokens:
        """Choose the tokens of every image. Raises ValueError where the context lacks something."""

    def select_on_device(self, context: SelectionContext) -> SelectedTokens:
        """Make the same choice from `context.gripper_on_device`, without copying from the host or waiting for it.

        A prediction captured as a CUDA graph calls this instead of `select`.
        Raises NotImplementedError unless `runs_on_device`.
        """

    def reset(self) -> None:
        """Forget earlier frames; called at the start of an episode."""
