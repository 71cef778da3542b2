"""Work on static buffers as one CUDA graph: launched once instead of kernel by kernel.

At one image per class an outer iteration is thousands of kernels of a few microseconds, so that
launching them is all the time it takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from iadd_fast.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Replayed:
    """Functions without arguments or results, run side by side, from the second call on as a graph.

    The first call runs them as they are, which compiles kernels and warms up libraries; the second
    captures a graph and replays it. Off a GPU, or where capturing fails (logged with its reason),
    every call runs the functions one after another. Running out of memory is an error in every
    call: less memory is the caller's to choose.

    Args:
        functions: each works on static buffers of its own, and decides nothing on values.
        device: where the buffers are.
        name: for the log.
        pool: memory pool of a graph that always runs before this one and whose values are read.
    """

    def __init__(
        self,
        functions: Sequence[Callable[[], None]],
        device: torch.device,
        name: str,
        pool: Replayed | None = None,
    ) -> None:
        self.functions = tuple(functions)
        self.device = device
        self.name = name
        self.graph: torch.cuda.CUDAGraph | None = None
        self._warm = False
        self._eager = device.type != "cuda"
        self._pool = pool

    def __call__(self) -> None:
        """Run the functions once."""
        if self._eager or not self._warm:
            self._warm = True
            for function in self.functions:
                function()
            return
        if self.graph is None and not self._capture():
            self()
            return
        assert self.graph is not None
        self.graph.replay()

    def _capture(self) -> bool:
        other = None if self._pool is None else self._pool.graph
        torch.cuda.synchronize(self.device)
        try:
            graph = torch.cuda.CUDAGraph()
            # torch.cuda.graph leaves its own stream current where a capture cannot be ended; this
            # puts the caller's back. Other threads may allocate meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.device)),
                torch.cuda.graph(
                    graph,
                    pool=None if other is None else other.pool(),
                    capture_error_mode="thread_local",
                ),
            ):
                self._side_by_side()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._eager = True
            reason = str(error).splitlines()[0]
            log.warning("%s: no CUDA graph, every kernel is launched: %s", self.name, reason)
            torch.cuda.synchronize(self.device)
            return False
        self.graph = graph
        return True

    def _side_by_side(self) -> None:
        main = torch.cuda.current_stream(self.device)
        streams: list[torch.cuda.Stream] = []
        try:
            for function in self.functions[1:]:
                streams.append(torch.cuda.Stream(self.device))
                streams[-1].wait_stream(main)
                with torch.cuda.stream(streams[-1]):
                    function()
            self.functions[0]()
        finally:
            # Also when one fails: a capture with a stream that has not come back cannot be ended,
            # and torch's allocator would go on as if it were underway.
            for stream in streams:
                main.wait_stream(stream)
