"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8, in the package, no download."""

from __future__ import annotations

import numpy as np

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Source


def read() -> Source:
    """The digits as one part, their pixels (0 to 16) divided by 16."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    digits = load_digits()
    images = digits.images.astype(np.float32) / 16
    return Source("digits", {"train": as_part(images, digits.target, "digits", "digits")})
