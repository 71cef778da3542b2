"""Peak memory of this process, above what it had before.

On a GPU: the most that torch's allocator had handed out. On a CPU: the largest resident set, from
``VmHWM`` of ``/proc/self/status``, which writing 5 to ``/proc/self/clear_refs`` sets back; where
the system has no such files, ``getrusage``, whose maximum counts from the start of the process.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MB = 1e6


class PeakMemory:
    """Counts from its making; :meth:`megabytes` says how far the memory went above that.

    What was freed before is given back to the system first, so that a call cannot hide in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            self.method = "torch.cuda.max_memory_allocated"
            return
        _trim()
        self.method = "VmHWM"
        try:
            CLEAR.write_text("5")
        except OSError:
            self.method = "VmHWM, not set back" if STATUS.exists() else "getrusage"
        self.before = _resident("VmRSS")

    def megabytes(self) -> float:
        """The peak since the start, in 10^6 bytes."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _resident("VmHWM")
        return max(0, peak - self.before) / MB


def available(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else sys.maxsize


def _resident(field: str) -> int:
    """Bytes; without ``/proc`` the largest so far, whichever field is asked for."""
    if STATUS.exists():
        found = re.search(rf"{field}:\s*(\d+)", STATUS.read_text())
        return int(found.group(1)) * 1024 if found else 0
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _trim() -> None:
    """glibc's free memory back to the system; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
