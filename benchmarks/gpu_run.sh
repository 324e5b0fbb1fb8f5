#!/usr/bin/env bash
# On a machine with a GPU: run the stages with what gpu_prepare.sh made, installing nothing.
#
#   benchmarks/gpu_run.sh OUT [OPTIONS OF gpu_stages.py]
#
# OUT gets the results. PYTHON (default: python3) has torch, triton and numpy of the releases that gpu_prepare.sh names.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
python=${PYTHON:-python3}
scratch=${SCRATCH:-$(mktemp -d)}
# The package from the wheel and not from the checkout, which has no extension.
for wheel in "$root"/.gpu/*.whl; do "$python" -m zipfile -e "$wheel" "$scratch/site"; done
"$python" "$root/benchmarks/gpu/cache_archive.py" unpack "$root/.gpu/triton-cache.tar.xz" "$scratch/triton-cache"
export PYTHONPATH=$scratch/site TRITON_CACHE_DIR=$scratch/triton-cache
cd "$scratch"
# Where the cache fits, this finds all of it there in seconds; where it does not, all cores compile what the stages need.
nice "$python" "$root/benchmarks/gpu_warm.py" compile "$root/.gpu/launches.pickle" >"$out/warm.log" 2>&1 &
code=0
"$python" "$root/benchmarks/gpu_stages.py" --out "$out" "$@" || code=$?
wait
cat "$out/warm.log"
exit "$code"
