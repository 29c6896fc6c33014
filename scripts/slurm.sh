#!/bin/bash
# A training on SLURM: one task for each device, saved and queued again before its time is up.
#
#   sbatch --nodes=2 scripts/slurm.sh stage=stage2 init_from=/shared/runs/s1 run_dir=/shared/runs/s2
#
# What follows the script's name are overrides of vlmkit-train. run_dir must be given and lie on a disk that all machines see:
# a job that is queued again continues in it. Set VLMKIT_VENV to the virtual environment to use.
#SBATCH --job-name=vlmkit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

if [[ " $* " != *" run_dir="* ]]; then
    echo "slurm.sh: give run_dir=DIRECTORY on a disk that all machines see: a job that is queued again continues in it." >&2
    exit 1
fi
if [[ -n ${VLMKIT_VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$VLMKIT_VENV/bin/activate"
fi

given=("trainer.devices=${SLURM_NTASKS_PER_NODE:-1}" "trainer.num_nodes=${SLURM_NNODES:-1}" resume_from=auto)
if [[ " $* " != *" trainer="* ]]; then
    given=(trainer=fsdp "${given[@]}")
fi

# Lightning reads SLURM's variables. --kill-on-bad-exit: no task waits for one that has died.
srun --kill-on-bad-exit=1 vlmkit-train "${given[@]}" "$@"
status=$?
if [[ $status -eq 75 ]]; then # told to leave: saved, and to be continued
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
