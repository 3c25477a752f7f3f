"""The inputs a prediction and a motion need, which of them stop a motion at once, and the order to hold."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqap_vla_ros.robot.holding import HoldReason


class Input(enum.Enum):
    """Sources of problems. The value is the name in messages."""

    IMAGE = "image"
    CAMERA_INFO = "camera_info"
    TF = "TF"
    JOINT_STATES = "joint_states"
    WORKER = "policy worker"
    CLOCK = "clock"
    COMMANDS = "command topic"
    SAFETY_STOP = "safety_stop"
    CHUNK = "chunk"


# Without these nobody watches the arm, or nothing good can follow: do not even finish what was commanded.
HOLD_AT_ONCE = frozenset({Input.WORKER, Input.JOINT_STATES, Input.COMMANDS, Input.SAFETY_STOP})
# Without these what was commanded is finished, but not for long.
ENDS_OPEN_LOOP = frozenset({Input.IMAGE, Input.CAMERA_INFO, Input.TF, Input.CLOCK})
# With these wrong nobody may enable the node.
REFUSES_ENABLE = frozenset({Input.COMMANDS, Input.SAFETY_STOP})
# With these wrong the measured arm proves nothing.
MEASURES_THE_ARM = frozenset({Input.JOINT_STATES, Input.TF})


@dataclass(frozen=True)
class Hold:
    """An order to bring the arm to rest. why: for a person; reason: what may be believed meanwhile."""

    why: str
    reason: HoldReason
