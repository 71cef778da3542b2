"""Every setting of the main jobs, once: Python keywords, command-line flags and TOML keys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Self

from iadd_fast import arguments


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its one-line help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Base: made from keywords, checked on creation, JSON-able."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The settings with these values.

        Raises:
            TypeError: an unknown name; the message lists the known ones.
            ValueError: a value out of range.
        """
        known = [entry.name for entry in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise TypeError(f"{unknown[0]}: no such setting; takes {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return dataclasses.asdict(self)

    def _whole(self, *names: str, least: int = 1, most: int = arguments.LARGEST) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None or getattr(type(self), name, ...) is not None:
                self._set(name, arguments.whole(name, value, least, most))

    def _number(
        self,
        *names: str,
        above: float | None = None,
        least: float | None = None,
        below: float | None = None,
        most: float | None = None,
    ) -> None:
        bounds = {"above": above, "least": least, "below": below, "most": most}
        for name in names:
            self._set(name, arguments.number(name, getattr(self, name), **bounds))

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        arguments.choice(name, getattr(self, name), choices)

    def _text(self, *names: str) -> None:
        for name in names:
            self._set(name, arguments.text(name, getattr(self, name)))

    def _flag(self, *names: str) -> None:
        for name in names:
            arguments.instance(name, getattr(self, name), bool, "True or False")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # numpy's numbers become Python's, for JSON


@dataclass(frozen=True)
class ExpertSettings(Settings):
    """How teachers are trained: MTT's ``buffer.py`` by default (SGD, 0.01, no momentum, DSA)."""

    count: int = setting(10, "number of experts")
    epochs: int = setting(
        4, "epochs of each; a distillation reaches max_start_epoch + expert_epochs"
    )
    lr: float = setting(0.01, "learning rate of SGD")
    momentum: float = setting(0.0, "momentum of SGD")
    weight_decay: float = setting(0.0, "weight decay of SGD")
    decay: bool = setting(False, "learning rate x 0.1 from half of the epochs on")
    batch_size: int = setting(256, "real images per step")
    augment: str = setting("auto", "DSA families joined by _, dsa, none, or auto: dsa for images")
    seed: int = setting(0, "fixes initialisation, order and augmentation")
    precision: str = setting("float32", "products in float32 or, on a GPU, tf32")
    at_once: int | None = setting(
        None, "experts trained side by side on a GPU; none: as many as fill it"
    )

    def __post_init__(self) -> None:
        self._whole("count", "epochs", most=arguments.MOST)
        self._whole("batch_size", "at_once")
        self._whole("seed", least=0)
        self._number("lr", above=0)
        self._number("momentum", least=0, below=1)
        self._number("weight_decay", least=0)
        self._flag("decay")
        self._text("augment")
        self._choice("precision", ("float32", "tf32"))


@dataclass(frozen=True)
class DistillSettings(Settings):
    """How a set is distilled; MTT's protocol (arXiv 2203.11932) unless a help text says more."""

    iterations: int = setting(1000, "outer steps")
    steps: int = setting(30, "inner steps J of the student on the synthetic set")
    expert_epochs: int = setting(2, "epochs K of the teacher that the J steps shall match")
    min_start_epoch: int = setting(0, "first start epoch of the window")
    max_start_epoch: int = setting(2, "last start epoch of the window")
    first_max_start_epoch: int | None = setting(
        None, "last start epoch at iteration 0, growing to max_start_epoch (DATM); none: no growth"
    )
    growth_iterations: int | None = setting(
        None, "iterations over which the window grows; none: all of them"
    )
    lr_images: float = setting(10.0, "step of the images")
    lr_lr: float = setting(1e-5, "step of the inner learning rate alpha")
    lr_init: float = setting(0.01, "first inner learning rate alpha")
    lr_labels: float = setting(1.0, "step of the soft labels' logits")
    momentum: float = setting(0.5, "momentum of all three")
    batch_size: int | None = setting(None, "synthetic images per inner step; none: all")
    augment: str = setting("auto", "DSA families joined by _, dsa, none, or auto: as the experts")
    soft_labels: bool = setting(False, "learn the labels too, as probabilities")
    initial: str = setting("real", "first images: real, noise or kmeans (centres of each class)")
    ema: float | None = setting(None, "decay of an average of the images, which is then the result")
    trajectories: int | None = setting(
        None, "teacher segments matched per outer step, their mean taken; none: one a process"
    )
    window: int | None = setting(None, "differentiate only the last so many inner steps; none: all")
    engine: str = setting("auto", "engine of the meta-gradient: auto, fused, module or reference")
    precision: str = setting("float32", "products in float32, tf32 or bfloat16")
    memory_budget: int | None = setting(
        None, "MiB for activations that engine fused keeps; none: 256, on a GPU a quarter"
    )
    compile: bool = setting(False, "run engine module under torch.compile")
    validate_every: int | None = setting(
        None, "iterations between validations, which pick the result; none: ten of them"
    )
    validation_networks: int = setting(2, "networks per validation")
    validation_epochs: int = setting(300, "epochs of each of them")
    max_loss: float = setting(5.0, "a step whose loss is larger is skipped")
    max_skips: int = setting(20, "skipped steps in a row that stop the run")
    checkpoint_every: int = setting(50, "iterations between checkpoints")
    seed: int = setting(0, "fixes everything that is drawn")

    def __post_init__(self) -> None:
        self._whole(
            "iterations", "growth_iterations", "batch_size", "window", "validate_every",
            "validation_epochs", "max_skips", "checkpoint_every",
        )  # fmt: skip
        self._whole(
            "steps", "expert_epochs", "trajectories", "validation_networks", most=arguments.MOST
        )
        self._whole(
            "min_start_epoch", "max_start_epoch", "first_max_start_epoch",
            least=0, most=arguments.MOST,
        )  # fmt: skip
        self._whole("seed", least=0)
        self._number("lr_images", "lr_lr", "lr_labels", "max_loss", above=0)
        # alpha is kept in float32, where less is 0.
        self._number("lr_init", least=1.2e-38)
        self._number("momentum", least=0, below=1)
        if self.ema is not None:
            self._number("ema", above=0, below=1)
        self._flag("soft_labels", "compile")
        self._text("augment")
        self._choice("initial", ("real", "noise", "kmeans"))
        self._choice("engine", ("auto", "fused", "module", "reference"))
        self._choice("precision", ("float32", "tf32", "bfloat16"))
        self._whole("memory_budget", least=0)
        first = self.first_max_start_epoch
        if self.min_start_epoch > (self.max_start_epoch if first is None else first):
            raise ValueError(
                f"min_start_epoch: got {self.min_start_epoch}; the window ends before it, at "
                f"{self.max_start_epoch if first is None else first}"
            )
        if first is not None and first > self.max_start_epoch:
            raise ValueError(
                f"first_max_start_epoch: got {first}; takes at most max_start_epoch, "
                f"{self.max_start_epoch}"
            )

    def last_start_epoch(self, iteration: int) -> int:
        """Last start epoch of the window at ``iteration``."""
        if self.first_max_start_epoch is None:
            return self.max_start_epoch
        share = min(1.0, iteration / (self.growth_iterations or self.iterations))
        grown = share * (self.max_start_epoch - self.first_max_start_epoch)
        return self.first_max_start_epoch + int(grown)


@dataclass(frozen=True)
class GradientSettings(Settings):
    """How a set is distilled by gradient matching: DSA's script (2102.08259) by default.

    DC (2006.05929) is ``augment="none", initial="noise"``.
    """

    iterations: int = setting(1000, "outer steps, each with a fresh network")
    image_updates: int | None = setting(
        None, "updates of the images per network; none: published, by images per class"
    )
    network_epochs: int | None = setting(
        None, "epochs of the network on the set between two of them; none: published, likewise"
    )
    batch_real: int = setting(256, "real images of a class per update, or all it has")
    batch_size: int = setting(256, "synthetic images per step of the network")
    lr_images: float = setting(0.1, "step of the images")
    momentum: float = setting(0.5, "momentum of the images")
    lr_net: float = setting(0.01, "learning rate of the networks, here and on the result")
    augment: str = setting(
        "auto", "DSA families joined by _, dsa, none (DC), or auto: dsa for images"
    )
    initial: str = setting("real", "first images: real, noise (DC) or kmeans (centres)")
    engine: str = setting("auto", "engine of the gradient: auto, fused or plain")
    precision: str = setting("float32", "products in float32 or tf32")
    validate_every: int | None = setting(
        None, "iterations between validations, which pick the result; none: ten of them"
    )
    validation_networks: int = setting(2, "networks per validation")
    validation_epochs: int = setting(300, "epochs of each of them")
    max_skips: int = setting(20, "skipped steps in a row that stop the run")
    checkpoint_every: int = setting(50, "iterations between checkpoints")
    seed: int = setting(0, "fixes everything that is drawn")

    def __post_init__(self) -> None:
        self._whole(
            "iterations", "image_updates", "batch_real", "batch_size", "validate_every",
            "validation_epochs", "max_skips", "checkpoint_every",
        )  # fmt: skip
        self._whole("validation_networks", most=arguments.MOST)
        self._whole("network_epochs", "seed", least=0)
        self._number("lr_images", "lr_net", above=0)
        self._number("momentum", least=0, below=1)
        self._text("augment")
        self._choice("initial", ("real", "noise", "kmeans"))
        self._choice("engine", ("auto", "fused", "plain"))
        self._choice("precision", ("float32", "tf32"))


#: Settings of :func:`iadd_fast.distill` by its ``method``; the first is the default.
METHODS: dict[str, type[DistillSettings] | type[GradientSettings]] = {
    "trajectory": DistillSettings,
    "gradient": GradientSettings,
}


def settings_of(method: str, values: dict[str, Any]) -> DistillSettings | GradientSettings:
    """The settings of a method of :func:`iadd_fast.distill`.

    Raises:
        ValueError: no such method, or a value out of range.
        TypeError: an unknown name; one of another method's settings is told which method takes it.
    """
    arguments.choice("method", method, METHODS)
    own = {entry.name for entry in fields(METHODS[method])}
    for name in values:
        takers = [
            other for other, group in METHODS.items() if name in {e.name for e in fields(group)}
        ]
        if name not in own and takers:
            raise TypeError(
                f"{name}: is a setting of method {takers[0]!r}; method {method!r} takes "
                f"{', '.join(entry.name for entry in fields(METHODS[method]))}"
            )
    return METHODS[method].of(**values)
