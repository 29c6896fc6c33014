#!/usr/bin/env bash
# Start a vlmkit command with torchrun: a process for each device of this machine, and for each machine of a job.
#
#   scripts/launch.sh [train] OVERRIDE...            scripts/launch.sh stage=stage1 trainer=fsdp run_dir=runs/s1
#
# Managed platforms say where a machine stands: MLP_WORKER_GPU (devices of each machine), MLP_WORKER_NUM (machines),
# MLP_ROLE_INDEX (which this one is, from 0), MLP_WORKER_0_HOST and MLP_WORKER_0_PORT (where the first one listens).
# Without them there is one machine, with the devices of CUDA_VISIBLE_DEVICES or else all that nvidia-smi lists.
# Set TORCHRUN to use another torchrun than the one on PATH, and DRY_RUN=1 to print the command only.
set -euo pipefail

fail() {
    echo "launch.sh: $*" >&2
    exit 1
}

count_devices() {
    if [[ -n ${MLP_WORKER_GPU:-} ]]; then
        echo "$MLP_WORKER_GPU"
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        awk -v list="$CUDA_VISIBLE_DEVICES" 'BEGIN { print split(list, _, ",") }'
    elif command -v nvidia-smi > /dev/null; then
        nvidia-smi -L | grep -c '^GPU' || true
    else
        echo 0
    fi
}

command=train
if [[ $# -gt 0 && $1 =~ ^[a-z]+$ ]]; then
    command=$1
    shift
fi
[[ $command == train ]] || fail "$command runs in one process: call vlmkit-$command itself. Only train takes several."

devices=$(count_devices)
[[ $devices =~ ^[0-9]+$ ]] || fail "MLP_WORKER_GPU=$devices is not a number of devices."
[[ $devices -gt 0 ]] || devices=1
nodes=${MLP_WORKER_NUM:-1}
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "MLP_WORKER_NUM=$nodes is not a number of machines."

where=(--standalone)
if [[ $nodes -gt 1 ]]; then
    for name in MLP_ROLE_INDEX MLP_WORKER_0_HOST MLP_WORKER_0_PORT; do
        [[ -n ${!name:-} ]] || fail "MLP_WORKER_NUM=$nodes, but $name is not set."
    done
    where=(--nnodes "$nodes" --node-rank "$MLP_ROLE_INDEX"
        --master-addr "$MLP_WORKER_0_HOST" --master-port "$MLP_WORKER_0_PORT")
fi

given=("trainer.devices=$devices" "trainer.num_nodes=$nodes")
if [[ $((devices * nodes)) -gt 1 && ! " $* " =~ " trainer=" ]]; then
    given=(trainer=ddp "${given[@]}")
fi

run=("${TORCHRUN:-torchrun}" "${where[@]}" --nproc-per-node "$devices" -m "vlmkit.cli.$command" "${given[@]}" "$@")
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${run[@]}"
    echo
    exit 0
fi
exec "${run[@]}"
