#!/usr/bin/env bash
# For the day on which there is a GPU machine with Python 3.12, torch, transformers and no way to any index.
#
#   tools/gpu_day.sh                # wheels that it lacks, into .whl/, and the calls to make there, in their order
#   tools/gpu_day.sh --try PYTHON   # the same calls here, on the CPU with tiny models, by the Python of an environment
#                                   # that has what such a machine has (requirements-torch211.in and pip)
#
# All calls together fit into 15 minutes. Results come to $OUT there: JSON, a table for docs/performance.md, a log.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"

wheels() {
  local python=python3 name version pinned=()
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
  rm -rf .whl
  for name in obstore pydantic pydantic-core pycocotools platformdirs typing-inspection annotated-types webdataset \
    braceexpand addict yapf segment-anything supervision taming-transformers; do
    version=$(grep -m1 -ioP "^$name==\K[^ ;\\\\]+" requirements-torch211.lock)
    pinned+=("$name==$version")
  done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl "${pinned[@]}"
  "$python" -m pip wheel -q --disable-pip-version-check --no-deps -w .whl groundingdino-py==0.4.0
  echo "$(ls .whl | wc -l) wheels in .whl, $(du -sm .whl | cut -f1) MB, to be carried with the tree" >&2
}

# One command, of at most 2,000 characters: seconds, a name for the results, options of benchmarks/gpu.py.
command() {
  local install='python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site .whl/*.whl'
  local setting='export PYTHONPATH=$PWD/.site PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore || exit; set -o pipefail'
  local script="timeout $(($1 + 60)) python3 benchmarks/gpu.py --seconds $1 ${*:3}"
  echo "$install && $setting; $script --json \$OUT/$2.json --table \$OUT/$2.md 2>&1 | tee \$OUT/$2.log"
}

calls() {
  command 400 first "$@" --only parity peak auto build flips
  command 300 second "$@" --only auto compiled profile
}

wheels
if [[ "${1:-}" != --try ]]; then
  calls --threads 8
  exit
fi
OUT=$(mktemp -d) && export OUT
PATH="$(dirname "$2"):$PATH"
while read -r call; do
  echo "${#call} characters: $call" >&2
  bash -c "$call"
done < <(calls --tiny --device cpu)
ls -l "$OUT" >&2
