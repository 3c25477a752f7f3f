"""The safety stop: a topic that stops the arm, heard from the start of the process to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from std_msgs.msg import Bool

from sqap_vla_ros.nodes.policy.publishers import NAMELESS, HearAll, node_name

REMEMBERED = 64  # publishers


@dataclass
class _Speaker:
    """One publisher of the topic. Times are of the steady clock.

    stopped_s: when it said stop; None when the last that it said was go.
    answered: a publisher that was first heard after that stop has said go.
    name: of its node, as the graph had it; "" where the graph knows publishers by another identity than messages do.
    """

    first_s: float
    heard_s: float
    name: str = ""
    stopped_s: float | None = None
    answered: bool = False


class SafetyStop:
    """Keeps what each publisher of safety_stop last said, through every lifecycle state.

    - The stop holds until each publisher that said stop has said go. One says nothing about the button of another.
    - A publisher that is gone cannot say go: its stop holds until one that came after it does, such as the same node
      started again. What was there before does not count: it goes on saying that its own button is not pressed.
    - Where the middleware does not tell publishers apart, no go is obeyed while there are several.
    - With a time-out every publisher has to repeat itself: silence of one stops too.
    - A stop that was latched before the node started is obeyed, and one that was set holds after cleanup and configure.
    """

    def __init__(self, node: Any) -> None:
        self.timeout_s = 0.0  # 0: silence is no stop
        self.changed: Callable[[], None] | None = None  # called after each message
        self._node = node
        self._speakers: dict[bytes, _Speaker] = {}
        self._subscription = HearAll(node, Bool, "safety_stop", self._on_message)
        self.topic = self._subscription.topic

    @property
    def pressed(self) -> bool:
        """True while the stop is set."""
        return bool(self._stopping())

    def reason(self, now_s: float) -> str | None:
        """Return why nothing may move, or None. now_s: steady clock."""
        if stopping := self._stopping():
            return f"safety_stop is set{_names(stopping, 'by')}"
        if self.timeout_s <= 0.0:
            return None
        if not self._speakers:
            return f"safety_stop was not heard yet, and safety_stop_timeout_s is {self.timeout_s:g} s"
        silent = min(self._speakers.values(), key=lambda speaker: speaker.heard_s)
        silent_s = now_s - silent.heard_s
        if silent_s > self.timeout_s:
            by = _names([silent], "from")
            return f"safety_stop has not been heard for {silent_s:.1f} s{by} (limit {self.timeout_s:g} s)"
        return None

    def reset_refusal(self) -> str | None:
        """Return why a latched stop must stay; None forgets the publishers that are gone, and their silence."""
        if stopping := self._stopping():
            return f"safety_stop is still set{_names(stopping, 'by')}: release it first"
        gone = self._gone()
        self._speakers = {key: speaker for key, speaker in self._speakers.items() if key not in gone}
        return None

    def _on_message(self, message: Bool, publisher: bytes) -> None:
        now_s = time.monotonic()
        if (speaker := self._speakers.get(publisher)) is None:
            self._bound()
            speaker = self._speakers[publisher] = _Speaker(now_s, now_s, self._present().get(publisher, ""))
        speaker.heard_s = now_s
        if message.data:
            if speaker.stopped_s is None:
                speaker.name = self._present().get(publisher, speaker.name)
            speaker.stopped_s, speaker.answered = now_s, False
        elif publisher or len(self._present()) <= 1:
            speaker.stopped_s = None
            for other in self._speakers.values():
                other.answered |= other.stopped_s is not None and other.stopped_s < speaker.first_s
        if self.changed is not None:
            self.changed()

    def _stopping(self) -> list[_Speaker]:
        """Return the publishers whose stop holds."""
        stopped = {key: speaker for key, speaker in self._speakers.items() if speaker.stopped_s is not None}
        if not any(speaker.answered for speaker in stopped.values()):
            return list(stopped.values())
        gone = self._gone()
        return [speaker for key, speaker in stopped.items() if not speaker.answered or key not in gone]

    def _gone(self) -> set[bytes]:
        """Return the publishers that exist no more; those that the graph never knew, when at most one is left."""
        present = self._present()
        return {
            key for key, speaker in self._speakers.items() if key not in present and (speaker.name or len(present) <= 1)
        }

    def _present(self) -> dict[bytes, str]:
        """Return the publishers that exist, and the names of their nodes."""
        found = self._node.get_publishers_info_by_topic(self.topic)
        return {bytes(publisher.endpoint_gid): node_name(publisher) for publisher in found}

    def _bound(self) -> None:
        """Make room for one more: every `ros2 topic pub` is another publisher.

        Who is gone and said go is forgotten first. Of those that are gone and said stop the newest is kept, which
        stands for the others. Who is there and said stop is never forgotten.
        """
        if len(self._speakers) < REMEMBERED:
            return
        gone, speakers = self._gone(), self._speakers
        idle = [key for key, speaker in speakers.items() if speaker.stopped_s is None]
        left = [key for key, speaker in speakers.items() if speaker.stopped_s is not None and key in gone]
        unknown = [key for key, speaker in speakers.items() if not speaker.name]
        newest = max(left, key=lambda key: speakers[key].stopped_s or 0.0, default=None)
        for key in (*(k for k in idle if k in gone), *(k for k in left if k != newest), *idle, *unknown):
            del speakers[key]
            return


def _names(speakers: list[_Speaker], word: str) -> str:
    names = sorted({speaker.name for speaker in speakers if speaker.name and NAMELESS not in speaker.name})
    return f" {word} {', '.join(names)}" if names else ""
