"""What .ci/run asks of an installed package, away from the sources: its kernels, a run, a report.

python installed.py FOLDER [BACKEND ...]    # backends that every operator must have here
"""

from __future__ import annotations

import sys
from pathlib import Path

import iadd_fast
from iadd_fast.report import write_report

folder, wanted = Path(sys.argv[1]), sys.argv[2:]
place = Path(iadd_fast.__file__).parent
assert place.is_relative_to(sys.prefix), f"{place} is not the installed package"
for operator, backends in iadd_fast.backends().items():
    for backend in wanted:
        assert backends[backend] is None, f"{operator}: no {backend}: {backends[backend]}"
assert "cifar10-ipc1" in iadd_fast.presets()

data = iadd_fast.load_data("digits")
experts = iadd_fast.train_experts(
    data, "convnet:width=8", folder / "experts", count=2, epochs=2, progress=False
)
distilled = iadd_fast.distill(
    data,
    experts,
    1,
    out=folder / "run",
    iterations=2,
    steps=2,
    expert_epochs=1,
    max_start_epoch=1,
    progress=False,
)
again = iadd_fast.DistilledSet.load(folder / "run" / "distilled.safetensors")
assert again.images.equal(distilled.images) and again.lr == distilled.lr
measured = iadd_fast.evaluate(again, data, networks=1, epochs=2, full_epochs=1, progress=False)
page = write_report(folder / "report", again, evaluation=measured, data=data)
print(f"{place}: {len(measured.rows)} methods evaluated, {page.stat().st_size:,} bytes of report")
