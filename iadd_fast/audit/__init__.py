"""What a distilled set is worth, keeps, loses and may leak: the measurements behind a report."""

from __future__ import annotations

from iadd_fast.audit.run import Audit, audit

__all__ = ["Audit", "audit"]
