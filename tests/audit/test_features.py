"""Features and logits against the module itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iadd_fast.audit.features import features, logits
from iadd_fast.students import convnet, from_module, mlp


def test_features_of_an_mlp_are_its_last_hidden_layer() -> None:
    """Breaks when the first layer's input is taken, or batches are joined in another order."""
    student = mlp(inputs=(1, 3, 3), classes=4, width=5, depth=2)
    theta = student.init(0)
    images = torch.randn(7, 1, 3, 3)
    parts = list(student.unflatten(theta).values())
    hidden = F.linear(images.flatten(1), parts[0], parts[1]).relu()
    torch.testing.assert_close(features(student, theta, images, batch_size=3), hidden)
    torch.testing.assert_close(
        logits(student, theta, images, batch_size=3), F.linear(hidden, parts[2], parts[3])
    )


def test_the_fused_forward_gives_what_the_module_gives() -> None:
    """Breaks when buffers of one chunk are handed out and overwritten by the next."""
    student = convnet(channels=2, classes=3, image_size=4, width=4, depth=2)
    theta = student.init(1) + 0.01
    images = torch.randn(11, 2, 4, 4)
    seen: list[Tensor] = []
    hook = student.module.get_submodule("classifier").register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    expected = student.apply(theta, images)
    hook.remove()
    torch.testing.assert_close(features(student, theta, images, 4), seen[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(student, theta, images, 4), expected, rtol=1e-4, atol=1e-5)
    doubled = features(student, theta.double(), images.double(), 4)
    torch.testing.assert_close(doubled.float(), seen[0], rtol=1e-4, atol=1e-5)


class _NoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images).flatten(1)


def test_a_network_without_linear_layers_gives_its_logits() -> None:
    """Breaks when such a network is an error, or a hook stays on the student."""
    student = from_module(_NoLinear)
    theta = student.init(0)
    images = torch.randn(5, 1, 2, 2)
    torch.testing.assert_close(features(student, theta, images), student.apply(theta, images))
    assert not any(module._forward_pre_hooks for module in student.module.modules())


def test_bad_arguments() -> None:
    """Breaks when nothing to measure on is an obscure error of torch.cat."""
    student = mlp(inputs=2, classes=2, width=2)
    theta = student.init(0)
    with pytest.raises(ValueError, match="images: got none"):
        features(student, theta, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="batch_size: got 0"):
        logits(student, theta, torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match="theta"):
        features(student, theta[1:], torch.zeros(1, 2))
