"""Which backend serves a call, and why the others do not.

An op's api module lists its backends in order of preference. Each is a module with
``unusable(*tensors) -> list[str]``: the reasons why it cannot serve these tensors, or, asked
without any, why it cannot run on this machine at all. "auto" takes the first backend that has
none; a backend that is asked for by name works or raises with its reasons, and never falls back.
On a GPU the order is what `verify` measured there, and "torch" goes before what it did not measure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast_kernels import verdicts
from clipfast_kernels.distributed import local_rows

NAMES = ("auto", "reference", "cpu", "triton", "cuda", "torch", "flash_attn")

# The default of the ops that have this backend.
FROM_ENVIRONMENT = os.environ.get("CLIPFAST_BACKEND", "auto")


class CannotServe(RuntimeError):
    """The backend asked for cannot serve the call, or none can."""


class Backends(NamedTuple):
    """What `backends` found.

    Attributes:
        reasons: per backend, in order of preference, why it cannot be used; empty where it can.
        auto: the backend that ``backend="auto"`` takes; None if it would raise.
    """

    reasons: dict[str, list[str]]
    auto: str | None


class Op(NamedTuple):
    """An op's backends in the order in which "auto" tries them.

    Attributes:
        name: the public function's name.
        modules: backend name to a function that imports and returns its module. In a traced call
            it must be a plain import statement.
        planned: backend name to the reason why it has no module in this release.
        trials: imports the op's ``trials.py`` (`ops/trial.py` tells its form), as modules' do.
    """

    name: str
    modules: dict[str, Callable[[], ModuleType]]
    planned: dict[str, str]
    trials: Callable[[], ModuleType] | None = None

    def reasons(self, *tensors: Tensor | None) -> dict[str, list[str]]:
        present = [t for t in tensors if t is not None]
        known = {name: self._unusable(name, present) for name in self.modules}
        return known | {name: [reason] for name, reason in self.planned.items()}

    def choose(self, backend: str, *tensors: Tensor | None, shape_class: str = "") -> str:
        """The name of the backend that serves these tensors.

        Args:
            shape_class: of the op's trials, where these tensors are not the call's arguments.

        Raises:
            ValueError: no such backend.
            CannotServe: the backend asked for cannot serve the call, or none can.
        """
        present = [t for t in tensors if t is not None]
        if backend == "auto":
            backend = self.named_default(present)
        if backend != "auto":
            self._check_named(backend, present)
            return backend
        for name in self.order(present, shape_class):
            if not self._unusable(name, present):
                return name
        raise CannotServe(f"{self.name}: no backend can serve this call: {self.reasons(*tensors)}")

    def named_default(self, tensors: list[Tensor]) -> str:
        """The backend that the environment or a pin asks for in the place of "auto", or "auto"."""
        asked = self._from_environment()
        if asked != "auto" or not tensors:
            return asked
        return _verdicts().pinned(self.name, tensors[0].device) or "auto"

    def order(self, tensors: list[Tensor], shape_class: str = "") -> list[str]:
        """The backends as "auto" tries them."""
        if not tensors or tensors[0].device.type not in verdicts.MEASURED_DEVICES:
            return list(self.modules)
        read, x = _verdicts(), tensors[0]
        measured: tuple[str, ...] = ()
        if self.trials is not None:
            kind = shape_class or self.trials().shape_class(*tensors)
            measured = read.ranking(self.name, x.dtype, kind, x.device)
        others = sorted(self.modules, key="torch".__ne__)  # "torch" first, the rest as they stand
        unmeasured = tuple(name for name in others if name not in measured)
        order = [*measured, *read.trusted(self.name, x.dtype, unmeasured, x.device)]
        return [name for name in order if name in self.modules]

    def _from_environment(self) -> str:
        """What the environment asks for, if this op has it."""
        if FROM_ENVIRONMENT not in NAMES:
            raise ValueError(
                f"CLIPFAST_BACKEND: expected one of {', '.join(NAMES)}; got {FROM_ENVIRONMENT!r}"
            )
        has_it = FROM_ENVIRONMENT in self.modules or FROM_ENVIRONMENT in self.planned
        return FROM_ENVIRONMENT if has_it else "auto"

    def _unusable(self, backend: str, tensors: list[Tensor]) -> list[str]:
        try:
            module = self.modules[backend]()
        except ImportError as error:  # Triton, where there is none
            return [f"this backend needs a package that is not here: {error}"]
        return module.unusable(*tensors)

    def _check_named(self, backend: str, tensors: list[Tensor]) -> None:
        if backend in self.planned:
            raise CannotServe(f"{self.name}: backend {backend!r}: {self.planned[backend]}")
        if backend not in self.modules:
            expected = ", ".join(["auto", *self.modules, *self.planned])
            raise ValueError(f"{self.name}: backend: expected one of {expected}; got {backend!r}")
        if reasons := self._unusable(backend, tensors):
            raise CannotServe(
                f"{self.name}: backend {backend!r} cannot serve this call: {'; '.join(reasons)}"
            )


def _verdicts() -> ModuleType:
    if torch.compiler.is_compiling():
        from clipfast_kernels import traced_verdicts

        return traced_verdicts
    return verdicts


def _contrastive_loss() -> Op:
    from clipfast_kernels.ops.contrastive.api import BACKENDS

    return BACKENDS


def _sigmoid_loss() -> Op:
    from clipfast_kernels.ops.sigmoid.api import BACKENDS

    return BACKENDS


def _gathered_similarity() -> Op:
    from clipfast_kernels.ops.similarity.api import BACKENDS

    return BACKENDS


def _attention() -> Op:
    from clipfast_kernels.ops.attention.api import BACKENDS

    return BACKENDS


def _quick_gelu() -> Op:
    from clipfast_kernels.ops.quick_gelu.api import BACKENDS

    return BACKENDS


def _batch_norm() -> Op:
    from clipfast_kernels.ops.batch_norm.api import BACKENDS

    return BACKENDS


OPS: dict[str, Callable[[], Op]] = {
    "attention": _attention,
    "contrastive_loss": _contrastive_loss,
    "sigmoid_loss": _sigmoid_loss,
    "gathered_similarity": _gathered_similarity,
    "quick_gelu": _quick_gelu,
    "batch_norm": _batch_norm,
}


def backends(op: str, *args: object, **kwargs: object) -> Backends:
    """Says which backends can serve a call of an op, and which one "auto" would take.

    Args:
        op: the op's public name, e.g. ``"contrastive_loss"``.
        *args, **kwargs: the call's arguments in its order; its tensors decide. Without any, the
            answer is for this machine in general, as far as nothing was measured.

    Returns:
        Backends(reasons, auto).

    Raises:
        ValueError: no op of that name.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}; got {op!r}")
    arguments = [local_rows(a) for a in (*args, *kwargs.values())]
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    found = OPS[op]()
    try:
        auto = found.choose("auto", *tensors)
    except (ValueError, CannotServe):
        auto = None
    return Backends(found.reasons(*tensors), auto)
