"""The parameter table of policy_node, which declares, checks and documents every parameter.

`config/policy.yaml` is written from this table (`python -m sqap_vla_ros.nodes.policy.parameters > config/policy.yaml`);
a test keeps the two equal. Angles are radians, lengths metres, times seconds.
"""

from __future__ import annotations

from sqap_vla_ros.contracts import CROPS, JOINS, REAL_TIME_CHUNKING, TRAINED_POLICY
from sqap_vla_ros.control.camera.image_gate import ImageGateConfig
from sqap_vla_ros.control.executive import Executive
from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.motion import MotionConfig
from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.parameter_table import Parameter, Value
from sqap_vla_ros.nodes.policy.grippers.parameters import GRIPPER
from sqap_vla_ros.nodes.policy.safety_parameters import SAFETY
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.camera_contract import CameraContract
from sqap_vla_ros.serving.defaults import MOST_THREADS
from sqap_vla_ros.serving.worker import WorkerConfig

# The only parameter that may change after configure, and only while the node is disabled.
RUNTIME = frozenset({"dry_run"})

_WHAT_RUNS = (
    Parameter(
        "checkpoint",
        "micro",
        f"The policy: a CogACT checkpoint folder, a .safetensors file, '{TRAINED_POLICY}' (trained in the simulator), "
        "'libero_object' (trained in LIBERO), the address of a server (ws://host:port), or 'micro', a tiny policy with "
        "random weights that moves the arm without purpose and serves to try everything around it.",
    ),
    Parameter(
        "recipe",
        "sqap_pruning",
        "The compression of the policy: a recipe of config/recipes by name, or a path to one. A compressed checkpoint "
        "already holds its recipe.",
    ),
    Parameter.of(WorkerConfig, "device", "Device that the policy runs on: 'cpu', 'cuda', 'cuda:1'."),
    Parameter.of(
        WorkerConfig,
        "dtype",
        "Floating point type of everything that is not quantised, such as 'bfloat16'; '' takes the recipe's.",
    ),
    Parameter.of(
        WorkerConfig,
        "unnorm_key",
        "Data set whose action statistics turn the network's output into metres and radians. A wrong one scales every "
        "motion wrongly. '' takes the checkpoint's only one. 'micro' has no data set and takes any.",
    ),
    Parameter.of(
        WorkerConfig,
        "tokenizer",
        "Llama-2 tokenizer, file or folder, for checkpoints that came without one; '' takes the checkpoint's.",
    ),
    Parameter.of(
        WorkerConfig,
        "dt",
        "Time between two actions of the training data, where the checkpoint's statistics do not say it; 0 takes "
        "theirs. A wrong one changes the arm's speed.",
        minimum=0.0,
        maximum=10.0,
    ),
    Parameter.of(
        WorkerConfig,
        "crop",
        "Preprocessing of the image: 'none' squashes it, 'deployment' is for checkpoints trained with random crops; '' "
        "takes the checkpoint's.",
        choices=("", *CROPS),
    ),
    Parameter.of(
        WorkerConfig, "ema", "Use the action head averaged over training (ema_diffusion), where the file holds one."
    ),
    Parameter.of(
        WorkerConfig,
        "cfg_scale",
        "Scale of the classifier-free guidance; 1 or less turns it off, which halves the action head's work. Negative: "
        "the checkpoint's.",
        maximum=100.0,
    ),
    Parameter.of(
        WorkerConfig,
        "ddim_steps",
        "Denoising steps of a chunk, such as 10 or 8; 0 takes the checkpoint's.",
        minimum=0,
        maximum=100,
    ),
    Parameter.of(
        WorkerConfig,
        "seed",
        "Seed of the diffusion noise. Every prediction uses the same one, so that equal images give equal chunks and "
        "consecutive chunks do not differ by their noise.",
        minimum=0,
    ),
    Parameter.of(
        WorkerConfig,
        "threads",
        "CPU threads of the policy; 0 leaves the choice to torch.",
        minimum=0,
        maximum=MOST_THREADS,
    ),
    Parameter.of(
        WorkerConfig,
        "load_timeout_s",
        "Configuring fails when the policy is not loaded and warm within this time. Seven billion parameters take "
        "minutes to load from a slow disk.",
        above=0.0,
    ),
    Parameter.of(
        WorkerConfig,
        "prediction_timeout_s",
        "A prediction that takes longer is treated as hung: its process is ended and started again. A server that does "
        "not answer is given up after nine tenths of it.",
        above=0.0,
    ),
    Parameter(
        "instruction",
        "",
        "The first task in words, as if it came on the instruction topic when the node is activated. Nothing moves "
        "before ~/enable is called.",
    ),
    Parameter("autostart", True, "Configure and activate at start, without a lifecycle manager."),
)

_FRAMES = (
    Parameter(
        "base_frame", "base_link", "Frame in which actions, poses and the workspace are expressed.", is_frame=True
    ),
    Parameter(
        "tool_frame",
        "tool0",
        "Frame that the actions move. The ring of protected tokens surrounds its origin.",
        is_frame=True,
    ),
    Parameter(
        "tf_timeout_s",
        0.2,
        "Time that an image waits for the transforms at its stamp; after that nothing is predicted from it. Set it "
        "longer than the delay of the slowest TF publisher.",
        minimum=0.0,
    ),
)

_IMAGES = (
    Parameter(
        "image_transport",
        "raw",
        "'raw' subscribes to `image`, 'compressed' to `image/compressed`.",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "image_rectified",
        False,
        "The image topic carries rectified images (image_rect*): the P matrix of camera_info applies, without "
        "distortion.",
    ),
    Parameter(
        "optical_frame_rectified",
        False,
        "The image's frame in TF is that of the rectified camera, as with calibrated stereo pairs: the inverse of "
        "camera_info's matrix R is then applied. It matters only where R is not the identity.",
    ),
    Parameter(
        "training_camera",
        [0.0] * 6,
        "Camera of the images that the policy was trained on: width, height, fx, fy, cx, cy in pixels. Nothing is "
        "predicted from a camera whose field of view, principal point, distortion or region of interest differs; the "
        "resolution does not matter. All zeros: unknown, not compared.",
        length=6,
    ),
    Parameter.of(
        CameraContract,
        "training_camera_tolerance",
        "Largest shift, as a share of the image's side, of where the same viewing direction appears in the two "
        "cameras.",
        field="tolerance",
        above=0.0,
        maximum=0.5,
    ),
    Parameter(
        "image_reliability",
        "best_effort",
        "QoS of the image subscription. 'best_effort' never waits for a lost image; 'reliable' suits links that lose "
        "large messages, with drivers that offer it.",
        choices=("best_effort", "reliable"),
    ),
    Parameter("image_depth", 2, "QoS depth of image and camera_info. More only lets old images wait.", minimum=1),
    Parameter.of(
        ImageGateConfig,
        "image_timeout_s",
        "The camera is lost when no new image arrives for this long. Set it to several frame periods.",
        field="timeout_s",
        above=0.0,
    ),
    Parameter.of(
        ImageGateConfig,
        "image_max_age_s",
        "Oldest image that a prediction may begin from. It covers exposure, transport and the delay of TF; a larger "
        "value acts on an older world.",
        field="max_age_s",
        above=0.0,
    ),
    Parameter.of(
        ImageGateConfig,
        "image_max_future_s",
        "A stamp further ahead than this means clocks that are not synchronised.",
        field="max_future_s",
        above=0.0,
    ),
    Parameter.of(
        ImageGateConfig,
        "frozen_s",
        "The camera is frozen when its picture stays the same for this long while the tool moves by frozen_motion_m.",
        above=0.0,
    ),
    Parameter.of(
        ImageGateConfig,
        "frozen_motion_m",
        "Smallest motion of the tool that shows a camera to be frozen, when its picture stays the same for frozen_s.",
        above=0.0,
    ),
    Parameter(
        "joint_states_timeout_s",
        0.5,
        "Oldest joint states that count as known; with older ones the arm is held and nothing is commanded. Output "
        "mode 'joint'.",
        above=0.0,
    ),
)

_COMMANDS = (
    Parameter.of(
        Executive,
        "dry_run",
        "Predict and publish everything except commands. It may change while the node is disabled.",
    ),
    Parameter(
        "output_mode",
        "joint",
        "Form of the commands. " + " ".join(f"'{name}': {sink.SUMMARY}" for name, sink in SINKS.items()),
        choices=tuple(SINKS),
    ),
    Parameter(
        "robot_description",
        "",
        "URDF text for output mode 'joint'. '' waits for the robot_description topic.",
    ),
    Parameter.of(
        InverseConfig,
        "orientation_residual_rad",
        "Output mode 'joint': largest rotation that may remain between predicted and reached orientation, about "
        "the tool's x, y and z axis. The tool's position is met in any case, the orientation as nearly as the joints "
        "allow; beyond this a chunk is rejected. Zeros meet every pose exactly, which an arm needs six joints for.",
        minimum=0.0,
        maximum=1.5,
        length=3,
    ),
    Parameter.of(
        InverseConfig,
        "orientation_weights",
        "What a rotation that remains about each of these axes costs beside the other two.",
        above=0.0,
        length=3,
    ),
    Parameter.of(
        InverseConfig,
        "joint_posture",
        "Output mode 'joint': joint values (rad or m, from the base outwards) that an arm of more than six joints "
        "drifts towards, by 0.05 rad/s, without moving the tool. A single value: the middle of the joint limits.",
        field="posture",
    ),
    Parameter(
        "command_rate",
        50.0,
        "Rate (Hz) of pose and twist samples, of the gripper and of all monitoring.",
        minimum=5.0,
        maximum=1000.0,
    ),
    Parameter.of(
        ExecutiveConfig,
        "replan",
        "'continuous' predicts from the newest image whenever the policy is free, while moving at most once an action. "
        "'horizon' waits until the remaining motion is shorter than the p95 latency plus request_margin_s. Together "
        "with execution_horizon it executes a few actions of each chunk, which many policies need to get anywhere.",
        choices=("continuous", "horizon"),
    ),
    Parameter.of(
        MotionConfig,
        "execution_horizon",
        "Largest number of actions of a chunk that are checked and executed; 0 takes all. The next chunk mostly "
        "replaces the rest anyway. With chunk_join 'path' they count from the action at which the chunk is entered: "
        "fewer than the policy's latency, in actions, let the arm stand still between chunks. With 'clock', and with "
        "chunk_continuation, they count from the chunk's first action, past or not: set it to at least the latency "
        "plus a few, or nothing is left of a chunk when it comes.",
        minimum=0,
    ),
    Parameter.of(
        ExecutiveConfig,
        "request_margin_s",
        "Time added to the p95 latency when replan is 'horizon', so that the next chunk comes before the motion ends.",
        minimum=0.0,
    ),
    Parameter.of(
        MotionConfig,
        "arm_lag_s",
        "Delay between a command and the arm's motion. Commands are sent that much earlier, so that the arm is on "
        "time; the gripper is commanded that much later than them, with the arm. Without it, chunks that lead to a "
        "goal overshoot it. /diagnostics reports the measured lag.",
        minimum=0.0,
        maximum=1.0,
    ),
    Parameter.of(
        MotionConfig,
        "max_lead_m",
        "A chunk starts from the commanded pose that its image shows, at most this far from the tool measured at that "
        "time. 0 starts it from the measured tool; an arm that follows its commands late then covers only part of each "
        "predicted motion. A larger value pushes a blocked arm harder. It must not exceed max_tracking_m.",
        minimum=0.0,
    ),
    Parameter.of(MotionConfig, "max_lead_rad", "The same for the orientation; at most max_tracking_rad.", minimum=0.0),
    Parameter.of(
        MotionConfig,
        "max_open_loop_s",
        "Motion never reaches further than this past the image it was computed from, even when this node dies. Set it "
        "to at least the policy's latency plus a few actions.",
        above=0.0,
    ),
    Parameter(
        "safety_stop_timeout_s",
        0.0,
        "If positive, the publisher of safety_stop must repeat false at this interval; the node cannot be enabled "
        "without it, and a longer silence stops the arm. 0 requires no repetition.",
        minimum=0.0,
    ),
    Parameter(
        "executor_timeout_s",
        0.5,
        "A watchdog brings the arm to rest when the node's own thread stands still for this long while it moves.",
        minimum=0.1,
    ),
    Parameter.of(
        MotionConfig,
        "blend_s",
        "Time in which a new chunk takes over from the old one. A shorter one leaves jerk at the seam, a longer one "
        "delays reactions.",
        minimum=0.02,
    ),
    Parameter.of(
        MotionConfig,
        "ramp_s",
        "Time in which the first chunk, and the first after a hold, takes over from the measured pose. Where a motion "
        "has merely run out, and the arm is where it was told to rest, the next chunk takes over within blend_s.",
        minimum=0.02,
    ),
    Parameter.of(
        MotionConfig,
        "chunk_join",
        "How to enter a chunk that was computed while the arm moved. path: at the action that begins nearest to where "
        "the arm was told to be; clock: after as many actions as the arm has executed since the image.",
        choices=JOINS,
    ),
    Parameter.of(
        WorkerConfig,
        "chunk_continuation",
        "Real-Time Chunking: a chunk that is computed while the arm moves repeats what the arm will have done by then, "
        "and the policy makes the rest fit. 'replace' gives it these actions; 'guided' also draws it towards those "
        "that were planned beyond, which needs a gradient through the action head. 'none' joins chunks as chunk_join "
        "says, which does better with the policy that ships. The others need ensemble_chunks 1.",
        field="continuation",
        choices=("none", *REAL_TIME_CHUNKING),
    ),
    Parameter.of(
        MotionConfig,
        "ensemble_chunks",
        "Consecutive chunks that are averaged where they predict the same moment (CogACT's adaptive ensemble, aligned "
        "by time); 1 executes the newest alone, which does better with the policy that ships.",
        minimum=1,
        maximum=16,
    ),
    Parameter.of(
        MotionConfig,
        "ensemble_alpha",
        "Sharpness of that average: higher values give less weight to chunks that disagree with the newest.",
        minimum=0.0,
    ),
)

_SECTIONS = {
    "What runs": _WHAT_RUNS,
    "Frames": _FRAMES,
    "Images and joints": _IMAGES,
    "Commands": _COMMANDS,
    "Gripper. It keeps its last command through every stop and hold": GRIPPER,
    "Safety. Not certified: the emergency stop and the controller's own limits stay in charge": SAFETY,
}
PARAMETERS: tuple[Parameter, ...] = tuple(p for section in _SECTIONS.values() for p in section)


def defaults() -> dict[str, Value]:
    """Return every parameter's default by name."""
    return {parameter.name: parameter.default for parameter in PARAMETERS}


def as_yaml() -> str:
    """Return the annotated parameter file."""
    heading = (
        "Parameters of policy_node with their defaults. Written from sqap_vla_ros/nodes/policy/parameters.py.\n"
        "Lengths are metres, angles radians, times seconds."
    )
    titles = {section[0].name: title for title, section in _SECTIONS.items()}
    return parameter_table.as_yaml(PARAMETERS, heading, titles)


if __name__ == "__main__":
    print(as_yaml(), end="")
