"""The operators as ``torch.ops.iadd_fast.*``: the boundary that ``torch.compile`` sees.

Each runs the backend that the public function would choose and has a fake. The operators have their
first derivative, which is what a compiled graph can hold; differentiating it again raises. Eager
code does not come through here: it has both orders (``chain``).

A registered operator cannot return None: a gradient that does not exist is an empty tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from iadd_fast.ops.backends import implementation
from iadd_fast.ops.checks import (
    check_classes,
    check_entropy,
    check_images,
    check_like,
    check_planes,
    check_vectors,
    checked_families,
    checked_seed,
)


def _define(name: str, schema: str, check: Any, function: Any, fake: Any) -> Any:
    """The operator of that name; ``check`` sees the arguments of a call and of a fake alike."""

    def checked(run: Any) -> Any:
        def call(*arguments: Any) -> Any:
            check(*arguments)
            return run(*arguments)

        return call

    operator = custom_op(f"iadd_fast::{name}", mutates_args=(), schema=schema)(checked(function))
    operator.register_fake(checked(fake))
    return operator


def _layout(z: Tensor) -> torch.memory_format:
    last = not z.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _laid_out(planes: Tensor, z: Tensor) -> Tensor:
    """Planes in the memory format of ``z``, as the compiled backends return them."""
    return planes.contiguous(memory_format=_layout(z))


def _empty_like(z: Tensor) -> Tensor:
    return torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=_layout(z))


def _or_nothing(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if gradient is None else gradient


def _vectors(gamma: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    channels = 0 if gamma is None else gamma.shape[0]
    return z.new_empty(channels), z.new_empty(channels)


def _scalar(like: Tensor) -> Tensor:
    wide = like.dtype in (torch.float32, torch.float64)
    return like.new_empty((), dtype=like.dtype if wide else torch.float32)


def _norm_relu_pool(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> Tensor:
    kernels = implementation("norm_relu_pool", z)
    return _laid_out(kernels.norm_relu_pool(z, gamma, beta, eps, pool), z)


def _norm_relu_pool_backward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, dp: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = implementation("norm_relu_pool", z)
    dz, dgamma, dbeta = kernels.norm_relu_pool_backward(z, gamma, beta, dp, eps, pool)
    return _laid_out(dz, z), _or_nothing(dgamma, z), _or_nothing(dbeta, z)


def _pooled(z: Tensor, pool: bool) -> tuple[int, ...]:
    samples, channels, height, width = z.shape
    return (samples, channels, height // 2, width // 2) if pool else tuple(z.shape)


def _check_planes_backward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, dp: Tensor, eps: float, pool: bool
) -> None:
    check_planes(z, gamma, beta, eps, pool)
    check_like("dp", dp, "z", z, _pooled(z, pool))


def _fake_pooled(z: Tensor, pool: bool) -> Tensor:
    shape = _pooled(z, pool)
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=_layout(z))


_AFFINE = "Tensor z, Tensor? gamma, Tensor? beta"
norm_relu_pool = _define(
    "norm_relu_pool",
    f"({_AFFINE}, float eps, bool pool) -> Tensor",
    check_planes,
    _norm_relu_pool,
    lambda z, gamma, beta, eps, pool: _fake_pooled(z, pool),
)
norm_relu_pool_backward = _define(
    "norm_relu_pool_backward",
    f"({_AFFINE}, Tensor dp, float eps, bool pool) -> (Tensor, Tensor, Tensor)",
    _check_planes_backward,
    _norm_relu_pool_backward,
    lambda z, gamma, beta, dp, eps, pool: (_empty_like(z), *_vectors(gamma, z)),
)


def _save_planes(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.eps, ctx.pool = inputs[3:]


def _differentiate_planes(ctx: Any, dp: Tensor) -> Any:
    z, gamma, beta = ctx.saved_tensors
    dz, dgamma, dbeta = norm_relu_pool_backward(z, gamma, beta, dp, ctx.eps, ctx.pool)
    return (dz, None, None, None, None) if gamma is None else (dz, dgamma, dbeta, None, None)


norm_relu_pool.register_autograd(_differentiate_planes, setup_context=_save_planes)


def _softmax_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    check_classes(logits, labels)
    kernels = implementation("softmax_cross_entropy", logits)
    return kernels.softmax_cross_entropy(logits, labels, class_weights)


def _softmax_cross_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_classes(logits, labels)
    kernel = implementation("softmax_cross_entropy", logits).softmax_cross_entropy_backward
    dlogits, dlabels = kernel(logits, labels, dloss, class_weights)
    return dlogits.contiguous(), _or_nothing(dlabels, logits).contiguous()


def _check_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> None:
    check_entropy(logits, labels, class_weights)
    check_like("dloss", dloss, "the loss", _scalar(logits), ())


def _fake_entropy_gradients(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    dlogits = logits.new_empty(logits.shape)
    return dlogits, logits.new_empty(logits.shape if labels.is_floating_point() else 0)


softmax_cross_entropy = _define(
    "softmax_cross_entropy",
    "(Tensor logits, Tensor labels, Tensor? class_weights) -> Tensor",
    check_entropy,
    _softmax_cross_entropy,
    lambda logits, labels, class_weights: _scalar(logits),
)
softmax_cross_entropy_backward = _define(
    "softmax_cross_entropy_backward",
    "(Tensor logits, Tensor labels, Tensor dloss, Tensor? class_weights) -> (Tensor, Tensor)",
    _check_entropy_backward,
    _softmax_cross_entropy_backward,
    lambda logits, labels, dloss, class_weights: _fake_entropy_gradients(logits, labels),
)


def _save_entropy(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_entropy(ctx: Any, dloss: Tensor) -> Any:
    logits, labels, class_weights = ctx.saved_tensors
    dlogits, dlabels = softmax_cross_entropy_backward(logits, labels, dloss, class_weights)
    return dlogits, dlabels if labels.is_floating_point() else None, None


softmax_cross_entropy.register_autograd(_differentiate_entropy, setup_context=_save_entropy)


def _diff_augment(
    images: Tensor, families: str, seed: Tensor, shared: bool, linear: bool
) -> Tensor:
    kernel = implementation("diff_augment", images).diff_augment
    return kernel(images, _names(families), seed, shared, linear).contiguous()


def _diff_augment_adjoint(cotangent: Tensor, families: str, seed: Tensor, shared: bool) -> Tensor:
    kernel = implementation("diff_augment", cotangent).diff_augment_adjoint
    return kernel(cotangent, _names(families), seed, shared).contiguous()


def _names(families: str) -> tuple[str, ...]:
    return tuple(families.split("_")) if families else ()


def _check_augmented(name: str, batch: Tensor, families: str, seed: Tensor) -> None:
    check_images(name, batch)
    checked_families(_names(families), *batch.shape[2:])
    checked_seed(seed, batch)


diff_augment = _define(
    "diff_augment",
    "(Tensor images, str families, Tensor seed, bool shared, bool linear) -> Tensor",
    lambda images, families, seed, shared, linear: _check_augmented(
        "images", images, families, seed
    ),
    _diff_augment,
    lambda images, families, seed, shared, linear: images.new_empty(images.shape),
)
diff_augment_adjoint = _define(
    "diff_augment_adjoint",
    "(Tensor cotangent, str families, Tensor seed, bool shared) -> Tensor",
    lambda cotangent, families, seed, shared: _check_augmented(
        "cotangent", cotangent, families, seed
    ),
    _diff_augment_adjoint,
    lambda cotangent, families, seed, shared: cotangent.new_empty(cotangent.shape),
)


def _save_chain(ctx: Any, inputs: Any, output: Any) -> None:
    _, ctx.families, seed, ctx.shared = inputs[:4]
    ctx.save_for_backward(seed)


def _transpose(ctx: Any, cotangent: Tensor) -> Any:
    (seed,) = ctx.saved_tensors
    adjoint = diff_augment_adjoint(cotangent, ctx.families, seed, ctx.shared)
    return adjoint, None, None, None, None


def _transpose_back(ctx: Any, cotangent: Tensor) -> Any:
    (seed,) = ctx.saved_tensors
    return diff_augment(cotangent, ctx.families, seed, ctx.shared, True), None, None, None


diff_augment.register_autograd(_transpose, setup_context=_save_chain)
diff_augment_adjoint.register_autograd(_transpose_back, setup_context=_save_chain)


def _param_distance_gradients(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = implementation("param_distance", theta).param_distance_gradients
    loss, d_theta, d_weight = kernel(theta, start, target, weight, weighted)
    return loss, d_theta, _or_nothing(d_weight, theta)


param_distance_gradients = _define(
    "param_distance_gradients",
    "(Tensor theta, Tensor start, Tensor target, Tensor? weight, bool weighted) "
    "-> (Tensor, Tensor, Tensor)",
    lambda theta, start, target, weight, weighted: check_vectors(
        theta, start, target, weight, "weighted" if weighted else "start"
    ),
    _param_distance_gradients,
    lambda theta, start, target, weight, weighted: (
        _scalar(theta),
        theta.new_empty(theta.shape),
        theta.new_empty(0 if weight is None else theta.shape),
    ),
)
