"""Compressed vision-language-action policies for ROS 2."""

import os
import pkgutil
import sys

__version__ = "0.1.0"

# The generated messages (sqap_vla_ros.msg) are installed, never in the source tree: let a source checkout on sys.path
# see the installed half as well.
__path__ = pkgutil.extend_path(__path__, __name__)

# ROS 2 installed by pip has no setup.bash to source: its ament prefix is the virtual environment, below any overlay.
_prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
if sys.prefix not in _prefixes and os.path.isdir(f"{sys.prefix}/share/ament_index"):
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join([*_prefixes, sys.prefix])
