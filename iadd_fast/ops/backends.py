"""Which backend serves each operator, and why another does not."""

from __future__ import annotations

OPERATORS = ("param_distance", "diff_augment")


def backends() -> dict[str, dict[str, str | None]]:
    """Operator -> backend -> ``None`` where it is available, else the reason it is not."""
    missing = "this version has no {} kernel for it; the reference runs"
    return {
        operator: {
            "reference": None,
            "triton": missing.format("Triton"),
            "cuda": missing.format("CUDA C++"),
            "cpp": missing.format("C++"),
        }
        for operator in OPERATORS
    }
