"""Names of topics and namespaces, judged before ROS sees them: its own words are those of a parser."""

from __future__ import annotations

import re

_PART = r"[A-Za-z_{][A-Za-z0-9_{}]*"  # {node} and {ns} are replaced by rcl
_TOPIC = re.compile(rf"~(/{_PART})*|/?{_PART}(/{_PART})*")
_NAMESPACE = re.compile(rf"/?({_PART}(/{_PART})*)?/?")
_RULE = "parts of letters, digits and _ with / between them, none of which begins with a digit"


def check_topic(argument: str, text: str) -> None:
    """Raise ValueError for what is no name of a topic."""
    if not _TOPIC.fullmatch(text):
        raise ValueError(f"{argument}:={text}: a topic's name in ROS has {_RULE}")


def check_namespace(text: str) -> None:
    """Raise ValueError for what is no namespace."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(f"namespace:={text}: a namespace in ROS has {_RULE}")
