"""A prediction as one CUDA graph: towers, projector, decoder, token selection and all denoising steps in one launch.

At batch 1 a GPU waits for the host's launches more than it computes. Shapes are constant (the token budget and the
number of steps are), what changes lives in fixed buffers, and there is a graph for every prompt length that occurs.
On other devices the same function runs on the same buffers without a graph, which is how its logic is tested.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.contracts import ActionChunk, Observation, Policy, SelectedTokens, SelectionContext, checked_seed
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling.diffusion import draw_noise
from sqap_vla_ros.pruning.ring import gripper_tensor

GRAPHS = 4  # prompt lengths to remember; the least recently used one goes
WARM_UPS = 3  # calls before a capture: kernels are compiled, constants copied, workspaces allocated
AGREEMENT = 0.02  # normalised units: libraries may choose another algorithm while capturing; a wrong graph is far off


class GraphedCall:
    """A function of tensors of constant shape, which is captured once and replayed.

    body: must not wait for the device nor copy from the host once it has been warmed up.
    example: its arguments; their shapes, dtypes and device are what every call must bring.
    """

    def __init__(self, body: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]) -> None:
        self._body = body
        self._inputs = tuple(tensor.clone() for tensor in example)
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._inputs[0].is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    body(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = body(*self._inputs)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return the body's results, in buffers that the next call overwrites. Raises ValueError for other shapes."""
        for buffer, value in zip(self._inputs, arguments, strict=True):
            if buffer.shape != value.shape or buffer.dtype != value.dtype:
                raise ValueError(
                    f"captured for {tuple(buffer.shape)} of {buffer.dtype}, got {tuple(value.shape)} of {value.dtype}"
                )
            buffer.copy_(value, non_blocking=True)
        if self._graph is None:
            return self._body(*self._inputs)
        self._graph.replay()
        return self._outputs


def with_graphs(policy: Policy, device: str) -> Policy:
    """Return what predicts on a CUDA device by replaying graphs, and on another device as it is.

    A policy that is more than a CogACT model (one with a cache across observations) stays as it is too. Warns where
    that, or the policy's selector or sampler, leaves no graph.
    """
    if torch.device(device).type != "cuda":
        return policy
    if not isinstance(policy, CogACTPolicy):
        _warn(f"{type(policy).__name__} does not compute every prediction in the same way")
        return policy
    captured = CapturedPolicy(policy)
    if reason := captured.uncapturable():
        captured.warn_once(reason)
    return captured


def _warn(reason: str) -> None:
    warnings.warn(f"predicting without CUDA graphs, which is slower: {reason}", RuntimeWarning, stacklevel=3)


class CapturedPolicy(CogACTPolicy):
    """A policy that predicts one observation by replaying a graph, and everything else eagerly.

    A new graph is compared with the eager prediction, which is what the observation gets. Where the graph disagrees or
    cannot be captured, and for a chunk that continues another, the policy warns once and predicts eagerly. Another
    selector or sampler means new graphs; changing the weights afterwards needs `forget`.
    """

    def __init__(self, policy: CogACTPolicy) -> None:
        vars(self).update(vars(policy))  # the same policy in every respect but how it predicts
        self._graphs: OrderedDict[int, GraphedCall] = OrderedDict()  # by prompt length
        self._captured_with = (self.selector, self.sampler)
        self._given_up = False
        self._warned: set[str] = set()

    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[ActionChunk]:
        """Predict B chunks, as in the base class; a single one that continues no other by replaying a graph."""
        if len(observations) == 1 and not self._given_up:
            reason = self.uncapturable()
            if not reason and observations[0].commitment is not None:
                reason = "a chunk that continues another is sampled in steps of its own"
            if not reason:
                return [self._predict_one(observations[0], 0 if seeds is None else checked_seed(seeds[0]))]
            self.warn_once(reason)
        return super().predict_batch(observations, seeds=seeds)

    def warn_once(self, reason: str) -> None:
        """Warn that this policy predicts eagerly, once for each reason."""
        if reason not in self._warned:
            self._warned.add(reason)
            _warn(reason)

    def uncapturable(self) -> str:
        """Say why a prediction is not one sequence of device operations; empty when it is."""
        if self.diffusion.sampler != "ddim":
            return f"sampler {self.diffusion.sampler!r} draws noise between its steps"
        selector = self.selector
        if selector is None:
            return ""
        if not selector.runs_on_device:
            return f"selector {selector.name!r} chooses its tokens on the host"
        return "" if "saliency" not in selector.needs else f"selector {selector.name!r} needs the tower's saliency"

    def forget(self) -> None:
        """Drop all graphs, and a failure to make one."""
        self._graphs.clear()
        self._captured_with = (self.selector, self.sampler)
        self._given_up = False

    @torch.inference_mode()
    def _predict_one(self, observation: Observation, seed: int) -> ActionChunk:
        started = time.perf_counter()
        image, token_ids, _ = self._inputs([observation])
        patch = self._gripper_patch(observation)
        gripper = gripper_tensor([patch], image.device)
        head = self.model.config.head
        noise = draw_noise(
            [torch.Generator().manual_seed(seed)],
            torch.empty(1, head.horizon, head.channels, device=image.device, dtype=torch.float32),
        )
        arguments = (image, token_ids, noise, gripper)
        if any(now is not then for now, then in zip((self.selector, self.sampler), self._captured_with, strict=True)):
            self.forget()
        length = token_ids.shape[1]
        if length not in self._graphs:
            expected = super().predict_batch([observation], seeds=[seed])[0]
            self._capture(length, arguments, expected)
            return expected
        self._graphs.move_to_end(length)
        prepared = time.perf_counter()
        chunk, *chosen = self._graphs[length](*arguments)
        normalized = chunk.double().cpu().numpy()[0]  # waits for the device
        selected = SelectedTokens(chosen[0], chosen[1]) if chosen else None
        statistics = self.statistics[self.unnorm_key]
        done = time.perf_counter()
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            deltas=statistics.unnormalize(normalized),
            dt_s=statistics.dt_s,
            normalized=normalized,
            selection=self._selection(selected, 0, patch),
            timings_ms={
                "preprocess": (prepared - started) * 1e3,
                "graph": (done - prepared) * 1e3,
                "total": (time.perf_counter() - started) * 1e3,
            },
            seed=seed,
        )

    def _capture(self, length: int, arguments: Sequence[Tensor], expected: ActionChunk) -> None:
        """Keep a graph for prompts of this length if it gives what the eager prediction gave."""
        try:
            graph = GraphedCall(self.body, arguments)
            found = graph(*arguments)[0].double().cpu().numpy()[0]
        except RuntimeError as error:
            self._give_up(f"capturing it failed ({error})")
            return
        difference = float(np.abs(found - expected.normalized).max())
        if not difference <= AGREEMENT:  # also where it is not a number
            self._give_up(f"the graph's chunk differs from the eager one by {difference:.3g}")
            return
        self._graphs[length] = graph
        if len(self._graphs) > GRAPHS:
            self._graphs.popitem(last=False)

    def _give_up(self, reason: str) -> None:
        self._graphs.clear()
        self._given_up = True
        _warn(reason)

    def body(self, image: Tensor, token_ids: Tensor, noise: Tensor, gripper: Tensor) -> tuple[Tensor, ...]:
        """Compute the normalised chunk [1, T, 7], and indices and reasons of the kept tokens, from the buffers alone.

        image: [1, 3, size, size] uint8. token_ids: [1, L]. noise: [1, T, 7]. gripper: [1, 2], see `SelectionContext`.
        """
        cognition, *chosen = self.decode_body(self.vision_body(image), token_ids, gripper)
        return (self.head_body(cognition, noise), *chosen)

    def vision_body(self, image: Tensor) -> Tensor:
        """Return the visual tokens [1, N, D]."""
        return self.model.projector(self.model.vision(image)[0])

    def decode_body(self, visual: Tensor, token_ids: Tensor, gripper: Tensor) -> tuple[Tensor, ...]:
        """Return the cognition feature [1, D], and the kept tokens when there is a selector."""
        if self.selector is None:
            return (self.model.decode(visual, token_ids, None).cognition,)
        context = SelectionContext(self.model.config.vision.grid, [None], gripper_on_device=gripper)
        output = self.model.decode(visual, token_ids, None, selector=self.selector, context=context)
        assert output.selected is not None
        return output.cognition, output.selected.indices, output.selected.reasons

    def head_body(self, cognition: Tensor, noise: Tensor) -> Tensor:
        """Return the normalised chunk [1, T, 7]."""
        return self.model.sample(cognition, noise, [], self.sampler)
