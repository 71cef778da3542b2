"""What is on disk: distilled sets, experts, and the formats of other tools."""

from __future__ import annotations

from iadd_fast.artifacts.distilled_set import DistilledSet
from iadd_fast.artifacts.expert_store import ExpertStore
from iadd_fast.artifacts.mtt import load_mtt_buffers, save_mtt_set
from iadd_fast.artifacts.mtt_experts import convert_mtt_buffers
from iadd_fast.artifacts.trajectories import Experts, MemoryExperts

__all__ = [
    "DistilledSet",
    "ExpertStore",
    "Experts",
    "MemoryExperts",
    "convert_mtt_buffers",
    "load_mtt_buffers",
    "save_mtt_set",
]
