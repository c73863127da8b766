#!/bin/sh
# Make the environment of benchmarks/graphs.py and run it there: graphs_env.sh [FOLDER] [arguments of graphs.py]
#
# timm imports torchvision, which has no build for the CPU-only torch that this project pins. Its Python part is
# installed without dependencies beside the pinned torch; the zoo declares the two box operators of its compiled part
# by name, and calls neither. Everything else in torchvision is its own.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
env=${1:-"$root/.venv-graphs"}
[ $# -gt 0 ] && shift
if [ ! -x "$env/bin/python" ] || ! "$env/bin/python" -c "import timm, transformers" 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$env"
    "$env/bin/pip" install -q "torch==2.13.0"
    "$env/bin/pip" install -q -e "$root" "transformers>=5,<6" pillow
    "$env/bin/pip" install -q --no-deps "torchvision==0.28.0" "timm>=1.0.20,<2"
fi
cd "$root"
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 exec "$env/bin/python" -m benchmarks.graphs "$@"
