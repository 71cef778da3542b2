"""Calls that once gave garbage, a hang or an error of somebody else's: each has its own test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp, vmap

from iadd_fast import ops
from tests.ops.odd import misaligned

Call = Callable[..., Tensor]
#: Operator -> a call of its first tensor, and that tensor's sizes.
FIRST: dict[str, tuple[Call, tuple[int, ...]]] = {
    "conv3x3": (lambda x: ops.conv3x3(x, torch.ones(2, 3, 3, 3)), (2, 3, 5, 5)),
    "norm_relu_pool": (lambda z: ops.norm_relu_pool(z, torch.ones(3), torch.ones(3)), (2, 3, 5, 5)),
    "softmax_cross_entropy": (
        lambda x: ops.softmax_cross_entropy(x, torch.tensor([0, 2])),
        (2, 3),
    ),
    "diff_augment": (lambda x: ops.diff_augment(x, ("scale", "color"), 1), (2, 3, 5, 5)),
    "param_distance": (lambda x: ops.param_distance(x, torch.ones(7), torch.zeros(7)), (7,)),
}


@pytest.mark.parametrize("operator", FIRST)
def test_the_zeros_of_forward_mode_are_read_as_zeros(operator: str, backend: str) -> None:
    """They have the memory of one number: breaks when a kernel reads past it (it did)."""
    call, sizes = FIRST[operator]
    x, zeros = torch.randn(sizes), torch._efficientzerotensor(sizes)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, zeros))).tangent
    assert tangent is None or not bool(tangent.any())
    if backend == "cpp":  # PyTorch's own `group_norm` does not take them
        torch.testing.assert_close(call(zeros), call(torch.zeros(sizes)))


def test_gradients_of_the_zeros_of_forward_mode(backend: str) -> None:
    """Breaks when an output is made like them: it has no memory to write to."""
    zeros, ones = torch._efficientzerotensor((7,)), torch.ones(7)
    got = ops.param_distance_gradients(zeros, ones, ones * 2)[1]
    torch.testing.assert_close(got, ops.param_distance_gradients(ones * 0, ones, ones * 2)[1])


@pytest.mark.parametrize("operator", FIRST)
def test_memory_that_is_not_aligned_is_refused_or_right(operator: str, backend: str) -> None:
    """``torch.frombuffer`` at an odd offset: breaks when a kernel relies on what is not there."""
    call, sizes = FIRST[operator]
    x = torch.randn(sizes)
    try:
        got = call(misaligned(x))
    except ValueError as error:
        assert "not aligned" in str(error) and backend == "cpp"
    else:
        torch.testing.assert_close(got, call(x))


@pytest.mark.parametrize("operator", FIRST)
def test_petabytes_are_an_error_at_once(operator: str) -> None:
    """A huge shape out of one number: breaks when anything is walked through before it is had."""
    call, sizes = FIRST[operator]
    huge = torch.zeros(1).expand(2**50) if len(sizes) == 1 else None
    if huge is None:
        huge = torch.zeros([1] * len(sizes)).expand(2**48, *sizes[1:])
    with pytest.raises((RuntimeError, ValueError), match=r"memory|takes"):
        call(huge)


@pytest.mark.parametrize("operator", FIRST)
def test_vmap_is_one_error(operator: str) -> None:
    """Breaks when a kernel reads the memory behind a batch of tensors."""
    call, sizes = FIRST[operator]
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(call)(torch.randn(3, *sizes))


def test_a_tangent_of_class_weights_is_refused() -> None:
    """They are constants: breaks when forward mode gives a derivative of 0 in silence."""
    logits, labels, weights = torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(3)
    with pytest.raises(ValueError, match="^class_weights: require a gradient"):
        jvp(lambda w: ops.softmax_cross_entropy(logits, labels, w), (weights,), (weights,))


def test_an_ignored_class_is_an_error_in_a_registered_operator(backend: str) -> None:
    """-100 is PyTorch's ``ignore_index``: breaks when a sample is left out in silence."""
    logits, labels = torch.randn(2, 3), torch.tensor([0, -100])
    with pytest.raises(ValueError, match="^labels: got classes -100 .. 0"):
        torch.ops.iadd_fast.softmax_cross_entropy(logits, labels, None)


def test_registered_operators_check_like_public_ones(backend: str) -> None:
    """Breaks when the boundary of ``torch.compile`` broadcasts a gamma or takes any dp."""
    z, one = torch.randn(2, 3, 4, 4), torch.ones(1)
    registered = torch.ops.iadd_fast
    with pytest.raises(ValueError, match="^gamma: got"):
        registered.norm_relu_pool(z, one, one, 1e-5, True)
    with pytest.raises(ValueError, match="^dp: got"):
        registered.norm_relu_pool_backward(z, None, None, z, 1e-5, True)
    with pytest.raises(ValueError, match="^families: got 'flop'"):
        registered.diff_augment(z, "flop", torch.tensor(1), False, False)
    with pytest.raises(ValueError, match="^dloss: got"):
        logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
        registered.softmax_cross_entropy_backward(logits, labels, torch.ones(2), None)
    with pytest.raises(ValueError, match="^start: got"):
        registered.param_distance_gradients(torch.ones(3), one, torch.ones(3), None, True)


def test_a_generator_of_families_is_not_used_up_by_the_checks() -> None:
    """Breaks when checking leaves nothing of it to apply."""
    images = torch.randn(2, 1, 6, 6)
    want = ops.diff_augment(images, ("cutout", "flip"), 3)
    families: Any = (family for family in ("cutout", "flip"))
    assert torch.equal(ops.diff_augment(images, families, 3), want)


@pytest.mark.parametrize("sizes", [(0, 2, 4, 4), (2, 2, 1, 5), (0, 1, 1, 1), (2, 1, 7, 1)], ids=str)
def test_no_image_and_sides_of_one_pixel(sizes: tuple[int, ...], backend: str) -> None:
    """Breaks on PyTorch's ``affine_grid``: an error for no image, a warning for one pixel."""
    images = torch.randn(sizes, requires_grad=True)
    augmented = ops.diff_augment(images, ("scale", "rotate"), 5)
    (gradient,) = torch.autograd.grad(augmented.sum(), images)
    assert augmented.shape == gradient.shape == images.shape
    assert bool(augmented.isfinite().all()) and bool(gradient.isfinite().all())


def test_planes_too_long_to_rotate_are_refused() -> None:
    """The adjoint of a rotated 2 x 10^6 would take minutes a plane: breaks when it begins."""
    with pytest.raises(ValueError, match="^images: got planes of 2x1000000; 'rotate' takes sides"):
        ops.diff_augment(torch.zeros(1, 1, 2, 10**6), ("rotate",), 1)
    assert ops.diff_augment(torch.zeros(1, 1, 1, 10**6), ("rotate",), 1).shape[3] == 10**6


def test_triton_refuses_a_chain_of_too_many_paths() -> None:
    """Eight rotations are 9^8 paths a pixel: breaks when a GPU is kept busy for hours."""
    if ops.backends()["diff_augment"]["triton"] is not None:
        pytest.skip("triton is not here")
    with ops.use_backend("triton"), pytest.raises(ValueError, match="^families: got 8 of scale"):
        ops.diff_augment(torch.zeros(1, 1, 4, 4), ("rotate",) * 8, 1)
