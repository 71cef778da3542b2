"""Time and storage: what one training costs, and after how many distilling has paid off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iadd_fast import arguments
from iadd_fast.artifacts import DistilledSet
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.report import figures
from iadd_fast.report.words import METHODS, breakable, count, duration, listed, ratio, size

COLUMNS = [
    ("method", False),
    ("network", False),
    ("seconds", True),
    ("share of the full data's", True),
    ("samples", True),
    ("bytes", True),
    ("storage ratio", True),
]
BREAK_EVEN_COLUMNS = [
    ("set", False),
    ("network", False),
    ("seconds to distil", True),
    ("seconds saved by each training", True),
    ("trainings", False),
]

#: Seconds that a clock does not tell from none.
_TICK = 1e-9


def measure(
    distilled: DistilledSet,
    evaluation: Evaluation | None,
    labels: Mapping[str, str],
    distil_seconds: Mapping[str, float | None],
) -> dict[str, Any]:
    """Seconds and bytes of one training, and the break-even.

    ``break_even``: the least whole number of trainings n with ``distil + n t_set <= n t_full``,
    t the training seconds of one network; ``trainings`` is None where ``t_full <= t_set`` or the
    seconds to distil are not recorded (``reason`` says which). Where those of the experts are not
    recorded, it counts the distillation alone and ``at_least`` is true.

    Args:
        distilled: the set, whose ``summary["seconds"]`` (and ``["expert_seconds"]``, if there) are
            those of its making. evaluation: what was measured.
        labels: method -> what the page calls it.
        distil_seconds: of the sets beside it, by method.
    """
    own = distilled.summary.get("seconds")
    gradient = distilled.config.get("method") == "gradient"
    experts = 0.0 if gradient else distilled.summary.get("expert_seconds")
    spent: dict[str, float | None] = {**distil_seconds, DISTILLED: _finite(own)}
    rows, break_even = [], []
    for row in evaluation.rows if evaluation is not None else ():
        full = evaluation.row(FULL, row.architecture) if evaluation is not None else None
        named = {
            "method": row.method,
            "label": labels.get(row.method, METHODS.get(row.method, row.method)),
            "architecture": row.architecture,
        }
        rows.append(
            {
                **named,
                "seconds": row.seconds,
                "time_share": _share(row, full),
                "samples": row.images,
                "bytes": row.bytes,
                "storage_ratio": full.bytes / row.bytes if full and row.bytes else None,
            }
        )
        if full is not None and row.method in spent:
            known = _finite(experts) if row.method == DISTILLED else None
            break_even.append({**named, **_break_even(row, full, spent[row.method], known)})
    settings = evaluation.settings if evaluation is not None else {}
    return {
        "samples": len(distilled),
        "bytes": distilled.nbytes,
        "weight_bytes": 0 if distilled.weight is None else distilled.weight.nbytes,
        "distil_seconds": spent[DISTILLED],
        "expert_seconds": _finite(experts),
        "needs_experts": not gradient,
        "rows": rows,
        "break_even": break_even,
        "epochs": settings.get("epochs"),
        "full_epochs": settings.get("full_epochs"),
        "device": settings.get("device"),
    }


def _share(row: EvaluationRow, full: EvaluationRow | None) -> float | None:
    return None if full is None or full.seconds < _TICK else row.seconds / full.seconds


def _finite(value: Any) -> float | None:
    """Seconds out of a summary, which is anybody's; None for what are none."""
    known = isinstance(value, int | float) and 0 <= value <= arguments.LARGEST_FLOAT
    return float(value) if known else None


def _break_even(
    row: EvaluationRow, full: EvaluationRow, distil: float | None, experts: float | None
) -> dict[str, Any]:
    saved = full.seconds - row.seconds
    if abs(saved) < _TICK:
        saved = 0.0
    result: dict[str, Any] = {
        "distil_seconds": distil,
        "expert_seconds": experts,
        "saved_seconds": saved,
        "trainings": None,
        "at_least": experts is None,
        "reason": None,
    }
    if saved <= 0:
        result["reason"] = "never: the full data trains as fast"
    elif distil is None:
        result["reason"] = "the seconds to distil are not recorded"
    else:
        result["trainings"] = math.ceil((distil + (experts or 0.0)) / saved)
    return result


def view(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of :func:`measure`."""
    rows = measured["rows"]
    return {
        "sentences": findings(measured),
        "columns": COLUMNS,
        "rows": [
            [
                row["label"],
                breakable(row["architecture"]),
                _few(row["seconds"]),
                None if row["time_share"] is None else f"{100 * row['time_share']:.3g} %",
                f"{row['samples']:,}",
                f"{row['bytes']:,}",
                None if row["storage_ratio"] is None else ratio(row["storage_ratio"]),
            ]
            for row in rows
        ],
        "marked": [place for place, row in enumerate(rows) if row["method"] == DISTILLED],
        "break_even_columns": BREAK_EVEN_COLUMNS,
        "break_even": [
            [
                entry["label"],
                breakable(entry["architecture"]),
                _spent(entry),
                _few(entry["saved_seconds"]),
                trainings(entry),
            ]
            for entry in measured["break_even"]
        ],
        "plots": _plots(measured),
        "notes": _notes(measured),
    }


def _few(seconds: float) -> str:
    return f"{seconds:.2f}" if abs(seconds) >= 0.1 else f"{seconds:.2g}"


def trainings(entry: Mapping[str, Any]) -> str:
    """Such as "4", "at least 4", or why there is no such number."""
    if entry["trainings"] is None:
        return entry["reason"]
    return ("at least " if entry["at_least"] else "") + f"{entry['trainings']:,}"


def _after(entry: Mapping[str, Any]) -> str:
    at_least = "at least " if entry["at_least"] else ""
    return at_least + count(entry["trainings"], "training")


def findings(measured: Mapping[str, Any]) -> list[str]:
    """What making the set took, and when that has paid off."""
    seconds, experts = measured["distil_seconds"], measured["expert_seconds"]
    if seconds is None:
        made = "How long the distillation took is not recorded"
    else:
        made = f"The distillation took {duration(seconds)}"
    if not measured["needs_experts"]:
        made += "; gradient matching needs no experts."
    elif experts is None:
        made += "; the time of its experts is not recorded."
    else:
        made += f", its experts {duration(experts)}."
    sentences = [made]
    own = [entry for entry in measured["break_even"] if entry["method"] == DISTILLED]
    for entry in own:
        if entry["trainings"] is not None:
            beyond = ", experts not counted" if entry["at_least"] else ""
            sentences.append(
                f"On {entry['architecture']} a training on the set takes "
                f"{duration(entry['saved_seconds'])} less than one on the full data: distilling "
                f"has paid off in time after {_after(entry)}{beyond}."
            )
        elif entry["saved_seconds"] <= 0:
            sentences.append(
                f"On {entry['architecture']} distilling never pays off in time: with these epochs "
                "a training on the full data takes no longer than one on the set."
            )
    if not own:
        sentences.append("The break-even is not measured: no training on the full data.")
    return sentences


def _spent(entry: Mapping[str, Any]) -> str | None:
    if entry["distil_seconds"] is None:
        return "not recorded"
    experts = entry["expert_seconds"]
    return f"{entry['distil_seconds']:.1f}" + (f" + {experts:.1f}" if experts else "")


def _plots(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines that cross at the break-even, on the first architecture where they do."""
    for entry in measured["break_even"]:
        if entry["method"] != DISTILLED or entry["trainings"] is None:
            continue
        each = {
            row["method"]: row["seconds"]
            for row in measured["rows"]
            if row["architecture"] == entry["architecture"]
        }
        once = entry["distil_seconds"] + (entry["expert_seconds"] or 0.0)
        costs = {
            METHODS[DISTILLED]: (once, each[DISTILLED]),
            METHODS[FULL]: (0.0, each[FULL]),
        }
        figure = figures.totals(
            costs,
            2.0 * max(entry["trainings"], 2),
            marked=METHODS[DISTILLED],
            alt=f"Seconds spent over the number of trainings of {entry['architecture']}: the full "
            f"data takes {each[FULL]:.3g} each; the set {once:.3g} once and {each[DISTILLED]:.3g} "
            f"each; they meet after {_after(entry)}",
            name="cost-totals",
        )
        note = "The time of the experts is not recorded and not in it." if entry["at_least"] else ""
        title = f"Time in all, on {entry['architecture']}"
        return [{"title": title, "figure": figure, "note": note}]
    return []


def _notes(measured: Mapping[str, Any]) -> list[str]:
    notes = []
    if measured["rows"]:
        epochs = [f"{measured['epochs']} epochs"] if measured["epochs"] else []
        if measured["full_epochs"]:
            epochs.append(f"{measured['full_epochs']} on the full data")
        trained = f" ({listed(epochs)})" if epochs else ""
        where = f" on {measured['device']}" if measured["device"] else ""
        notes.append(
            f"Seconds are those of training all networks of a row{trained}{where}, divided by "
            "their number: one timing, without a spread, so small differences mean nothing. The "
            "seconds to distil were taken when the set was made, maybe on another machine."
        )
        notes.append(
            "Bytes are those of samples and labels as networks train on them (32-bit numbers); "
            "8-bit images on disk take about a quarter."
        )
    text = f"The set's own samples and labels take {size(measured['bytes'])}"
    if measured["weight_bytes"]:
        text += (
            f"; its file also holds importance weights of {size(measured['weight_bytes'])}, which "
            "training does not need"
        )
    return [*notes, text + "."]
