"""Engine ``"module"``: the exact reverse sweep for any student, one step's graph at a time.

Only theta_0..theta_J are kept (design: the exact meta-gradient). With g the gradient of a step's
loss for theta, the sweep runs ::

    lam_J = dL/dtheta_J
    for j = J-1 .. 0:
        d lr     -= <lam_{j+1}, g_j>
        (h, x, y) = derivative along lam_{j+1} of the step loss's gradients for
                    (theta, inputs, labels), at theta_j
        d images -= lr * augment_j^T x ;  d labels -= lr * y ;  lam_j = lam_{j+1} - lr * h

The directional derivative is forward-over-reverse (``jvp`` of ``grad``): no double backward, so
that ``torch.compile`` can take it whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from iadd_fast.ops import param_distance_gradients
from iadd_fast.students import Student
from iadd_fast.unroll.problem import Problem, TrajectoryGradient, choose, step_loss

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
Sweep = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


def module_gradient(problem: Problem, compiled: bool = False) -> TrajectoryGradient:
    """Loss and gradients by the reverse sweep."""
    step_gradient, sweep_step = _functions(problem.student, problem.soft, compiled)
    images, labels, lr = problem.images.detach(), problem.labels.detach(), problem.lr.detach()
    batches = problem.batches()
    first = problem.steps - problem.window
    theta = problem.theta.detach()
    kept: list[Tensor] = []
    with torch.no_grad():
        for step, batch in enumerate(batches):
            if step >= first:
                kept.append(theta)
            inputs = problem.augmented(choose(images, batch), step)
            theta = theta - lr * step_gradient(theta, inputs, choose(labels, batch))
        loss, lam, d_weight = param_distance_gradients(
            theta, problem.theta, problem.target, problem.final_weight(theta), problem.normaliser
        )

    d_images, d_lr = torch.zeros_like(images), torch.zeros_like(lr)
    d_labels = torch.zeros_like(labels) if problem.soft else None
    for step in range(problem.steps - 1, first - 1, -1):
        batch = batches[step]
        source = choose(images, batch).detach().requires_grad_(problem.augment is not None)
        with torch.enable_grad():
            inputs = problem.augmented(source, step)
        values, tangents = sweep_step(kept.pop(), inputs.detach(), choose(labels, batch), lam)
        d_lr -= torch.dot(lam, values[0])
        d_source = tangents[1]
        if problem.augment is not None:
            (d_source,) = torch.autograd.grad(inputs, source, d_source)
        _subtract(d_images, batch, lr * d_source)
        if d_labels is not None:
            _subtract(d_labels, batch, lr * tangents[2])
        lam = lam - lr * tangents[0]
    return TrajectoryGradient(
        loss=loss, images=d_images, labels=d_labels, lr=d_lr, weight=d_weight, theta=theta
    )


def _subtract(total: Tensor, batch: Tensor | None, part: Tensor) -> None:
    if batch is None:
        total -= part
    else:
        # A batch holds each sample once, so no two rows of the index meet.
        total[batch] -= part


def _functions(student: Student, soft: bool, compiled: bool) -> tuple[Step, Sweep]:
    if not compiled:
        return _build(student, soft)
    if soft not in student.compiled:
        step, sweep = _build(student, soft)
        student.compiled[soft] = (
            torch.compile(step, dynamic=False),
            torch.compile(sweep, dynamic=False),
        )
    functions: tuple[Step, Sweep] = student.compiled[soft]
    return functions


def _build(student: Student, soft: bool) -> tuple[Step, Sweep]:
    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return step_loss(student, theta, images, labels)

    gradients: Any = grad(loss, argnums=(0, 1, 2) if soft else (0, 1))

    def sweep(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> Any:
        return jvp(lambda t: gradients(t, images, labels), (theta,), (direction,))

    return grad(loss), sweep
