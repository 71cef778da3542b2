"""One thread: the problems are tiny, and waiting threads crawl where the cores are shared.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before they
are imported.

Property tests take the profile named by HYPOTHESIS_PROFILE: "ci" (the default: few examples, the
same every time), "middle" or "thorough" (other examples every time). None keeps a database.
"""

from __future__ import annotations

import os
import tempfile

import hypothesis
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# hypothesis keeps more than its database; the tree stays clean.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis")
)
for profile, examples in (("ci", 10), ("middle", 60), ("thorough", 3000)):
    hypothesis.settings.register_profile(
        profile,
        max_examples=examples,
        derandomize=profile == "ci",
        deadline=None,  # the machine may be busy
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
