"""Household electricity readings (ElectricDevices of the UCR archive): series, on a CPU.

    python examples/electric_devices.py --data ElectricDevices_TRAIN.tsv --out FOLDER

FOLDER of the data holds ``ElectricDevices_TRAIN.tsv`` and ``ElectricDevices_TEST.tsv`` (Dau et al.,
2018): 8,926 and 7,711 series of 96 readings, 7 classes of device. The student is the 1-D ConvNet,
without augmentation: DSA is for images. What is done: ``common.py``.
"""

from __future__ import annotations

from common import Study, main

import iadd_fast

STUDY = Study(
    load=iadd_fast.load_data,
    student="convnet1d:width=32",
    experts={"count": 5, "epochs": 2, "lr": 0.05},
    distill={
        "iterations": 120,
        "steps": 10,
        "expert_epochs": 1,
        "max_start_epoch": 1,
        "lr_lr": 1e-6,
        "validate_every": 20,
        "validation_epochs": 150,
        "engine": "reference",  # the fastest for so few series and steps, whose graphs are small
    },
    # From the real series that it begins with, a larger alpha leads away from the teachers.
    sizes={1: {"lr_init": 0.01}, 10: {"lr_init": 0.03}},
    image_steps={1: [100, 300, 1000], 10: [100, 300, 1000]},
    seeds=2,
    evaluate={"networks": 3, "epochs": 500, "full_epochs": 10},
)

if __name__ == "__main__":
    main(STUDY, __doc__)
