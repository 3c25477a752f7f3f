#!/usr/bin/env bash
# Install the wheel without ROS in an empty virtual environment and predict there, in a folder with no source code.
# Usage: scripts/try_wheel_without_ros.sh [--linked] [FOLDER]   (default: a temporary one, removed at the end)
#
# --linked takes what the wheel requires from the environment of PYTHON, as links: seconds, and no network. Without it
# everything is installed anew, at the pinned versions.
set -euo pipefail

linked=
case ${1:-} in
  --linked) linked=1 && shift ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-}
if [ -z "$folder" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
unset PYTHONPATH AMENT_PREFIX_PATH
python=${PYTHON:-python3}
export SQAP_VLA_WITHOUT_ROS=1
if [ "$linked" ]; then
  "$python" -m venv --without-pip "$folder/venv"
  "$python" -m pip wheel -q --no-deps --no-index --no-build-isolation -w "$folder" "$root"
  "$python" -m pip --python "$folder/venv/bin/python" install -q --no-deps --no-index "$folder"/sqap_vla_ros-*.whl
  site=$("$folder/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  "$python" "$root/scripts/link_requirements.py" "$site" sqap-vla-ros serve
else
  "$python" -m venv "$folder/venv"
  torch=$(grep '^torch==' "$root/requirements.txt")
  "$folder/venv/bin/pip" install -q ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
  "$folder/venv/bin/pip" install -q -c "$root/constraints.txt" "${root}[serve]"
fi

cd "$folder"
absent="rclpy mujoco rosbags pinocchio matplotlib"
"$folder/venv/bin/python" - $absent <<'EOF'
import importlib.util
import sys

import numpy as np
from PIL import Image

from sqap_vla_ros import Observation, load_policy

assert not [name for name in sys.argv[1:] if importlib.util.find_spec(name)], "the environment is not bare"
image = Image.fromarray(np.zeros((240, 320, 3), np.uint8))
for checkpoint, recipe in (("micro", "sqap"), ("tabletop", "sqap_pruning")):
    chunk = load_policy(checkpoint, recipe).predict(Observation.of(image, "pick up the red cube"))
    print(f"{checkpoint} under {recipe}: {chunk.deltas.shape[0]} actions")
EOF
"$folder/venv/bin/python" -c "from PIL import Image; Image.new('RGB', (320, 240)).save('view.png')"
"$folder/venv/bin/sqap-vla" predict --checkpoint tabletop --image view.png --instruction "pick up the red cube" --json >chunk.json
head -3 chunk.json
if "$folder/venv/bin/sqap-vla" demo; then exit 1; fi  # says what it needs
