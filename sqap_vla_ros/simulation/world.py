"""The physics of the tabletop. An environment drives it step by step, or a node in real time."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.simulation.camera import world_from_optical
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import (
    ARM_JOINTS,
    CAMERA,
    COLOURS,
    FINGER_JOINTS,
    FINGER_RANGE_M,
    HOME_RAD,
    SHAPES,
    SLOTS,
    build_model,
    slot_geom,
)
from sqap_vla_ros.simulation.tasks import ObjectState, WorldState

_TOOL_DOWN = np.diag([1.0, -1.0, -1.0])  # tool z down, fingers opening along the base frame's y


class ReachError(ValueError):
    """A tool pose the arm cannot take; the message gives the residual."""


def tool_pose(xyz_m: NDArray[np.float64], yaw_rad: float = 0.0) -> NDArray[np.float64]:
    """Return the pose [4, 4] of a tool that points straight down, turned by `yaw_rad` about the vertical."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ _TOOL_DOWN
    pose[:3, 3] = xyz_m
    return pose


class TabletopWorld:
    """Model and state of one tabletop. The world frame is the arm's base frame. Not thread-safe.

    Commands are joint positions and a finger opening; `step` holds them while time passes.
    """

    def __init__(self) -> None:
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self.layout: Layout | None = None
        model = self.model
        self._scratch = mujoco.MjData(model)
        self._tool = model.site("tool0").id
        self._camera = model.camera(CAMERA).id
        self._camera_nominal = model.cam_pos[self._camera].copy()
        self._lamp = model.light("lamp").id
        self._lamp_nominal = model.light_diffuse[self._lamp].copy()
        self._table = model.geom("table").id
        self._handle = model.geom("handle").id
        self._cabinet, self._drawer, self._bowl = (model.body(name).id for name in ("cabinet", "drawer", "bowl"))
        self._bowl_geoms = np.flatnonzero(model.geom_bodyid == self._bowl)
        self._fingers = (model.geom("left_finger").id, model.geom("right_finger").id)
        self._slots = [model.body(f"object{slot}").id for slot in range(SLOTS)]
        self._slot_qpos = [int(model.joint(f"object{slot}").qposadr[0]) for slot in range(SLOTS)]
        self._arm_qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._arm_dof = np.array([model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self._finger_qpos = np.array([model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._finger_dof = np.array([model.joint(name).dofadr[0] for name in FINGER_JOINTS])
        self._drawer_qpos = int(model.joint("drawer").qposadr[0])
        self._arm_range = model.jnt_range[[model.joint(name).id for name in ARM_JOINTS]]

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def timestep_s(self) -> float:
        return float(self.model.opt.timestep)

    @property
    def arm_position(self) -> NDArray[np.float64]:
        """Measured joint angles [7], radians."""
        return self.data.qpos[self._arm_qpos].copy()

    @property
    def arm_velocity(self) -> NDArray[np.float64]:
        """Measured joint velocities [7], radians per second."""
        return self.data.qvel[self._arm_dof].copy()

    @property
    def finger_position(self) -> NDArray[np.float64]:
        """Measured finger joints [2], metres from the centre."""
        return self.data.qpos[self._finger_qpos].copy()

    @property
    def finger_velocity(self) -> NDArray[np.float64]:
        return self.data.qvel[self._finger_dof].copy()

    @property
    def base_from_tool(self) -> NDArray[np.float64]:
        """Measured pose [4, 4] of the tool frame, as of the last step."""
        pose = np.eye(4)
        pose[:3, :3] = self.data.site_xmat[self._tool].reshape(3, 3)
        pose[:3, 3] = self.data.site_xpos[self._tool]
        return pose

    def body_pose(self, name: str) -> NDArray[np.float64]:
        """Return the pose [4, 4] of a body of the model, as of the last step."""
        body = self.data.body(name)
        pose = np.eye(4)
        pose[:3, :3] = body.xmat.reshape(3, 3)
        pose[:3, 3] = body.xpos
        return pose

    @property
    def base_from_optical(self) -> NDArray[np.float64]:
        """Pose [4, 4] of the camera's optical frame; fixed during an episode."""
        return world_from_optical(self.data, self._camera)

    @property
    def camera_fovy_rad(self) -> float:
        return float(np.deg2rad(self.model.cam_fovy[self._camera]))

    def state(self, target: int = 0, reference: int = 1) -> WorldState:
        """Return the state that the task's detector and expert look at.

        target, reference: numbers of the layout's objects; others than the task's own ask about another task.
        """
        if self.layout is None:
            raise RuntimeError("the world has no layout yet: call reset first")
        pose = self.base_from_tool
        closing = bool(self.data.ctrl[7] < np.mean(FINGER_RANGE_M))
        bowl = None if self.layout.bowl_xy_m is None else self.data.xpos[self._bowl].copy()
        return WorldState(
            tool_xyz_m=pose[:3, 3],
            tool_yaw_rad=float(np.arctan2(pose[1, 0], pose[0, 0])),
            finger_m=float(self.finger_position.mean()),
            gripper_open=not closing,
            handle_xyz_m=self.data.geom_xpos[self._handle].copy(),
            drawer_xyz_m=self.data.xpos[self._drawer].copy(),
            drawer_m=float(self.data.qpos[self._drawer_qpos]),
            bowl_xyz_m=bowl,
            target=self._object_state(target, closing),
            reference=self._object_state(reference, closing),
            others_xyz_m=tuple(
                self.data.xpos[self._slots[slot]].copy()
                for slot in range(len(self.layout.objects))
                if slot not in (target, reference)
            )
            + (() if bowl is None else (bowl,)),
        )

    def _object_state(self, slot: int, closing: bool) -> ObjectState:
        assert self.layout is not None
        geom = self.model.geom(slot_geom(slot, self.layout.objects[slot].kind.shape)).id
        pairs = self.data.contact.geom[: self.data.ncon]
        touching = set(pairs[(pairs == geom).any(axis=1)].ravel().tolist())
        fingers = [finger in touching for finger in self._fingers]
        rotation = self.data.xmat[self._slots[slot]].reshape(3, 3)
        return ObjectState(
            xyz_m=self.data.xpos[self._slots[slot]].copy(),
            yaw_rad=float(np.arctan2(rotation[1, 0], rotation[0, 0])),
            held=closing and all(fingers),
            touched=any(fingers),
        )

    # -- commands ---------------------------------------------------------------------------------------------------

    def command_arm(self, position_rad: NDArray[np.float64]) -> None:
        """Set the joint position targets [7], clipped to the joint limits."""
        if np.shape(position_rad) != (7,) or not np.isfinite(position_rad).all():
            raise ValueError(f"arm command must be 7 finite joint angles, got {position_rad!r}")
        self.data.ctrl[:7] = np.clip(position_rad, *self._arm_range.T)

    def command_fingers(self, opening_m: float) -> None:
        """Set the target of each finger, metres from the centre, clipped to its range."""
        if not np.isfinite(opening_m):
            raise ValueError(f"finger opening must be finite, got {opening_m}")
        self.data.ctrl[7] = np.clip(opening_m, *FINGER_RANGE_M)

    def step(self, steps: int = 1) -> None:
        """Let `steps * timestep_s` seconds pass under the present commands."""
        mujoco.mj_step(self.model, self.data, steps)

    def refresh(self) -> None:
        """Make poses and contacts consistent with the present positions (a step leaves those of its beginning)."""
        mujoco.mj_forward(self.model, self.data)

    # -- kinematics -------------------------------------------------------------------------------------------------

    def forward(self, position_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the tool pose [4, 4] at joint angles [7]; the world's state stays as it is."""
        scratch = self._scratch
        scratch.qpos[self._arm_qpos] = position_rad
        mujoco.mj_kinematics(self.model, scratch)
        pose = np.eye(4)
        pose[:3, :3] = scratch.site_xmat[self._tool].reshape(3, 3)
        pose[:3, 3] = scratch.site_xpos[self._tool]
        return pose

    def inverse(
        self, pose: NDArray[np.float64], seed_rad: NDArray[np.float64], *, iterations: int = 40
    ) -> tuple[NDArray[np.float64], float]:
        """Return joint angles [7] whose tool pose is nearest to `pose` [4, 4], and the largest error left (m, rad).

        Damped least squares from `seed_rad`, drawn towards the home posture in the null space, within joint limits.
        """
        model, scratch = self.model, self._scratch
        position = np.array(seed_rad, dtype=np.float64)
        jac_p, jac_r = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        error = np.inf
        for _ in range(iterations):
            current = self.forward(position)
            twist = np.zeros(6)
            twist[:3] = pose[:3, 3] - current[:3, 3]
            quat = np.zeros(4)
            mujoco.mju_mat2Quat(quat, (pose[:3, :3] @ current[:3, :3].T).ravel())
            mujoco.mju_quat2Vel(twist[3:], quat, 1.0)
            error = float(np.abs(twist).max())
            if error < 1e-4:
                break
            mujoco.mj_comPos(model, scratch)
            mujoco.mj_jacSite(model, scratch, jac_p, jac_r, self._tool)
            jacobian = np.vstack([jac_p[:, self._arm_dof], jac_r[:, self._arm_dof]])  # [6, 7]
            damped = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-5 * np.eye(6))
            move = damped @ twist
            move += 0.05 * (HOME_RAD - position - damped @ (jacobian @ (HOME_RAD - position)))
            position = np.clip(position + np.clip(move, -0.3, 0.3), *self._arm_range.T)
        return position, error

    def reach(self, pose: NDArray[np.float64], seed_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Do `inverse`, but raise ReachError for a pose missed by more than 2 mm or 0.5 degrees."""
        position, _ = self.inverse(pose, seed_rad, iterations=100)
        metres, radians = pose_distance(pose, self.forward(position))
        if metres > 2e-3 or radians > np.deg2rad(0.5):
            raise ReachError(
                f"the arm cannot put its tool at {np.round(pose[:3, 3], 3).tolist()} m: "
                f"the nearest posture found misses by {1e3 * metres:.1f} mm and {np.rad2deg(radians):.1f} degrees"
            )
        return position

    # -- episodes ---------------------------------------------------------------------------------------------------

    def reset(self, layout: Layout) -> None:
        """Put everything where `layout` says, the arm at rest above the table with its hand open."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        self.layout = layout
        model.body_pos[self._cabinet, :2] = layout.cabinet_xy_m
        data.qpos[self._drawer_qpos] = layout.drawer_m
        model.body_pos[self._bowl] = (-1.0, 0.5, -2.0) if layout.bowl_xy_m is None else (*layout.bowl_xy_m, 0.0)
        model.geom_rgba[self._bowl_geoms, 3] = layout.bowl_xy_m is not None
        for slot in range(SLOTS):
            self._fill_slot(slot)
        model.cam_pos[self._camera] = self._camera_nominal + layout.camera_offset_m
        model.light_diffuse[self._lamp] = self._lamp_nominal * layout.light
        material = model.material(layout.table_material).id
        model.geom_matid[self._table] = material
        model.mat_rgba[material, :3] = layout.table_tint

        position = self.reach(tool_pose(np.asarray(layout.tool_xyz_m)), HOME_RAD)
        data.qpos[self._arm_qpos] = position
        data.qpos[self._finger_qpos] = FINGER_RANGE_M[1]
        self.command_arm(position)
        self.command_fingers(FINGER_RANGE_M[1])
        self.step(25)  # objects settle on the table
        self.refresh()

    def _fill_slot(self, slot: int) -> None:
        assert self.layout is not None
        model, address = self.model, self._slot_qpos[slot]
        placed = self.layout.objects[slot] if slot < len(self.layout.objects) else None
        for name in SHAPES:
            geom = model.geom(slot_geom(slot, name)).id
            shown = placed is not None and placed.kind.shape == name
            model.geom_contype[geom] = model.geom_conaffinity[geom] = int(shown)
            model.geom_rgba[geom] = (*COLOURS[placed.kind.colour], 1.0) if placed is not None and shown else 0.0
        # An empty slot waits below the table and must not fall for ever.
        model.body_gravcomp[self._slots[slot]] = float(placed is None)
        if placed is not None:
            height = SHAPES[placed.kind.shape].half_height_m + 0.001
            half = placed.yaw_rad / 2
            self.data.qpos[address : address + 7] = (*placed.xy_m, height, np.cos(half), 0.0, 0.0, np.sin(half))
