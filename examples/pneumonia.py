"""Chest X-rays of children (PneumoniaMNIST): 2 and 20 images in place of 5,232, on a CPU.

    python examples/pneumonia.py --data pneumoniamnist.npz --out FOLDER

The file is MedMNIST's (Yang et al., 2023; CC BY 4.0; Kermany et al., 2018): 28x28, normal or
pneumonia, three quarters of the training images pneumonia, so that accuracy alone flatters a
network that says pneumonia always. What is done: ``common.py``.
"""

from __future__ import annotations

from pathlib import Path

from common import Study, main

import iadd_fast


def load(path: Path) -> iadd_fast.Data:
    """The images in the file's own training, validation and test parts."""
    return iadd_fast.load_data(path, name="PneumoniaMNIST")


STUDY = Study(
    load=load,
    student="convnet:width=32",
    experts={"count": 4, "epochs": 12},
    distill={
        "iterations": 150,
        "steps": 20,
        "expert_epochs": 4,  # of 19 steps each
        "max_start_epoch": 8,
        "lr_lr": 1e-4,
        "validate_every": 25,
        "validation_epochs": 150,
    },
    sizes={1: {}, 10: {}},
    image_steps={1: [3, 10, 30], 10: [30, 100, 300]},
    seeds=2,
    evaluate={"networks": 3, "epochs": 500, "full_epochs": 15},
)

if __name__ == "__main__":
    main(STUDY, __doc__)
