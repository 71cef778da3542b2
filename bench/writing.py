"""Markdown out of rows, and the targets they are held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
FUSED = ("cpp", "triton", "cuda")
TITLES = {"reference": "eager", "compiled": "torch.compile", "cpp": "C++"}
LARGE = 2**25  # bytes from which a fused kernel on a GPU should reach the share of a copy
SHARE = 0.8


def eager_target(row: Row) -> float | None:
    """How many times faster than eager PyTorch a fused row should be, None where nothing is set."""
    if row["operator"] == "conv3x3" and row["device"] == "cpu":
        return 1.5
    if row["operator"] != "norm_relu_pool" or row["device"] != "cpu" or not _plain(row):
        return None
    if row["order"] != "forward":
        return 8.0
    batch, side = row["shape"][0], row["shape"][2]
    if batch == 10:
        return 5.0
    return 15.0 if side in (16, 32) else None


def compiled_target(row: Row) -> float | None:
    """The same against ``torch.compile``."""
    if row["operator"] != "norm_relu_pool" or row["device"] != "cpu" or not _plain(row):
        return None
    return 2.0


def share_target(row: Row) -> float | None:
    """The share of the copy bandwidth that a fused row should reach."""
    fused = row["device"] == "cuda" and row["contender"] in FUSED
    return SHARE if fused and row["bytes"] >= LARGE else None


def markdown(rows: list[Row]) -> str:
    """A table for each operator, dtype and layout; below a line that says where it was measured."""
    parts = []
    for key, group in _grouped(rows, ("operator", "device", "dtype", "layout")).items():
        operator, _, dtype, layout = key
        parts.append(f"### `{operator}`, {dtype}, {layout.replace('_', '-')}\n")
        parts.append(_where(group[0]))
        parts.append("\n".join(_table(group)) + "\n")
    return "\n".join(parts)


def targets(rows: list[Row]) -> tuple[int, list[str]]:
    """How many targets were met, and a line for each that was missed."""
    met, missed = 0, []
    for group in _cases(rows):
        for fused in (row for row in group.values() if row["contender"] in FUSED):
            if "median_ms" not in fused:
                continue
            for what, found, target in _held(group, fused):
                if target is None or found is None:
                    continue
                if found >= target:
                    met += 1
                else:
                    unit = f"{found:.0%}, target {target:.0%}"
                    times = f"{found:.1f}x, target {target:g}x"
                    shown = unit if what == "share of a copy" else times
                    missed.append(f"{_title(fused)}, {fused['contender']}, {what}: {shown}")
    return met, missed


def _held(group: dict[str, Row], fused: Row) -> Iterator[tuple[str, float | None, float | None]]:
    yield "eager", _ratio(group, "reference", fused), eager_target(fused)
    yield "torch.compile", _ratio(group, "compiled", fused), compiled_target(fused)
    yield "share of a copy", fused["share_of_copy"], share_target(fused)


def _table(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(row["contender"] for row in rows if "unavailable" not in row))
    fused = [name for name in names if name in FUSED]
    graph = any("graph_ms" in row for row in rows)
    head = ["order", "shape"]
    for name in names:
        head.append(f"{TITLES.get(name, name)}, ms")
        head += [f"{TITLES.get(name, name)}, graph ms"] if graph else []
    for name in fused:
        title = TITLES.get(name, name)
        head += [f"eager / {title}", f"torch.compile / {title}", f"{title}, GB/s (of a copy)"]
    head.append("error: " + ", ".join(TITLES.get(name, name) for name in names))
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for group in _cases(rows):
        lines.append("| " + " | ".join(_cells(group, names, fused, graph)) + " |")
    notes = {row["unavailable"]: row["contender"] for row in rows if "unavailable" in row}
    lines += [f"\n{name}: {reason}" for reason, name in notes.items()]
    return lines


def _cells(group: dict[str, Row], names: list[str], fused: list[str], graph: bool) -> list[str]:
    first = next(iter(group.values()))
    shape = "x".join(str(size) for size in first["shape"])
    cells = [first["order"], f"{first['variant']} {shape}".strip()]
    for name in names:
        row = group.get(name, {})
        cells.append(_time(row, "median_ms"))
        cells += [_time(row, "graph_ms")] if graph else []
    for name in fused:
        row = group.get(name, {})
        if "median_ms" not in row:
            cells += ["-"] * 3
            continue
        cells.append(_times(_ratio(group, "reference", row), eager_target(row)))
        cells.append(_times(_ratio(group, "compiled", row), compiled_target(row)))
        share, wanted = row["share_of_copy"], share_target(row)
        missed = " MISSED" if wanted is not None and share < wanted else ""
        cells.append(f"{row['gb_s']:.1f} ({share:.0%}){missed}")
    errors = (group.get(name, {}).get("error") for name in names)
    cells.append(", ".join("-" if error is None else f"{error:.0e}" for error in errors))
    return cells


def _time(row: Row, field: str) -> str:
    if "wrong" in row:
        return "WRONG"
    return f"{row[field]:.3g}" if field in row else "-"


def _times(ratio: float | None, target: float | None) -> str:
    if ratio is None:
        return "-"
    if target is None:
        return f"{ratio:.1f}x"
    return f"{ratio:.1f}x ({'' if ratio >= target else 'MISSED '}{target:g}x)"


def _ratio(group: dict[str, Row], slow: str, fused: Row) -> float | None:
    """By graph time where both have one: it leaves out the launches."""
    other = group.get(slow, {})
    for field in ("graph_ms", "median_ms"):
        if field in other and field in fused:
            return float(other[field] / fused[field])
    return None


def _where(row: Row) -> str:
    threads = f", {row['threads']} threads" if row["device"] == "cpu" else ""
    triton = f", triton {row['triton']}" if row["device"] == "cuda" else ""
    return (
        f"{row['device_name']}{threads}; torch {row['torch']}{triton}, Python {row['python']}; "
        f"{row['date']}; a copy reaches {row['copy_gb_s']:.0f} GB/s.\n"
    )


def _title(row: Row) -> str:
    shape = "x".join(str(size) for size in row["shape"])
    parts = (row["operator"], row["order"], row["variant"], shape, row["dtype"])
    return " ".join(part for part in parts if part)


def _plain(row: Row) -> bool:
    return row["dtype"] == "float32" and row["layout"] == "contiguous"


def _cases(rows: list[Row]) -> list[dict[str, Row]]:
    """Contender -> row, for each case."""
    fields = ("operator", "device", "order", "variant", "shape", "dtype", "layout")
    return [{row["contender"]: row for row in group} for group in _grouped(rows, fields).values()]


def _grouped(rows: list[Row], fields: tuple[str, ...]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[field]) for field in fields), []).append(row)
    return groups
