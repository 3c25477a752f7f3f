#!/usr/bin/env bash
# Measure a policy on LIBERO or LIBERO-PRO with vla-eval's own runner, on a CPU, without Docker and without a hub.
# Usage: benchmarks/outside/libero.sh [SUITE] [EPISODES PER TASK] [CHECKPOINT] [RECIPE] [options of sqap-vla serve ...]
#
# The benchmark has an environment of its own (LIBERO_VENV, default out/libero/venv; libero_environment.sh makes it). It
# talks to `sqap-vla serve`, which runs in the environment that is active. Reports: out/libero/SUITE/. A suite whose
# scenes have different cameras runs once for each, with its tasks alone: reports lie in camera_0, camera_1 ... there.
# MAX_TASKS and MAX_STEPS in the environment shorten a run. Rendering needs OSMesa (libosmesa6); where there is only EGL,
# RENDER=gpu renders through that, with Mesa's software too. PORT: of the server, a free one by default.
set -euo pipefail

suite=${1:-libero_spatial} episodes=${2:-1} checkpoint=${3:-micro} recipe=${4:-fp32}
shift $(($# < 4 ? $# : 4))
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$PWD/out/libero/$suite
venv=${LIBERO_VENV:-$PWD/out/libero/venv}
render=${RENDER:-cpu}
mkdir -p "$out"

"$here/libero_environment.sh" "$venv"
export LIBERO_CONFIG_PATH=$out/config  # LIBERO writes where its files are; it asks about that once
case $render in cpu) export MUJOCO_GL=osmesa ;; *) export MUJOCO_GL=egl ;; esac  # as vla-eval renders

# The pose of each camera, so that the tool can be projected and SQAP keep the tokens around it.
env -u PYTHONPATH "$venv/bin/python" "$here/libero_camera.py" "$suite" "$out" <<<"n"

server=
trap 'kill $server 2>/dev/null || true' EXIT
shopt -s nullglob
cameras=("$out"/camera_*.json)
[ ${#cameras[@]} -gt 0 ] || { echo "libero_camera.py wrote no camera of $suite to $out" >&2; exit 1; }
for camera in "${cameras[@]}"; do
  name=$(basename "$camera" .json)
  reports=$out
  [ ${#cameras[@]} -eq 1 ] || reports=$out/$name
  mkdir -p "$reports"
  : >"$reports/serve.log"
  sqap-vla serve --checkpoint "$checkpoint" --recipe "$recipe" --port "${PORT:-0}" --action-space libero \
    --simulator-camera "$camera" --mirrored --image-key agentview "$@" >>"$reports/serve.log" 2>&1 &
  server=$!
  port=
  # The port comes from the server's own log: another server's answer is never taken for this one's.
  until [ -n "$port" ] && curl --noproxy '*' -sf "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 $server 2>/dev/null || { tail -3 "$reports/serve.log" >&2; exit 1; }
    sleep 1
    port=$(sed -n 's/^listening on ws:.*:\([0-9]*\)$/\1/p' "$reports/serve.log")
  done

  # Suites of LIBERO-PRO have as many steps as what they are made from, which that class of vla-eval knows.
  cat >"$reports/run.json" <<EOF
{"server": {"url": "ws://127.0.0.1:$port/vla-eval"},
 "benchmarks": [{"benchmark": "vla_eval.benchmarks.libero_pro.benchmark:LIBEROProBenchmark", "subname": "$suite",
                 "episodes_per_task": $episodes, "max_tasks": ${MAX_TASKS:-null}, "max_steps": ${MAX_STEPS:-null},
                 "tasks": $(cat "$out/tasks_${name#camera_}.json"),
                 "params": {"suite": "$suite", "send_state": true}}]}
EOF
  env -u PYTHONPATH "$venv/bin/vla-eval" run --no-docker --render "$render" --config "$reports/run.json" \
    --output-dir "$reports"
  kill $server
  wait $server 2>/dev/null || true
done
