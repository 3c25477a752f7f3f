"""The training objective: CogACT's diffusion loss, and five auxiliary losses that a small model needs to get going.

The diffusion loss alone leaves a small model deaf: it learns what a scene makes likely, not what it was told. The
auxiliary read-outs use the simulator's knowledge, exist in training only, and are not part of the checkpoint.
Sources: Li et al., "CogACT" (2024), Eq. 5, for the diffusion loss; Ho and Salimans (2022) for dropping the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.training.batch import Batch, ReadOuts
from sqap_vla_ros.training.packed import Block, PackedOutput, packed_forward


@dataclass(frozen=True)
class LossWeights:
    """Factors of the auxiliary losses; `attention` 0 trains the control that is not told where to look.

    words: family, colours and shapes from the cognition token after the first layer. segments: what each patch shows,
    from the visual tokens. place: where the thing is that a patch shows, from its visual token. pose: where the things
    asked about are, from the cognition feature. attention: Kullback-Leibler distance of
    three heads' attention from the target, the hand and the goal.
    repeats: noises drawn for each chunk. uncondition: share of chunks trained without their cognition feature.
    """

    words: float = 0.1
    segments: float = 2.0
    place: float = 1.0
    pose: float = 0.5
    attention: float = 0.1
    repeats: int = 2
    uncondition: float = 0.1


class Supervision(nn.Module):
    """The read-outs of the auxiliary losses that the data have labels for."""

    def __init__(self, width: int, sizes: ReadOuts) -> None:
        super().__init__()
        self.sizes = sizes
        outputs = {
            "words": sum(sizes.words),
            "segments": sizes.segments,
            "pose": sizes.pose,
            "place": sizes.place,
        }
        self.read = nn.ModuleDict({name: nn.Linear(width, size) for name, size in outputs.items() if size})


def losses(
    model: CogACT,
    supervision: Supervision,
    sampler: Sampler,
    batch: Batch,
    image: Tensor,
    weights: LossWeights,
    block_function: Block | None = None,
) -> dict[str, Tensor]:
    """Return each unweighted loss by name, those that the data have labels for.

    image: the batch's, or augmented; block_function: as in `packed_forward`.
    """
    out = packed_forward(model, image, batch.prompts, block_function)
    read, sizes = supervision.read, supervision.sizes
    found = {"diffusion": diffusion_loss(model, sampler, out.cognition, batch.chunk, weights)}
    if "words" in read:
        found["words"] = _words(read["words"](out.words).float(), batch.words, sizes.words)
    if "segments" in read:
        logits = read["segments"](out.visual).float()
        found["segments"] = F.binary_cross_entropy_with_logits(logits, batch.segments)
    if "place" in read:
        found["place"] = _squared(read["place"](out.visual), batch.place, batch.placed)
    if "pose" in read:
        found["pose"] = _squared(read["pose"](out.cognition), batch.pose, batch.posed)
    if sizes.attention:
        found["attention"] = _attention(out, batch)
    return found


def total(parts: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Return the weighted sum."""
    auxiliary = [getattr(weights, name) * part for name, part in parts.items() if name != "diffusion"]
    return torch.stack([parts["diffusion"], *auxiliary]).sum()


def diffusion_loss(
    model: CogACT,
    sampler: Sampler,
    cognition: Tensor,
    chunk: Tensor,
    weights: LossWeights,
    committed: Tensor | None = None,
    *,
    clean: bool = False,
) -> Tensor:
    """Return the mean squared error of the predicted noise. cognition: [B, K, D]; chunk: [B, K, 16, 7].

    committed: [B, K] how many first actions of each chunk are given. The network sees them at the noise level of the
    others, as `continuing.Replace` shows them to it, or `clean`, and has no loss on them.
    """
    head = model.action_head
    condition = cognition.flatten(0, 1).repeat(weights.repeats, 1)
    x0 = chunk.flatten(0, 1).repeat(weights.repeats, 1, 1)
    dropped = torch.rand(len(condition), 1, device=condition.device) < weights.uncondition
    condition = torch.where(dropped, head.z_embedder.uncondition.to(condition), condition)
    timestep = torch.randint(0, sampler.config.train_steps, (len(x0),), device=x0.device)
    noise = torch.randn_like(x0)
    noisy = sampler.add_noise(x0, timestep, noise).to(condition.dtype)
    if committed is None:
        return F.mse_loss(head(noisy, timestep, condition).float(), noise)
    given = committed.flatten().repeat(weights.repeats)[:, None]
    free = torch.arange(x0.shape[1], device=x0.device) >= given  # [B * K * repeats, 16]
    if clean:
        noisy = torch.where(free[..., None], noisy, x0.to(noisy.dtype))
    return (head(noisy, timestep, condition).float() - noise).square()[free].mean()


def _squared(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of the squared error."""
    return ((found.float() - wanted).square() * weight).sum() / weight.sum().clamp(min=1.0)


def _words(logits: Tensor, words: Tensor, classes: tuple[int, ...]) -> Tensor:
    parts = logits.split(classes, dim=-1)
    return torch.stack(
        [F.cross_entropy(part.flatten(0, 1), words[..., i].flatten()) for i, part in enumerate(parts)]
    ).sum()


def _attention(out: PackedOutput, batch: Batch) -> Tensor:
    heads = batch.look.shape[2]
    log_attention = out.attention.transpose(1, 2)[:, :, :heads]  # [B, K, 3, N]
    distance = -(batch.look * log_attention).sum(dim=-1)
    return (distance * batch.looked).sum() / batch.looked.sum().clamp(min=1.0)
