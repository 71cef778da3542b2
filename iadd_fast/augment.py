"""Augmentation policies: which DSA families a step applies, replayable from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from iadd_fast.ops.diff_augment import FAMILIES, diff_augment
from iadd_fast.seeds import derive

DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Augmentation:
    """A DSA strategy (Zhao and Bilen 2021): called as ``augmentation(images, seed)``.

    Args:
        families: names out of color, crop, cutout, flip, scale, rotate.
        mode: ``"single"``: each call picks one family for the whole batch (DSA's mode S, used by
            MTT); ``"chain"``: each call applies all of them in the given order (mode M).
        shared: one set of parameters for the whole batch instead of one per sample.

    Raises:
        ValueError: no family, an unknown one, or an unknown mode.
    """

    families: tuple[str, ...]
    mode: Literal["single", "chain"] = "single"
    shared: bool = False

    def __post_init__(self) -> None:
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown or not self.families:
            raise ValueError(
                f"augment: got {'_'.join(self.families)!r}; takes families out of "
                f"{', '.join(FAMILIES)}, joined by '_' (or 'none')"
            )
        if self.mode not in ("single", "chain"):
            raise ValueError(f"augment mode: got {self.mode!r}; takes 'single' or 'chain'")

    @staticmethod
    def parse(text: str | Augmentation | None) -> Augmentation | None:
        """``"color_crop"``, ``"chain:color_crop"``, ``"dsa"`` (all six families) or ``"none"``.

        Options stand before the families, joined by ``:``; ``"chain"`` and ``"shared"`` are known.
        """
        if text is None or isinstance(text, Augmentation):
            return text
        *options, families = text.split(":")
        unknown = set(options) - {"chain", "shared"}
        if unknown:
            raise ValueError(f"augment: got option {min(unknown)!r}; takes 'chain' and 'shared'")
        if families in ("none", ""):
            return None
        if families == "dsa":
            families = DSA
        return Augmentation(
            tuple(families.split("_")),
            mode="chain" if "chain" in options else "single",
            shared="shared" in options,
        )

    def __str__(self) -> str:
        options = ["chain"] if self.mode == "chain" else []
        options += ["shared"] if self.shared else []
        return ":".join([*options, "_".join(self.families)])

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """``images`` ``[N, C, H, W]`` augmented; equal seeds repeat the call bit for bit."""
        return diff_augment(images, self.chain(seed), seed, shared=self.shared)

    def chain(self, seed: int) -> tuple[str, ...]:
        """The families that a call with ``seed`` applies, in order."""
        if self.mode == "chain":
            return self.families
        return (self.families[derive(seed, "family") % len(self.families)],)
