#!/usr/bin/env bash
# The C++ kernels under AddressSanitizer and UBSan: built into a folder of their own, then the
# operators' tests run on them. Exits with 1 at the first wrong access, overflow or failing test.
#
#   bench/sanitize.sh [pytest's arguments]     (another Python: PYTHON=/path/to/python ...)
#
# BUILD names the folder, which a second run builds again only where a source has changed.
# HYPOTHESIS_PROFILE=middle or thorough draws more examples than CI does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
compiler=${CXX:-c++}
export IADD_FAST_SANITIZED=${BUILD:-build/sanitized}
runtime=$("$compiler" -print-file-name=libasan.so)
# The C++ library has to be there when the sanitizer starts, or it cannot watch exceptions.
standard=$("$compiler" -print-file-name=libstdc++.so.6)
[ -f "$runtime" ] || { echo "sanitize: $compiler has no AddressSanitizer" >&2; exit 2; }

begin=$SECONDS
log=$IADD_FAST_SANITIZED/build.log
mkdir -p "$IADD_FAST_SANITIZED"
SANITIZE=1 "$python" setup.py build_ext --build-lib "$IADD_FAST_SANITIZED" \
  --build-temp "$IADD_FAST_SANITIZED/objects" > "$log" 2>&1 || { cat "$log"; exit 1; }
grep -o 'iadd_fast kernels: built cpu.*' "$log" || { tail -n 40 "$log"; exit 1; }
echo "sanitize: built in $((SECONDS - begin)) s"

# CPython and torch leave memory to the end of the process: leaks are bench/soak.py's business.
# Memory that is handed out holds NaN, so that reading what was never written shows in the results.
asan=detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=1
export ASAN_OPTIONS=$asan:allocator_may_return_null=1:malloc_fill_byte=255:max_malloc_fill_size=1073741824
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export LD_PRELOAD="$runtime $standard" OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TRITON_INTERPRET=1
if [ $# = 0 ]; then set -- tests/ops; fi
"$python" -m pytest -p bench.sanitized -p no:cacheprovider --capture=sys "$@"
echo "sanitize: clean in $((SECONDS - begin)) s"
