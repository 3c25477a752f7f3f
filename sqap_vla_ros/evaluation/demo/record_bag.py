"""A recording of the simulated arm doing a task, so that anyone can try the replay.

The scripted expert acts, and the bag holds what a real robot's would: compressed images, camera_info, TF, joint states,
the robot description and the instruction, plus what the expert did next as `expert/action_chunk`. Every time stamp is
the simulation's: the same seed gives the same messages.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.bags.writer import BagWriter
    from sqap_vla_ros.simulation.environment import TabletopEnv

_START_NS = 1_000_000_000  # a stamp of zero means "no time" to some tools
_HORIZON = 16
_LATCHED = ("/tf_static", "/robot_description", "/instruction")


def record_demo(
    out: Path,
    *,
    family: str | None = None,
    seed: int = 0,
    episodes: int = 1,
    width: int = 640,
    height: int = 480,
    jpeg_quality: int = 90,
) -> list[bool]:
    """Write the bag and return whether the expert succeeded in each episode.

    Raises BagError where `out` exists, ValueError for a wrong number of episodes or an unknown family; OSError where it
    cannot be written, and then nothing of it stays.
    """
    from std_msgs.msg import String
    from tqdm import tqdm

    from sqap_vla_ros.nodes.bags.writer import BagWriter
    from sqap_vla_ros.resources import share_path
    from sqap_vla_ros.simulation.environment import TabletopEnv
    from sqap_vla_ros.simulation.vocabulary import TaskFamily

    if episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    if family is not None and family not in list(TaskFamily):
        raise ValueError(f"no task family {family!r}; there are: {', '.join(TaskFamily)}")
    outcomes = []
    try:
        with TabletopEnv(width=width, height=height) as env, BagWriter(out, latched=_LATCHED) as bag:
            now_ns = _START_NS
            urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
            bag.write("/robot_description", now_ns, String(data=urdf))
            for episode in tqdm(range(seed, seed + episodes), desc="recording", unit="episode"):
                env.reset(episode, family)
                now_ns = _record_episode(bag, env, now_ns, jpeg_quality)
                outcomes.append(env.succeeded)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise OSError(f"{out} cannot be written ({error}): is the disk full?") from error
    return outcomes


def _record_episode(bag: BagWriter, env: TabletopEnv, now_ns: int, jpeg_quality: int) -> int:
    """Let the expert act until the episode ends, and write everything; return the time after it."""
    from std_msgs.msg import String
    from tf2_msgs.msg import TFMessage

    from sqap_vla_ros.nodes.messages import transform_message
    from sqap_vla_ros.nodes.simulator.frames import BASE_FRAME, OPTICAL_FRAME
    from sqap_vla_ros.simulation.environment import CONTROL_NS
    from sqap_vla_ros.simulation.experts import expert

    instruction = env.task.instruction
    bag.write("/instruction", now_ns, String(data=instruction))
    camera = transform_message(env.world.base_from_optical, now_ns, BASE_FRAME, OPTICAL_FRAME)
    bag.write("/tf_static", now_ns, TFMessage(transforms=[camera]))
    actions, poses, stamps = [], [], []
    done = False
    while not done:
        stamps.append(now_ns)
        poses.append(env.world.base_from_tool)
        _write_state(bag, env, now_ns, jpeg_quality)
        actions.append(expert(env.task, env.state))
        step = env.step(actions[-1])
        now_ns += CONTROL_NS
        done = step.terminated or step.truncated
    _write_expert_chunks(bag, now_ns, instruction, stamps, poses, actions)
    return now_ns


def _write_state(bag: BagWriter, env: TabletopEnv, now_ns: int, jpeg_quality: int) -> None:
    """Write the tool's pose, the joints, and the image with its camera_info."""
    import cv2
    from sensor_msgs.msg import CompressedImage, JointState
    from tf2_msgs.msg import TFMessage

    from sqap_vla_ros.nodes.messages import header, transform_message
    from sqap_vla_ros.nodes.simulator.camera import camera_info
    from sqap_vla_ros.nodes.simulator.frames import BASE_FRAME, OPTICAL_FRAME, TOOL_FRAME
    from sqap_vla_ros.simulation.scene import ARM_JOINTS, FINGER_JOINTS

    world = env.world
    tool = transform_message(world.base_from_tool, now_ns, BASE_FRAME, TOOL_FRAME)
    bag.write("/tf", now_ns, TFMessage(transforms=[tool]))
    joints = JointState(header=header(now_ns, BASE_FRAME), name=[*ARM_JOINTS, *FINGER_JOINTS])
    joints.position = [*world.arm_position.tolist(), *world.finger_position.tolist()]
    bag.write("/joint_states", now_ns, joints)
    picture = env.render()
    info = camera_info(world.camera_fovy_rad, picture.shape[1], picture.shape[0])
    info.header = header(now_ns, OPTICAL_FRAME)
    bag.write("/camera/camera_info", now_ns, info)
    quality = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    coded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    image = CompressedImage(header=info.header, format="rgb8; jpeg compressed bgr8", data=coded)
    bag.write("/camera/image_raw/compressed", now_ns, image)


def _write_expert_chunks(
    bag: BagWriter,
    now_ns: int,
    instruction: str,
    stamps: Sequence[int],
    poses: Sequence[NDArray[np.float64]],
    actions: Sequence[NDArray[np.float64]],
) -> None:
    """Write what the expert did after each image as a chunk; after the last action it stands still."""
    from sqap_vla_ros.contracts import ActionChunk
    from sqap_vla_ros.nodes.messages import chunk_message
    from sqap_vla_ros.nodes.simulator.frames import BASE_FRAME, TOOL_FRAME
    from sqap_vla_ros.robot.trajectory import anchor_chunk
    from sqap_vla_ros.simulation.environment import CONTROL_DT_S

    still = np.zeros(7)
    still[6] = actions[-1][6]
    for first, (stamp_ns, pose) in enumerate(zip(stamps, poses, strict=True)):
        following = [*actions[first : first + _HORIZON], *[still] * _HORIZON][:_HORIZON]
        chunk = ActionChunk(stamp_ns, np.array(following), CONTROL_DT_S, np.zeros((_HORIZON, 7)))
        message = chunk_message(
            chunk,
            anchor_chunk(chunk.deltas, pose, stamp_ns, chunk.dt_s),
            base_frame=BASE_FRAME,
            tool_frame=TOOL_FRAME,
            instruction=instruction,
        )
        bag.write("/expert/action_chunk", now_ns, message)
