"""Accuracy slice by slice, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.audit.estimates import difference, estimate
from iadd_fast.audit.outputs import Outputs
from iadd_fast.audit.slices import Slice

#: A gap whose interval is wider than this, in percentage points, and holds 0 is not resolved.
WIDEST = 40.0


def slice_rows(slices: Sequence[Slice], outputs: Mapping[str, Outputs]) -> list[dict[str, Any]]:
    """A row for every group: counts, accuracies and the gap, in percent and percentage points.

    Rows are ordered by ``gap``, accuracy of the full data less that of the distilled set, largest
    first; rows that are not ``resolved`` (interval of the gap wider than ``WIDEST`` points, and 0
    in it) come last. Intervals are those of :mod:`iadd_fast.audit.estimates`, each for one group by
    itself: the largest of many gaps is on average larger than it will be on new samples.

    Args:
        slices: the groups. outputs: of ``"full"`` and ``"distilled"``, and others beside them.
    """
    rows = [
        {"slice": one.name, "group": group, **figures(outputs, one.members == place)}
        for one in slices
        for place, group in enumerate(one.groups)
    ]
    return sorted(rows, key=lambda row: (not row["resolved"], -row["gap"]["value"]))


def figures(outputs: Mapping[str, Outputs], members: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of one group, ``members`` bool ``[N]``: those of :func:`slice_rows`."""
    right = {name: one.right[:, members] for name, one in outputs.items()}
    found = {name: estimate(values) for name, values in right.items()}
    gap = difference(found["full"], found["distilled"], right["full"], right["distilled"])
    assert gap.low is not None and gap.high is not None
    narrow = 100.0 * (gap.high - gap.low) <= WIDEST
    return {
        "count": int(members.sum()),
        "accuracy": {name: one.to_dict(100.0) for name, one in found.items()},
        "gap": gap.to_dict(100.0),
        "resolved": narrow or gap.low > 0.0 or gap.high < 0.0,
    }
