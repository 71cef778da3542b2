from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from iadd_fast.data import load_data


def test_digits_are_scikit_learns_with_pixels_from_0_to_1() -> None:
    """Breaks if pixels are divided by anything but 16, or images lose their labels."""
    data = load_data("digits", normalise="none", test_fraction=0, validation_fraction=0)
    digits = load_digits()
    np.testing.assert_array_equal(data.train.images[:, 0], digits.images / 16)
    np.testing.assert_array_equal(data.train.labels, digits.target)
    assert data.train.images.max() == 1
    assert (data.name, data.class_names) == ("digits", tuple("0123456789"))


def test_digits_hold_out_a_fifth_of_every_class() -> None:
    """Breaks if the default test part is not stratified."""
    data = load_data("digits")
    assert data.test is not None
    counts = np.bincount(load_digits().target)
    np.testing.assert_array_equal(data.test.labels.bincount(), np.round(0.2 * counts))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
