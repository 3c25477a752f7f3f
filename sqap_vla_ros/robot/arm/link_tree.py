"""Every link of a URDF and its place below its parent, as robot_state_publisher tells them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pinocchio as pin
from numpy.typing import NDArray


class LinkTree:
    """The links of a URDF. joint_names: its movable joints; those that mimic another stay at zero."""

    def __init__(self, urdf_xml: str) -> None:
        """Raises ValueError for text that is no URDF."""
        try:
            self._model = pin.buildModelFromXML(urdf_xml)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"no usable URDF: {error}") from error
        self._data = self._model.createData()
        self.joint_names: tuple[str, ...] = tuple(self._model.names)[1:]
        frames = list(self._model.frames)
        bodies = [index for index, frame in enumerate(frames) if frame.type == pin.FrameType.BODY]
        self._moving: list[tuple[int, int]] = []  # frames of (parent, child)
        self._rigid: list[tuple[int, int]] = []
        for child in bodies:
            parent = frames[child].parentFrame
            while parent > 0 and frames[parent].type != pin.FrameType.BODY:
                parent = frames[parent].parentFrame
            if parent > 0:
                same_joint = frames[parent].parentJoint == frames[child].parentJoint
                (self._rigid if same_joint else self._moving).append((parent, child))
        self._names = [frame.name for frame in frames]

    def fixed(self) -> list[tuple[str, str, NDArray[np.float64]]]:
        """Return (parent, child, parent_from_child [4, 4]) of the links that do not move within their parent."""
        return self._placed({}, self._rigid)

    def moving(self, positions: Mapping[str, float]) -> list[tuple[str, str, NDArray[np.float64]]]:
        """Return the same of the links that move. positions: rad or m, by joint."""
        return self._placed(positions, self._moving)

    def _placed(
        self, positions: Mapping[str, float], pairs: list[tuple[int, int]]
    ) -> list[tuple[str, str, NDArray[np.float64]]]:
        configuration = pin.neutral(self._model)
        for name, joint in zip(self.joint_names, list(self._model.joints)[1:], strict=True):
            value = positions.get(name, 0.0)
            if joint.nq == 2:  # continuous
                configuration[joint.idx_q : joint.idx_q + 2] = np.cos(value), np.sin(value)
            elif joint.nq == 1:
                configuration[joint.idx_q] = value
        pin.framesForwardKinematics(self._model, self._data, configuration)
        placements = self._data.oMf
        return [
            (self._names[parent], self._names[child], placements[parent].actInv(placements[child]).homogeneous)
            for parent, child in pairs
        ]
