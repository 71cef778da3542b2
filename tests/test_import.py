"""What `import iadd_fast` does not do."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys, torch
before = set(sys.modules)
import iadd_fast
heavy = ("torch._inductor", "torch._dynamo", "triton", "matplotlib", "sklearn", "typer")
print([name for name in heavy if name in set(sys.modules) - before], torch.cuda.is_initialized())
"""


def test_import_compiles_nothing_and_touches_no_gpu() -> None:
    """Breaks when a module-level import pulls in a compiler, plotting, or starts CUDA.

    What torch itself imports does not count.
    """
    run = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "[] False"
