#!/usr/bin/env bash
# Runs a command with ROS 2, the libraries and the package on its paths.
set -eo pipefail
. "/opt/ros/$ROS_DISTRO/setup.bash"
. "$SQAP_VENV/bin/activate"
. /ws/install/setup.bash
exec "$@"
