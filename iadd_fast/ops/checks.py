"""The operators' checks: metadata only, nothing waits for a device (hard labels on a CPU apart).

They stand where a value enters, in the public functions and in the registered operators alike; the
compiled bindings check once more what memory safety needs (``csrc/include/checks.h``). Each raises
a ValueError that names the argument, what it got and what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from iadd_fast import arguments

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
LONGEST_CHAIN = 8
#: A rotation carries a pixel of the longer side over this share of the other one's length, at most:
#: the adjoint searches that far.
MOST_STRETCHED = 256
NORMALISERS = ("start", "weighted")


def check_floating(name: str, tensor: Tensor, dimensions: int, layout: str) -> None:
    """``tensor`` is a strided float tensor of that many dimensions."""
    _check_tensor(name, tensor, f"a tensor {layout}")
    if tensor.dtype not in FLOATS or tensor.ndim != dimensions or tensor.layout != torch.strided:
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)}, {tensor.layout}; takes a "
            f"floating-point {layout}"
        )


def check_like(
    name: str, tensor: Tensor, model_name: str, model: Tensor, shape: tuple[int, ...]
) -> None:
    """``tensor`` is strided, has this shape and the dtype and device of ``model``."""
    _check_tensor(name, tensor, "a tensor")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: got {tensor.layout}; takes {torch.strided}")
    if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, model.dtype, model.device):
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; takes "
            f"{model.dtype} of shape {shape} on {model.device}, to go with {model_name}"
        )


def check_flag(name: str, flag: bool) -> None:
    """``flag`` is True or False."""
    if not isinstance(flag, bool):
        raise ValueError(f"{name}: got {arguments.shown(flag)}; takes True or False")


def check_planes(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> float:
    """The arguments of ``norm_relu_pool``; ``eps`` as a float."""
    check_floating("z", z, 4, "(N, C, H, W)")
    if 0 in z.shape:
        raise ValueError(f"z: got shape {tuple(z.shape)}; every size has to be at least 1")
    check_flag("pool", pool)
    if pool and min(z.shape[2:]) < 2:
        raise ValueError(
            f"z: got planes of {z.shape[2]}x{z.shape[3]}; the 2x2 pool takes sides of at least 2 "
            "(pool=False leaves it out)"
        )
    if (gamma is None) != (beta is None):
        missing, given = ("gamma", "beta") if gamma is None else ("beta", "gamma")
        raise ValueError(f"{missing}: got None beside a {given}; takes both or neither")
    for name, vector in (("gamma", gamma), ("beta", beta)):
        if vector is not None:
            check_like(name, vector, "z", z, (z.shape[1],))
    arithmetic = torch.float64 if z.dtype == torch.float64 else torch.float32
    # Smaller ones round to zero, and a constant plane to 0 / 0; larger ones to infinity.
    smallest, largest = torch.finfo(arithmetic).tiny, torch.finfo(arithmetic).max
    return arguments.number("eps", eps, least=smallest, most=largest)


def check_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> None:
    """The arguments of ``softmax_cross_entropy``."""
    check_floating("logits", logits, 2, "(N, C)")
    count, classes = logits.shape
    if count == 0 or classes == 0:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}; takes at least one of each")
    _check_tensor("labels", labels, "a tensor")
    if labels.is_floating_point():
        check_like("labels", labels, "logits", logits, (count, classes))
    elif (labels.dtype, tuple(labels.shape), labels.device, labels.layout) != (
        torch.int64,
        (count,),
        logits.device,
        torch.strided,
    ):
        raise ValueError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)} on {labels.device}, "
            f"{labels.layout}; takes int64 ({count},) or probabilities ({count}, {classes}) on "
            f"{logits.device}"
        )
    if class_weights is None:
        return
    check_like("class_weights", class_weights, "logits", logits, (classes,))
    dual = not torch.compiler.is_compiling() and unpack_dual(class_weights).tangent is not None
    if class_weights.requires_grad or dual:
        raise ValueError("class_weights: require a gradient; they are constants here (detach them)")


def check_classes(logits: Tensor, labels: Tensor) -> None:
    """Hard labels on a CPU are classes: reading those of a GPU would wait for it."""
    if labels.is_floating_point() or labels.device.type != "cpu":
        return
    low, high = (int(bound) for bound in labels.aminmax())
    classes = logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels: got classes {low} .. {high}; takes 0 .. {classes - 1}, as logits have "
            f"{classes} columns"
        )


def checked_families(families: Iterable[str], height: int, width: int) -> tuple[str, ...]:
    """The chain of ``diff_augment`` as a tuple, fit for planes of this size."""
    if isinstance(families, str | Tensor) or not isinstance(families, Iterable):
        raise ValueError(
            f"families: got {arguments.shown(families)}; takes a sequence of {', '.join(FAMILIES)}"
        )
    families = tuple(families)
    for family in families:
        arguments.choice("families", family, FAMILIES)
    if len(families) > LONGEST_CHAIN:
        raise ValueError(f"families: got {len(families)} of them; takes at most {LONGEST_CHAIN}")
    short, long = sorted((height, width))
    if "rotate" in families and short > 1 and long - 1 > MOST_STRETCHED * (short - 1):
        raise ValueError(
            f"images: got planes of {height}x{width}; 'rotate' takes sides that differ by at most "
            f"a factor of {MOST_STRETCHED}"
        )
    return families


def check_images(name: str, images: Tensor) -> None:
    """A batch for ``diff_augment``, which may be empty."""
    check_floating(name, images, 4, "batch (N, C, H, W)")
    if 0 in images.shape[1:]:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}; takes sizes of at least 1")


def checked_seed(seed: int | Tensor, images: Tensor) -> int | Tensor:
    """A seed as a whole number from 0 to 2^63 - 1, or the int64 scalar that a kernel reads."""
    if isinstance(seed, Tensor):
        if (seed.dtype, seed.ndim, seed.device) != (torch.int64, 0, images.device):
            raise ValueError(
                f"seed: got {seed.dtype} of shape {tuple(seed.shape)} on {seed.device}; takes a "
                f"number or an int64 scalar on {images.device}"
            )
        return seed
    return arguments.whole("seed", seed, 0)


def check_vectors(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, normaliser: str
) -> None:
    """The arguments of ``param_distance``."""
    arguments.choice("normaliser", normaliser, NORMALISERS)
    check_floating("theta", theta, 1, "vector (P,)")
    if theta.numel() == 0:
        raise ValueError("theta: is empty; takes at least one parameter")
    for name, other in (("start", start), ("target", target)):
        check_like(name, other, "theta", theta, tuple(theta.shape))
    if weight is not None:
        check_like("weight", weight, "theta", theta, tuple(theta.shape))


def check_convolution(x: Tensor, weight: Tensor, padding: int) -> int:
    """The arguments of ``conv3x3``; ``padding`` as an int."""
    check_floating("x", x, 4, "(N, Cin, H, W)")
    if 0 in x.shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}; every size has to be at least 1")
    check_floating("weight", weight, 4, "(Cout, Cin, 3, 3)")
    if weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; takes at least one output")
    check_like("weight", weight, "x", x, (weight.shape[0], x.shape[1], 3, 3))
    padding = arguments.whole("padding", padding, 0, 3)
    if min(x.shape[2:]) + 2 * padding < 3:
        raise ValueError(
            f"x: got planes of {x.shape[2]}x{x.shape[3]} with padding {padding}; a 3x3 "
            "window takes sides of at least 3 with their padding"
        )
    return padding


def _check_tensor(name: str, tensor: object, takes: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.is_nested:
        kind = "a nested tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: got {kind}; takes {takes}")
