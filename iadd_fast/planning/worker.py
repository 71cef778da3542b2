"""The probe in a process of its own: see :mod:`iadd_fast.comparison.worker` for how it is asked."""

from __future__ import annotations

from iadd_fast.comparison.worker import serve
from iadd_fast.planning.probe import Probe

if __name__ == "__main__":
    serve(Probe)
