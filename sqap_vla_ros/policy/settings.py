"""Settings of a policy that a user may give beside its checkpoint, where the file does not say or says otherwise."""

from __future__ import annotations

import dataclasses
import numbers
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.prompt import PromptTokenizer

if TYPE_CHECKING:
    from sqap_vla_ros.policy.cogact import CogACTPolicy


@dataclass(frozen=True)
class CheckpointSettings:
    """Values that replace the checkpoint's own; None keeps those.

    unnorm_key: dataset whose statistics turn the chunk into metres and radians.
    tokenizer: file or folder. dt_s: seconds between actions. crop: see `ImageTransform`.
    ema: take the action head that was averaged over training steps.
    guidance: scale of the classifier-free guidance, 1 or less turns it off. ddim_steps: see `DiffusionConfig`.
    """

    unnorm_key: str | None = None
    tokenizer: Path | None = None
    dt_s: float | None = None
    crop: str | None = None
    ema: bool = False
    guidance: float | None = None
    ddim_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("dt_s", "guidance", "ddim_steps"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, numbers.Real):
                raise ValueError(f"{name} must be a number or None, which keeps the checkpoint's, got {value!r:.40}")
        if not isinstance(self.tokenizer, str | os.PathLike | None):
            raise ValueError(
                f"tokenizer must be a path or None, which keeps the checkpoint's, got {self.tokenizer!r:.40}"
            )

    def apply(self, policy: CogACTPolicy) -> None:
        """Change a loaded policy: everything but the weights and the choice of the dataset.

        Raises ValueError for a value that cannot be, FileNotFoundError for a tokenizer that is not there.
        """
        model = policy.model
        if self.tokenizer is not None:
            policy.tokenize = PromptTokenizer.load(self.tokenizer, model.config.prompt, model.config.decoder.vocabulary)
        if self.dt_s is not None:
            key = policy.unnorm_key
            policy.statistics[key] = dataclasses.replace(policy.statistics[key], dt_s=self.dt_s)
        if self.crop is not None:
            from sqap_vla_ros.policy.preprocessing import ImageTransform

            policy.transform = ImageTransform(model.config.vision.image_size, self.crop)
        diffusion = self.sampling(policy.diffusion)
        if diffusion != policy.diffusion:
            model.config = model.config.replace(diffusion=diffusion)  # stored with the policy
            policy.diffusion = diffusion

    def sampling(self, stored: DiffusionConfig) -> DiffusionConfig:
        """Return the sampler as these settings change it. Raises ValueError for steps that it cannot take."""
        changes: dict[str, object] = {} if self.guidance is None else {"guidance": self.guidance}
        if self.ddim_steps is not None:
            changes |= {"sampler": "ddim", "steps": self.ddim_steps}
        try:
            return dataclasses.replace(stored, **changes)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(str(error).replace("DiffusionConfig.steps", "ddim_steps (--ddim-steps)")) from error
