"""One thread: the problems are tiny, and waiting threads crawl where the cores are shared.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before they
are imported.
"""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
