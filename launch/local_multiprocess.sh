#!/usr/bin/env bash
# Trains, or evaluates, one run in N processes on this machine, each with a GPU of its own where there are any:
#
#   launch/local_multiprocess.sh N --config=configs/scratch.py [flags of `jaxseg`]
#   launch/local_multiprocess.sh N evaluate --workdir=DIR
#
# One process alone can use all GPUs of a machine too (README.md beside this says when to use which).
# Ends with 0 when the run is done and with 75 when it was told to stop (saved; start again to go on). Where a
# process fails, all are started again and go on from the last checkpoint, at most $RESTARTS times. Wrong usage
# (2) is not tried again. Environment: RESTARTS (default 3), PYTHON (default python), CUDA_VISIBLE_DEVICES.
set -euo pipefail
# Each process is the head of a group of its own: Ctrl-C then reaches only this script, which passes it on once.
set -m

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
[[ ${1-} =~ ^[1-9][0-9]*$ && $# -gt 1 ]] || usage
count=$1
shift
restarts=${RESTARTS:-3}
[[ $restarts =~ ^[0-9]+$ ]] || { echo "RESTARTS=$restarts is no number" >&2; exit 2; }
python=${PYTHON-python}
# Once one has ended early, the others end by themselves within this time, or wait for it in vain.
patience_s=30

# The GPUs to share out: those named, or else all; none where jax is kept to the CPU.
gpus=()
if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
  IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
elif [[ -z ${CUDA_VISIBLE_DEVICES+set} ]] && command -v nvidia-smi >/dev/null; then
  for line in $(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true); do
    [[ $line =~ ^[0-9]+$ ]] && gpus+=("$line")
  done
fi
[[ ${JAX_PLATFORMS-} != cpu && ${CUDA_VISIBLE_DEVICES-} != -1 ]] || gpus=()
if ((${#gpus[@]} > 0 && ${#gpus[@]} < count)); then
  echo "$count processes need $count GPUs; ${#gpus[@]} are visible here" >&2
  exit 2
fi

pids=()
told=
reached=0
pass_on() {
  told=$1
  for pid in "${pids[@]+"${pids[@]}"}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
  reached=${#pids[@]}
}
trap 'pass_on TERM' TERM HUP  # HUP: the terminal was closed
trap 'pass_on INT' INT
# However this script ends, no process stays behind; a process's child ends with it.
trap 'for pid in "${pids[@]+"${pids[@]}"}"; do kill -s KILL "$pid" 2>/dev/null || true; done' EXIT

start_all() {
  local port process status=0
  pids=()
  port=$(
    "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
  ) || status=$?
  [[ -z $told ]] || exit 75
  ((status == 0)) || exit "$status"
  reached=0
  for ((process = 0; process < count; process++)); do
    (
      ((${#gpus[@]} == 0)) || export CUDA_VISIBLE_DEVICES="${gpus[process]}"
      # Only process 0 has something to say, and all have errors; none may read the terminal.
      ((process == 0)) || exec >/dev/null
      exec "$python" -m jaxseg.main "$@" --coordinator="127.0.0.1:$port" --processes="$count" \
        --process="$process" </dev/null
    ) &
    pids+=($!)
  done
  # A signal that came meanwhile has reached only those before it.
  [[ -n $told ]] || return 0
  for ((process = reached; process < count; process++)); do
    kill -s "$told" "${pids[process]}" 2>/dev/null || true
  done
}

# Sets `outcome`: 0, 75 where any process ended so, else the status of the one that failed first.
wait_for_all() {
  local -a running=("${pids[@]}") left
  local pid status failed_at=
  outcome=0
  while ((${#running[@]} > 0)); do
    left=()
    for pid in "${running[@]}"; do
      # Looked at, not waited for: a trap would end the wait with a status that is not the process's.
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      # Told before Python listened, it had nothing to save.
      [[ -z $told || ($status -ne 130 && $status -ne 143) ]] || status=75
      if ((status == 75)); then
        outcome=75
      elif ((status != 0 && outcome == 0)); then
        outcome=$status
      fi
      ((status == 0)) || failed_at=${failed_at:-$SECONDS}
    done
    running=("${left[@]+"${left[@]}"}")
    if [[ -n $failed_at ]] && ((SECONDS - failed_at > patience_s)); then
      for pid in "${running[@]+"${running[@]}"}"; do kill -s KILL "$pid" 2>/dev/null || true; done
    fi
    sleep 0.2 || true
  done
}

for ((attempt = 0; ; attempt++)); do
  start_all "$@"
  wait_for_all
  case $outcome in 0 | 2 | 75) exit "$outcome" ;; esac
  if [[ -n $told ]] || ((attempt >= restarts)); then exit "$outcome"; fi
  echo "a process ended with status $outcome: all are started again ($((attempt + 1)) of $restarts)" >&2
  sleep 1 || true
  [[ -z $told ]] || exit 75
done
