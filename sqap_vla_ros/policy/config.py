"""Geometry, prompt and sampling of a CogACT model, with the published sizes, the shipped policy's and `MICRO`.

Source of the published values: Li et al., "CogACT" (2024), and the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqap_vla_ros.contracts import ACTION_DIM, TRAINED_POLICY
from sqap_vla_ros.field_types import build

_LARGEST = 2**24  # of any size: beyond, a file is damaged
_DEEPEST = 1024  # blocks
_MOST_TOKENS = 2**16


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, got {value}")
        if value > (_DEEPEST if name == "depth" else _LARGEST):
            raise ValueError(f"{type(owner).__name__}.{name} is too large, got {value}")


def _divides(owner: object, whole: str, part: str) -> None:
    if getattr(owner, whole) % getattr(owner, part):
        raise ValueError(
            f"{type(owner).__name__}.{whole} must be a multiple of {part}, "
            f"got {getattr(owner, whole)} and {getattr(owner, part)}"
        )


@dataclass(frozen=True)
class TowerConfig:
    """A vision transformer. `depth` counts all blocks of the published tower; the last one is never computed."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    registers: int = 0

    def __post_init__(self) -> None:
        _positive(self, "width", "heads", "mlp_width")
        _divides(self, "width", "heads")
        if self.depth >= 2:
            _positive(self, "depth")
        else:
            raise ValueError(f"TowerConfig.depth must be at least 2 (the penultimate block is read), got {self.depth}")
        if not 0 <= self.registers <= _MOST_TOKENS:
            raise ValueError(f"TowerConfig.registers must lie between 0 and {_MOST_TOKENS}, got {self.registers}")


@dataclass(frozen=True)
class VisionConfig:
    """The two towers; both see the same image and share its patch grid."""

    dino: TowerConfig
    siglip: TowerConfig
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self) -> None:
        _positive(self, "image_size", "patch_size")
        _divides(self, "image_size", "patch_size")
        if self.tokens > _MOST_TOKENS:
            raise ValueError(f"VisionConfig has {self.tokens} tokens, at most {_MOST_TOKENS} are possible")

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def width(self) -> int:
        """Return the number of channels of the fused features, DINOv2 first."""
        return self.dino.width + self.siglip.width


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-2 decoder. transformers' own defaults for epsilon and positions differ from the published model's."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocabulary: int
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_positions: int = 4096

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads", "mlp_width", "vocabulary", "rms_eps", "rope_theta", "max_positions")
        _divides(self, "width", "heads")
        if (self.width // self.heads) % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.width} / {self.heads}")


@dataclass(frozen=True)
class ActionHeadConfig:
    """The diffusion transformer that turns the cognition feature into a chunk of `horizon` actions."""

    width: int
    depth: int
    heads: int
    horizon: int = 16
    channels: int = ACTION_DIM

    def __post_init__(self) -> None:
        _positive(self, "width", "depth", "heads", "horizon", "channels")
        _divides(self, "width", "heads")


@dataclass(frozen=True)
class DiffusionConfig:
    """The sampler of a chunk.

    steps: network evaluations, at every n-th training step from 0 on; `ddpm` always takes all `train_steps`.
    guidance: scale of the classifier-free guidance; 1 or less turns it off.
    """

    sampler: Literal["ddim", "ddpm"] = "ddim"
    steps: int = 10
    guidance: float = 1.5
    train_steps: int = 100

    def __post_init__(self) -> None:
        _positive(self, "steps", "train_steps")
        if not abs(self.guidance) <= _LARGEST:
            raise ValueError(f"DiffusionConfig.guidance is too large, got {self.guidance}")
        if self.sampler not in ("ddim", "ddpm"):
            raise ValueError(f"DiffusionConfig.sampler must be 'ddim' or 'ddpm', got {self.sampler!r}")
        if self.sampler == "ddim" and (self.steps < 2 or self.stride is None):
            able = sorted({len(range(0, self.train_steps, stride)) for stride in range(1, self.train_steps)})
            nearest = sorted(able, key=lambda count: abs(count - self.steps))[:2]
            raise ValueError(
                f"DiffusionConfig.steps must be at least 2 and a number of equal strides through {self.train_steps} "
                f"training steps for DDIM, got {self.steps}; {' and '.join(map(str, sorted(nearest)))} are possible"
            )
        if self.sampler == "ddpm" and self.steps != self.train_steps:
            raise ValueError(f"DDPM takes all {self.train_steps} steps: set steps={self.train_steps}, got {self.steps}")

    @property
    def stride(self) -> int | None:
        """Return the smallest distance between training steps that gives `steps` of them; None where there is none.

        So 10 steps are 90, 80, … 0 and 8 steps are 91, 78, … 0, as in the published code.
        """
        fitting = (s for s in range(1, self.train_steps + 1) if len(range(0, self.train_steps, s)) == self.steps)
        return next(fitting, None)


@dataclass(frozen=True)
class PromptConfig:
    """The prompt around an instruction: `[bos] + encode(template) + suffix`.

    suffix: the ids appended after the text; the last one is the cognition token.
    max_tokens: most ids that a prompt may have.
    """

    template: str = "In: What action should the robot take to {instruction}?\nOut:"
    bos: int = 1
    pad: int = 32000
    suffix: tuple[int, ...] = (29871, 2)
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.template.count("{instruction}") != 1:
            raise ValueError(f"PromptConfig.template must hold {{instruction}} exactly once, got {self.template!r}")
        _positive(self, "max_tokens")
        if min(self.bos, self.pad, *self.suffix) < 0:
            raise ValueError(f"PromptConfig ids must not be negative, got {self.bos}, {self.pad} and {self.suffix}")
        if not self.suffix:
            raise ValueError("PromptConfig.suffix must hold at least the cognition token, got ()")


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that fixes the shapes of a CogACT model and the meaning of its prompt and chunk."""

    name: str
    vision: VisionConfig
    projector_width: int
    decoder: DecoderConfig
    head: ActionHeadConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    prompt: PromptConfig = PromptConfig()

    def __post_init__(self) -> None:
        _positive(self, "projector_width")
        last = max(self.prompt.pad, self.prompt.bos, *self.prompt.suffix)
        if last >= self.decoder.vocabulary:
            raise ValueError(f"prompt ids go up to {last} but the decoder embeds only {self.decoder.vocabulary} ids")
        if self.vision.tokens + len(self.prompt.suffix) + 1 > self.decoder.max_positions:
            raise ValueError(
                f"{self.vision.tokens} visual tokens leave no room for a prompt: "
                f"the decoder has {self.decoder.max_positions} positions"
            )

    def replace(self, **changes: Any) -> PolicyConfig:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyConfig:
        """Read what `to_dict` wrote, also after a trip through JSON.

        Raises ValueError naming the field that is missing, unknown or out of range.
        """
        try:
            for part in ("vision", "prompt"):
                if not isinstance(values[part], Mapping):
                    raise ValueError(f"{part} must be a mapping, got {repr(values[part])[:60]}")
            towers = {name: build(TowerConfig, "TowerConfig", values["vision"][name]) for name in ("dino", "siglip")}
            suffix = values["prompt"]["suffix"]
            prompt = {**values["prompt"], "suffix": tuple(suffix) if isinstance(suffix, list) else suffix}
            parts = {
                "vision": build(VisionConfig, "VisionConfig", {**values["vision"], **towers}),
                "decoder": build(DecoderConfig, "DecoderConfig", values["decoder"]),
                "head": build(ActionHeadConfig, "ActionHeadConfig", values["head"]),
                "diffusion": build(DiffusionConfig, "DiffusionConfig", values["diffusion"]),
                "prompt": build(PromptConfig, "PromptConfig", prompt),
            }
            return build(cls, cls.__name__, {**values, **parts})
        except KeyError as error:
            raise ValueError(f"policy configuration lacks {error.args[0]!r}") from error


HEAD_SIZES = {
    "small": ActionHeadConfig(width=384, depth=6, heads=4),
    "base": ActionHeadConfig(width=768, depth=12, heads=12),
    "large": ActionHeadConfig(width=1024, depth=24, heads=16),
}

_PUBLISHED_VISION = VisionConfig(
    dino=TowerConfig(width=1024, depth=24, heads=16, mlp_width=4096, registers=4),
    siglip=TowerConfig(width=1152, depth=27, heads=16, mlp_width=4304),
)
_LLAMA_2_7B = DecoderConfig(width=4096, depth=32, heads=32, mlp_width=11008, vocabulary=32064)

COGACT_SMALL, COGACT_BASE, COGACT_LARGE = (
    PolicyConfig(f"cogact-{size}", _PUBLISHED_VISION, projector_width=8704, decoder=_LLAMA_2_7B, head=head)
    for size, head in HEAD_SIZES.items()
)

# The true architecture and token grid at a size a laptop runs in milliseconds. Widths keep the published ones' number
# theory (power-of-two decoder, an MLP width that is not), so rotations take the same code paths.
MICRO = PolicyConfig(
    name="micro",
    vision=VisionConfig(
        dino=TowerConfig(width=64, depth=4, heads=4, mlp_width=256, registers=4),
        siglip=TowerConfig(width=72, depth=4, heads=4, mlp_width=272),
    ),
    projector_width=272,
    decoder=DecoderConfig(width=128, depth=6, heads=4, mlp_width=352, vocabulary=512),
    head=ActionHeadConfig(width=96, depth=3, heads=4),
    prompt=PromptConfig(pad=3, suffix=(4, 2)),
)

# The policy that ships: trained in the embedded tabletop simulator (training/), with the micro policy's prompt ids.
TABLETOP = PolicyConfig(
    name=TRAINED_POLICY,
    vision=VisionConfig(
        dino=TowerConfig(width=96, depth=4, heads=2, mlp_width=384, registers=4),
        siglip=TowerConfig(width=96, depth=4, heads=2, mlp_width=384),
    ),
    projector_width=384,
    decoder=DecoderConfig(width=192, depth=4, heads=4, mlp_width=512, vocabulary=512),
    head=ActionHeadConfig(width=128, depth=3, heads=4),
    prompt=MICRO.prompt,
)

LIBERO_OBJECT = TABLETOP.replace(name="libero_object")  # trained on LIBERO's suite of this name

_NAMED = {config.name: config for config in (MICRO, TABLETOP, LIBERO_OBJECT, COGACT_SMALL, COGACT_BASE, COGACT_LARGE)}


def named_config(name: str) -> PolicyConfig:
    """Return the configuration of a policy that ships, or `cogact-small`, `cogact-base` or `cogact-large`."""
    if name not in _NAMED:
        raise ValueError(f"no policy configuration named {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]
