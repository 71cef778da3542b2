"""MTT's own files, in and out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iadd_fast.artifacts import load_mtt_buffers, save_mtt_set
from iadd_fast.students import Student, convnet

Snapshot = list[Tensor]


@pytest.fixture(scope="module")
def student() -> Student:
    return convnet(channels=1, classes=3, image_size=8, width=4, depth=2)


def network(seed: int) -> nn.Module:
    """MTT's ConvNet, written out: conv, group norm as instance norm, ReLU, pool; then linear."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    )


def mtt_trajectory(seed: int, epochs: int = 2, *, clone: bool = True) -> list[Snapshot]:
    """What buffer.py keeps of one network: ``[p.detach().cpu() for p in net.parameters()]``."""
    net = network(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def snapshot() -> Snapshot:
        return [p.detach().cpu().clone() if clone else p.detach().cpu() for p in net.parameters()]

    kept = [snapshot()]
    for _ in range(epochs):
        optimizer.zero_grad()
        net(torch.randn(5, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        kept.append(snapshot())
    return kept


def flat(snapshot: Snapshot) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in snapshot])


def test_a_genuine_buffer_folder(tmp_path: Path, student: Student) -> None:
    """Breaks if files are read in text order (10 before 2), or tensors joined in another."""
    files = {0: [0, 1], 2: [2], 10: [3]}
    for number, seeds in files.items():
        buffer = [mtt_trajectory(seed) for seed in seeds]
        torch.save(buffer, tmp_path / f"replay_buffer_{number}.pt")
    torch.save([1], tmp_path / "replay_buffer_old.pt")
    experts = load_mtt_buffers(tmp_path, student)
    assert (len(experts), experts.epochs, experts.num_parameters) == (4, 2, student.num_parameters)
    for index in range(4):
        expected = mtt_trajectory(index)
        for epoch in range(3):
            assert torch.equal(experts.snapshot(index, epoch), flat(expected[epoch]))


def test_a_snapshot_is_a_theta_of_the_student(tmp_path: Path, student: Student) -> None:
    """Breaks if MTT's parameter order is not the student's: sizes would hide it, logits not."""
    torch.save([mtt_trajectory(0, epochs=1)], tmp_path / "replay_buffer_0.pt")
    theta = load_mtt_buffers(tmp_path / "replay_buffer_0.pt", student).snapshot(0, 0)
    images = torch.randn(6, 1, 8, 8)
    expected = network(0)(images)
    torch.testing.assert_close(student.apply(theta, images), expected)


def test_without_a_student_the_shapes_still_have_to_agree(tmp_path: Path) -> None:
    """Breaks if a buffer of two different networks of one size is let through."""
    path = tmp_path / "replay_buffer_0.pt"
    one = [[torch.randn(2, 3), torch.randn(4)] for _ in range(2)]
    other = [[torch.randn(3, 2), torch.randn(4)] for _ in range(2)]
    torch.save([one], path)
    assert load_mtt_buffers(path).num_parameters == 10
    torch.save([one, other], path)
    with pytest.raises(ValueError, match=r"trajectory 1, snapshot 0: tensor 0 has shape \(3, 2\)"):
        load_mtt_buffers(path)


def test_snapshots_aliased_on_a_cpu(tmp_path: Path) -> None:
    """Breaks if MTT's CPU trap is not seen: matching would divide by a distance of zero."""
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([mtt_trajectory(0, clone=False)], path)
    with pytest.raises(ValueError, match="all 3 snapshots are equal") as caught:
        load_mtt_buffers(path)
    text = str(caught.value)
    for part in (str(path), "trajectory 0", "p.detach().cpu()", "CPU", "live parameters"):
        assert part in text
    for advice in ("train_experts", ".clone()"):
        assert advice in text


class Malicious:
    """Runs a command when it is unpickled the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_file_is_refused(tmp_path: Path) -> None:
    """Breaks if the file is unpickled without weights_only, or torch's advice to do so shown."""
    path, marker = tmp_path / "replay_buffer_0.pt", tmp_path / "ran"
    torch.save([[[torch.ones(2), Malicious(marker)]]], path)
    with pytest.raises(ValueError, match="refused") as caught:
        load_mtt_buffers(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert "system" in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was not malicious, so the test shows nothing"


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04broken"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Breaks if the user gets a zip or pickle error without the path."""
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="replay_buffer_0.pt: refused: it is damaged or no PyTorch"
    ):
        load_mtt_buffers(path)


def wrong_tensors() -> dict[str, tuple[Any, str]]:
    good = mtt_trajectory(0)
    short = mtt_trajectory(1, epochs=1)
    nan = mtt_trajectory(2)
    nan[1][3] = nan[1][3] * torch.nan
    return {
        "no list": ({"a": good}, "got a dict; takes a list of trajectories"),
        "empty": ([], "got nothing; takes a list of trajectories"),
        "one trajectory, not a list of them": (
            good,
            "snapshot 0: got a Tensor; takes a list of te",
        ),
        "state dicts": (
            [[{"w": torch.ones(1)}]],
            "snapshot 0: got a dict; takes a list of tensors",
        ),
        "numbers": ([[[1.0]]], "trajectory 0, snapshot 0: got float among the parameters"),
        "whole numbers": ([[[torch.ones(1).long()]]], "got torch.int64 among the parameters"),
        "a tensor short": ([[good[0][:-1]] * 2], "got 9 tensors; the student has 10"),
        "another width": ([[good[0], good[1][::-1]]], "snapshot 1: tensor 0 has shape"),
        "different lengths": ([good, short], "trajectory 1: got 2 snapshots; the first one has 3"),
        "only the start": ([good[:1]], "at least one epoch"),
        "diverged": ([nan], "trajectory 0: the parameters after epoch 1 are not finite"),
    }


@pytest.mark.parametrize("case", list(wrong_tensors()))
def test_another_structure_is_named(tmp_path: Path, student: Student, case: str) -> None:
    """Breaks if a file of another layout gives an obscure error, or is read as something else."""
    content, text = wrong_tensors()[case]
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match="replay_buffer_0.pt") as caught:
        load_mtt_buffers(tmp_path, student)
    assert text in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Breaks if an empty folder gives experts of length zero."""
    with pytest.raises(FileNotFoundError, match=r"no replay_buffer_\*.pt"):
        load_mtt_buffers(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_mtt_buffers(tmp_path / "nowhere")


def test_the_exported_set_reads_back(tmp_path: Path) -> None:
    """Breaks if the order changes, or views drag their whole memory along."""
    images = torch.randn(60, 1, 4, 4)[::10].requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    save_mtt_set(tmp_path / "new", images, labels, 0.0123)
    loaded = {
        name: torch.load(tmp_path / "new" / f"{name}_best.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    }
    assert torch.equal(loaded["images"], images.detach())
    assert not loaded["images"].requires_grad
    assert loaded["images"].untyped_storage().nbytes() == 6 * 16 * 4
    assert loaded["labels"].dtype == torch.int64
    assert loaded["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded["lr"].shape == ()
    assert float(loaded["lr"]) == pytest.approx(0.0123)
    with pytest.raises(ValueError, match="labels: got 5 for 6 images"):
        save_mtt_set(tmp_path / "bad", images, labels[:5], 0.1)
    assert not (tmp_path / "bad").exists()


def test_arguments_of_other_types_are_named(tmp_path: Path) -> None:
    """Breaks if they end in an AttributeError."""
    torch.save([mtt_trajectory(0)], tmp_path / "replay_buffer_0.pt")
    student: Any = "convnet"
    with pytest.raises(TypeError, match="student: got 'convnet'; takes a Student or None"):
        load_mtt_buffers(tmp_path, student)
    images: Any = "x"
    labels: Any = None
    with pytest.raises(TypeError, match="images: got 'x'; takes a tensor"):
        save_mtt_set(tmp_path / "set", images, labels, 0.1)
    with pytest.raises(TypeError, match="labels: got None; takes a tensor"):
        save_mtt_set(tmp_path / "set", torch.zeros(2, 1, 4, 4), labels, 0.1)
