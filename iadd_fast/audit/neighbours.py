"""Which records lie nearest to which samples, without ever holding all distances at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

_VALUES_AT_ONCE = 2**24
_MORE_CANDIDATES = 3
_SAME = 1e-3


@torch.no_grad()
def nearest(queries: Tensor, records: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest records of each query: Euclidean distances and indices.

    Candidates are found by ``|q|^2 + |r|^2 - 2 q.r`` in float32 and then measured again by their
    differences in float64, so that a copy is at distance 0. Costs ``2 n N d`` operations.

    Args:
        queries: ``[n, d]``. records: ``[N, d]``, N at least ``count``.

    Returns:
        float64 ``[n, count]``, nearest first, and int64 ``[n, count]``.

    Raises:
        ValueError: there are fewer than ``count`` records.
    """
    if len(records) < count:
        raise ValueError(f"records: got {len(records)}; takes at least {count}")
    candidates = min(len(records), count + _MORE_CANDIDATES)
    distances, indices = [], []
    for rows, squared in squared_distances(queries, records, candidates):
        found = squared.topk(candidates, largest=False).indices
        exact = (queries[rows, None].double() - records[found].double()).norm(dim=2)
        order = exact.argsort(dim=1, stable=True)[:, :count]
        distances.append(exact.gather(1, order))
        indices.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def squared_distances(
    queries: Tensor, records: Tensor, gathered: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances to all records, in float32, for one slice of the queries after another.

    Args:
        queries: ``[n, d]``. records: ``[N, d]``.
        gathered: records a query that the caller will hold beside them.
    """
    centre = records.mean(0)
    centred = records - centre
    lengths = centred.square().sum(1)
    rows = max(1, _VALUES_AT_ONCE // max(len(records), 2 * gathered * records.shape[1], 1))
    for begin in range(0, len(queries), rows):
        part = queries[begin : begin + rows] - centre
        squared = torch.addmm(lengths, part, centred.T, alpha=-2.0)
        yield (
            slice(begin, begin + len(part)),
            squared.add_(part.square().sum(1)[:, None]).clamp_min_(0),
        )


def standardised(samples: Tensor) -> Tensor:
    """Each row of ``[N, d]`` less its mean, at length 1 (a constant row: 0).

    The squared distance of two such rows is ``2 (1 - r)`` with r their Pearson correlation.
    """
    centred = samples - samples.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


def identities(*parts: Tensor) -> list[Tensor]:
    """A number for each sample of each part; equal numbers where the very values are equal."""
    known: dict[bytes, int] = {}
    result = []
    for part in parts:
        rows = part.detach().flatten(1).cpu().contiguous().numpy()
        digests = (hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
        result.append(torch.tensor([known.setdefault(d, len(known)) for d in digests]))
    return result


def find(samples: Tensor, records: Tensor, argument: str) -> Tensor:
    """The index of each sample among the records: int64 ``[n]`` on the CPU.

    Equal values are found first; what is left is the nearest record, which may differ by rounding
    (a thousandth of its length) where a transform was applied to other batches.

    Raises:
        ValueError: a sample is not among the records; the message names ``argument``.
    """
    of_samples, of_records = identities(samples, records)
    place = {int(identity): index for index, identity in enumerate(of_records.tolist())}
    found = torch.tensor([place.get(identity, -1) for identity in of_samples.tolist()])
    lost = torch.nonzero(found < 0)[:, 0]
    if len(lost):
        queries, flat = samples[lost.to(samples.device)].flatten(1), records.flatten(1)
        distances, indices = nearest(queries, flat)
        lengths = queries.double().norm(dim=1).clamp_min(1e-12)
        far = int((distances[:, 0] > _SAME * lengths).sum())
        if far:
            raise ValueError(
                f"{argument}: {far} of {len(samples)} images are not among the {len(records)} "
                "records; takes images of the same data in the same space"
            )
        found[lost] = indices[:, 0].cpu()
    return found
