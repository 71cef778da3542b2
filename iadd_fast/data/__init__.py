"""Real data as training needs it: read, checked, split and normalised.

:func:`load_data` reads every kind of source; :class:`Data` is what it gives.
"""

from __future__ import annotations

from iadd_fast.data.dataset import Data, Split
from iadd_fast.data.load import load_data
from iadd_fast.data.transform import ZCA, Identity, Standardise, Transform, transform_from

__all__ = [
    "ZCA",
    "Data",
    "Identity",
    "Split",
    "Standardise",
    "Transform",
    "load_data",
    "transform_from",
]
