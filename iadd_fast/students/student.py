"""A student: any network as a pure function of one flat parameter vector ``theta``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iadd_fast import arguments
from iadd_fast.devices import resolve_device
from iadd_fast.memory import is_out_of_memory

#: Most parameters of a student: 4 GiB a vector in float32.
LARGEST = 2**30


@dataclass(frozen=True, slots=True)
class ParameterSlice:
    """Where one parameter tensor lives in ``theta``: ``theta[start:stop].view(shape)``."""

    name: str
    layer: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Student:
    """A network as a function ``logits = apply(theta, images)`` of one flat vector ``theta``.

    ``theta`` holds the module's parameters in ``module.parameters()`` order, each flattened and
    concatenated (the order of MTT's ``ReparamModule`` and of its expert files).

    Args:
        factory: builds the module with freshly initialised parameters; called once here and once
            per :meth:`init`.
        spec: JSON-able description from which :func:`iadd_fast.students.build` makes the same
            student again.

    Raises:
        ValueError: the module has no parameters, keeps running statistics in training mode
            (BatchNorm) or draws random numbers in training mode (Dropout). Both would make the
            network more than a function of ``theta`` and its input; call ``.eval()`` on the module
            or use group or instance norm.
    """

    def __init__(self, factory: Callable[[], nn.Module], spec: Mapping[str, Any]) -> None:
        self._factory = factory
        self.spec: dict[str, Any] = dict(spec)
        # The template only gives structure: functional_call replaces every parameter.
        module = arguments.instance("module", factory(), nn.Module, "a function that makes one")
        self.module = module.requires_grad_(False)
        _check_is_function(self.module)
        table: list[ParameterSlice] = []
        offset = 0
        for name, parameter in self.module.named_parameters():
            layer = name.rpartition(".")[0] or name
            stop = offset + parameter.numel()
            table.append(ParameterSlice(name, layer, tuple(parameter.shape), offset, stop))
            offset = stop
        if not table:
            raise ValueError("module: has no parameters; a student needs something to train")
        self.parameters: tuple[ParameterSlice, ...] = tuple(table)
        self.num_parameters = offset
        #: Functions that an engine compiled for this student; they live as long as it does.
        self.compiled: dict[Hashable, Any] = {}
        self._sizes = [entry.stop - entry.start for entry in table]

    def __repr__(self) -> str:
        return f"Student({self.spec}, {self.num_parameters:,} parameters)"

    def init(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A fresh flat ``theta`` ``[num_parameters]``: the module's own default initialisation.

        Drawn on the CPU under ``seed`` without touching the caller's random state, so that equal
        seeds give equal parameters on every device.

        Raises:
            TypeError, ValueError: ``seed`` is no whole number, ``dtype`` not floating-point, or
                there is no such device.
        """
        seed = arguments.whole("seed", seed, -arguments.LARGEST)
        arguments.instance("dtype", dtype, torch.dtype, "a torch.dtype")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: got {dtype}; takes a floating-point one")
        device = resolve_device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._factory()
        flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        return flat.to(device=device, dtype=dtype, copy=True)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of ``theta`` ``[num_parameters]`` by parameter name.

        Raises:
            TypeError, ValueError: ``theta`` is no flat vector for this student.
        """
        self._check_flat(theta, "theta")
        return {
            entry.name: part.view(entry.shape)
            for entry, part in zip(self.parameters, theta.split(self._sizes), strict=True)
        }

    def apply(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of ``images`` ``[N, ...]`` under ``theta`` ``[num_parameters]``.

        Differentiable in both arguments to any order, in reverse and forward mode, as far as the
        module's own operators are.

        Raises:
            TypeError, ValueError: ``theta`` is no flat vector for this student, or ``images`` are
                not what the package's networks take; what a user's own module raises.
        """
        arguments.instance("images", images, Tensor, "a tensor")
        if images.layout != torch.strided:
            raise ValueError(f"images: got {images.layout}; takes a strided tensor")
        logits: Tensor = functional_call(self.module, self.unflatten(theta), (images,))
        return logits

    __call__ = apply

    def layers(self) -> dict[str, list[slice]]:
        """Layer name -> the slices of ``theta`` it owns, in order."""
        owned: dict[str, list[slice]] = {}
        for entry in self.parameters:
            owned.setdefault(entry.layer, []).append(slice(entry.start, entry.stop))
        return owned

    def check_theta(self, theta: Tensor, argument: str = "theta") -> None:
        """Raise ``ValueError`` unless ``theta`` is a flat vector of floats for this student.

        ``TypeError`` where it is no tensor.
        """
        self._check_flat(arguments.tensor(argument, theta), argument)
        if not theta.is_floating_point():
            raise ValueError(f"{argument}: got {theta.dtype}; takes a floating-point dtype")

    def check_samples(self, theta: Tensor, images: Tensor, labels: Tensor) -> None:
        """Raise ``ValueError`` unless the network takes ``images`` and has the labels' classes.

        One forward pass of at most two samples, on theta's device.

        Args:
            theta: parameters ``[num_parameters]``, checked. images: ``[N, ...]``, at least one.
            labels: int64 ``[N]`` or floats ``[N, classes]``.
        """
        few = images[:2].detach().to(theta.device)
        try:
            with torch.no_grad():
                logits = self.apply(theta.detach(), few)
        except RuntimeError as error:  # of a module of the user's own
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"images: got {arguments.shown(images)}, which the student cannot take: "
                f"{' '.join(str(error).split())}"
            ) from error
        if logits.ndim != 2 or len(logits) != len(few):
            raise ValueError(
                f"student: gives {arguments.shown(logits)} for {len(few)} samples; takes one that "
                "gives logits (N, classes)"
            )
        check_labels(labels, len(images), logits.shape[1], theta.dtype)

    def _check_flat(self, theta: Tensor, argument: str) -> None:
        arguments.instance(argument, theta, Tensor, "a tensor")
        if theta.ndim != 1 or theta.numel() != self.num_parameters:
            raise ValueError(
                f"{argument}: got shape {tuple(theta.shape)}; this student takes a flat vector of "
                f"{self.num_parameters} parameters"
            )


def from_module(
    module: nn.Module | Callable[[], nn.Module], spec: Mapping[str, Any] | None = None
) -> Student:
    """A student from any ``nn.Module`` (or a function that builds one).

    With a module, :meth:`Student.init` copies it and calls ``reset_parameters()`` on each
    submodule; a module that owns parameters without that method needs the building function.

    Args:
        module: the network, mapping a batch to logits, or a function without arguments that
            builds it freshly initialised.
        spec: description kept in artifacts; default names the module's class.

    Raises:
        TypeError: ``module`` is neither.
        ValueError: see :class:`Student`; or a submodule cannot be re-initialised.
    """
    if isinstance(module, nn.Module):
        _check_resettable(module)
        template = copy.deepcopy(module).cpu().requires_grad_(False)

        def factory() -> nn.Module:
            fresh = copy.deepcopy(template)
            for part in fresh.modules():
                reset = getattr(part, "reset_parameters", None)
                if callable(reset):
                    reset()
            return fresh

        name = type(module).__qualname__
    elif callable(module):
        factory = module
        name = getattr(module, "__qualname__", type(module).__qualname__)
    else:
        raise TypeError(f"module: got {type(module).__name__}; takes an nn.Module or a function")
    return Student(factory, spec if spec is not None else {"name": "module", "module": name})


def check_labels(labels: Tensor, count: int, classes: int, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless they are int64 ``[count]`` in range or ``dtype`` probabilities.

    Operators index with hard labels unchecked, and cross-entropy passes over -100 in silence.
    """
    arguments.tensor("labels", labels)
    hard = labels.dtype == torch.int64 and labels.shape == (count,)
    if not hard and not (labels.dtype == dtype and labels.shape == (count, classes)):
        raise ValueError(
            f"labels: got {arguments.shown(labels)}; takes int64 [{count}] or {dtype} "
            f"probabilities [{count}, {classes}]"
        )
    if hard and count and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels: got values from {int(labels.min())} to {int(labels.max())}; takes 0 to "
            f"{classes - 1}"
        )


def check_images(images: Tensor, sample: tuple[int, ...], weight: Tensor) -> None:
    """Raise ``ValueError`` unless ``images`` are ``[N, *sample]`` of the parameters' dtype."""
    if tuple(images.shape[1:]) != sample or images.ndim == 0:
        raise ValueError(
            f"images: got shape {tuple(images.shape)}; this student takes (N, "
            f"{', '.join(map(str, sample))})"
        )
    if images.dtype != weight.dtype or images.device != weight.device:
        raise ValueError(
            f"images: got {images.dtype} on {images.device}; theta is {weight.dtype} on "
            f"{weight.device}"
        )


def check_size(factory: Callable[[], nn.Module], spec: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where there are more than ``LARGEST`` parameters; allocates none."""
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in factory().parameters())
    except (RuntimeError, TypeError, OverflowError):  # sizes beyond 64 bits
        count = arguments.LARGEST
    if count > LARGEST:
        raise ValueError(
            f"student: got {arguments.shown(dict(spec))} with {count:,} parameters or more; takes "
            f"at most {LARGEST:,}"
        )


def _check_resettable(module: nn.Module) -> None:
    for name, part in module.named_modules():
        owns = any(True for _ in part.parameters(recurse=False))
        if owns and not callable(getattr(part, "reset_parameters", None)):
            raise ValueError(
                f"module: {name or type(part).__name__} owns parameters but has no "
                "reset_parameters(); pass a function that builds the module instead"
            )


def _check_is_function(module: nn.Module) -> None:
    for name, part in module.named_modules():
        kind = type(part).__name__
        if not part.training:
            continue
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            raise ValueError(
                f"module: {name or kind} ({kind}) updates running statistics in training mode; "
                "use group or instance norm, track_running_stats=False, or call .eval()"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise ValueError(
                f"module: {name or kind} ({kind}) draws random numbers in training mode; "
                "set p=0 or call .eval()"
            )


def pooled_side(side: int, times: int) -> int:
    """Length of a side after ``times`` poolings by two (rounded down each time)."""
    return side // 2**times
