"""diff_augment: MTT's ranges and geometry, exact adjoints, draws that depend on the seed alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from iadd_fast import ops
from iadd_fast.augment import DSA, Augmentation
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.checks import FAMILIES
from iadd_fast.ops.diff_augment import diff_augment
from iadd_fast.reference import diff_augment as definition
from iadd_fast.reference.philox import integers, philox, uniform
from tests.tolerances import assert_close

WORD = 2**32


def words(*fractions: float) -> definition.Words:
    """Random words that read as these fractions of their range."""
    padded = [*fractions, 0.0, 0.0, 0.0][:4]
    first, second, third, fourth = (torch.tensor([int(f * WORD)]) for f in padded)
    return first, second, third, fourth


def batch(n: int = 3, c: int = 2, h: int = 11, w: int = 8) -> torch.Tensor:
    return torch.randn(n, c, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_philox_known_answer() -> None:
    """Random123's published vectors: any wrong constant, round count or word order breaks them."""
    got = philox(0, torch.zeros(1, dtype=torch.int64))
    assert [int(word) for word in got] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_uniform_and_integers_cover_their_range() -> None:
    """Breaks when an end of a range is never drawn, or one past it is."""
    drawn = philox(7, torch.arange(20_000))
    fractions = uniform(drawn[0], torch.float64)
    assert float(fractions.min()) >= 0 and float(fractions.max()) < 1
    assert float(fractions.mean()) == pytest.approx(0.5, abs=0.01)
    counts = torch.bincount(integers(drawn[1], -4, 4) + 4)
    assert len(counts) == 9 and int(counts.min()) > 20_000 / 9 * 0.9


def test_color_is_brightness_then_saturation_then_contrast() -> None:
    """Against MTT's three formulas one after another; breaks when order or a range differs."""
    x = batch(1, 3)
    got = definition.color(x, words(0.75, 0.25, 0.875))
    y = x + (0.75 - 0.5)
    y = (y - y.mean(1, keepdim=True)) * (2 * 0.25) + y.mean(1, keepdim=True)
    mean = y.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(got, (y - mean) * (0.875 + 0.5) + mean)


@pytest.mark.parametrize("fraction_y, fraction_x", [(0.0, 0.99999), (0.5, 0.5), (0.99999, 0.0)])
def test_crop_shifts_with_zeros(fraction_y: float, fraction_x: float) -> None:
    """Breaks when axes are swapped, pixels wrap around, or the reach is not side / 8."""
    x = batch(1, 2, 24, 16)
    got = definition.crop(x, words(fraction_y, fraction_x))
    dy, dx = -3 + int(fraction_y * 7), -2 + int(fraction_x * 5)
    for row in range(24):
        for column in range(16):
            r, c = row + dy, column + dx
            inside = 0 <= r < 24 and 0 <= c < 16
            wanted = x[0, :, r, c] if inside else torch.zeros(2, dtype=x.dtype)
            torch.testing.assert_close(got[0, :, row, column], wanted)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99999])
def test_cutout_zeroes_half_a_side(fraction: float) -> None:
    """Breaks when the window's size or its clamping at a border differs from MTT's."""
    x = torch.ones(1, 1, 16, 12, dtype=torch.float64)
    got = definition.cutout(x, words(fraction, fraction))
    for axis, side in ((2, 16), (3, 12)):
        size = side // 2
        first = int(fraction * (side + 1)) - size // 2
        inside = range(max(0, first), min(side, first + size))
        other = 5 - axis
        holes = (got == 0).any(dim=other).flatten()
        assert [i for i in range(side) if holes[i]] == list(inside)


def test_flip_mirrors_below_one_half() -> None:
    """Breaks when the axis or the side of the coin is wrong."""
    x = batch(2)
    coins = torch.tensor([int(0.4 * WORD), int(0.6 * WORD)])
    got = definition.flip(x, (coins, coins, coins, coins))
    torch.testing.assert_close(got[0], x[0].flip(2))
    torch.testing.assert_close(got[1], x[1])


@pytest.mark.parametrize("family", ["scale", "rotate"])
def test_resampling_is_bilinear_interpolation_of_the_affine_map(family: str) -> None:
    """Against a loop over pixels: breaks on a wrong angle sign, corner convention or border."""
    x = batch(1, 1, 7, 6)
    f0, f1 = 0.8, 0.3
    got = getattr(definition, family)(x, words(f0, f1))[0, 0]
    if family == "scale":
        low, high = 1 / 1.2, 1.2
        m = ((f0 * (high - low) + low, 0.0), (0.0, f1 * (high - low) + low))
    else:
        angle = (f0 - 0.5) * 2 * math.radians(15)
        m = ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))
    for row in range(7):
        for column in range(6):
            gy, gx = -1 + 2 * row / 6, -1 + 2 * column / 5
            sx = (m[0][0] * gx + m[0][1] * gy + 1) / 2 * 5
            sy = (m[1][0] * gx + m[1][1] * gy + 1) / 2 * 6
            total = 0.0
            for r in (math.floor(sy), math.floor(sy) + 1):
                for c in (math.floor(sx), math.floor(sx) + 1):
                    if 0 <= r < 7 and 0 <= c < 6:
                        share = (1 - abs(sy - r)) * (1 - abs(sx - c))
                        total += share * float(x[0, 0, r, c])
            # The words carry 24 bits, so the map is known to about 1e-7.
            assert float(got[row, column]) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("families", [*[(f,) for f in FAMILIES], tuple(DSA.split("_"))], ids=str)
def test_derivatives_of_both_orders_and_modes(families: tuple[str, ...], backend: str) -> None:
    """gradcheck of the adjoint and of its adjoint; breaks when a draw depends on the pixels."""
    x = batch(2, 3, 5, 6).requires_grad_(True)
    call = lambda images: diff_augment(images, families, 5)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x,), check_fwd_over_rev=True)


CHAINS = [
    *[(family,) for family in FAMILIES],
    tuple(DSA.split("_")),
    ("crop", "color"),  # the mean of an image that has lost a border
    ("scale", "rotate", "scale"),
    ("color", "flip", "color", "cutout", "color", "crop", "flip", "crop"),
    (),
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore:.*unit-size grids:UserWarning")
@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_equals_the_reference(chain: tuple[str, ...], dtype: torch.dtype) -> None:
    """Both directions, sides of one pixel included, into poisoned memory.

    Breaks on a word of the generator too few, a wrong corner, a tap lost at a border, or an
    adjoint whose window misses a pixel.
    """
    if ops.backends()["diff_augment"]["cpp"] is not None:
        pytest.skip("the C++ kernels are not built")
    sizes = [(1, 3, 32, 32), (3, 1, 5, 8), (2, 3, 1, 7), (2, 2, 7, 1), (2, 1, 1, 1), (2, 5, 40, 9)]
    with ops.use_backend("cpp"):
        kernels = implementation("diff_augment", torch.empty(0, dtype=dtype))
    for number, (size, shared) in enumerate((size, s) for size in sizes for s in (False, True)):
        x = batch(*size).to(dtype)
        for linear in (False, True):
            got = kernels.diff_augment(x, chain, 11 + number, shared, linear)
            want = definition.diff_augment(x.double(), chain, 11 + number, shared, linear)
            # Places are known to 1e-7 of a side, so values to a few times that.
            assert_close(got, want, "forward", slack=20)
        got = kernels.diff_augment_adjoint(x, chain, 11 + number, shared)
        want = definition.diff_augment_adjoint(x.double(), chain, 11 + number, shared)
        assert_close(got, want, "backward", slack=20)


def test_adjoint_is_the_transpose(backend: str) -> None:
    """<A x, y> = <x, A^T y> over random chains: breaks when the two directions draw apart."""
    for seed in range(20):
        families = tuple(FAMILIES[(seed * 7 + k * k) % 6] for k in range(seed % 5 + 1))
        x, y = batch(3, 3, 12, 9), batch(3, 3, 12, 9).flip(0)
        kernels = implementation("diff_augment", x)
        forward = kernels.diff_augment(x, families, seed, False, True)
        adjoint = kernels.diff_augment_adjoint(y, families, seed, False)
        torch.testing.assert_close((forward * y).sum(), (x * adjoint).sum())


def test_a_seed_tensor_is_the_same_seed(backend: str) -> None:
    """Breaks when a seed read by the kernel loses its high half or its sign."""
    x = batch(4)
    for seed in (0, 5, 2**40 + 3, 2**63 - 1):
        wanted = diff_augment(x, ("color", "scale"), seed)
        assert torch.equal(diff_augment(x, ("color", "scale"), torch.tensor(seed)), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_alone_fixes_the_draw(family: str) -> None:
    """Breaks when a draw takes from a global generator or ignores its sample or its seed."""
    x = batch(1).repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    first = diff_augment(x, (family,), 9)
    torch.manual_seed(1)
    torch.testing.assert_close(diff_augment(x, (family,), 9), first, rtol=0, atol=0)
    torch.testing.assert_close(diff_augment(x[:8], (family,), 9), first[:8], rtol=0, atol=0)
    assert not torch.equal(diff_augment(x, (family,), 10), first)
    assert not torch.equal(first[0].expand_as(first), first)
    shared = diff_augment(x, (family,), 9, shared=True)
    torch.testing.assert_close(shared, first[:1].expand_as(shared), rtol=0, atol=0)


def test_layout_does_not_matter_and_stays_plain() -> None:
    """Channels-last or one-channel strided inputs give equal values and contiguous outputs."""
    for channels in (1, 3):
        x = batch(2, channels, 8, 8)
        strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for family in FAMILIES:
            got = diff_augment(strided, (family,), 2)
            torch.testing.assert_close(got, diff_augment(x, (family,), 2))


def test_single_picks_every_family_and_chain_applies_all() -> None:
    """Breaks when a family is never picked, or a chain changes order or shares its draws."""
    x = batch()
    single = Augmentation.parse("dsa")
    assert single is not None
    seen = set()
    for seed in range(60):
        got = single(x, seed)
        seen |= {f for f in FAMILIES if torch.equal(got, diff_augment(x, (f,), seed))}
    assert seen == set(FAMILIES)
    chain = Augmentation.parse("chain:flip_crop")
    assert chain is not None
    flipped = definition.flip(x, philox(4, torch.arange(3), 0))
    wanted = definition.crop(flipped, philox(4, torch.arange(3), 1))
    torch.testing.assert_close(chain(x, 4), wanted)


def test_text_round_trip_and_errors() -> None:
    """Breaks when an artifact's text would be read back as another augmentation."""
    for text in (DSA, "chain:color_crop", "chain:shared:flip"):
        assert str(Augmentation.parse(text)) == text
    assert Augmentation.parse("none") is None and Augmentation.parse(None) is None
    for bad in ("blur", "color__crop", "twice:color"):
        with pytest.raises(ValueError, match="augment: got"):
            Augmentation.parse(bad)
    with pytest.raises(ValueError, match="images: got"):
        diff_augment(torch.zeros(2, 3, 8), ("flip",), 0)
    with pytest.raises(ValueError, match="families: got 'blur'"):
        diff_augment(batch(), ("blur",), 0)
    with pytest.raises(ValueError, match="families: got 9 of them; takes at most 8"):
        diff_augment(batch(), ("flip",) * 9, 0)
    for seed in (-1, 2**63, torch.tensor(1.0), torch.tensor([1]), torch.zeros(2, device="meta")):
        with pytest.raises(ValueError, match="seed: got"):
            diff_augment(batch(), ("flip",), seed)


def test_scale_matches_torch_grid_sample_in_float32() -> None:
    """float32 runs the same map as float64; breaks on a dtype lost on the way."""
    x = batch(4, 1, 28, 28)
    for family in ("scale", "rotate", "color"):
        single = diff_augment(x.float(), (family,), 3)
        assert single.dtype == torch.float32
        error = F.mse_loss(single.double(), diff_augment(x, (family,), 3)).sqrt()
        assert float(error) < 1e-5
