#!/usr/bin/env bash
# Makes everything the checkout needs, in a virtual environment inside it; a second run only checks.
#
#   --libraries      stop before the messages and the package, which colcon builds
#
#   PYTHON           the interpreter to use (default: python3.11, python3.12 or python3, the first that fits)
#   SQAP_VENV        where the virtual environment goes (default: .venv in the checkout)
#   TORCH_INDEX_URL  a package index with CPU builds of PyTorch, beside the one that pip is configured with
#
# With a system ROS 2 sourced, its Python and packages are used and no ROS 2 wheel is installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SQAP_VENV:-$root/.venv}
[ "${venv#/}" != "$venv" ] || venv=$PWD/$venv
steps=5
number=0
libraries_only=

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

fits() { case $(version_of "$1") in 3.11 | 3.12) return 0 ;; *) return 1 ;; esac; }

case ${1:-} in
  '') ;;
  --libraries) libraries_only=yes ;;
  *) fail "unknown argument: $1 (there is --libraries)" ;;
esac

# --- What only the system's package manager can provide ---------------------------------------------------------------

system_ros=
if [ -n "${ROS_DISTRO:-}" ] && python3 -c 'import rclpy' 2>/dev/null; then
  system_ros=$ROS_DISTRO
  PYTHON=${PYTHON:-python3}
else
  # Left behind by ROS 2 wheels of another virtual environment, whose libraries must not be mixed with this one's.
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

if [ -n "${PYTHON:-}" ]; then
  fits "$PYTHON" || fail "PYTHON=$PYTHON is Python $(version_of "$PYTHON" || echo '(not found)'), but 3.11 or 3.12 is needed."
else
  for candidate in python3.11 python3.12 python3; do
    if fits "$candidate"; then
      PYTHON=$candidate
      break
    fi
  done
  [ -n "${PYTHON:-}" ] || fail "Python 3.11 or 3.12 was not found: sudo apt-get install python3 python3-venv, or name one with PYTHON=…"
fi
python_version=$(version_of "$PYTHON")

missing=()
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || missing+=("python$python_version-venv")
"$PYTHON" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
  missing+=("python$python_version-dev")
command -v "${CC:-cc}" >/dev/null && command -v "${CXX:-c++}" >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
cmake_version=$(cmake --version 2>/dev/null | sed -n '1s/.* \([0-9]*\.[0-9]*\).*/\1/p' || true)
if [ "$(printf '%s\n3.20\n' "${cmake_version:-0}" | sort -V | head -n 1)" != 3.20 ]; then
  missing+=(cmake)
fi
if [ -n "$system_ros" ] && "$PYTHON" -c 'import numpy; raise SystemExit(numpy.__version__ >= "2")' 2>/dev/null; then
  # Messages compiled for numpy 1 hold numpy there, and no wheel of these two works with it.
  "$PYTHON" -c 'import cv2' 2>/dev/null || missing+=(python3-opencv)
  "$PYTHON" -c 'import pinocchio' 2>/dev/null || missing+=("ros-$system_ros-pinocchio")
fi
if [ ${#missing[@]} -gt 0 ]; then
  fail "These system packages are missing: ${missing[*]} (cmake 3.20 or newer). Install with: sudo apt-get install ${missing[*]}"
fi

# --- Steps ------------------------------------------------------------------------------------------------------------

stamps=$venv/.setup
log=$(mktemp "${TMPDIR:-/tmp}/sqap_vla_ros_setup.XXXXXX")
keep_log=
trap '[ -n "$keep_log" ] || rm -f "$log"' EXIT

# A step is done again only when one of its inputs changed. Inputs: files, folders and plain words.
fingerprint() {
  local input
  for input in "$@"; do
    if [ -n "$input" ] && [ -e "$root/$input" ]; then
      (cd "$root" && find "$input" -type f -not -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
    else
      printf '%s\n' "$input"
    fi
  done | sha256sum | cut -d ' ' -f 1
}

# step NAME "WHAT IT SAYS" FUNCTION INPUT...
step() {
  local name=$1 title=$2 function=$3 key started=$SECONDS pid
  shift 3
  number=$((number + 1))
  key=$(fingerprint "$name" "$python_version" "$venv" "$system_ros" scripts/setup.sh "$@")
  [ "$(cat "$stamps/$name" 2>/dev/null)" = "$key" ] && return 0
  printf '[%d/%d] %s ' "$number" "$steps" "$title"
  ("$function") >"$log" 2>&1 </dev/null &
  pid=$!
  trap 'kill $pid 2>/dev/null; exit 130' INT TERM
  if [ -t 1 ]; then
    while kill -0 $pid 2>/dev/null; do
      printf '\r[%d/%d] %s (%d s) ' "$number" "$steps" "$title" $((SECONDS - started))
      sleep 1
    done
  fi
  if ! wait $pid; then
    printf 'FAILED after %d s\n' $((SECONDS - started))
    tail -n 30 "$log" >&2
    keep_log=yes
    fail "step $number ($title) failed; the whole output is in $log"
  fi
  trap - INT TERM
  mkdir -p "$stamps"
  printf '%s\n' "$key" >"$stamps/$name"
  printf 'done in %d s\n' $((SECONDS - started))
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --no-input "$@"; }

make_venv() {
  local options=(--clear)
  if [ "$(version_of "$venv/bin/python")" = "$python_version" ] && [ -e "$venv/pyvenv.cfg" ]; then
    return  # made by hand, or by an older version of this script
  fi
  [ -z "$system_ros" ] || options+=(--system-site-packages)
  "$PYTHON" -m venv "${options[@]}" "$venv"
}

install_torch() {
  local torch
  torch=$(grep '^torch==' "$root/requirements.txt")
  # Beside pip's own index, which has the other libraries at the pinned versions. Of two builds of one version pip takes
  # the one with a local label, such as +cpu.
  pip -c "$(constraints)" ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$torch"
}

install_requirements() { pip -c "$(constraints)" -r "$(requirements)" -r "$root/requirements-dev.txt"; }

install_ros() { pip -c "$(constraints)" -r "$root/requirements-ros.txt"; }

# The messages of a system ROS 2 are compiled for its numpy, and so are its OpenCV and Pinocchio: what is there stays.
constraints() { without_system_packages constraints.txt; }
requirements() { without_system_packages requirements.txt; }
without_system_packages() {
  if [ -z "$system_ros" ]; then
    echo "$root/$1"
    return
  fi
  local numpy own='^$'
  numpy=$(cd / && "$PYTHON" -c 'import numpy; print(numpy.__version__)')
  ! (cd / && "$PYTHON" -c 'import cv2') 2>/dev/null || own="$own|^opencv-"
  ! (cd / && "$PYTHON" -c 'import pinocchio') 2>/dev/null || own="$own|^pin=="
  grep -vE "$own" "$root/$1" | sed "s/^numpy==.*/numpy==$numpy/" >"$venv/$1"
  echo "$venv/$1"
}

install_package() {
  local messages
  for messages in tf2_msgs control_msgs; do
    if ! (cd / && "$venv/bin/python" -c "import $messages.msg") || [ -e "$stamps/own_$messages" ]; then
      "$venv/bin/python" "$root/scripts/ament_build.py" "$root/interfaces/$messages"
      mkdir -p "$stamps" && touch "$stamps/own_$messages"
    fi
  done
  pip --force-reinstall --no-deps --no-build-isolation "$root"
  # The messages come from what was just installed, the modules from this folder: an edit needs no new set-up, in
  # console scripts and in processes that start from elsewhere too. An overlay on PYTHONPATH (colcon) still comes first.
  "$venv/bin/python" - "$root" <<'PYTHON'
import sys, sysconfig
from pathlib import Path
packages = sysconfig.get_path("purelib")
Path(packages, "sqap_vla_ros_checkout.pth").write_text(
    f"import sys; sys.path.insert(sys.path.index({packages!r}), {sys.argv[1]!r})\n")
PYTHON
}

if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
  fail "$venv is not a virtual environment and will not be overwritten: name another folder with SQAP_VENV=…"
fi
# An interpreter that was upgraded or removed leaves a virtual environment that no longer runs.
if [ -d "$venv" ] && [ "$(version_of "$venv/bin/python")" != "$python_version" ]; then
  rm -rf "$stamps"
fi

ros_title="ROS 2 Kilted (wheels)"
if [ -n "$system_ros" ]; then
  ros_title="ROS 2 $system_ros of the system"
  steps=4
fi
[ -z "$libraries_only" ] || steps=$((steps - 1))
pins=(requirements.txt requirements-dev.txt constraints.txt)
step venv "virtual environment for Python $python_version" make_venv
step torch "PyTorch" install_torch "torch $(grep '^torch==' "$root/requirements.txt")" "${TORCH_INDEX_URL:-}"
step requirements "simulator, vision and test libraries" install_requirements "${pins[@]}"
if [ -z "$system_ros" ]; then
  step ros "$ros_title" install_ros requirements-ros.txt constraints.txt
fi
if [ -z "$libraries_only" ]; then
  step package "messages and package on $ros_title" install_package \
    msg action interfaces CMakeLists.txt setup.py setup.cfg package.xml scripts/ament_build.py
fi

# --- Rendering --------------------------------------------------------------------------------------------------------

libraries=$({ ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | awk '{print $1}')
has() { grep -q "^$1\.so" <<<"$libraries"; }
if ! { has libEGL && { has libOpenGL || has libGL; }; } && ! has libOSMesa; then
  packages="libegl1 libopengl0 libgl1-mesa-dri"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    printf 'installing OpenGL for rendering without a screen (%s)\n' "$packages"
    # shellcheck disable=SC2086
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq $packages; } >"$log" 2>&1 ||
      { keep_log=yes && fail "OpenGL could not be installed; apt-get's output is in $log"; }
  else
    fail "The simulator cannot render without EGL or OSMesa. Install with: sudo apt-get install $packages"
  fi
fi
