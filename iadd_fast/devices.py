"""Which device a job runs on."""

from __future__ import annotations

import torch

from iadd_fast import arguments


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device named, or CUDA where there is one, else the CPU.

    Raises:
        TypeError: neither a device nor a text.
        ValueError: no such device here, or one on which nothing has a value (meta).
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.instance("device", device, torch.device | str, "cpu, cuda, cuda:1 or a torch.device")
    try:
        found = torch.device(device)
        torch.ones((), device=found).item()
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device: got {arguments.shown(str(device))}, which is not usable here: {reason}"
        ) from None
    # Tensors on "cpu:3" say that they are on "cpu".
    return torch.device("cpu") if found.type == "cpu" else found
