"""tf2 for the nodes: `tf2_ros` where it is installed, else stand-ins with the same signatures.

Code that imports from here runs unchanged on a full ROS 2 installation and on one made of PyPI wheels.
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
    from sqap_vla_ros.nodes.tf.standin_buffer import (  # type: ignore[assignment, unused-ignore]
        Buffer,
        ConnectivityException,
        ExtrapolationException,
        InvalidArgumentException,
        LookupException,
        TransformException,
    )
    from sqap_vla_ros.nodes.tf.standin_listener import (  # type: ignore[assignment, unused-ignore]
        StaticTransformBroadcaster,
        TransformBroadcaster,
        TransformListener,
    )

    IMPLEMENTATION = "sqap_vla_ros.nodes.tf.standin_buffer"

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
