#!/bin/bash
# A build under Slurm (tested with 22.05): Ray on every node of the allocation, the build beside its head, and the build's
# exit code as the job's. Submit it where `patchmint` is on the PATH on all nodes, with paths that all nodes see:
#
#   sbatch examples/slurm.sh examples/maven-stage1-coco.yaml --source.uri /data/coco --output.uri /data/stage1
#   sbatch --nodes=8 --gpus-per-node=0 --cpus-per-task=32 examples/slurm.sh CONFIG.yaml    # on CPUs
#
# Options of sbatch override the lines below; whatever follows the script goes to the build. Five minutes before the time
# limit the build is told to end, and the job is queued again; the same command resumes where it stopped, also after
# a preemption or a lost node.
#SBATCH --job-name=patchmint
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem-per-cpu=4G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=patchmint-%j.log
set -euo pipefail

cpus=$SLURM_CPUS_PER_TASK
gpus=${SLURM_GPUS_ON_NODE:-0}
actors=$((gpus > 0 ? gpus : 1)) # on each node: one for each GPU, or a single one
export SRUN_CPUS_PER_TASK=$cpus # which srun doesn't take over from sbatch

# This script runs on the first node. Jobs that share a node have ports, folders and tokens of their own; without a token,
# whoever reaches the cluster's ports could run code.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head=$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
export head port cpus gpus
export RAY_ADDRESS=$head:$port RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

wait_for_head() { # or go on without, and let Ray say what's wrong
    for _ in {1..60}; do
        if ray status >/dev/null 2>&1; then break; fi
        sleep 2
    done
}

# shellcheck disable=SC2329 # run by srun, on each node
ray_node() {
    local role="--address=$RAY_ADDRESS"
    if [ "$SLURM_PROCID" = 0 ]; then
        role="--head --node-ip-address=$head --port=$port --ray-client-server-port=$((port + 1)) --include-dashboard=false"
    else
        wait_for_head
    fi
    # shellcheck disable=SC2086 # several options
    exec ray start $role --block --num-cpus="$cpus" --num-gpus="$gpus" --min-worker-port=0 --max-worker-port=0 \
        --temp-dir="/tmp/ray-$SLURM_JOB_ID" --disable-usage-stats
}
srun --wait=0 --kill-on-bad-exit=0 --no-kill bash -c "$(declare -f wait_for_head ray_node); ray_node" &
cluster=$!
stop_ray() { # `ray stop` would also stop other jobs' clusters
    echo "ending Ray on all nodes" >&2
    kill "$cluster" || true
    wait "$cluster" || true
    timeout 60 srun --no-kill rm -rf "/tmp/ray-$SLURM_JOB_ID" || true
}
trap stop_ray EXIT
wait_for_head

late=
trap 'kill "$!"' TERM # the build, from when it is started; a preemption, or scancel
trap 'late=1; kill "$!"' USR1
python -m patchmint.jobs.build --runner.kind ray --runner.num-gpus $((gpus > 0)) --runner.num-cpus $((cpus / actors)) \
    --runner.max-actors $((SLURM_JOB_NUM_NODES * actors)) --limits.stop-seconds 120 "$@" &
build=$!
while kill -0 "$build" 2>/dev/null; do wait "$build" || true; done # a signal ends `wait`, too
code=0
wait "$build" || code=$?
trap - EXIT
stop_ray

# Ten times at most: a build whose shards take longer than a job lasts would never end.
if [ -n "$late" ] && [ "$code" != 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
