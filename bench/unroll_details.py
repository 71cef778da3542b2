"""What the results say of engine "fused" beside its speed: rounding, memory budget, profile.

    python bench/unroll_details.py rounding [--images-per-class N]
    python bench/unroll_details.py budget
    python bench/unroll_details.py profile [--images-per-class N]

``rounding``: relative errors against float64 on eight random problems, and in how many places the
engine's float32 run has another sign ahead of a ReLU than its float64 run. ``budget``: time with
nothing, the default and everything kept between inner steps and sweep. ``profile``: where one
call's time goes. ConvNet-3 of width 128, 3x32x32, J = 10, on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from iadd_fast import ops, students, trajectory_gradient
from iadd_fast.unroll import TrajectoryGradient

STUDENT = students.convnet(channels=3, classes=10, image_size=32)
STEPS, SEEDS, ROUNDS = 10, 8, 5
EVERYTHING = 8192  # MiB


def problem(images_per_class: int, seed: int) -> dict[str, Any]:
    """A random one, in float32."""
    draw = torch.Generator().manual_seed(seed)
    theta = STUDENT.init(seed)
    count = 10 * images_per_class
    return {
        "theta": theta,
        "target": theta + 0.01 * torch.randn(theta.shape, generator=draw),
        "images": torch.randn((count, 3, 32, 32), generator=draw),
        "labels": torch.arange(10).repeat_interleave(images_per_class),
        "lr": 0.01,
        "steps": STEPS,
    }


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same problem in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def fused_and_signs(arguments: dict[str, Any]) -> tuple[TrajectoryGradient, list[Tensor]]:
    """The gradients, and of each step and block which ReLUs are active, from its own z."""
    STUDENT.compiled.clear()
    result = trajectory_gradient(STUDENT, **arguments, engine="fused", memory_budget=EVERYTHING)
    unroll = STUDENT.compiled["fused"].unrolls[0]
    chunks: dict[tuple[int, int], list[Tensor]] = {}
    for (step, begin), kept in sorted(unroll.kept.items()):
        theta = unroll.network.vectors(unroll.thetas[step])
        images = arguments["images"][begin : begin + unroll.samples]
        # The first block's output is not kept.
        first = ops.conv3x3(
            images.contiguous(memory_format=torch.channels_last), theta.blocks[0].weight
        )
        for number, (block, z) in enumerate(zip(theta.blocks, [first, *kept.z[1:]], strict=True)):
            active = ops.norm_relu_pool(z, block.gamma, block.beta, pool=False) > 0
            chunks.setdefault((step, number), []).append(active)
    return result, [torch.cat(parts) for parts in chunks.values()]


def errors(got: TrajectoryGradient, wanted: TrajectoryGradient) -> str:
    """Of the images' gradient and of alpha's."""
    pairs = ((got.images, wanted.images), (got.lr, wanted.lr))
    return " | ".join(f"{float((a.double() - b).norm() / b.norm()):.1e}" for a, b in pairs)


def rounding(images_per_class: int) -> None:
    """A row for each seed; engine "reference" only where it takes a second and not a minute."""
    names = ["fused"] + (["reference"] if images_per_class == 1 else []) + ["fused in bfloat16"]
    print(
        "| seed | ReLUs that differ | " + " | ".join(f"{n}: images | alpha" for n in names) + " |"
    )
    print("|---" * (2 + 2 * len(names)) + "|")
    for seed in range(SEEDS):
        arguments = problem(images_per_class, seed)
        wanted, exact = fused_and_signs(in_float64(arguments))
        got, rounded = fused_and_signs(arguments)
        differ = sum(int((a != b).sum()) for a, b in zip(rounded, exact, strict=True))
        cells = [errors(got, wanted)]
        if images_per_class == 1:
            plain = trajectory_gradient(STUDENT, **arguments, engine="reference")
            cells.append(errors(plain, wanted))
        narrow = trajectory_gradient(STUDENT, **arguments, engine="fused", precision="bfloat16")
        cells.append(errors(narrow, wanted))
        total = sum(sign.numel() for sign in exact)
        print(f"| {seed} | {differ:,} of {total:,} | " + " | ".join(cells) + " |", flush=True)


def budget() -> None:
    """Milliseconds, medians."""
    print("| images a class | nothing kept | default | all kept |\n|---|---|---|---|")
    for images_per_class in (1, 10):
        arguments, cells = problem(images_per_class, 0), []
        for mebibytes in (0, None, EVERYTHING):
            STUDENT.compiled.clear()
            seconds = []
            for _ in range(1 + ROUNDS):
                began = time.perf_counter()
                trajectory_gradient(STUDENT, **arguments, engine="fused", memory_budget=mebibytes)
                seconds.append(time.perf_counter() - began)
            kept = STEPS - STUDENT.compiled["fused"].unrolls[0].kept_from
            cells.append(f"{1e3 * statistics.median(seconds[1:]):,.0f} ms, {kept} steps")
        print(f"| {images_per_class} | " + " | ".join(cells) + " |", flush=True)


def profiled(images_per_class: int) -> None:
    """torch.profiler's table of a call with warm caches."""
    arguments = problem(images_per_class, 0)
    trajectory_gradient(STUDENT, **arguments, engine="fused")
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        trajectory_gradient(STUDENT, **arguments, engine="fused")
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rounding", "budget", "profile"))
    parser.add_argument("--images-per-class", type=int, default=1)
    options = parser.parse_args()
    if options.what == "budget":
        budget()
    elif options.what == "rounding":
        rounding(options.images_per_class)
    else:
        profiled(options.images_per_class)


if __name__ == "__main__":
    main()
