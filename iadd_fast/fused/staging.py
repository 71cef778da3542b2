"""Batches of a set that stays on the host, on their way to a device that computes meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Two host buffers that take turns: one is filled while the other is on its way.

    Args:
        size: most samples of a batch.
        images: a set of the shape and dtype of those that will come.
        device: where the batches go; buffers for a GPU are pinned, so that copies do not wait.
    """

    def __init__(self, size: int, images: Tensor, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._buffers = [
            torch.empty(size, *images.shape[1:], dtype=images.dtype, pin_memory=on_gpu)
            for _ in range(2)
        ]
        self._copied = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self._device = device
        self._turn = 0

    def gather(self, images: Tensor, batch: Tensor, out: Tensor) -> Tensor:
        """Write the rows ``batch`` of ``images`` (both on the host) to ``out`` on the device."""
        self._turn = 1 - self._turn
        if self._copied:
            self._copied[self._turn].synchronize()  # the buffer's last copy, two batches ago
        held = self._buffers[self._turn][: len(batch)]
        torch.index_select(images, 0, batch, out=held)
        out.copy_(held, non_blocking=True)
        if self._copied:
            self._copied[self._turn].record(torch.cuda.current_stream(self._device))
        return out
