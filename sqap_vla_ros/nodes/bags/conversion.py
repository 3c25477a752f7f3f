"""Recorded types and messages as those of ROS 2: names of types, their Python classes, and ROS 1 messages."""

from __future__ import annotations

import array
import importlib
from functools import cache
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sqap_vla_ros.nodes.bags.store import BagError

_ROS2_NAMES = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}


def type_name(recorded: str) -> str:
    """Return "package/msg/Name" of a recorded type; some writers leave `/msg/` out, ROS 1 has older names."""
    parts = recorded.split("/")
    full = f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else recorded
    return _ROS2_NAMES.get(full, full)


@cache
def message_class(name: str) -> Any:
    """Return the Python class of "package/msg/Name". Raises BagError where the package is not installed."""
    package, _, short = type_name(name).rpartition("/")
    try:
        return getattr(importlib.import_module(package.replace("/", ".")), short)
    except (ImportError, AttributeError, ValueError) as error:
        raise BagError(
            f"message type {name} is not installed: install or source the package {package.split('/')[0]}"
        ) from error


class Ros1Decoder:
    """Reads ROS 1 messages by the definition that their connection brings, so that other topics do not matter."""

    def __init__(self) -> None:
        self._stores: dict[tuple[str, str], Any] = {}

    def decode(self, connection: Connection, raw: bytes) -> Any:
        """Return the message as an instance of its ROS 2 class."""
        key = connection.msgtype, connection.digest
        if key not in self._stores:
            store = get_typestore(Stores.EMPTY)
            store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
            self._stores[key] = store
        message = self._stores[key].deserialize_ros1(raw, connection.msgtype)
        return to_ros(message, message_class(connection.msgtype))


def to_ros(source: Any, target: Any) -> Any:
    """Convert a `rosbags` message to the ROS message class `target`, field by field.

    ROS 1 names differ in case (CameraInfo's K, D) and its headers have a sequence number that ROS 2 dropped.
    """
    message = target()
    for name, kind in target.get_fields_and_field_types().items():
        value = getattr(source, name) if hasattr(source, name) else getattr(source, name.upper(), None)
        if value is None:
            raise BagError(f"{target.__name__} in the bag has no field {name!r}: another version of the message")
        current = getattr(message, name)
        if isinstance(current, array.array):
            filled = array.array(current.typecode)
            filled.frombytes(np.ascontiguousarray(value, dtype=current.typecode).tobytes())
            setattr(message, name, filled)
        elif isinstance(current, np.ndarray):
            setattr(message, name, np.asarray(value, dtype=current.dtype))
        elif hasattr(current, "get_fields_and_field_types"):
            setattr(message, name, to_ros(value, type(current)))
        elif isinstance(current, list):
            element = kind.split("[")[0].removeprefix("sequence<").split(",")[0].removesuffix(">")
            nested = "/" in element
            package, _, short = element.partition("/")
            items = [to_ros(item, message_class(f"{package}/msg/{short}")) for item in value] if nested else list(value)
            setattr(message, name, items)
        else:
            setattr(message, name, type(current)(value))
    return message
