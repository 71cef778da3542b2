"""Students: networks as functions of one flat parameter vector.

Each builder returns a :class:`Student` with ``num_parameters``, ``init(seed)`` and
``apply(theta, images)``. Any other ``nn.Module`` becomes one through :func:`from_module`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from iadd_fast import arguments
from iadd_fast.specs import parse_spec
from iadd_fast.students.convnet import NORMS, ConvNet
from iadd_fast.students.evaluation_networks import VGG11, AlexNet, ResNet18
from iadd_fast.students.mlp import MLP
from iadd_fast.students.student import (
    ParameterSlice,
    Student,
    check_labels,
    check_size,
    from_module,
    pooled_side,
)

__all__ = [
    "NAMES",
    "ParameterSlice",
    "Student",
    "alexnet",
    "build",
    "check_labels",
    "convnet",
    "convnet1d",
    "for_data",
    "from_module",
    "mlp",
    "parse_student",
    "resnet18",
    "vgg11",
]

Side = int | tuple[int, int]

#: Most layers of an MLP or blocks of a ConvNet.
DEEPEST = 100


def convnet(
    *,
    channels: int,
    classes: int,
    image_size: Side,
    width: int = 128,
    depth: int | None = None,
    norm: str = "instance",
) -> Student:
    """The ConvNet of MTT, DC, DSA, DATM: ``depth`` x (conv3x3, norm, ReLU, average pool), linear.

    Parameter order, shapes and counts equal MTT's: 320,010 parameters for CIFAR-10, 504,420 for
    CIFAR-100, 317,706 for Fashion-MNIST, 857,160 for 64x64 with 200 classes at depth 4.

    Args:
        channels: channels of an image. classes: number of logits.
        image_size: side in pixels, or (height, width).
        width: channels of every hidden layer.
        depth: number of blocks; default: as many halvings as leave a side of 4 (3 at 28 and 32,
            4 at 64, 5 at 128), at least 2.
        norm: ``"instance"`` (``GroupNorm(C, C)``), ``"group"`` (4 groups where the width
            allows), ``"layer"`` (one
            group) or ``"none"``. None of them keeps batch statistics.

    Raises:
        ValueError: an argument out of range, or more halvings than the image has.
    """
    side = _image_side(image_size)
    channels, classes = _size("channels", channels), _size("classes", classes)
    width, depth = _size("width", width), _depth(depth, side)
    arguments.choice("norm", norm, NORMS)
    spec = {
        "name": "convnet",
        "channels": channels,
        "classes": classes,
        "image_size": list(side),
        "width": width,
        "depth": depth,
        "norm": norm,
    }
    return _made(lambda: ConvNet(channels, classes, side, width, depth, norm), spec)


def convnet1d(
    *,
    channels: int,
    classes: int,
    length: int,
    width: int = 64,
    depth: int | None = None,
    norm: str = "instance",
    kernel: int = 7,
) -> Student:
    """The ConvNet for series (N, channels, length): convolutions of ``kernel`` taps, pool by 2.

    ``depth`` defaults to as many halvings as leave a length of 4, between 2 and 5.

    Raises:
        ValueError: an argument out of range (``kernel`` must be odd), or too many halvings.
    """
    channels, classes = _size("channels", channels), _size("classes", classes)
    length, width, kernel = _size("length", length), _size("width", width), _size("kernel", kernel)
    if kernel % 2 == 0:
        raise ValueError(f"kernel: got {kernel}; takes an odd number of taps")
    depth = _depth(depth, (length,))
    arguments.choice("norm", norm, NORMS)
    spec = {
        "name": "convnet1d",
        "channels": channels,
        "classes": classes,
        "length": length,
        "width": width,
        "depth": depth,
        "norm": norm,
        "kernel": kernel,
    }
    return _made(lambda: ConvNet(channels, classes, (length,), width, depth, norm, kernel), spec)


def mlp(
    *, inputs: int | tuple[int, ...], classes: int, width: int = 128, depth: int = 3
) -> Student:
    """A multilayer perceptron of ``depth`` linear layers on flattened inputs of shape ``inputs``.

    Raises:
        ValueError: an argument out of range.
    """
    shape = _sizes("inputs", inputs)
    classes, width = _size("classes", classes), _size("width", width)
    depth = _size("depth", depth, DEEPEST)
    spec = {
        "name": "mlp",
        "inputs": list(shape),
        "classes": classes,
        "width": width,
        "depth": depth,
    }
    return _made(lambda: MLP(shape, classes, width, depth), spec)


def alexnet(*, channels: int, classes: int, image_size: Side) -> Student:
    """MTT's AlexNet (no norm) for images of at least 8x8."""
    return _evaluation_network("alexnet", AlexNet, 8, channels, classes, image_size)


def vgg11(*, channels: int, classes: int, image_size: Side) -> Student:
    """VGG11 with instance norm, for images of at least 32x32 (28x28 with one channel)."""
    return _evaluation_network("vgg11", VGG11, 32, channels, classes, image_size)


def resnet18(*, channels: int, classes: int, image_size: Side) -> Student:
    """ResNet18 in its CIFAR form with instance norm, for images of at least 9x9.

    Below that its last planes have one pixel, which an instance norm sets to zero.
    """
    return _evaluation_network("resnet18", ResNet18, 9, channels, classes, image_size)


BUILDERS: dict[str, Callable[..., Student]] = {
    "convnet": convnet,
    "mlp": mlp,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "convnet1d": convnet1d,
}
NAMES = tuple(BUILDERS)


def build(spec: Mapping[str, Any]) -> Student:
    """The student that :attr:`Student.spec` describes.

    Raises:
        ValueError: the name is unknown (a user's own module must be passed as a student), or an
            option is not one of that builder's.
    """
    arguments.instance("student", spec, Mapping, "a mapping with a name")
    options = {str(key): value for key, value in spec.items() if key != "name"}
    builder = _builder(spec.get("name"))
    for key in ("image_size", "inputs"):
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    try:
        return builder(**options)
    except TypeError as error:
        raise ValueError(f"student: {error}") from None


def for_data(
    sample_shape: tuple[int, ...], classes: int, name: str | None = None, **options: Any
) -> Student:
    """A student by ``name`` for samples of ``sample_shape`` (channels first, without N).

    ``name`` defaults to ``"convnet"`` for images (C, H, W) and ``"convnet1d"`` for series (C, L).

    Raises:
        ValueError: the name is unknown or does not take samples of this shape.
    """
    sample_shape = _sizes("sample_shape", sample_shape)
    dimensions = len(sample_shape)
    if name is None:
        name = "convnet1d" if dimensions == 2 else "convnet"
    builder = _builder(name)
    if name == "mlp":
        return builder(inputs=tuple(sample_shape), classes=classes, **options)
    if dimensions != (2 if name == "convnet1d" else 3):
        wanted = "(channels, length)" if name == "convnet1d" else "(channels, height, width)"
        raise ValueError(f"student {name!r}: got samples of shape {sample_shape}; takes {wanted}")
    if name == "convnet1d":
        return builder(channels=sample_shape[0], classes=classes, length=sample_shape[1], **options)
    side = (sample_shape[1], sample_shape[2])
    return builder(channels=sample_shape[0], classes=classes, image_size=side, **options)


def parse_student(text: str, sample_shape: tuple[int, ...], classes: int) -> Student:
    """``"convnet:width=32,depth=2"`` as a student for samples of this shape.

    Raises:
        ValueError: unknown name or option.
    """
    name, options = parse_spec(text, "student")
    try:
        return for_data(sample_shape, classes, name, **options)
    except TypeError as error:
        raise ValueError(f"student {name!r}: {error}") from None


def _builder(name: object) -> Callable[..., Student]:
    return BUILDERS[arguments.choice("student", name, BUILDERS)]


def _made(factory: Callable[[], nn.Module], spec: Mapping[str, Any]) -> Student:
    check_size(factory, spec)
    return Student(factory, spec)


def _evaluation_network(
    name: str,
    network: Callable[[int, int, tuple[int, int]], Any],
    smallest: int,
    channels: int,
    classes: int,
    image_size: Side,
) -> Student:
    side = _image_side(image_size)
    channels, classes = _size("channels", channels), _size("classes", classes)
    if min(side) < smallest and not (channels == 1 and side == (28, 28)):
        raise ValueError(f"image_size: got {side}; {name} takes at least {smallest}x{smallest}")
    spec = {"name": name, "channels": channels, "classes": classes, "image_size": list(side)}
    return _made(lambda: network(channels, classes, side), spec)


def _image_side(image_size: Side) -> tuple[int, int]:
    side = _sizes("image_size", image_size)
    if len(side) > 2:
        raise ValueError(
            f"image_size: got {arguments.shown(image_size)}; takes a side or (height, width)"
        )
    return (side[0], side[-1])


def _depth(depth: int | None, side: tuple[int, ...]) -> int:
    shortest = min(side)
    if depth is None:
        depth = 2 if shortest > 3 else 1
        while depth < 5 and pooled_side(shortest, depth + 1) >= (3 if shortest == 28 else 4):
            depth += 1
    depth = _size("depth", depth, DEEPEST)
    if pooled_side(shortest, depth) < 1:
        other = "; student 'mlp' takes any" if shortest == 1 else ""
        raise ValueError(
            f"depth: got {depth}; a side of {shortest} cannot be halved so often{other}"
        )
    return depth


def _size(name: str, value: int, most: int = arguments.MOST) -> int:
    return arguments.whole(name, value, most=most)


def _sizes(name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
    """One size or several."""
    if isinstance(value, tuple | list) and value:
        return tuple(_size(name, size) for size in value)
    return (_size(name, value),)  # type: ignore[arg-type]
