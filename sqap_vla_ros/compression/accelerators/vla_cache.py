"""VLA-Cache (Xu et al., NeurIPS 2025): keys and values of patches that have not changed are reused across time steps.

Which patches: those whose pixels are, up to a cosine of 0.996, what they were when their keys and values were computed,
unless the instruction attended to them in the previous step. How many of them: layer by layer, the more the lower the
entropy of the layer's attention. Two things differ from the published code, both on purpose: candidates are taken in
the order of their similarity (there, sorting by index before truncating favours the top of the image), and each patch
is compared with the frame its cache entry comes from (there, with the previous frame, whatever was reused since).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sqap_vla_ros.compression.accelerators.base import Accelerator
from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, SelectionContext, TokenSelector
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.decoder import VISUAL_START, Decoder, DecoderOutput


@dataclass(frozen=True)
class VlaCache(Accelerator):
    """The method's parameters, with the defaults of the published OpenVLA code.

    similarity: least cosine of a patch's raw pixels to its reference for it to count as static.
    static: at most so many static patches are candidates, the most similar first.
    relevant: so many patches of largest text-to-image attention (at `relevance_layer`, previous step) are never reused.
    layers: decoder layers from which on tokens are left out; those beyond the decoder's depth are ignored.
    growth: an increase of the share reused from one layer to the next is damped by this factor.
    max_gap_s: a longer time between two observations, or one backwards, empties the cache.
    """

    name: ClassVar[str] = "vla_cache"
    shows_tokens: ClassVar[bool] = False  # it keeps every token
    similarity: float = 0.996
    static: int = 130
    relevant: int = 120
    relevance_layer: int = 15
    layers: Sequence[int] = (2, 6, 9, 11)
    growth: float = 0.55
    max_gap_s: float = 2.0

    def __post_init__(self) -> None:
        if not -1.0 <= self.similarity <= 1.0 or not 0.0 <= self.growth <= 1.0:
            raise ValueError(
                "vla_cache: similarity must be in [-1, 1] and growth in [0, 1], "
                f"got {self.similarity} and {self.growth}"
            )
        for name in ("static", "relevant", "relevance_layer"):
            if getattr(self, name) < 0:
                raise ValueError(f"vla_cache: {name} must not be negative, got {getattr(self, name)}")
        if any(layer < 1 for layer in self.layers):
            raise ValueError(f"vla_cache: layers must be at least 1, got {tuple(self.layers)}")
        if not self.max_gap_s > 0:
            raise ValueError(f"vla_cache: max_gap_s must be positive, got {self.max_gap_s}")

    def install(self, policy: CogACTPolicy, calibration: Sequence[Observation] = ()) -> VlaCachePolicy:
        """Wrap `policy`, whose decoder is replaced. Nothing is saved before the second observation."""
        return VlaCachePolicy(policy, self)


class VlaCachePolicy:
    """A `contracts.Policy` with a cache across time steps, for one camera stream whose observations come in order.

    policy: changed, its decoder is replaced; quantised or not, but without a token selector: a pruned token has no keys
        and values to reuse.
    The cache is emptied by `reset`, a new instruction, another image size and a jump in time.
    """

    def __init__(self, policy: CogACTPolicy, settings: VlaCache = VlaCache()) -> None:
        if policy.selector is not None:
            raise ValueError(
                f"vla_cache keeps every token: it cannot be combined with the selector {policy.selector.name!r}"
            )
        self.policy = policy
        self.settings = settings
        self.decoder = CachingDecoder(policy.model.decoder, settings, policy.model.config.vision.tokens)
        policy.model.decoder = self.decoder
        self._reference: NDArray[np.float32] | None = None  # [N, pixels] patches behind the cache entries
        self._previous: Observation | None = None

    def __getattr__(self, name: str) -> Any:
        """Answer with the wrapped policy's attribute for all that is not about the cache."""
        if name == "policy":  # not set yet: while being unpickled
            raise AttributeError(name)
        return getattr(self.policy, name)

    @property
    def info(self) -> PolicyInfo:
        return dataclasses.replace(self.policy.info, selector=self.settings.name, stateful=True)

    def reset(self) -> None:
        """Empty the cache: a new episode begins."""
        self.policy.reset()
        self.decoder.forget()
        self._reference = self._previous = None

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """Predict one chunk from this observation and the cache of those before it."""
        if self._previous is not None and not self._follows(observation, self._previous):
            self.reset()
        config = self.policy.model.config.vision
        squashed = self.policy.transform.apply(observation.image)
        patches = patchify(squashed, config.patch_size)
        candidates = np.empty(0, dtype=np.int64)
        if self._reference is not None:
            candidates = static_patches(patches, self._reference, self.settings.similarity, self.settings.static)
        self.decoder.candidates = candidates
        try:
            chunk = self.policy.predict(observation, seed=seed)
        except BaseException:
            self.reset()  # the cache may hold layers of two frames
            raise
        if self._reference is None:
            self._reference = patches
        else:
            renewed = np.ones(len(patches), dtype=bool)
            renewed[self.decoder.reused] = False
            self._reference[renewed] = patches[renewed]
        self._previous = observation
        return chunk

    def predict_batch(
        self, observations: Sequence[Observation], *, seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        """Predict the observations one after the other: the cache belongs to one stream."""
        chosen = [0] * len(observations) if seeds is None else seeds
        return [self.predict(one, seed=seed) for one, seed in zip(observations, chosen, strict=True)]

    def _follows(self, observation: Observation, previous: Observation) -> bool:
        gap_s = (observation.stamp_ns - previous.stamp_ns) * 1e-9
        return (
            observation.instruction == previous.instruction
            and observation.image.shape == previous.image.shape
            and 0.0 <= gap_s <= self.settings.max_gap_s
        )


class CachingDecoder(Decoder):
    """The decoder with remembered keys and values, for one stream of observations.

    candidates: [n] visual tokens that may be reused in the next forward pass, the most similar first.
    reused: visual tokens that were not recomputed in all layers of the last forward pass.
    reused_from: decoder layer -> how many visual tokens were left out from that layer on in the last forward pass.
    """

    def __init__(self, decoder: Decoder, settings: VlaCache, visual_tokens: int) -> None:
        torch.nn.Module.__init__(self)  # the parts are the given decoder's, nothing is allocated
        self.config = decoder.config
        self.embed_tokens, self.layers, self.norm = decoder.embed_tokens, decoder.layers, decoder.norm
        self.settings = settings
        self.visual_tokens = visual_tokens
        self.candidates: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.forget()

    def forget(self) -> None:
        """Empty the cache."""
        self._keys: list[Tensor] = []  # by layer, [1, heads, S, d], rotated
        self._values: list[Tensor] = []
        self._share: list[float] = []  # by layer, of the candidates that are reused
        self._relevance: Tensor | None = None  # [N]
        self.reused: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.reused_from: dict[int, int] = {}

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor | None = None,
        *,
        selector: TokenSelector | None = None,
        context: SelectionContext | None = None,
    ) -> DecoderOutput:
        """Compute one unpadded sequence without a selector, as in the base class. Raises ValueError for others."""
        if len(embeddings) != 1 or lengths is not None or selector is not None:
            raise ValueError(
                f"vla_cache takes one sequence at a time and no token selector, got a batch of {len(embeddings)} and "
                f"selector {None if selector is None else selector.name!r}"
            )
        length = embeddings.shape[1]
        if self._keys and self._keys[0].shape[2] != length:
            self.forget()
        candidates = self._allowed()
        cos, sin = (table.unsqueeze(0) for table in self.rotary(length, embeddings))
        active = torch.arange(length, device=embeddings.device)
        hidden, left_out = embeddings, 0
        self.reused_from = {}
        fresh = not self._keys
        entropies: list[float] = []
        last = len(self.layers) - 1
        for index in range(len(self.layers)):
            if index in self.settings.layers and len(candidates) and not fresh:
                left_out = max(left_out, int(self._share[index] * len(candidates)))
                self.reused_from[index] = left_out
                skipped = torch.from_numpy(candidates[:left_out] + VISUAL_START).to(active.device)
                stays = ~torch.isin(active, skipped)
                hidden, active = hidden[:, stays], active[stays]
            hidden, text = self._cached_layer(index, hidden, active, cos, sin, final=index == last)
            if text is not None:  # [text, S] of the previous step's role next time
                entropies.append(float(-(text * (text + 1e-10).log()).sum(dim=-1).mean()))
                if index == min(self.settings.relevance_layer, last - 1):
                    self._relevance = text[:, VISUAL_START : VISUAL_START + self.visual_tokens].mean(dim=0)
        self._share = reuse_schedule(entropies, self.settings.growth)
        self.reused = np.sort(candidates[:left_out])
        return DecoderOutput(self.norm(hidden).squeeze(1))

    def _allowed(self) -> NDArray[np.int64]:
        """Return the candidates in their order, without the tokens that the instruction attended to."""
        if not self._keys or self._relevance is None:
            return np.empty(0, dtype=np.int64)
        order = torch.argsort(self._relevance, descending=True, stable=True).cpu().numpy()
        return self.candidates[~np.isin(self.candidates, order[: self.settings.relevant])]

    def _cached_layer(
        self, index: int, hidden: Tensor, active: Tensor, cos: Tensor, sin: Tensor, *, final: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Compute one layer for the `active` positions; the others take part through the cache.

        Returns the hidden states and, but for the final layer, the attention of the text tokens [text, S] fp32, mean
        over heads.
        """
        layer: Any = self.layers[index]
        attention, heads = layer.self_attn, (self.config.heads, -1)
        normed = layer.input_layernorm(hidden)
        here_cos, here_sin = cos[:, active], sin[:, active]
        key = attention.k_proj(normed).unflatten(-1, heads).transpose(1, 2)
        value = attention.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        key, _ = apply_rotary_pos_emb(key, key, here_cos, here_sin)
        if len(active) < cos.shape[1]:
            key = self._keys[index].index_copy(2, active, key)
            value = self._values[index].index_copy(2, active, value)
        if index < len(self._keys):
            self._keys[index], self._values[index] = key, value
        else:
            self._keys.append(key)
            self._values.append(value)
        if final:
            hidden, normed = hidden[:, -1:], normed[:, -1:]
            here_cos, here_sin, active = here_cos[:, -1:], here_sin[:, -1:], active[-1:]
        query = attention.q_proj(normed).unflatten(-1, heads).transpose(1, 2)
        query, _ = apply_rotary_pos_emb(query, query, here_cos, here_sin)
        visible = torch.arange(cos.shape[1], device=active.device) <= active[:, None]  # causal, by position
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        weights = None
        if not final:
            text = active >= VISUAL_START + self.visual_tokens
            scores = query[0, :, text].float() @ key[0].float().transpose(1, 2) / math.sqrt(key.shape[-1])
            weights = scores.masked_fill(~visible[text], -torch.inf).softmax(dim=-1).mean(dim=0)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), weights


def patchify(image: NDArray[np.uint8], patch_size: int) -> NDArray[np.float32]:
    """Cut an image [size, size, 3] into raw pixels by patch, [N, patch_size * patch_size * 3], row-major."""
    rows, cols = image.shape[0] // patch_size, image.shape[1] // patch_size
    blocks = image.reshape(rows, patch_size, cols, patch_size, 3).swapaxes(1, 2)
    return blocks.reshape(rows * cols, -1).astype(np.float32)


def static_patches(
    patches: NDArray[np.float32], reference: NDArray[np.float32], similarity: float, most: int
) -> NDArray[np.int64]:
    """Return up to `most` patches [n] with at least that cosine to their reference, the most similar first."""
    norms = np.linalg.norm(patches, axis=1) * np.linalg.norm(reference, axis=1)
    dot = (patches * reference).sum(axis=1)
    both_black = (norms == 0) & (patches == reference).all(axis=1)
    cosine = np.where(both_black, 1.0, dot / np.maximum(norms, 1e-8))
    order = np.argsort(-cosine, kind="stable")
    return order[cosine[order] >= similarity][:most]


def reuse_schedule(entropies: Sequence[float], growth: float) -> list[float]:
    """Return each layer's share of candidates to reuse: 1 - its entropy scaled to 0..1 over the layers, rises damped.

    The published code averages the entropy over all query tokens; here over the text tokens, whose attention is at hand
    without the full map. The final layer, whose attention is one row, follows the one before it.
    """
    values = np.asarray(entropies, dtype=np.float64)
    if values.size == 0:
        return [0.0]
    share = (1.0 - (values - values.min()) / (values.max() - values.min() + 1e-10)).tolist()
    for index in range(1, len(share)):
        rise = share[index] - share[index - 1]
        if rise > 0:
            share[index] = share[index - 1] + growth * rise
    return [*share, share[-1]]
