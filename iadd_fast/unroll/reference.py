"""Engine ``"reference"``: full backpropagation through the unroll, MTT's own order of operations.

The definition every other engine is proved against. Its memory grows with the number of steps.
"""

from __future__ import annotations

import torch

from iadd_fast.ops import param_distance
from iadd_fast.unroll.problem import Problem, TrajectoryGradient, choose, step_loss


def reference_gradient(problem: Problem) -> TrajectoryGradient:
    """Loss and gradients by autograd through every step."""
    images = problem.images.detach().requires_grad_(True)
    labels = problem.labels.detach().requires_grad_(problem.soft)
    lr = problem.lr.detach().requires_grad_(True)
    theta = problem.theta.detach().requires_grad_(True)
    first = problem.steps - problem.window
    for step, batch in enumerate(problem.batches()):
        tracked = step >= first
        inputs = problem.augmented(choose(images, batch), step)
        loss = step_loss(problem.student, theta, inputs, choose(labels, batch))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=tracked)
        theta = theta - lr * gradient
        if not tracked:
            theta = theta.detach().requires_grad_(True)
    weight = problem.final_weight(theta)
    if weight is not None:
        weight = weight.detach().requires_grad_(True)
    distance = param_distance(theta, problem.theta, problem.target, weight, problem.normaliser)
    wanted = [images, lr]
    wanted += [labels] if problem.soft else []
    wanted += [] if weight is None else [weight]
    gradients = list(torch.autograd.grad(distance, wanted))
    return TrajectoryGradient(
        loss=distance.detach(),
        images=gradients[0],
        labels=gradients[2] if problem.soft else None,
        lr=gradients[1],
        weight=None if weight is None else gradients[-1],
        theta=theta.detach(),
    )
