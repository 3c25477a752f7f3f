"""Token selectors side by side on one observation: a picture and a line of text for each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.compression.accelerators.base import Accelerator
from sqap_vla_ros.compression.accelerators.table import ACCELERATORS, accelerate, make_accelerator
from sqap_vla_ros.contracts import Observation, Policy, Reason, TokenSelection, TokenSelector
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.pruning import SELECTORS, make_selector
from sqap_vla_ros.pruning.overlay import draw_overlay


@dataclass(frozen=True)
class SelectorPanel:
    """The answer of one selector. picture: [H, W, 3] uint8, the image with the kept tokens; line: the same in words."""

    picture: NDArray[np.uint8]
    line: str


def make_choice(name: str, parameters: Mapping[str, Any]) -> TokenSelector | Accelerator:
    """Make a token selector, or an accelerator whose choice of tokens can be drawn; raises ValueError for others."""
    if name in SELECTORS or name not in ACCELERATORS:
        return make_selector(name, **parameters)
    if not ACCELERATORS[name].shows_tokens:
        raise ValueError(f"accelerator {name!r} keeps every token: there is nothing to draw")
    return make_accelerator(name, **parameters)


def compare_selectors(
    policy: Policy, observation: Observation, choices: Mapping[str, TokenSelector | Accelerator], *, seed: int = 0
) -> Iterator[SelectorPanel]:
    """Predict once with every one of `choices` (caption -> selector) in place of the policy's own, which is changed.

    Raises ValueError for a policy that an accelerator runs in its own way.
    """
    if not isinstance(policy, CogACTPolicy):
        raise ValueError(f"recipe {policy.info.recipe!r} runs the layers its own way; take one without an accelerator")
    parts = dict(policy.model.named_children())
    for text, choice in choices.items():
        policy.selector = None
        for part, module in parts.items():  # an accelerator may have replaced some
            setattr(policy.model, part, module)
        if isinstance(choice, Accelerator):
            accelerate(policy, choice)
        else:
            policy.selector = choice
        started = time.perf_counter()
        selection = policy.predict(observation, seed=seed).selection
        elapsed_ms = (time.perf_counter() - started) * 1e3
        if selection is None:
            raise ValueError(f"the policy reported no token selection for {text!r}")
        picture = draw_overlay(
            observation.image,
            selection,
            policy.transform,
            gripper_pixel=observation.gripper_pixel,
            caption=f"{text}, before layer {selection.prune_layer}",
        )
        yield SelectorPanel(picture, f"{text:28s} {_in_words(selection)}, {elapsed_ms:.0f} ms")


def _in_words(selection: TokenSelection) -> str:
    counts = {Reason(int(r)).name.lower(): int((selection.reasons == r).sum()) for r in np.unique(selection.reasons)}
    listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    where = "outside the view" if selection.gripper_patch is None else f"in patch {selection.gripper_patch}"
    return (
        f"kept {len(selection.indices)} of {selection.grid[0] * selection.grid[1]} before layer "
        f"{selection.prune_layer} ({listed}), gripper {where}"
    )


def side_by_side(panels: Sequence[NDArray[np.uint8]], columns: int = 3, gap: int = 4) -> NDArray[np.uint8]:
    """Arrange pictures of one size [H, W, 3] uint8 in rows of `columns`, on white."""
    height, width = panels[0].shape[:2]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, panel in enumerate(panels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = panel
    return sheet
