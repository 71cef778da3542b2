#!/usr/bin/env bash
# Everything that needs a GPU, in one command and in under ten minutes:
#     bench/gpu_check.sh --out DIR        (another Python: PYTHON=/path/to/python bench/gpu_check.sh ..)
# The stages and what they leave in DIR stand in bench/gpu_check.py. No network is needed.
set -euo pipefail

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "gpu_check: no $python here; PYTHON=/path/to/python names another" >&2
    exit 2
fi
exec "$python" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
