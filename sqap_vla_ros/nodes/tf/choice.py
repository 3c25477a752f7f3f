"""tf2 for the nodes: the real `tf2_ros` wherever it is installed, else
`tf_buffer` and `tf_standin`, which have the same signatures.

Import the names from here and nothing else changes between a full ROS 2 installation and one made of PyPI wheels.
"""

from __future__ import annotations

try:
    from tf2_ros import (  # type: ignore[import-not-found, unused-ignore]
        Buffer,
        ConnectivityException,
        ExtrapolationException,
        InvalidArgumentException,
        LookupException,
        StaticTransformBroadcaster,
        TransformBroadcaster,
        TransformException,
        TransformListener,
    )

    IMPLEMENTATION = "tf2_ros"
except ImportError:
    from sqap_vla_ros.nodes.tf.buffer import (  # type: ignore[assignment, unused-ignore]
        Buffer,
        ConnectivityException,
        ExtrapolationException,
        InvalidArgumentException,
        LookupException,
        TransformException,
    )
    from sqap_vla_ros.nodes.tf.listener import (  # type: ignore[assignment, unused-ignore]
        StaticTransformBroadcaster,
        TransformBroadcaster,
        TransformListener,
    )

    IMPLEMENTATION = "sqap_vla_ros.nodes.tf.buffer"

__all__ = [
    "IMPLEMENTATION",
    "Buffer",
    "ConnectivityException",
    "ExtrapolationException",
    "InvalidArgumentException",
    "LookupException",
    "StaticTransformBroadcaster",
    "TransformBroadcaster",
    "TransformException",
    "TransformListener",
]
