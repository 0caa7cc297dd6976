# Shared by the steps of the embedded recipe; each is run from anywhere as `bash scripts/embedded/<step>.sh`.
# RUNS: where intermediate results go. PYTHON: the interpreter. Every step continues where it was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RUNS=${RUNS:-runs/embedded}
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
mkdir -p "$RUNS"
