"""CogACT: the model (image and prompt to a normalised chunk) and the policy around it (observation to a chunk)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sqap_vla_ros.contracts import (
    ActionChunk,
    Observation,
    PolicyInfo,
    Reason,
    SelectedTokens,
    SelectionContext,
    TokenSelection,
    TokenSelector,
    UnfitObservation,
    checked_seed,
)
from sqap_vla_ros.policy.action_head import DiffusionTransformer
from sqap_vla_ros.policy.actions import ActionStatistics, choose_dataset, require_channels
from sqap_vla_ros.policy.config import DiffusionConfig, PolicyConfig
from sqap_vla_ros.policy.decoder import VISUAL_START, Decoder, DecoderOutput
from sqap_vla_ros.policy.preprocessing import ImageTransform, patch_of
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.policy.sampling.continuing import Past, find_continuation, sample_on
from sqap_vla_ros.policy.sampling.diffusion import Sampler, draw_noise
from sqap_vla_ros.policy.vision import Projector, VisionTowers
from sqap_vla_ros.text_rows import text_rows


class CogACT(nn.Module):
    """The network: `vision`, `projector`, `decode` and `sample`, called in this order, are a prediction."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTowers(config.vision)
        self.projector = Projector(config.vision.width, config.projector_width, config.decoder.width)
        self.decoder = Decoder(config.decoder)
        self.action_head = DiffusionTransformer(config.head, config.decoder.width)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    def decode(
        self,
        visual: Tensor,
        token_ids: Tensor,
        lengths: Tensor | None,
        *,
        selector: TokenSelector | None = None,
        context: SelectionContext | None = None,
    ) -> DecoderOutput:
        """Decode visual tokens [B, N, D] and prompt ids [B, L], in the order BOS, image, text.

        lengths: [B] true ids of each row's prompt, None when no row is padded.
        """
        text = self.decoder.embed_tokens(token_ids)
        embeddings = torch.cat((text[:, :VISUAL_START], visual.to(text.dtype), text[:, VISUAL_START:]), dim=1)
        if lengths is not None:
            lengths = lengths + visual.shape[1]
        with text_rows(token_ids.shape[1] - VISUAL_START):
            output: DecoderOutput = self.decoder(embeddings, lengths, selector=selector, context=context)
        return output

    def sample(
        self, cognition: Tensor, noise: Tensor, generators: Sequence[torch.Generator], sampler: Sampler
    ) -> Tensor:
        """Turn noise [B, T, 7] into normalised chunks [B, T, 7], given cognition features [B, D].

        The chunk is kept in float32 at least; the head may compute in less.
        """
        dtype = self.action_head.positional_embedding.dtype
        wide = torch.promote_types(dtype, torch.float32)
        predict = self.action_head.guided(cognition.to(dtype), sampler.timesteps, sampler.config.guidance)
        return sampler.sample(predict, noise.to(wide), generators)

    @torch.inference_mode(False)
    @torch.no_grad()
    def sample_on(
        self,
        continuation: str,
        cognition: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        sampler: Sampler,
        past: Past,
    ) -> Tensor:
        """Do the same for chunks that go on from a past, by a name of `continuing.CONTINUATIONS`.

        Guidance differentiates, which tensors made in inference mode do not allow: they are copied. Raises ValueError
        where the action head has linears without a gradient.
        """
        linears = ((n, m) for n, m in self.action_head.named_modules() if hasattr(m, "in_features"))
        fixed = next((name for name, module in linears if type(module) is not nn.Linear), None)
        if fixed is not None and find_continuation(continuation).differentiates:
            raise ValueError(
                f"continuation {continuation!r} differentiates the action head, whose {fixed} has no gradient as it is "
                "computed here: take a recipe that leaves the head at float32, or continue by 'replace'"
            )
        dtype = self.action_head.positional_embedding.dtype
        wide = torch.promote_types(dtype, torch.float32)
        predict = self.action_head.guided(cognition.clone().to(dtype), sampler.timesteps, sampler.config.guidance)
        past = Past(past.target.clone().to(wide), past.weight.clone().to(wide))
        return sample_on(continuation, sampler, predict, noise.clone().to(wide), generators, past)


@dataclass(frozen=True)
class Provenance:
    """The origin of the weights, for `PolicyInfo`. costs: what they cost as they are, see there.

    recipe_digest: of what the recipe says, as its name may stay. averaged: the action head is the one that was averaged
        over training steps.
    """

    checkpoint: str
    sha256: str = ""
    recipe: str = "fp32"
    costs: Mapping[str, float] = field(default_factory=dict)
    recipe_digest: str = ""
    averaged: bool = False


class CogACTPolicy:
    """`contracts.Policy` over a CogACT model. Not thread-safe: one prediction at a time.

    tokenize: instruction to prompt ids.
    statistics: by dataset; `unnorm_key` chooses one, and may be None only when there is exactly one.
    selector: drops visual tokens inside the decoder; None keeps all.
    """

    def __init__(
        self,
        model: CogACT,
        tokenize: PromptTokenizer,
        statistics: Mapping[str, ActionStatistics],
        *,
        unnorm_key: str | None = None,
        selector: TokenSelector | None = None,
        crop: str = "none",
        provenance: Provenance = Provenance("in memory"),
    ) -> None:
        self.model = model.eval()
        self.tokenize = tokenize
        self.statistics = dict(statistics)
        self.unnorm_key = choose_dataset(self.statistics, unnorm_key)
        require_channels(self.unnorm_key, self.statistics[self.unnorm_key], model.config.head.channels)
        self.transform = ImageTransform(model.config.vision.image_size, crop)
        self.provenance = provenance
        self.sampler = Sampler(model.config.diffusion)
        self._selector: TokenSelector | None = None
        self.selector = selector

    @property
    def selector(self) -> TokenSelector | None:
        return self._selector

    @selector.setter
    def selector(self, selector: TokenSelector | None) -> None:
        depth = len(self.model.decoder.layers)
        if selector is not None and not 0 <= selector.prune_layer < depth:
            raise ValueError(
                f"selector {selector.name!r} drops tokens before decoder layer {selector.prune_layer}; "
                f"this model has layers 0 to {depth - 1}"
            )
        self._selector = selector

    @property
    def diffusion(self) -> DiffusionConfig:
        return self.sampler.config

    @diffusion.setter
    def diffusion(self, config: DiffusionConfig) -> None:
        self.sampler = Sampler(config)

    @property
    def info(self) -> PolicyInfo:
        config = self.model.config
        return PolicyInfo(
            checkpoint=self.provenance.checkpoint,
            checkpoint_sha256=self.provenance.sha256,
            recipe=self.provenance.recipe,
            parameters=count_parameters(self.model),
            horizon=config.head.horizon,
            dt_s=self.statistics[self.unnorm_key].dt_s,
            image_size=config.vision.image_size,
            grid=config.vision.grid,
            unnorm_key=self.unnorm_key,
            selector="none" if self.selector is None else self.selector.name,
            stateful=self.selector is not None and self.selector.stateful,
            crop=self.transform.crop,
            settings=self._settings(),
            costs=self.provenance.costs,
        )

    def _settings(self) -> str:
        sampling, head = self.diffusion, ", averaged head" if self.provenance.averaged else ""
        said = f"{sampling.sampler} {sampling.steps} steps, guidance {sampling.guidance:g}{head}"
        recipe = f", recipe {self.provenance.recipe_digest[:8]}" if self.provenance.recipe_digest else ""
        return f"{said}, tokenizer {self.tokenize.digest[:8]}{recipe}"

    def reset(self) -> None:
        """Make a stateful selector forget the frames of the last episode."""
        if self.selector is not None:
            self.selector.reset()

    def unbatchable(self) -> str:
        """Return why observations must be predicted one at a time, "" where they may share a call."""
        if self.selector is None:
            return ""
        if self.selector.stateful:
            return f"selector {self.selector.name!r} remembers earlier observations"
        if self.selector.draws_at_random:
            return f"selector {self.selector.name!r} draws from one seed a call"
        return ""

    def batch_key(self, observation: Observation) -> int:
        """Return the length of the prompt: padded rows would take part in the scales of per-tensor quantisation.

        Raises UnfitObservation for a blank instruction.
        """
        return len(self.tokenize(observation.instruction))

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """Predict one chunk, a function of observation and seed. Raises UnfitObservation."""
        return self.predict_batch([observation], seeds=[seed])[0]

    @torch.inference_mode()
    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[ActionChunk]:
        """Predict B chunks at once; row b is what `predict(observations[b], seed=seeds[b])` gives, up to rounding.

        seeds: one a row, None for all 0. A selector that draws at random follows the first.
        Raises ValueError for commitments that are to be continued in different ways, and for a seed that is none.
        """
        if not observations:
            raise ValueError("predict_batch needs at least one observation, got none")
        seeds = [0] * len(observations) if seeds is None else [checked_seed(seed) for seed in seeds]
        if len(seeds) != len(observations):
            raise ValueError(f"predict_batch needs {len(observations)} seeds, one an observation, got {len(seeds)}")
        model, device = self.model, self.model.device
        watch = _Stopwatch(device)

        image, token_ids, lengths = self._inputs(observations)
        patches = [self._gripper_patch(observation) for observation in observations]
        context = SelectionContext(grid=model.config.vision.grid, gripper_patch=patches, seed=seeds[0])
        watch.mark("preprocess")
        saliency_asked = self.selector is not None and "saliency" in self.selector.needs
        features, saliency = model.vision(image, with_saliency=saliency_asked)
        context = dataclasses.replace(context, saliency=saliency)
        watch.mark("vision")
        visual = model.projector(features)
        watch.mark("projector")
        output = model.decode(visual, token_ids, lengths, selector=self.selector, context=context)
        watch.mark("decoder")
        watch.split("decoder", "selection", output.selection_s)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = torch.empty(
            len(seeds), model.config.head.horizon, model.config.head.channels, device=device, dtype=torch.float32
        )
        noise = draw_noise(generators, shape)
        commitments = [observation.commitment for observation in observations]
        if not (ways := {commitment.continuation for commitment in commitments if commitment is not None}):
            sampled = model.sample(output.cognition, noise, generators, self.sampler)
        else:
            past = Past.of(commitments, self.statistics[self.unnorm_key], noise)
            sampled = model.sample_on(_only(ways), output.cognition, noise, generators, self.sampler, past)
        normalized = sampled.double().cpu().numpy()
        watch.mark("action_head")
        timings = watch.finish()

        statistics = self.statistics[self.unnorm_key]
        return [
            ActionChunk(
                stamp_ns=observation.stamp_ns,
                deltas=statistics.unnormalize(normalized[row]),
                dt_s=statistics.dt_s,
                normalized=normalized[row],
                selection=self._selection(output.selected, row, patches[row]),
                timings_ms=timings,
                seed=seeds[row],
            )
            for row, observation in enumerate(observations)
        ]

    def _inputs(self, observations: Sequence[Observation]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images [B, 3, size, size] uint8, ids [B, L] padded on the right, lengths [B] (None: no padding)."""
        device = self.model.device
        squashed = np.stack([self.transform.apply(observation.image) for observation in observations])
        image = torch.from_numpy(squashed).permute(0, 3, 1, 2).to(device)
        prompts = [self.tokenize(observation.instruction) for observation in observations]
        longest = max(map(len, prompts))
        positions = longest + self.model.config.vision.tokens
        if positions > self.model.config.decoder.max_positions:
            raise UnfitObservation(
                f"the instruction is too long: {positions} tokens with the image, "
                f"the decoder has {self.model.config.decoder.max_positions} positions"
            )
        pad = self.model.config.prompt.pad
        token_ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in prompts], device=device)
        if all(len(ids) == longest for ids in prompts):
            return image, token_ids, None
        return image, token_ids, torch.tensor([len(ids) for ids in prompts], device=device)

    def _gripper_patch(self, observation: Observation) -> tuple[int, int] | None:
        if observation.gripper_pixel is None:
            return None
        height, width = observation.image.shape[:2]
        pixel = self.transform.map_pixel(observation.gripper_pixel, width, height)
        return None if pixel is None else patch_of(pixel, self.transform.size, self.model.config.vision.grid)

    def _selection(
        self, selected: SelectedTokens | None, row: int, gripper_patch: tuple[int, int] | None
    ) -> TokenSelection:
        grid, tokens = self.model.config.vision.grid, self.model.config.vision.tokens
        if selected is None or self.selector is None:
            every = np.arange(tokens, dtype=np.int32)
            return TokenSelection(every, np.full(tokens, Reason.ALL, np.uint8), grid, "none", 0, gripper_patch)
        return TokenSelection(
            indices=selected.indices[row].cpu().numpy().astype(np.int32),
            reasons=selected.reasons[row].cpu().numpy().astype(np.uint8),
            grid=grid,
            method=self.selector.name,
            prune_layer=self.selector.prune_layer,
            gripper_patch=gripper_patch,
        )


def _only(continuations: set[str]) -> str:
    first, *others = sorted(continuations)
    if others:
        raise ValueError(f"chunks of one batch are continued in one way, got {first} and {', '.join(others)}")
    return first


def count_parameters(model: nn.Module) -> int:
    """Count a model's weights. A linear that holds none as a parameter (packed integers) counts by its shape."""
    count = sum(parameter.numel() for parameter in model.parameters())
    linear: Any
    for linear in model.modules():
        if hasattr(linear, "in_features") and "weight" not in dict(linear.named_parameters(recurse=False)):
            count += linear.in_features * linear.out_features
            count += sum(bias.numel() for name, bias in linear.named_buffers(recurse=False) if name == "bias")
    return count


class _Stopwatch:
    """Measures milliseconds by stage; waits for the GPU after each, so that a stage is charged with its own work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stages: dict[str, float] = {}
        self._start = self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def mark(self, stage: str) -> None:
        now = self._now()
        self._stages[stage] = (now - self._last) * 1e3
        self._last = now

    def split(self, stage: str, part: str, part_s: float) -> None:
        """Charge `part_s` seconds of `stage` to `part`."""
        self._stages[part] = part_s * 1e3
        self._stages[stage] -= part_s * 1e3

    def finish(self) -> dict[str, float]:
        return {**self._stages, "total": (self._now() - self._start) * 1e3}
