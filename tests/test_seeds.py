"""Derived seeds: fixed for ever, different for different paths."""

from __future__ import annotations

import torch

from iadd_fast.seeds import derive, generator


def test_values_never_change() -> None:
    """A changed hash would silently change every published run: these numbers are frozen."""
    assert derive(0) == 4246866556266386882
    assert derive(0, "augment", 3) == 5466654179189770020
    assert derive(12345, "iteration", 7, "inner") == 8573285452884725799


def test_paths_do_not_collide() -> None:
    """Breaks when parts are joined ambiguously, or text and number are confused."""
    paths: list[tuple[int | str, ...]] = [
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("a", "b"),
        ("ab",),
        ("a/b",),
        ("a", "str:b"),
    ]
    paths.append(())
    assert len({derive(0, *path) for path in paths}) == len(paths)
    assert derive(1) != derive(0, 1)


def test_generator_is_independent_of_the_global_state() -> None:
    """Two generators of one path agree whatever was drawn in between."""
    first = torch.rand(4, generator=generator(5, "x"))
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(first, torch.rand(4, generator=generator(5, "x")))
