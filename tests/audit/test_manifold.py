"""Precision, recall, density and coverage against cases by hand."""

from __future__ import annotations

import pytest
import torch

from iadd_fast.audit import manifold

# Real points at 0, 1, 3 and 10 on a line: with k = 1 their balls reach 1, 1, 2 and 7.
REAL = torch.tensor([[0.0], [1.0], [3.0], [10.0]])


def squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return manifold.squared_matrix(one, other)


def test_radii_leave_a_point_itself_out() -> None:
    """Breaks when a point is its own first neighbour, or k is off by one."""
    among = squared(REAL, REAL)
    torch.testing.assert_close(
        manifold.squared_radii(among, 1), torch.tensor([1.0, 1.0, 4.0, 49.0])
    )
    torch.testing.assert_close(
        manifold.squared_radii(among, 2), torch.tensor([9.0, 4.0, 9.0, 81.0])
    )
    for k in (0, 4):
        with pytest.raises(ValueError, match="k: got"):
            manifold.squared_radii(among, k)


def test_figures_by_hand() -> None:
    """Breaks when rows and columns, or real and synthetic radii, are taken for one another."""
    synthetic = torch.tensor([[0.5], [-3.0], [4.5]])
    distances = squared(synthetic, REAL)
    near = manifold.squared_radii(squared(REAL, REAL), 1)
    # 0.5 is in the balls of 0 and 1; -3 in none; 4.5 in those of 3 and of 10.
    assert manifold.precision(distances <= near) == pytest.approx(2 / 3)
    assert manifold.density(distances <= near, 1) == pytest.approx(4 / 3)
    assert manifold.covered(distances <= near).tolist() == [True, True, True, True]
    # Synthetic balls with k = 1 reach 3.5, 3.5 and 4: from -3 to 4, -6.5 to 0.5 and 0.5 to 8.5.
    own = manifold.squared_radii(squared(synthetic, synthetic), 1)
    assert manifold.recall(distances <= own[:, None]) == pytest.approx(3 / 4)
    # One synthetic point far out covers the one real point whose ball is wide.
    assert manifold.covered(squared(torch.tensor([[16.0]]), REAL) <= near).tolist() == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("synthetic", "k"), [(10, 5), (10, 20), (60, 5)])
def test_expected_coverage_is_what_draws_have(synthetic: int, k: int) -> None:
    """Breaks when the formula is wrong, and with it the number of neighbours that is chosen."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(150):
        real = torch.randn(60, 3, generator=draw)
        other = torch.randn(synthetic, 3, generator=draw)
        radii = manifold.squared_radii(squared(real, real), k)
        found.append(float(manifold.covered(squared(other, real) <= radii).double().mean()))
    mean = sum(found) / len(found)
    assert mean == pytest.approx(manifold.expected_coverage(60, synthetic, k), abs=0.025)


def test_neighbours_grow_as_samples_get_fewer() -> None:
    """Breaks when 10 samples are judged by balls that no 10 samples can fill."""
    for synthetic in (1, 10, 100):
        k = manifold.coverage_neighbours(4000, synthetic)
        assert manifold.expected_coverage(4000, synthetic, k) >= 0.5
        assert k == 5 or manifold.expected_coverage(4000, synthetic, k - 1) < 0.5
    assert manifold.coverage_neighbours(4000, 4000) == 5
    assert manifold.coverage_neighbours(4, 10) == 3
