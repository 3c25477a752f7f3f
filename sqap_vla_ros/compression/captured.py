"""A prediction as one CUDA graph: towers, projector, decoder, token selection and all denoising steps in one launch.

At batch 1 a GPU waits for the host's launches more than it computes. Shapes are constant (the token budget and the
number of steps are), what changes lives in fixed buffers, and there is a graph for every prompt length that occurs.
On other devices the same function runs on the same buffers without a graph, which is how its logic is tested; capture
and its speed are not measured yet.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sqap_vla_ros.compression.policy import CompressedPolicy
from sqap_vla_ros.contracts import ActionChunk, Observation, SelectedTokens, SelectionContext
from sqap_vla_ros.policy.diffusion import draw_noise
from sqap_vla_ros.pruning.ring import gripper_tensor

GRAPHS = 4  # prompt lengths to remember; the least recently used one goes
WARM_UPS = 3  # calls before a capture: kernels are compiled, constants copied, workspaces allocated


class GraphedCall:
    """A function of tensors of constant shape, captured once and replayed.

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
        """The body's results, in buffers that the next call overwrites."""
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


class CapturedPolicy(CompressedPolicy):
    """Predicts one observation by replaying a graph; batches go the ordinary way. Make it with `of`, last of all.

    Changing selector, diffusion settings or weights afterwards needs `forget`.
    """

    def predict_batch(
        self, observations: Sequence[Observation], *, seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        """As in the base class. Raises ValueError where the policy cannot be captured, with the reason."""
        if len(observations) != 1:
            return super().predict_batch(observations, seeds=seeds)
        if reason := self.uncapturable():
            raise ValueError(f"this policy cannot be captured as a graph: {reason}; use it without CapturedPolicy")
        (seed,) = [0] if seeds is None else seeds
        return [self._predict_one(observations[0], seed)]

    def uncapturable(self) -> str:
        """Why a prediction is not one sequence of device operations; empty when it is."""
        if self.diffusion.sampler != "ddim":
            return f"sampler {self.diffusion.sampler!r} draws noise between its steps"
        selector = self.selector
        if selector is None:
            return ""
        if not selector.runs_on_device:
            return f"selector {selector.name!r} chooses its tokens on the host"
        return "" if "saliency" not in selector.needs else f"selector {selector.name!r} needs the tower's saliency"

    def forget(self) -> None:
        """Drop all graphs."""
        self._graphs().clear()

    def _graphs(self) -> OrderedDict[int, GraphedCall]:
        """By prompt length."""
        if not hasattr(self, "_by_length"):
            self._by_length: OrderedDict[int, GraphedCall] = OrderedDict()
        return self._by_length

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
        graphs, length = self._graphs(), token_ids.shape[1]
        if length not in graphs:
            graphs[length] = GraphedCall(self.body, arguments)
            if len(graphs) > GRAPHS:
                graphs.popitem(last=False)
        graphs.move_to_end(length)
        prepared = time.perf_counter()
        chunk, *chosen = graphs[length](*arguments)
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

    def body(self, image: Tensor, token_ids: Tensor, noise: Tensor, gripper: Tensor) -> tuple[Tensor, ...]:
        """Everything between the buffers: the normalised chunk [1, T, 7], and indices and reasons of the kept tokens.

        image: [1, 3, size, size] uint8. token_ids: [1, L]. noise: [1, T, 7]. gripper: [1, 2], see `SelectionContext`.
        """
        cognition, *chosen = self.decode_body(self.vision_body(image), token_ids, gripper)
        return (self.head_body(cognition, noise), *chosen)

    def vision_body(self, image: Tensor) -> Tensor:
        """[1, N, D] visual tokens."""
        return self.model.projector(self.model.vision(image)[0])

    def decode_body(self, visual: Tensor, token_ids: Tensor, gripper: Tensor) -> tuple[Tensor, ...]:
        """The cognition feature [1, D], and the kept tokens when there is a selector."""
        if self.selector is None:
            return (self.model.decode(visual, token_ids, None).cognition,)
        context = SelectionContext(self.model.config.vision.grid, [None], gripper_on_device=gripper)
        output = self.model.decode(visual, token_ids, None, selector=self.selector, context=context)
        assert output.selected is not None
        return output.cognition, output.selected.indices, output.selected.reasons

    def head_body(self, cognition: Tensor, noise: Tensor) -> Tensor:
        """[1, T, 7]."""
        return self.model.sample(cognition, noise, [], self.sampler)
