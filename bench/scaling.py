"""One outer step by 1, 2 and 4 processes: equal results, time, and the all-reduce alone.

    python bench/scaling.py                            # on this machine's processor, Gloo
    python bench/scaling.py --processes 1 2 4 8 --width 128 --images-per-class 10   # on its GPUs

Every process has one thread. Each row is a job of its own (``torchrun``) that makes the same outer
steps with the same four segments of teachers; its images are compared with those of one process in
the same call, and no time is shown where they differ by more than float32's rounding.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file, save_file

STEPS = 5


def work(out: Path, images_per_class: int, width: int, inner_steps: int, segments: int) -> None:
    """One process of a job: its times as JSON and the images it ends with."""
    from iadd_fast.artifacts import MemoryExperts
    from iadd_fast.data import load_data
    from iadd_fast.devices import resolve_device
    from iadd_fast.distributed import Ranks, joined
    from iadd_fast.importance import Uniform
    from iadd_fast.settings import DistillSettings
    from iadd_fast.students import parse_student
    from iadd_fast.trajectory_matching import TrajectoryMatching

    torch.set_num_threads(1)
    with joined():
        draw = torch.Generator().manual_seed(0)
        images = torch.rand(40 * images_per_class, 3, 32, 32, generator=draw)
        labels = torch.arange(len(images)) % 10
        data = load_data(images, labels=labels)
        student = parse_student(f"convnet:width={width}", (3, 32, 32), 10)
        starts = [student.init(number) for number in range(2 * segments)]
        experts = MemoryExperts(
            [torch.stack([t, t + 0.02 * torch.randn(t.shape, generator=draw)]) for t in starts]
        )
        options = DistillSettings(
            iterations=STEPS + 1, steps=inner_steps, expert_epochs=1, max_start_epoch=0,
            trajectories=segments, max_loss=1e9,
        )  # fmt: skip
        device = resolve_device(None)
        run = TrajectoryMatching(
            data, experts, student, Uniform(), images_per_class, options, None, device
        )
        run.outer_step()
        ranks = Ranks.current()

        def clock() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ranks.wait()
            return time.perf_counter()

        times, sums = [], []
        for _ in range(STEPS):
            began = clock()
            run.outer_step()
            times.append(clock() - began)
        parts = [torch.zeros_like(run.synthetic.images), torch.zeros(2, device=device)]
        for _ in range(20):
            began = clock()
            ranks.sum(parts)
            sums.append(clock() - began)
        empty = [clock() for _ in range(21)]
        waiting = statistics.median(b - a for a, b in itertools.pairwise(empty))
        if ranks.first:
            save_file({"images": run.synthetic.images.cpu().contiguous()}, out / "images")
            (out / "times").write_text(
                json.dumps(
                    {
                        "step": statistics.median(times) - waiting,
                        "spread": [min(times) - waiting, max(times) - waiting],
                        "sum": max(0.0, statistics.median(sums) - waiting),
                        "bytes": sum(part.nbytes for part in parts),
                    }
                )
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="inner steps")
    parser.add_argument("--segments", type=int, default=4, help="trajectories per outer step")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.out is not None:
        work(given.out, given.images_per_class, given.width, given.steps, given.segments)
        return 0
    print(
        "processes  ms per outer step  (least to most)  speed-up  all-reduce ms   KiB  difference"
    )
    status, first, alone = 0, None, 0.0
    for count in given.processes:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [
                    sys.executable, "-m", "torch.distributed.run", "--standalone",
                    f"--nproc-per-node={count}", __file__, "--out", folder,
                    "--images-per-class", str(given.images_per_class), "--width", str(given.width),
                    "--steps", str(given.steps), "--segments", str(given.segments),
                ],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            found = json.loads((Path(folder) / "times").read_text())
            images = load_file(Path(folder) / "images")["images"]
        if first is None:
            first, alone = images, found["step"]
        apart = float((images - first).abs().max() / first.abs().max())
        if apart > 1e-5:
            print(f"{count:9}  WRONG: images differ by {apart:.1e} of the largest")
            status = 1
            continue
        least, most = (1e3 * value for value in found["spread"])
        print(
            f"{count:9}  {1e3 * found['step']:17.0f}  {least:6.0f} to {most:5.0f}  "
            f"{alone / found['step']:8.2f}  {1e3 * found['sum']:13.2f}  "
            f"{found['bytes'] / 1024:4.0f}  {apart:.1e}"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
