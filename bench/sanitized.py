"""A pytest plugin (``-p bench.sanitized``): tests run on the library of ``bench/sanitize.sh``."""

from __future__ import annotations

import os
from pathlib import Path

from iadd_fast.native import library

library.FOLDER = Path(os.environ["IADD_FAST_SANITIZED"], "iadd_fast", "native").resolve()
if (reason := library.missing("cpu")) is not None:
    raise RuntimeError(f"the sanitized library cannot be used: {reason}")
