#!/usr/bin/env bash
# All that needs a GPU, measured in one run of at most ten minutes: benchmarks/gpu.sh [--output FILE] [--minutes N].
# To try it without a GPU: benchmarks/gpu.sh --tiny --device cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
exec "$python" -m benchmarks gpu --device cuda "$@"
