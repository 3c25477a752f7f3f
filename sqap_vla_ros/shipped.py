"""The policies that ship with the package, by the name that stands in place of a checkpoint.

This module sits above compression, policy and simulation, because a shipped policy joins the three: weights, the recipe
that compresses them, and the simulator whose scenes the recipe calibrates on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqap_vla_ros.compression.calibration import SOURCES, ObservationSource, folder_observations
from sqap_vla_ros.compression.load import RANDOM_WEIGHTS, ShippedPolicy
from sqap_vla_ros.compression.recipe import RecipeError
from sqap_vla_ros.contracts import TRAINED_POLICY, Observation

SIMULATOR = "simulator"
LIBERO_OBJECT = "libero_object"
_WEIGHTS = Path(__file__).parent / "policy" / "assets"
LIBERO_PICTURES = _WEIGHTS / LIBERO_OBJECT


def simulator_observations(count: int) -> list[Observation]:
    """Return `count` observations of the scripted expert at work on the simulated tabletop."""
    try:
        from sqap_vla_ros.simulation.observations import expert_observations  # MuJoCo is loaded when it is asked for
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"calibration on scenes of the simulator needs {error.name}, which is not installed: install the whole "
            "package, or run `sqap-vla compress` where it is installed and load the file that it writes"
        ) from error

    return expert_observations(count)


def libero_observations(count: int) -> list[Observation]:
    """Return at most `count` observations of LIBERO's suite `libero_object`, from the pictures that ship."""
    return folder_observations(LIBERO_PICTURES, count)


CALIBRATION_SOURCES: Mapping[str, ObservationSource] = {SIMULATOR: simulator_observations, **SOURCES}
SHIPPED: Mapping[str, ShippedPolicy] = {
    TRAINED_POLICY: ShippedPolicy(
        simulator_observations,
        "simulated scenes, the scripted expert at work",
        calibration_count=48,
        weights=_WEIGHTS / "tabletop.safetensors",
    ),
    LIBERO_OBJECT: ShippedPolicy(
        libero_observations,
        "pictures of LIBERO's suite libero_object, a scripted expert at work",
        calibration_count=48,
        weights=_WEIGHTS / "libero_object.safetensors",
    ),
    **RANDOM_WEIGHTS,
}
