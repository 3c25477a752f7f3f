"""Compressed vision-language-action policies for ROS 2."""

import os
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqap_vla_ros.contracts import ActionChunk, Observation
    from sqap_vla_ros.policies import load_policy

__all__ = ["ActionChunk", "Observation", "__version__", "load_policy"]
__version__ = "0.1.0"

# The generated messages (sqap_vla_ros.msg) are installed, never in the source tree: let a source checkout on sys.path
# see the installed half as well.
__path__ = pkgutil.extend_path(__path__, __name__)

# ROS 2 installed by pip has no setup.bash to source: its ament prefix is the virtual environment, below any overlay.
_prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
if sys.prefix not in _prefixes and os.path.isdir(f"{sys.prefix}/share/ament_index"):
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join([*_prefixes, sys.prefix])


def __getattr__(name: str) -> Any:
    """Return a name of the Python API (docs/python_api.md), loaded when it is first used: torch takes seconds."""
    if name == "load_policy":
        from sqap_vla_ros.policies import load_policy

        return load_policy
    if name in ("ActionChunk", "Observation"):
        from sqap_vla_ros import contracts

        return vars(contracts)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
