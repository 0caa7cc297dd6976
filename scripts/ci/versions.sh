#!/usr/bin/env bash
# Runs the quick suite with the newest or the oldest versions of the dependencies, in an environment of its own.
#
#   bash scripts/ci/versions.sh [newest|oldest|unbounded] [python]
#
#   newest     the newest versions that pyproject.toml allows (default)
#   oldest     the oldest versions that pyproject.toml allows
#   unbounded  the newest versions there are of transformers and torch, whether allowed or not: tells what is to come
#   python     an interpreter, such as python3.13 (default: python3)
#
# The quick suite: recorded numbers of the released method, the laws of three families, generation with the KV cache
# against generation without it in every family, and the doctor. VENV=/path puts the environment there (default
# .venv-<mode>), WORKERS=n sets the number of test processes.
set -euo pipefail
cd "$(dirname "$0")/../.."

mode=${1:-newest}
python=${2:-python3}
venv=${VENV:-.venv-$mode}
overrides=()
case $mode in
  newest) resolution=highest ;;
  oldest) resolution=lowest-direct ;;
  unbounded)
    resolution=highest
    list=$(mktemp)
    trap 'rm -f "$list"' EXIT
    printf 'transformers\ntorch\n' >"$list"
    overrides=(--overrides "$list")
    ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
"$venv/bin/python" -m uv pip install --quiet --upgrade --python "$venv/bin/python" --resolution "$resolution" \
  "${overrides[@]}" -e '.[dev]'
"$venv/bin/python" -c 'import sys, torch, transformers as t
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {t.__version__}")'

"$venv/bin/python" -m pytest -n "${WORKERS:-auto}" --dist worksteal -p no:cacheprovider --durations=0 --durations-min=5 \
  tests/flowcut/test_golden.py tests/flowcut/test_golden_two_stage.py tests/flowcut/test_compat.py \
  tests/flowcut/test_laws*.py tests/llava/test_doctor.py tests/llava/model/test_llama_tokenizer.py \
  -k 'not test_laws or test_cache or llava_hf or qwen2_vl or llava_mistral'
