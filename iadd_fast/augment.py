"""Augmentation policies: which DSA families a step applies, replayable from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from iadd_fast import arguments
from iadd_fast.ops.checks import FAMILIES, LONGEST_CHAIN
from iadd_fast.ops.diff_augment import diff_augment
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
        TypeError: ``families`` is no list of texts, or ``shared`` no truth value.
        ValueError: no family, an unknown one, too many for a chain, or an unknown mode.
    """

    families: tuple[str, ...]
    mode: Literal["single", "chain"] = "single"
    shared: bool = False

    def __post_init__(self) -> None:
        arguments.instance("families", self.families, tuple | list, "a tuple of names")
        families = tuple(arguments.text("families", family) for family in self.families)
        object.__setattr__(self, "families", families)
        unknown = [family for family in families if family not in FAMILIES]
        if unknown or not families:
            raise ValueError(
                f"augment: got {arguments.shown('_'.join(families))}; takes families out of "
                f"{', '.join(FAMILIES)}, joined by '_' (or 'none')"
            )
        arguments.choice("augment mode", self.mode, ("single", "chain"))
        arguments.instance("shared", self.shared, bool, "True or False")
        if self.mode == "chain" and len(families) > LONGEST_CHAIN:
            raise ValueError(
                f"augment: got a chain of {len(families)}; takes at most {LONGEST_CHAIN}"
            )

    @staticmethod
    def parse(text: str | Augmentation | None) -> Augmentation | None:
        """``"color_crop"``, ``"chain:color_crop"``, ``"dsa"`` (all six families) or ``"none"``.

        Options stand before the families, joined by ``:``; ``"chain"`` and ``"shared"`` are known.

        Raises:
            TypeError: ``text`` is none of these.
            ValueError: an unknown option, or as on construction.
        """
        if text is None or isinstance(text, Augmentation):
            return text
        arguments.text("augment", text, "a text, an Augmentation or None")
        *options, families = text.split(":")
        unknown = set(options) - {"chain", "shared"}
        if unknown:
            raise ValueError(
                f"augment: got option {arguments.shown(min(unknown))}; takes 'chain' and 'shared'"
            )
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
