"""iadd_fast: importance-aware dataset distillation by trajectory matching (IADD, arXiv 2401.15863).

The main job in four calls::

    data = iadd_fast.load_data("digits")
    experts = iadd_fast.train_experts(data, out="experts")
    distilled = iadd_fast.distill(data, experts, images_per_class=1)
    print(iadd_fast.evaluate(distilled, data).table())
"""

from __future__ import annotations

from iadd_fast import importance, ops, students
from iadd_fast.artifacts import DistilledSet, Experts, ExpertStore, load_mtt_buffers
from iadd_fast.augment import Augmentation
from iadd_fast.comparison import Comparison, ContenderFailed, compare
from iadd_fast.data import Data, load_data
from iadd_fast.distillation import distill
from iadd_fast.distillation_run import DistillationDiverged
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.expert_training import ExpertDiverged
from iadd_fast.experts import train_experts
from iadd_fast.ops import backends, use_backend
from iadd_fast.planning import DataShape, plan
from iadd_fast.preset import Preset, presets
from iadd_fast.students import Student
from iadd_fast.tuning import Tuning, tune
from iadd_fast.unroll import TrajectoryGradient, trajectory_gradient

__all__ = [
    "Augmentation",
    "Comparison",
    "ContenderFailed",
    "Data",
    "DataShape",
    "DistillationDiverged",
    "DistilledSet",
    "Evaluation",
    "ExpertDiverged",
    "ExpertStore",
    "Experts",
    "Preset",
    "Student",
    "TrajectoryGradient",
    "Tuning",
    "backends",
    "compare",
    "distill",
    "evaluate",
    "importance",
    "load_data",
    "load_mtt_buffers",
    "ops",
    "plan",
    "presets",
    "students",
    "train_experts",
    "trajectory_gradient",
    "tune",
    "use_backend",
]
