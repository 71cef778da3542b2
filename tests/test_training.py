"""The training loop: torch's SGD on a flat theta, MTT's decay, seeds, snapshots."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iadd_fast import students
from iadd_fast.augment import Augmentation
from iadd_fast.seeds import derive, generator
from iadd_fast.training import accuracy, train

STUDENT = students.mlp(inputs=(1, 4, 4), classes=3, width=7, depth=2)


def blobs(count: int = 30) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 1, 4, 4, generator=draw)
    return centres[labels] + 0.3 * torch.randn(count, 1, 4, 4, generator=draw), labels


def test_equals_torch_training_of_the_module() -> None:
    """Module, SGD, scheduler by hand: breaks on a wrong order, decay epoch or kept momentum."""
    images, labels = blobs()
    theta = STUDENT.init(0)
    got = train(
        STUDENT, theta, images, labels, lr=0.1, epochs=6, batch_size=8, momentum=0.9,
        weight_decay=0.01, decay=True, seed=4,
    )  # fmt: skip
    module = STUDENT._factory()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    draw = generator(4, "order")
    for epoch in range(6):
        if epoch == 4:
            sgd = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
        for batch in torch.randperm(30, generator=draw).split(8):
            sgd.zero_grad()
            F.cross_entropy(module(images[batch]), labels[batch]).backward()
            sgd.step()
    wanted = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(theta, STUDENT.init(0)), "the first parameters were changed"


def test_learns_and_counts_accuracy_in_percent() -> None:
    """Separable blobs are learned; three images of four right is 75."""
    images, labels = blobs()
    theta = train(STUDENT, STUDENT.init(1), images, labels, lr=0.1, epochs=40)
    assert accuracy(STUDENT, theta, images, labels, batch_size=7) == 100.0
    predicted = STUDENT(theta, images[:4]).argmax(1)
    predicted[0] = (predicted[0] + 1) % 3
    assert accuracy(STUDENT, theta, images[:4], predicted) == 75.0
    with pytest.raises(ValueError, match="images: got none"):
        accuracy(STUDENT, theta, images[:0], labels[:0])


def test_soft_labels_of_one_class_are_hard_labels() -> None:
    """Breaks when probabilities are normalised again or averaged differently."""
    images, labels = blobs()
    hard = train(STUDENT, STUDENT.init(1), images, labels, lr=0.1, epochs=3)
    one_hot = F.one_hot(labels, 3).float()
    soft = train(STUDENT, STUDENT.init(1), images, one_hot, lr=0.1, epochs=3)
    torch.testing.assert_close(soft, hard)


def test_snapshots_are_of_every_epoch_and_augmentation_is_seeded() -> None:
    """Breaks when the snapshot of the start is missing, or a batch's draw is shared or unseeded."""
    images, labels = blobs()
    augment = Augmentation.parse("crop")
    assert augment is not None
    seen: list[tuple[int, Tensor]] = []
    keep = lambda epoch, theta: seen.append((epoch, theta.clone()))  # noqa: E731
    options = {"lr": 0.1, "epochs": 2, "batch_size": 30, "augment": augment, "seed": 9}
    final = train(STUDENT, STUDENT.init(1), images, labels, on_epoch=keep, **options)  # type: ignore[arg-type]
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], STUDENT.init(1)) and torch.equal(seen[2][1], final)
    order = torch.randperm(30, generator=generator(9, "order"))
    theta = STUDENT.init(1).requires_grad_(True)
    inputs = augment(images[order], derive(9, "augment", 0, 0))
    loss = F.cross_entropy(STUDENT(theta, inputs), labels[order])
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(seen[1][1], (theta - 0.1 * gradient).detach())
