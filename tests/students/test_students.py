"""Students: MTT's parameter counts and order, functional purity, user modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from iadd_fast import students


@pytest.mark.parametrize(
    "channels, classes, side, count",
    [(3, 10, 32, 320_010), (3, 100, 32, 504_420), (1, 10, 28, 317_706), (3, 200, 64, 857_160)],
)
def test_convnet_counts_equal_mtt(channels: int, classes: int, side: int, count: int) -> None:
    """Published expert files load only if every shape is MTT's (anchors 3.1)."""
    student = students.convnet(channels=channels, classes=classes, image_size=side)
    assert student.num_parameters == count


def test_convnet_parameter_order_is_mtts() -> None:
    """conv weight, conv bias, norm weight, norm bias per block, then the classifier."""
    student = students.convnet(channels=1, classes=10, image_size=28, width=8)
    shapes = [entry.shape for entry in student.parameters]
    block = [(8, 8, 3, 3), (8,), (8,), (8,)]
    assert shapes == [(8, 1, 3, 3), (8,), (8,), (8,), *block, *block, (10, 128), (10,)]
    starts = [entry.start for entry in student.parameters]
    assert starts == [0, *[entry.stop for entry in student.parameters][:-1]]


def test_convnet_equals_the_written_out_network() -> None:
    """Breaks when padding, norm, pooling or the flat order differ from MTT's network."""
    student = students.convnet(channels=1, classes=3, image_size=28, width=4, depth=3)
    theta = student.init(0, dtype=torch.float64)
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    parts = list(student.unflatten(theta).values())
    x = images
    for block in range(3):
        w, b, gamma, beta = parts[4 * block : 4 * block + 4]
        x = nn.functional.conv2d(x, w, b, padding=3 if block == 0 else 1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
        x = (x - mean) / (var + 1e-5).sqrt() * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
        x = nn.functional.avg_pool2d(x.relu(), 2)
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(student(theta, images), x.flatten(1) @ parts[-2].T + parts[-1])


@pytest.mark.parametrize(
    "build, shape, count",
    [
        # 25*128+128, 25*128*192+192, 9*192*256+256, 9*256*192+192, 9*192*192+192, 192*16*10+10
        (lambda: students.alexnet(channels=1, classes=10, image_size=28), (1, 28, 28), 1_865_802),
        (lambda: students.vgg11(channels=3, classes=10, image_size=32), (3, 32, 32), 9_231_114),
        (lambda: students.resnet18(channels=3, classes=10, image_size=32), (3, 32, 32), 11_173_962),
        (lambda: students.mlp(inputs=(3, 32, 32), classes=10), (3, 32, 32), 411_146),
        (lambda: students.convnet1d(channels=6, classes=7, length=100), (6, 100), None),
    ],
)
def test_evaluation_networks(build: Any, shape: tuple[int, ...], count: int | None) -> None:
    """MTT's counts (ResNet18 and VGG11 with affine instance norm), and samples stay independent."""
    student = build()
    if count is not None:
        assert student.num_parameters == count
    theta = student.init(0)
    images = torch.randn(3, *shape)
    together = student(theta, images)
    alone = student(theta, images[1:2])
    # A network with batch statistics would mix the samples.
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)
    assert float(together.std(0).max()) > 0


def test_spec_round_trip_builds_the_same_student() -> None:
    """An artifact's description must give back the same function."""
    for student in (
        students.convnet(
            channels=3, classes=5, image_size=(16, 12), width=6, depth=2, norm="group"
        ),
        students.convnet1d(channels=2, classes=3, length=40, kernel=5),
        students.mlp(inputs=(1, 8, 8), classes=4, width=9, depth=2),
        students.alexnet(channels=3, classes=2, image_size=16),
    ):
        again = students.build(student.spec)
        assert again.spec == student.spec
        assert torch.equal(again.init(3), student.init(3))


def test_init_depends_on_its_seed_alone() -> None:
    """Breaks when initialisation reads or moves the caller's random state."""
    student = students.mlp(inputs=4, classes=2, width=3)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = student.init(1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(student.init(1), first)
    assert not torch.equal(student.init(2), first)


def test_user_modules() -> None:
    """Any module works when it is a function of theta; a fresh init really is fresh."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    before = [p.clone() for p in module.parameters()]
    student = students.from_module(module)
    assert student.num_parameters == 4 * 3 + 3 + 3 * 2 + 2
    theta = torch.cat([p.detach().flatten() for p in before])
    x = torch.randn(5, 4)
    torch.testing.assert_close(student(theta, x), module(x))
    assert not torch.equal(student.init(0), theta)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.requires_grad for p in module.parameters())


def test_tied_parameters_appear_once() -> None:
    """A tied weight is one stretch of theta; breaks when it is stored twice and drifts apart."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(self.a(x))
            return y

    student = students.from_module(Tied)
    assert student.num_parameters == 9
    theta = student.init(0)
    x, w = torch.randn(2, 3), theta.view(3, 3)
    torch.testing.assert_close(student(theta, x), x @ w.T @ w.T)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "running statistics"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "random numbers"),
        (nn.ReLU(), "no parameters"),
        (Bare(), "reset_parameters"),
    ],
)
def test_modules_that_are_no_function_of_theta_are_refused(module: nn.Module, message: str) -> None:
    """Running statistics or dropout would make the sweep differentiate another function."""
    with pytest.raises(ValueError, match=message):
        students.from_module(module)
    if isinstance(module, nn.Sequential):
        students.from_module(module.eval())


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: students.convnet(channels=0, classes=2, image_size=8), "channels"),
        (lambda: students.convnet(channels=1, classes=2, image_size=8, depth=4), "depth"),
        (lambda: students.convnet(channels=1, classes=2, image_size=8, norm="batch"), "norm"),
        (lambda: students.vgg11(channels=3, classes=2, image_size=16), "image_size"),
        (lambda: students.build({"name": "lenet"}), "student"),
        (lambda: students.build({"name": "mlp", "inputs": 3, "classes": 2, "depht": 1}), "student"),
        (lambda: students.for_data((2, 30), 3, "convnet"), "student 'convnet'"),
        (lambda: students.parse_student("convnet:width", (1, 8, 8), 3), "student"),
        (lambda: students.parse_student("convnet:wdith=3", (1, 8, 8), 3), "student 'convnet'"),
    ],
)
def test_bad_arguments_are_named(call: Any, named: str) -> None:
    """Breaks when a wrong option fails deep inside torch instead of at the door."""
    with pytest.raises(ValueError, match=rf"^{named}:"):
        call()


def test_layers_cover_theta_once() -> None:
    """Importance per layer sums over these slices: a gap or an overlap would misreport it."""
    student = students.parse_student("convnet:width=4,depth=2", (1, 8, 8), 10)
    seen = torch.zeros(student.num_parameters)
    for parts in student.layers().values():
        for part in parts:
            seen[part] += 1
    assert torch.equal(seen, torch.ones_like(seen))


@pytest.mark.parametrize("side", [2, 3])
def test_small_images_have_a_default_network(side: int) -> None:
    """Breaks when images of two pixels a side need a student to be named."""
    student = students.for_data((1, side, side), 2)
    assert student.spec["depth"] == 1
    with pytest.raises(ValueError, match="depth: got 1; a side of 1 .* student 'mlp' takes any"):
        students.for_data((1, 1, 1), 2)
