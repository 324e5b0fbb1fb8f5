#!/usr/bin/env bash
# Make .gpu/ in the repository, on a machine without a GPU: what gpu_run.sh needs on one that has no network.
#
#   benchmarks/gpu_prepare.sh [--wheel | --cache] [--scratch FOLDER]
#
# --wheel makes the wheels of this package for Python 3.12, with CUDA kernels for sm_90 (nvcc 13 needed), and of the pure
# Python packages that it imports; --cache makes launches.pickle, what the stages launch, and triton-cache.tar.xz, that
# compiled. Without either, both. Environments and builds stay in the scratch folder (default: hvp-engine-gpu in TMPDIR):
# a second call compiles only what has changed.
#
# PYTHON312 is a Python 3.12 (default: python3.12). PYTHON (default: python3) has this package's dependencies and a CPU
# build of torch: on it the stages are followed to their launches.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=$root/.gpu
scratch=${TMPDIR:-/tmp}/hvp-engine-gpu
architecture=90
torch=2.11.0
triton=3.6.0 # the keys of its cache hold its own files: the machine with the GPU must have this very release
what=both
while [ $# -gt 0 ]; do
    case $1 in
    --wheel | --cache) what=${1#--} ;;
    --scratch) scratch=$2 && shift ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    shift
done
environment=$scratch/python3.12
python=${PYTHON:-python3}
mkdir -p "$out" "$scratch"

installed() { # a mark per list of packages: asking pip takes seconds
    local mark
    mark=$environment/$(echo "$*" | sha256sum | cut -c1-16).installed
    [ -x "$environment/bin/python" ] || "${PYTHON312:-python3.12}" -m venv "$environment"
    [ -e "$mark" ] || { "$environment/bin/python" -m pip install --quiet "$@" && touch "$mark"; }
}

make_wheel() {
    installed scikit-build-core pybind11 cmake ninja
    rm -rf "$scratch/wheel"
    PATH=$environment/bin:$PATH HVP_ENGINE_CUDA=on CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$architecture" \
        "$environment/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation -C build-dir="$scratch/build" \
        -w "$scratch/wheel" "$root"
    [ -e "$scratch/rich" ] || "$environment/bin/python" -m pip download --quiet -d "$scratch/rich" rich
    rm -f "$out"/*.whl
    cp "$scratch"/wheel/*.whl "$scratch"/rich/*.whl "$out"
}

make_cache() {
    installed "torch==$torch" "triton==$triton" numpy rich
    local same=$scratch/triton
    [ -e "$same" ] || "$python" -m pip install --quiet --no-deps --target "$same" "triton==$triton"
    PYTHONPATH=$same:$root "$python" benchmarks/gpu_warm.py record "$out/launches.pickle" --architecture "$architecture"
    PYTHONPATH=$root "$environment/bin/python" benchmarks/gpu_warm.py compile "$out/launches.pickle" --cache "$scratch/cache"
    "$environment/bin/python" benchmarks/gpu/cache_archive.py pack "$scratch/cache" "$out/triton-cache.tar.xz"
}

[ "$what" = cache ] || make_wheel
[ "$what" = wheel ] || make_cache
du -h "$out"/*
