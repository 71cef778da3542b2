"""What is on disk: distilled sets, experts, and the formats of other tools."""

from __future__ import annotations

from iadd_fast.artifacts.distilled_set import DistilledSet
from iadd_fast.artifacts.expert_store import Experts, ExpertStore, MemoryExperts
from iadd_fast.artifacts.mtt import load_mtt_buffers, save_mtt_set

__all__ = [
    "DistilledSet",
    "ExpertStore",
    "Experts",
    "MemoryExperts",
    "load_mtt_buffers",
    "save_mtt_set",
]
