"""A recording of the simulated arm doing a task, so that anyone can try the replay.

The scripted expert acts, and the bag holds what a real robot's would: compressed images, camera_info, TF, joint states,
the robot description and the instruction, plus what the expert did next as `expert/action_chunk`. Every time stamp is
the simulation's: the same seed gives the same messages.
"""

from __future__ import annotations

from pathlib import Path

_START_NS = 1_000_000_000  # a stamp of zero means "no time" to some tools
_HORIZON = 16


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
    """Write the bag; returns whether the expert succeeded in each episode. Raises BagError where `out` exists."""
    import cv2
    import numpy as np
    from sensor_msgs.msg import CompressedImage, JointState
    from std_msgs.msg import String
    from tf2_msgs.msg import TFMessage
    from tqdm import tqdm

    from sqap_vla_ros.contracts import ActionChunk
    from sqap_vla_ros.nodes.bags.writer import BagWriter
    from sqap_vla_ros.nodes.messages import chunk_message, header, transform_message
    from sqap_vla_ros.nodes.simulator.camera import camera_info
    from sqap_vla_ros.nodes.simulator.frames import BASE_FRAME, OPTICAL_FRAME, TOOL_FRAME
    from sqap_vla_ros.resources import share_path
    from sqap_vla_ros.robot.trajectory import anchor_chunk
    from sqap_vla_ros.simulation.environment import CONTROL_DT_S, CONTROL_NS, TabletopEnv
    from sqap_vla_ros.simulation.experts import expert
    from sqap_vla_ros.simulation.scene import ARM_JOINTS, FINGER_JOINTS
    from sqap_vla_ros.simulation.vocabulary import TaskFamily

    if episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    if family is not None and family not in list(TaskFamily):
        raise ValueError(f"no task family {family!r}; there are: {', '.join(TaskFamily)}")
    outcomes = []
    latched = ("/tf_static", "/robot_description", "/instruction")
    with TabletopEnv(width=width, height=height) as env, BagWriter(out, latched=latched) as bag:
        info = camera_info(env.world.camera_fovy_rad, width, height)
        now_ns = _START_NS
        bag.write("/robot_description", now_ns, String(data=share_path("config/robots/tabletop_arm.urdf").read_text()))
        for episode in tqdm(range(seed, seed + episodes), desc="recording", unit="episode"):
            task = env.reset(episode, family)
            bag.write("/instruction", now_ns, String(data=task.instruction))
            camera = transform_message(env.world.base_from_optical, now_ns, BASE_FRAME, OPTICAL_FRAME)
            bag.write("/tf_static", now_ns, TFMessage(transforms=[camera]))
            actions, poses, stamps = [], [], []
            done = False
            while not done:
                stamps.append(now_ns)
                poses.append(env.world.base_from_tool)
                tool = transform_message(poses[-1], now_ns, BASE_FRAME, TOOL_FRAME)
                bag.write("/tf", now_ns, TFMessage(transforms=[tool]))
                joints = JointState(header=header(now_ns, BASE_FRAME), name=[*ARM_JOINTS, *FINGER_JOINTS])
                joints.position = [*env.world.arm_position.tolist(), *env.world.finger_position.tolist()]
                bag.write("/joint_states", now_ns, joints)
                info.header = header(now_ns, OPTICAL_FRAME)
                bag.write("/camera/camera_info", now_ns, info)
                quality = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
                coded = cv2.imencode(".jpg", cv2.cvtColor(env.render(), cv2.COLOR_RGB2BGR), quality)[1].tobytes()
                image = CompressedImage(header=info.header, format="rgb8; jpeg compressed bgr8", data=coded)
                bag.write("/camera/image_raw/compressed", now_ns, image)
                actions.append(expert(env.task, env.state))
                step = env.step(actions[-1])
                now_ns += CONTROL_NS
                done = step.terminated or step.truncated
            outcomes.append(env.succeeded)
            still = np.zeros(7)
            for first, (stamp_ns, pose) in enumerate(zip(stamps, poses, strict=True)):
                still[6] = actions[-1][6]
                following = [*actions[first : first + _HORIZON], *[still] * _HORIZON][:_HORIZON]
                chunk = ActionChunk(stamp_ns, np.array(following), CONTROL_DT_S, np.zeros((_HORIZON, 7)))
                message = chunk_message(
                    chunk,
                    anchor_chunk(chunk.deltas, pose, stamp_ns, chunk.dt_s),
                    base_frame=BASE_FRAME,
                    tool_frame=TOOL_FRAME,
                    instruction=task.instruction,
                )
                bag.write("/expert/action_chunk", now_ns, message)
    return outcomes
