"""Memory that runs out on any machine: an error as CUDA's once live tensors take too many bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryLimit(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive.

    Args:
        limit: bytes beyond which an operator raises ``torch.OutOfMemoryError``; None: never.
        error: what is raised instead.

    Attributes:
        peak: the most bytes that were alive.
        failures: how often it was raised.
    """

    def __init__(self, limit: int | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.limit, self.error = limit, error
        self.peak = self.failures = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def live(self) -> int:
        """Bytes of the tensors that are alive now."""
        dead = [key for key, (storage, _) in self._live.items() if storage.expired()]
        for key in dead:
            del self._live[key]
        return sum(size for _, size in self._live.values())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        new = False
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > 0:
                storage = leaf.untyped_storage()
                if storage.data_ptr() in given:  # a view, or written in place
                    continue
                known = self._live.get(storage.data_ptr())
                if known is None or known[0].expired():
                    self._live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
                    new = True
        if new:
            alive = self.live()
            self.peak = max(self.peak, alive)
            if self.limit is not None and alive > self.limit:
                self.failures += 1
                text = f"CUDA out of memory. {alive} of {self.limit} bytes\nand more lines"
                raise torch.OutOfMemoryError(text) if self.error is None else self.error
        return result
