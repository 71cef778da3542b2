"""One thread: the problems are tiny, and waiting threads crawl where the cores are shared."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
