"""Triton diff_augment and its adjoint against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from iadd_fast.kernels import diff_augment as kernels
from iadd_fast.kernels.launch import INTERPRETED, launch
from iadd_fast.reference import diff_augment as reference
from iadd_fast.reference.philox import philox

pytestmark = pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")

CHAINS = [
    ("color", "crop", "flip"),
    ("crop", "color", "cutout", "color"),
    ("scale", "color"),
    ("color", "rotate"),
    ("flip", "flip", "crop", "crop"),
]


def images(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) + 0.3).to(device, dtype)


def check(x: Tensor, families: tuple[str, ...], seed: int, shared: bool = False) -> None:
    # The interpreter cuts a float32 off to bfloat16 instead of rounding it.
    slack = 2 if INTERPRETED and x.dtype == torch.bfloat16 else 1
    wide = x.cpu().double()
    for linear in (False, True):
        got = kernels.diff_augment(x, families, seed, shared, linear)
        want = reference.diff_augment(wide, families, seed, shared, linear)
        assert_close(got, want, "forward", slack, name=f"linear={linear}")
        assert got.dtype == x.dtype and got.is_contiguous()
    got = kernels.diff_augment_adjoint(x, families, seed, shared)
    want = reference.diff_augment_adjoint(wide, families, seed, shared)
    assert_close(got, want, "backward", slack, name="adjoint")
    assert got.dtype == x.dtype


@triton.jit  # type: ignore[untyped-decorator]
def words_kernel(words_ptr, seed, sample, POSITION: tl.constexpr):
    word0, word1, word2, word3 = tl.philox(seed, sample, POSITION, 0, 0)
    tl.store(words_ptr, word0.to(tl.int64))
    tl.store(words_ptr + 1, word1.to(tl.int64))
    tl.store(words_ptr + 2, word2.to(tl.int64))
    tl.store(words_ptr + 3, word3.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 + 5, 2**63 - 1])
def test_philox_is_the_same_word_for_word(seed: int, device: str) -> None:
    """Breaks when Triton's generator takes key or counter words in another order."""
    for sample, position in ((0, 0), (3, 1), (1000, 7)):
        words = torch.zeros(4, dtype=torch.int64, device=device)
        launch(words_kernel, (1,), words, words, seed, sample, POSITION=position)
        want = philox(seed, torch.tensor([sample]), position)
        assert words.tolist() == [int(word) for word in want]


@pytest.mark.parametrize("family", reference.FAMILIES)
@pytest.mark.parametrize("shape", [(3, 3, 8, 11), (2, 1, 16, 16)])
def test_every_family(family: str, shape: tuple[int, ...], device: str) -> None:
    """Breaks on a wrong range, axis, sign, border or tap, or an adjoint that is no transpose."""
    check(images(*shape, device=device), (family,), seed=5)
    check(images(*shape, device=device), (family,), seed=2**40 + 9, shared=True)


@pytest.mark.parametrize("families", CHAINS, ids="_".join)
def test_chains(families: tuple[str, ...], device: str) -> None:
    """Breaks when stages are applied in the wrong order or with each other's draws, when a color's
    mean is not that of its own input, or a constant is counted once per tap."""
    check(images(2, 3, 6, 5, device=device), families, seed=11)


@pytest.mark.parametrize(
    "families",
    [("rotate", "color", "scale"), ("scale", "crop", "rotate"), kernels.FAMILIES],
    ids="_".join,
)
def test_two_resampling_stages(families: tuple[str, ...], device: str) -> None:
    """Breaks when the taps of one stage are mixed with those of the other."""
    check(images(1, 2, 3, 4, device=device), families, seed=3)


@pytest.mark.parametrize(
    "shape", [(2, 2, 1, 7), (2, 2, 6, 1), (1, 1, 1, 1), (1, 1, 3, 17), (1, 1, 17, 3)]
)
@pytest.mark.parametrize("family", ["scale", "rotate", "crop", "cutout"])
def test_thin_images(shape: tuple[int, ...], family: str, device: str) -> None:
    """Breaks when a side of one pixel divides by zero, or a long side needs more taps than two."""
    for seed in (1, 2):
        check(images(*shape, device=device), (family,), seed)


@pytest.mark.parametrize("families", [("color",), ("rotate",), ("crop", "cutout")], ids="_".join)
def test_images_of_several_blocks(
    families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Breaks when a block takes another's pixels, or a mean is that of one block."""
    monkeypatch.setattr(kernels, "BLOCK", 128)
    check(images(2, 3, 9, 13, device=device), families, seed=4)


@pytest.mark.parametrize("family", reference.FAMILIES)
def test_bfloat16_is_storage(family: str, device: str) -> None:
    """Breaks when the arithmetic is done in bfloat16."""
    check(images(2, 3, 8, 8, device=device, dtype=torch.bfloat16), (family,), seed=6)


@pytest.mark.parametrize("family", ["color", "crop", "rotate"])
def test_any_strides(family: str, device: str) -> None:
    """Breaks when a stride is ignored."""
    x = images(2, 3, 6, 5, device=device)
    for strided in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, -x], 4)[..., 0],
        x[:1].expand(2, -1, -1, -1),
    ):
        check(strided, (family,), seed=8)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**40 + 3, 2**63 - 1])
def test_a_seed_on_the_device_is_the_number(seed: int, device: str) -> None:
    """Breaks when only half of a seed is read; a captured graph takes its seed from memory."""
    x = images(2, 3, 8, 8, device=device)
    there = torch.tensor(seed, device=device)
    for families in (("crop", "flip"), ("color",)):
        for got, want in (
            (
                kernels.diff_augment(x, families, there, False),
                kernels.diff_augment(x, families, seed, False),
            ),
            (
                kernels.diff_augment_adjoint(x, families, there, True),
                kernels.diff_augment_adjoint(x, families, seed, True),
            ),
        ):
            assert torch.equal(got, want)


@pytest.mark.parametrize("families", [("scale",), ("rotate",), ("color", "crop")], ids="_".join)
def test_adjoint_is_the_transpose_of_the_kernel_itself(
    families: tuple[str, ...], device: str
) -> None:
    """<A x, y> = <x, A' y> with the kernel's own A: breaks when only one of both is right."""
    x, y = images(2, 3, 9, 9, device=device), images(2, 3, 9, 9, device=device).flip(0, 2)
    augmented = kernels.diff_augment(x, families, 5, False, linear=True).double()
    returned = kernels.diff_augment_adjoint(y, families, 5, False).double()
    left, right = float((augmented * y).sum()), float((x * returned).sum())
    assert abs(left - right) < 1e-5 * float(augmented.norm() * y.norm())


def test_same_bits_every_time_and_in_any_batch(device: str) -> None:
    """Breaks with atomics, or when a sample's draw depends on the batch around it."""
    x = images(2, 2, 5, 4, device=device)
    for augment in (kernels.diff_augment, kernels.diff_augment_adjoint):
        for families in (("color", "scale"), ("rotate",)):
            first = augment(x, families, 7, False)
            assert torch.equal(first, augment(x, families, 7, False))
            assert torch.equal(first[:1], augment(x[:1], families, 7, False))


def test_no_stage_and_too_many(device: str) -> None:
    """Breaks when an empty chain is no copy, or a ninth stage is silently left out."""
    x = images(2, 3, 4, 4, device=device)
    assert torch.equal(kernels.diff_augment(x, (), 0, False), x)
    with pytest.raises(ValueError, match="families: got 9"):
        kernels.diff_augment(x, ("flip",) * 9, 0, False)
