"""Several processes on one job (``torchrun``): whose part is which, and sums over all of them.

Whoever has begun ``torch.distributed`` gets the parallel form of a call; the command line begins it
where ``torchrun`` has started it. Nothing is sent as a pickle.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Seconds between two looks at what the first process says at the start.
LOOK = 0.05
#: How long one process waits for the others before the job ends: a validation may lie between.
PATIENCE = timedelta(minutes=30)


class RankLost(RuntimeError):
    """Another process of the job has ended or does not answer."""


class RanksDiffer(RuntimeError):
    """The processes of the job hold different numbers where they hold the same."""


@dataclass
class Ranks:
    """The processes of a job, seen from one of them; one alone where there are no others.

    Attributes:
        rank: number of this process. size: how many there are.
        stopping: whether any of them had been asked to stop at the last :meth:`sum`; the same on
            all of them.
    """

    rank: int = 0
    size: int = 1
    stopping: bool = False
    _asked: bool = field(default=False, repr=False)

    @classmethod
    def current(cls) -> Ranks:
        """Those of ``torch.distributed``'s default group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def stop(self, asked: bool) -> bool:
        """Whether to stop here; one process that was asked to tells the others in its next sum."""
        if self.size == 1:
            return asked
        self._asked = self._asked or asked
        return self.stopping

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Every tensor's sum over all processes, by one all-reduce over all of them together.

        They travel in the widest dtype among them and come back in their own.

        Raises:
            RankLost: another process has ended.
        """
        if self.size == 1:
            return list(parts)
        dtype = parts[0].dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)
        flags = torch.tensor([float(self._asked)], dtype=dtype, device=parts[0].device)
        flat = torch.cat([*(part.detach().reshape(-1).to(dtype) for part in parts), flags])
        _together(lambda: dist.all_reduce(flat))
        self.stopping = bool(flat[-1] > 0)
        pieces = flat[:-1].split([part.numel() for part in parts])
        return [
            piece.view(part.shape).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)
        ]

    def from_first(self, content: bytes | None) -> bytes | None:
        """What the first process gives, on all of them.

        Raises:
            RankLost: another process has ended.
        """
        if self.size == 1:
            return content
        length = torch.tensor([-1 if content is None else len(content)], device=_device())
        _together(lambda: dist.broadcast(length, 0))
        count = int(length)
        if count < 0:
            return None
        held = torch.empty(count, dtype=torch.uint8, device=_device())
        if content is not None and self.first and count > 0:
            held.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        _together(lambda: dist.broadcast(held, 0))
        return held.cpu().numpy().tobytes()

    def check_equal(self, digest: str, what: str) -> None:
        """Raise unless ``digest`` (hex, 64 digits) is the same on all processes.

        Raises:
            RanksDiffer: it is not.
            RankLost: another process has ended.
        """
        if self.size == 1:
            return
        words = [int(digest[at : at + 8], 16) for at in range(0, 64, 8)]
        # Least and largest in one go: the largest of x and of -x.
        both = torch.tensor([*words, *(-word for word in words)], device=_device())
        _together(lambda: dist.all_reduce(both, dist.ReduceOp.MAX))
        if not torch.equal(both[:8], -both[8:]):
            raise RanksDiffer(
                f"the processes hold different {what}: their arithmetic differs (other devices, "
                "versions or thread counts?); the last checkpoint is good"
            )

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            RankLost: another process has ended.
        """
        if self.size > 1:
            _together(dist.barrier)


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that ``torchrun`` has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined() -> Iterator[Ranks]:
    """Inside, the processes that ``torchrun`` has started are one job; else nothing changes.

    NCCL joins GPUs (each process takes the one of its local number), Gloo processors.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
        RankLost: another process has ended.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield Ranks.current()
        return
    if torch.cuda.is_available():
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > gpus:
            raise ValueError(
                f"--nproc-per-node: got {here}; this machine has {gpus} GPUs, one for each process "
                "(CUDA_VISIBLE_DEVICES= runs them on the processor)"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    _together(_begin)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def _begin() -> None:
    from torch._C._distributed_c10d import PrefixStore  # not in every build of torch
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store = PrefixStore(f"iadd_fast/{_attempt(store, rank, size)}", store)
    dist.init_process_group(store=store, rank=rank, world_size=size, timeout=PATIENCE)


def _attempt(store: Any, rank: int, size: int) -> str:
    """A name for this start of the job that all its processes have, and no earlier start had.

    torchrun may keep its store from one start to the next: without such a name, a process reads
    there where one of the last start listened. torchrun's own count of restarts is none: each node
    counts for itself. So the first process makes one up, and each of the others, which cannot tell
    whether the one it finds is of now, waits until its own answer to it is confirmed.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        store.set("iadd_fast/attempt", own)
        answers = [store.get(f"iadd_fast/{own}/{other}") for other in range(1, size)]
        store.set(f"iadd_fast/{own}/all", b" ".join(answers))
        return own
    until = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < until:
        if store.check(["iadd_fast/attempt"]):
            found = store.get("iadd_fast/attempt").decode()
            store.set(f"iadd_fast/{found}/{rank}", own)
            confirmed = f"iadd_fast/{found}/all"
            if store.check([confirmed]) and own.encode() in store.get(confirmed).split():
                return str(found)
        time.sleep(LOOK)
    raise RuntimeError("the first process does not answer")


def _device() -> torch.device:
    """Where this job's small messages travel."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _together(collective: Callable[[], Any]) -> None:
    try:
        collective()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RankLost(
            f"another process of this job has ended or does not answer ({reason}); started again "
            "(torchrun --max-restarts does it by itself), the job goes on from its last checkpoint"
        ) from None
