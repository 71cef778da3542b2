"""The report of a distillation: one self-contained HTML page."""

from __future__ import annotations

from iadd_fast.report.page import write_report

__all__ = ["write_report"]
