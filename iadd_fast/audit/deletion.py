"""Deletion curves: does undoing the training of parameters of high weight cost more accuracy?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast.audit.estimates import Estimate, estimate
from iadd_fast.audit.material import Material
from iadd_fast.data import Split
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.seeds import generator
from iadd_fast.students import Student
from iadd_fast.training import accuracy

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Groups of networks that are tested, in the order of the page.
GROUPS = (FULL, DISTILLED)

Curves = NDArray[np.float64]


def deletion(
    material: Material,
    weight: Tensor | None,
    *,
    test_images: int = 500,
    networks: int = 5,
    draws: int = 5,
) -> dict[str, Any]:
    """Test accuracy of trained networks when the training of some parameters is undone, JSON-able.

    A share s of the parameters is set back to where the network started, the others stay as
    trained; ``SHARES`` are measured. The parameters are taken in the order of::

        learned         v = w^2, highest first (``top``) or lowest first (``bottom``)
        random          chance, ``draws`` orders
        within_layers   chance within each layer: at every s as many parameters of each layer as the
                        learned order takes, ``draws`` orders, for top and for bottom
        movement        |theta - theta_init| of the network itself, top and bottom: a yardstick

    Equal weights are ordered by chance, anew for every network. ``within_layers`` is the control
    that shows whether the weights say more than which layer a parameter belongs to. All networks
    see the same random orders and the same test samples.

    With T and B the areas under the accuracy curves of an order, top and bottom first, and T', B'
    those of a control, ``areas`` has ``top = T' - T``, ``bottom = B - B'`` and ``both``, their mean
    (points of accuracy, averaged over s): above 0 what is ranked high matters more than by chance.
    Intervals of 95 % are over networks and random orders, crossed
    (:func:`iadd_fast.audit.estimates.estimate`); that the test samples are drawn is not counted.
    The verdict is read off ``both`` of the learned order.

    Costs ``8 (4 + 3 draws) + 2`` tests of ``test_images`` samples for each network, of which at
    most ``networks`` of each group are taken.
    """
    reason = _nothing_to_test(material, weight)
    if reason is not None:
        return {"measured": False, "reason": reason}
    assert weight is not None
    test, of = _subset(material, test_images)
    value = weight.detach().double().square().cpu()
    result: dict[str, Any] = {
        "measured": True,
        "shares": list(SHARES),
        "test_images": len(test),
        "of_test_images": of,
        "draws": draws,
        "ties": int(len(value) - len(value.unique())),
        "groups": {},
    }
    for method in GROUPS:
        result["groups"][method] = _group(
            material.trained[method], value, test, networks, draws, material.seed
        )
    return result


def _nothing_to_test(material: Material, weight: Tensor | None) -> str | None:
    if weight is None:
        return "the set holds no importance weights, so there is nothing to test"
    if bool((weight == weight[0]).all()):
        return "all importance weights are equal, so there is nothing to test"
    for method in GROUPS:
        group = material.trained[method]
        if group.student.num_parameters != len(weight):
            return (
                "the trained networks are of another architecture than the one that the weights "
                "belong to"
            )
        if group.initial is None:
            return "where the trained networks started from is not known"
    return None


def _subset(material: Material, most: int) -> tuple[Split, int]:
    """At most ``most`` test samples, the same for every network and order."""
    test = material.test
    draw = generator(material.seed, "deletion", "test")
    chosen = torch.randperm(len(test), generator=draw)[:most].sort().values
    return test.subset(chosen.to(test.labels.device)), len(test)


def _group(
    trained: TrainedNetworks, value: Tensor, test: Split, networks: int, draws: int, seed: int
) -> dict[str, Any]:
    assert trained.initial is not None
    thetas, initial = trained.thetas[:networks], trained.initial[:networks]
    student = trained.student
    layers = layer_numbers(student)
    names = ("learned", "within_layers", "movement")
    tops: dict[str, list[Curves]] = {name: [] for name in names}
    bottoms: dict[str, list[Curves]] = {name: [] for name in names}
    chance: list[Curves] = []
    for network, (theta, start) in enumerate(zip(thetas, initial, strict=True)):
        curve = _curve_of(student, theta, start, test)
        order = ranked(value, seed, "ties", network)
        moved = ranked((theta - start).abs().double().cpu(), seed, "movement", network)
        shuffled = [within_layers(order, layers, seed, draw) for draw in range(draws)]
        flipped = [within_layers(order.flip(0), layers, seed, draw) for draw in range(draws)]
        tops["learned"].append(np.stack([curve(order)]))
        bottoms["learned"].append(np.stack([curve(order.flip(0))]))
        tops["movement"].append(np.stack([curve(moved)]))
        bottoms["movement"].append(np.stack([curve(moved.flip(0))]))
        tops["within_layers"].append(np.stack([curve(one) for one in shuffled]))
        bottoms["within_layers"].append(np.stack([curve(one) for one in flipped]))
        chance.append(np.stack([curve(random_order(len(theta), seed, d)) for d in range(draws)]))
    top = {name: np.stack(curves) for name, curves in tops.items()}
    bottom = {name: np.stack(curves) for name, curves in bottoms.items()}
    top["random"] = bottom["random"] = np.stack(chance)
    areas = {
        f"{order}_against_{control}": _areas(
            top[order], bottom[order], top[control], bottom[control]
        )
        for order, control in (
            ("learned", "random"),
            ("learned", "within_layers"),
            ("movement", "random"),
        )
    }
    against_random = areas["learned_against_random"]["both"]
    against_layers = areas["learned_against_within_layers"]["both"]
    return {
        "networks": len(thetas),
        "top": {name: _described(curves) for name, curves in top.items()},
        "bottom": {name: _described(curves) for name, curves in bottom.items()},
        "areas": areas,
        "verdict": verdict(against_random, against_layers),
    }


def _curve_of(
    student: Student, theta: Tensor, start: Tensor, test: Split
) -> Callable[[Tensor], Curves]:
    """A function from an order of the parameters to the accuracies at ``SHARES``, in percent."""

    def measured(parameters: Tensor) -> float:
        return accuracy(student, parameters, test.images, test.labels)

    ends = measured(theta), measured(start)

    def curve(order: Tensor) -> Curves:
        values = []
        for share in SHARES:
            count = round(share * len(order))
            if count == 0 or count == len(order):
                values.append(ends[0] if count == 0 else ends[1])
                continue
            undone = order[:count].to(theta.device)
            parameters = theta.clone()
            parameters[undone] = start[undone]
            values.append(measured(parameters))
        return np.asarray(values, np.float64)

    return curve


def ranked(value: Tensor, seed: int, *path: int | str) -> Tensor:
    """Parameters by ``value [P]``, highest first; equal ones in an order of chance."""
    shuffled = torch.randperm(len(value), generator=generator(seed, "deletion", *path))
    return shuffled[value[shuffled].argsort(descending=True, stable=True)]


def random_order(count: int, seed: int, draw: int) -> Tensor:
    """An order of chance."""
    return torch.randperm(count, generator=generator(seed, "deletion", "random", draw))


def within_layers(order: Tensor, layers: Tensor, seed: int, draw: int) -> Tensor:
    """``order [P]`` with the places of each layer kept and its parameters dealt out by chance.

    Args:
        order: of the parameters. layers: the number of each parameter's layer ``[P]``.
    """
    mixed = generator(seed, "deletion", "within layers", draw)
    places = layers[order]
    result = order.clone()
    for layer in range(int(layers.max()) + 1):
        own = (places == layer).nonzero()[:, 0]
        result[own] = order[own[torch.randperm(len(own), generator=mixed)]]
    return result


def layer_numbers(student: Student) -> Tensor:
    """The number of the layer of every parameter ``[P]``, int64."""
    numbers = torch.empty(student.num_parameters, dtype=torch.int64)
    for number, parts in enumerate(student.layers().values()):
        for part in parts:
            numbers[part] = number
    return numbers


def _areas(top: Curves, bottom: Curves, top_control: Curves, bottom_control: Curves) -> Any:
    """Areas between curves ``[K, draws, shares]`` as estimates over networks and draws."""
    under = {
        "top": _area(top_control) - _area(top),
        "bottom": _area(bottom) - _area(bottom_control),
    }
    under["both"] = (under["top"] + under["bottom"]) / 2.0
    return {name: _estimated(values).to_dict() for name, values in under.items()}


def _estimated(values: Curves) -> Estimate:
    """The mean of ``[K, draws]``; where no draw differs, the networks alone are counted.

    With one network the interval is over draws, and there is none where they are equal.
    """
    if len(values) == 1 and np.ptp(values) == 0.0:
        return Estimate(float(values.mean()), None, None, None, 0.0)
    return estimate(values, share=False)


def _area(curves: Curves) -> Curves:
    """The area under accuracies ``[..., shares]``: their mean over s in [0, 1]."""
    widths = np.diff(np.asarray(SHARES))
    return np.asarray(((curves[..., 1:] + curves[..., :-1]) / 2.0 * widths).sum(-1))


def _described(curves: Curves) -> dict[str, Any]:
    """Mean and standard deviation over networks and draws, for each share."""
    flat = curves.reshape(-1, curves.shape[-1])
    return {
        "mean": flat.mean(0).tolist(),
        "spread": flat.std(0, ddof=1).tolist() if len(flat) > 1 else None,
        "networks": curves.shape[0],
        "draws": curves.shape[1],
    }


def verdict(against_random: dict[str, Any], against_layers: dict[str, Any]) -> str:
    """What the areas ``both`` say of the learned order.

    ``"separates"``: above chance within layers; ``"reversed"``: below it, what is ranked high
    matters less; not told from it, ``"layers"``: above chance over all parameters,
    ``"layers_reversed"``: below that, ``"nothing"``: not told from that either; ``"unresolved"``:
    no interval.
    """
    if against_random["low"] is None or against_layers["low"] is None:
        return "unresolved"
    if against_layers["low"] > 0:
        return "separates"
    if against_layers["high"] < 0:
        return "reversed"
    if against_random["low"] > 0:
        return "layers"
    return "layers_reversed" if against_random["high"] < 0 else "nothing"
