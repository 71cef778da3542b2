"""Every GPU kernel once on tiny and odd shapes, against the reference: for compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 9 python bench/sanitizer_run.py [BACKEND ...]

Exits with 1 where a result is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.cases import OPERATORS, small_cases
from bench.contenders import Contest, Unavailable, Wrong


def main(backends: list[str], device: torch.device) -> int:
    """The exit status; prints what ran, what cannot and what is wrong."""
    passed, wrong, unavailable = 0, [], set()
    for operator in OPERATORS:
        for case in small_cases(operator):
            # Inputs and truth come from the CPU: nearly every launch is one of this project's.
            contest = Contest(case, device, torch.device("cpu"))
            for backend in backends:
                try:
                    contest.enter(backend)
                    passed += 1
                except Unavailable as reason:
                    unavailable.add(str(reason))
                except Wrong as reason:
                    wrong.append(str(reason))
    for line in sorted(unavailable):
        print(f"left out: {line}")
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{passed} results right, {len(wrong)} wrong")
    return 1 if wrong or not passed else 0


if __name__ == "__main__":
    gpu = torch.cuda.is_available()
    given = sys.argv[1:] or (["cuda", "triton"] if gpu else ["cpp"])
    sys.exit(main(given, torch.device("cuda" if gpu else "cpu")))
