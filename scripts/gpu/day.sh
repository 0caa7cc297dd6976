#!/usr/bin/env bash
# Everything that only a GPU can show, within 8 minutes, from this folder alone and without network:
#
#   bash scripts/gpu/day.sh OUT [--tiny] [--parts NAME ...]
#
# PYTHON=/path names the interpreter (default: python3), which needs torch and transformers; what else is missing may
# lie as wheels in the folder WHEELS (default: wheels) and is then installed into OUT/site alone. Every part has a time
# limit of its own and leaves OUT/NAME.json; a part that fails does not stop the next one. --tiny runs the same with
# tiny models on a CPU. `python -m scripts.gpu.report OUT` then writes docs/gpu_results.md.
set -euo pipefail
out=${1:?bash scripts/gpu/day.sh OUT [--tiny] [--parts NAME ...]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
wheels=${WHEELS:-wheels}
if compgen -G "$wheels/*.whl" > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" "$wheels"/*.whl
fi
export PYTHONPATH="$PWD:$out/site${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m scripts.gpu.day "$out" "$@"
