#!/usr/bin/env bash
# Runs Python with Ray, which the checkout's virtual environment does not have: scripts/with_ray.sh -m pytest ...
# At first Ray is installed into a folder of its own, which other commands do not see: 280 MB.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SQAP_VENV:-$root/.venv}
ray=$venv/ray
if [ ! -e "$ray/.made" ]; then
  echo "installing Ray in $ray"
  "$venv/bin/python" -m pip --disable-pip-version-check install --no-input -q --target "$ray" \
    -c "$root/constraints.txt" "ray>=2.9"
  touch "$ray/.made"
fi
export PYTHONPATH=$root:$ray${PYTHONPATH:+:$PYTHONPATH}
exec "$venv/bin/python" "$@"
