"""The gate in front of every timing: a contender that is wrong has no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import contenders
from bench.cases import OPERATORS, bytes_moved, small_cases
from bench.contenders import Contest, Wrong
from bench.writing import targets

CPU = torch.device("cpu")
BREAKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scaled": lambda x: x * (1 + 1e-4),
    "one NaN": lambda x: x.reshape(-1).index_fill(0, torch.tensor([0]), float("nan")).view_as(x),
    "another shape": lambda x: x.unsqueeze(0),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("how", BREAKS)
def test_a_wrong_kernel_does_not_pass(
    operator: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every small case with a broken result: breaks when the gate compares too little."""
    find = contenders._function

    def broken(contender: str, case: Any, arguments: Any) -> Any:
        function = find(contender, case, arguments)
        if contender != "cpp":
            return function

        def wrong(*arguments: Any) -> Any:
            result = function(*arguments)
            if isinstance(result, torch.Tensor):
                return BREAKS[how](result)
            return (BREAKS[how](result[0]), *result[1:])

        return wrong

    cases = small_cases(operator)[:3]
    for case in cases:
        Contest(case, CPU).enter("reference")
    monkeypatch.setattr(contenders, "_function", broken)
    for case in cases:
        with pytest.raises((Wrong, contenders.Unavailable), match=r"cpp is wrong|'cpp'"):
            Contest(case, CPU).enter("cpp")


def test_bytes_are_those_of_the_design() -> None:
    """2.25 of z for the backward, 3.5 for its tangent: breaks when an input is left out."""
    for order, share in (("backward", 2.25), ("tangent", 2.25), ("backward_tangent", 3.5)):
        (case,) = [
            case
            for case in small_cases("norm_relu_pool")
            if case.order == order and case.shape == (3, 16, 32, 32)
        ]
        contest = Contest(case, CPU)
        result = contest.enter("reference")[0](*contest.arguments)
        z = contest.arguments[0]
        moved = bytes_moved(contest.arguments, result) / (z.numel() * z.element_size())
        assert moved == pytest.approx(share, rel=0.01)


def test_a_missed_target_is_said() -> None:
    """Four times faster than eager where eight is asked: breaks when it is counted as met."""
    about = {
        "operator": "norm_relu_pool",
        "order": "backward",
        "variant": "",
        "shape": [10, 128, 8, 8],
        "dtype": "float32",
        "layout": "contiguous",
        "device": "cpu",
        "bytes": 1,
        "share_of_copy": None,
    }
    times = {"reference": 4.0, "compiled": 3.0, "cpp": 1.0}
    rows = [{**about, "contender": name, "median_ms": time} for name, time in times.items()]
    met, missed = targets(rows)
    assert met == 1 and len(missed) == 1
    assert "eager: 4.0x, target 8x" in missed[0]
