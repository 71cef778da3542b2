"""The space of a search: its limits, and what of published settings lies inside."""

from __future__ import annotations

import pytest

from iadd_fast.preset import presets
from iadd_fast.tuning.space import Range, make_space


def test_given_experts_limit_the_space() -> None:
    """Breaks when a trial could look for an epoch that the experts do not have."""
    for last, longest, end in [(1, 1, 0), (3, 1, 2), (4, 2, 2), (30, 4, 26)]:
        space = make_space({}, None, None, 10, last)
        high = {
            name: getattr(space.searched.get(name), "high", space.fixed.get(name))
            for name in ("expert_epochs", "max_start_epoch")
        }
        assert high == {"expert_epochs": longest, "max_start_epoch": end}
        assert space.reach == last
    assert make_space({"expert_epochs": 3}, None, None, 10, 5).reach == 5
    assert make_space({"max_start_epoch": 4}, None, None, 10, 5).fixed["expert_epochs"] == 1
    with pytest.raises(ValueError, match="reach epoch 5; a start at epoch 3 and a target 3"):
        make_space({"min_start_epoch": 3, "expert_epochs": 3}, None, None, 10, 5)


CLASSES = {"cifar10": 10, "cifar100": 100, "tiny": 200}


def test_published_settings_are_inside_of_the_space() -> None:
    """Breaks when the image step does not grow with the samples, or a range is too narrow."""
    checked = 0
    for preset in presets().values():
        classes = CLASSES.get(preset.name.split("-")[0])
        if preset.method != "trajectory" or classes is None:
            continue
        given = {"batch_size": preset.distill.get("batch_size")}
        space = make_space(given, None, None, classes * preset.images_per_class, None)
        for name in ("lr_images", "lr_lr", "lr_init", "steps", "expert_epochs"):
            kind = space.searched[name]
            assert isinstance(kind, Range)
            assert kind.low <= preset.distill[name] <= kind.high, (preset.name, name)
        around = make_space({}, preset.distill, None, classes * preset.images_per_class, None)
        assert around.first["lr_images"] == preset.distill["lr_images"]
        assert around.first["max_start_epoch"] == preset.distill["max_start_epoch"]
        checked += 1
    assert checked >= 7
