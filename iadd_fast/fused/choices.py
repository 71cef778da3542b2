"""What the fused passes choose by measurement, in one place, with the numbers.

Times: ms, two cores of a Zen 4 server, width 128, 100 images. On a GPU: not yet measured.

Memory format: channels-last everywhere. oneDNN's first convolution (3 to 128 channels, 32x32) takes
5.9 forward, 19.7 and 4.6 for its gradients in channels-last and 42, 36 and 23 in contiguous order;
its others are equal in both (33 and 33, 16x16). The plane kernels are 1.5 times slower in
channels-last, which costs less; and the package's own convolutions vectorise over channels.

Concatenation: none. One oneDNN convolution over the concatenated channels of a tangent's two terms
takes 62.5 against 2 times 33.5, without the copies that make its input. The package's own add both
terms before one inverse transform (33.7 against 2 times 17.4); on a GPU they are two calls.
"""

from __future__ import annotations

import math

import torch

from iadd_fast.fused.network import FusedNetwork
from iadd_fast.memory import MIB


def samples_at_once(network: FusedNetwork, batch: int, device: torch.device, itemsize: int) -> int:
    """Samples of a ``batch`` that go through the network together: even parts of it.

    On a CPU as many as leave the largest activation at 13 MiB, so that what one pass writes the
    next one finds in the cache. Width 128, 32x32, 100 images, 3 inner steps on two cores (32 MiB of
    L3), ms with nothing and with all activations kept, by chunk:

    5: 1722, 1371; 10: 1382, 1249; 20: 1249, 1092; 25: 1211, 1020; 34: 1257, 1117; 50: 1442, 1063;
    100: 1214, 1029, with four times the memory of 25.
    """
    largest = network.numbers_per_sample() * itemsize
    block = 2048 * MIB if device.type == "cuda" else 13 * MIB
    parts = -(-batch * largest // block)
    return -(-batch // min(batch, parts))


def memory_budget(device: torch.device) -> int:
    """Bytes for activations kept from the inner steps to the sweep, where the caller says none."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 4
    return 256 * MIB


def networks_at_once(
    network: FusedNetwork, batch_size: int, device: torch.device, itemsize: int
) -> int:
    """Networks that train side by side on batches of ``batch_size``.

    One on a CPU, whose cores it fills. On a GPU as many as give the convolution of the last block,
    the one with the fewest outputs, four 128x128 tiles per multiprocessor, at most 16, in half of
    the free memory. (The rule is by the size of cuDNN's tiles; not yet measured.)
    """
    if device.type != "cuda":
        return 1
    height, width = network.blocks[-1].side
    tiles = batch_size * height * width * network.width / 128**2
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count / tiles
    samples = samples_at_once(network, batch_size, device, itemsize)
    # Outputs and pooled outputs of the blocks and the gradients of both: under four of the largest.
    held = 4 * samples * network.numbers_per_sample() * itemsize
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(16, math.ceil(wanted), free // 2 // held))
