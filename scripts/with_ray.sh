#!/usr/bin/env bash
# Runs Python with Ray, which the virtual environment of the checkout does not have: scripts/with_ray.sh -m pytest ...
# At first it makes an environment of its own beside that one, which it goes on using: 280 MB.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SQAP_VENV:-$root/.venv}
ray=$venv/ray
if [ ! -e "$ray/.made" ]; then
  echo "installing Ray in $ray"
  "$venv/bin/python" -m venv --clear "$ray"
  packages='import sysconfig; print(sysconfig.get_path("purelib"))'
  # addsitedir, since a plain path would leave the .pth files of the checkout's environment unread
  echo "import site; site.addsitedir('$("$venv/bin/python" -c "$packages")')" >"$("$ray/bin/python" -c "$packages")/checkout.pth"
  "$ray/bin/python" -m pip --disable-pip-version-check install --no-input -q "ray>=2.9"
  touch "$ray/.made"
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$ray/bin/python" "$@"
