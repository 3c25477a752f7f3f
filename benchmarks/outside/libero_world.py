"""LIBERO's environment as the expert and the recorder see it: privileged poses, pictures, what each patch shows.

Runs in LIBERO's own environment (`libero_environment.sh` makes it) and imports nothing of this package.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from libero_expert import MAX_MOVE_M, MAX_TURN_RAD, Array, Scene, Thing, Tool
from numpy.typing import NDArray

SIZE = 256  # of vla-eval's pictures
SETTLING = 10  # steps, as vla-eval's
_SPREAD_M = 0.02  # within which an object is put around the place of another
_REACH_M = 0.8  # of the arm, from its base
_PATCHES, _SEGMENTED = 16, 128

sys.stdin = io.StringIO("n\n")  # LIBERO asks once where its files are to be
os.environ.setdefault("MUJOCO_GL", "osmesa")


def suite_of(name: str) -> Any:
    """Return a suite of LIBERO or LIBERO-PRO by its name."""
    with redirect_stdout(io.StringIO()):
        from libero.libero import benchmark

        suites = benchmark.get_benchmark_dict()
        if name not in suites:
            raise SystemExit(f"no suite {name!r}: choose one of {', '.join(sorted(suites))}")
        return suites[name]()


def class_of(instance: str) -> str:
    """Return the class of an object's instance: "alphabet_soup" of "alphabet_soup_1"."""
    return instance.rpartition("_")[0]


def instruction_for(name: str) -> str:
    """Return the instruction of libero_object that asks for a class of objects."""
    return f"pick up the {name.replace('_', ' ')} and place it in the basket"


def traded(poses: Array, rng: np.random.Generator) -> Array:
    """Return the poses [things, 7] of things that have traded their places, each with its own height and rotation."""
    places = poses[rng.permutation(len(poses)), :2]
    return np.hstack([places + rng.uniform(-_SPREAD_M, _SPREAD_M, places.shape), poses[:, 2:]])


class World:
    """One task of a suite. Pictures are rendered when they are asked for, not at each step."""

    def __init__(self, suite: Any, task: int) -> None:
        from libero.libero import get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        self.task = suite.get_task(task)
        file = Path(get_libero_path("bddl_files")) / self.task.problem_folder / self.task.bddl_file
        # robosuite prints; hard_reset would compile the model anew for each episode
        self.env = ControlEnv(bddl_file_name=str(file), use_camera_obs=False, hard_reset=False, ignore_done=True)
        self.env.reset()
        instances = list(self.env.env.objects_dict)
        self.basket = next(name for name in instances if class_of(name) == "basket")
        self.objects = [name for name in instances if name != self.basket]
        self.target = next(name for name in self.env.obj_of_interest if name != self.basket)
        self.sim = self.env.sim
        model = self.sim.model
        self._body = {name: self.env.env.obj_body_id[name] for name in instances}
        self._box = {name: self._box_of(name) for name in instances}
        self._thing_of_geom = np.full(model.ngeom, -1)
        for number, name in enumerate((*self.objects, self.basket)):
            self._thing_of_geom[self._geoms_below(self._body[name])] = number
        self._hand, self._arm = len(self.objects) + 1, len(self.objects) + 2
        gripper = self.env.robots[0].gripper
        bodies = [model.body_id2name(b) or "" for b in model.geom_bodyid]
        for geom, body in enumerate(bodies):
            if body.startswith("gripper0"):
                self._thing_of_geom[geom] = self._hand
            elif body.startswith("robot0"):
                self._thing_of_geom[geom] = self._arm
        self._pads = [
            {model.geom_name2id(name) for name in gripper.important_geoms[side]}
            for side in ("left_fingerpad", "right_fingerpad")
        ]
        self._finger = [model.get_joint_qpos_addr(name) for name in gripper.joints]
        self._site = model.site_name2id(gripper.important_sites["grip_site"])
        self._speed, self._turning = np.zeros(3), np.zeros(3)

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.env.close()

    # -- episodes -------------------------------------------------------------------------------------------------

    def begin(self, state: NDArray[np.float64]) -> None:
        """Begin an episode from one of the suite's initial states, as vla-eval does."""
        self.env.reset()
        self.env.set_init_state(state)
        self._settle()

    def begin_anew(self, rng: np.random.Generator, *, permuted: bool) -> None:
        """Begin from the environment's own placement sampler. permuted: the objects trade places with each other."""
        self.env.seed(int(rng.integers(2**31)))
        self.env.reset()
        if permuted:
            joints = [self.env.env.objects_dict[name].joints[-1] for name in self.objects]
            poses = np.array([self.sim.data.get_joint_qpos(joint) for joint in joints])
            for joint, pose in zip(joints, traded(poses, rng), strict=True):
                self.sim.data.set_joint_qpos(joint, pose)
            self.sim.forward()
        self._settle()

    def _settle(self) -> None:
        for _ in range(SETTLING):
            self.step(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]))

    def step(self, command: Array) -> bool:
        """Execute a command [7] (metres, radians, opening); return whether LIBERO says that the task is done."""
        action = np.clip([*command[:3] / MAX_MOVE_M, *command[3:6] / MAX_TURN_RAD], -1.0, 1.0)
        before, was = self._pose()
        _, _, done, _ = self.env.step([*action, -1.0 if command[6] >= 0.5 else 1.0])
        after, now = self._pose()
        self._speed = after - before
        turned = now @ was.T
        self._turning = 0.5 * np.array(
            [turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]]
        )
        return bool(done)

    # -- what is where --------------------------------------------------------------------------------------------

    def _pose(self) -> tuple[Array, Array]:
        data = self.sim.data
        return data.site_xpos[self._site].copy(), data.site_xmat[self._site].reshape(3, 3).copy()

    def tool(self) -> Tool:
        """Return the hand's pose and speed."""
        position, rotation = self._pose()
        finger = float(np.abs(self.sim.data.qpos[self._finger]).mean())
        return Tool(position, self._speed, rotation, self._turning, finger)

    def thing(self, name: str) -> Thing:
        """Return an object's pose and box."""
        body = self._body[name]
        data = self.sim.data
        return Thing(data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy(), *self._box[name])

    def held(self) -> set[str]:
        """Return the objects that both fingers touch."""
        touched: list[set[int]] = [set(), set()]
        for contact in self.sim.data.contact[: self.sim.data.ncon]:
            for one, other in ((contact.geom1, contact.geom2), (contact.geom2, contact.geom1)):
                for side, pads in enumerate(self._pads):
                    if one in pads:
                        touched[side].add(int(self._thing_of_geom[other]))
        return {self.objects[n] for n in touched[0] & touched[1] if 0 <= n < len(self.objects)}

    def inside(self, name: str) -> bool:
        """Return whether an object lies in the basket, by LIBERO's own predicate."""
        states = self.env.env.object_states_dict
        region = next(region for region in states if region.startswith(f"{self.basket}_contain_region"))
        return bool(states[region].check_contain(states[name]))

    def in_reach(self, name: str) -> bool:
        """Return whether the arm gets to an object: one that was pushed too hard may be far away."""
        base = self.sim.data.body_xpos[self.sim.model.body_name2id("robot0_base")]
        return bool(np.linalg.norm((self.thing(name).centre - base)[:2]) <= _REACH_M)

    def scene(self, name: str) -> Scene:
        """Return the state for the expert that was asked for an object."""
        basket = self.thing(self.basket)
        others = tuple(self.thing(other) for other in self.objects if other != name)
        return Scene(self.tool(), self.thing(name), basket, name in self.held(), self.inside(name), others)

    def _geoms_below(self, body: int) -> list[int]:
        model = self.sim.model
        below = {body}
        for other in range(model.nbody):  # parents come first
            if model.body_parentid[other] in below:
                below.add(other)
        return [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] in below]

    def _box_of(self, name: str) -> tuple[Array, Array]:
        """Return the box around the geoms that collide, in the body's frame."""
        model, data, body = self.sim.model, self.sim.data, self._body[name]
        corners = []
        for geom in self._geoms_below(body):
            if not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
                continue
            if model.geom_dataid[geom] >= 0:
                start = model.mesh_vertadr[model.geom_dataid[geom]]
                points = model.mesh_vert[start : start + model.mesh_vertnum[model.geom_dataid[geom]]]
            else:
                half = model.geom_size[geom].copy()
                if model.geom_type[geom] in (3, 5):  # capsule, cylinder: radius, half length
                    half = np.array([half[0], half[0], half[1]])
                elif model.geom_type[geom] == 2:
                    half = np.full(3, half[0])
                points = half * np.array(np.meshgrid(*[[-1, 1]] * 3)).T.reshape(-1, 3)
            world = data.geom_xpos[geom] + points @ data.geom_xmat[geom].reshape(3, 3).T
            corners.append((world - data.body_xpos[body]) @ data.body_xmat[body].reshape(3, 3))
        every = np.concatenate(corners)
        return every.min(axis=0), every.max(axis=0)

    # -- pictures -------------------------------------------------------------------------------------------------

    def picture(self) -> NDArray[np.uint8]:
        """Return the picture [256, 256, 3] as vla-eval sends it: upright and mirrored."""
        raw = self.sim.render(camera_name="agentview", width=SIZE, height=SIZE)
        return np.ascontiguousarray(raw[::-1, ::-1])

    def cover(self) -> NDArray[np.uint8]:
        """Return the share [256, things] of each patch of that picture, 0 … 255: the objects, basket, hand, arm."""
        raw = self.sim.render(camera_name="agentview", width=_SEGMENTED, height=_SEGMENTED, segmentation=True)
        geoms = raw[::-1, ::-1, 1]
        thing = np.where(geoms >= 0, self._thing_of_geom[np.maximum(geoms, 0)], -1)
        side = _SEGMENTED // _PATCHES
        patches = thing.reshape(_PATCHES, side, _PATCHES, side).swapaxes(1, 2).reshape(_PATCHES**2, -1)
        share = np.stack([(patches == n).mean(axis=1) for n in range(self._arm + 1)], axis=1)
        return np.round(255 * share).astype(np.uint8)
