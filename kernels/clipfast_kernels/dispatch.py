"""Which backend serves a call, and why the others do not.

An op's api module lists its backends in order of preference. Each is a module with
``unusable(*tensors) -> list[str]``: the reasons why it cannot serve these tensors, or, asked
without any, why it cannot run on this machine at all. "auto" takes the first backend that has
none; a backend that is asked for by name works or raises with its reasons, and never falls back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from clipfast_kernels.distributed import local_rows

NAMES = ("auto", "reference", "cpu", "triton", "cuda", "torch", "flash_attn")

# The default of the ops that have this backend.
FROM_ENVIRONMENT = os.environ.get("CLIPFAST_BACKEND", "auto")


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
    """

    name: str
    modules: dict[str, Callable[[], ModuleType]]
    planned: dict[str, str]

    def reasons(self, *tensors: Tensor | None) -> dict[str, list[str]]:
        present = [t for t in tensors if t is not None]
        known = {name: self._unusable(name, present) for name in self.modules}
        return known | {name: [reason] for name, reason in self.planned.items()}

    def choose(self, backend: str, *tensors: Tensor | None) -> str:
        """The name of the backend that serves these tensors.

        Raises:
            ValueError: no such backend.
            RuntimeError: the backend asked for cannot serve the call, or none can.
        """
        if backend == "auto":
            backend = self._default()
        present = [t for t in tensors if t is not None]
        if backend != "auto":
            self._check_named(backend, present)
            return backend
        for name, load in self.modules.items():
            if not load().unusable(*present):
                return name
        raise RuntimeError(f"{self.name}: no backend can serve this call: {self.reasons(*tensors)}")

    def _default(self) -> str:
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
            raise RuntimeError(f"{self.name}: backend {backend!r}: {self.planned[backend]}")
        if backend not in self.modules:
            expected = ", ".join(["auto", *self.modules, *self.planned])
            raise ValueError(f"{self.name}: backend: expected one of {expected}; got {backend!r}")
        if reasons := self._unusable(backend, tensors):
            raise RuntimeError(
                f"{self.name}: backend {backend!r} cannot serve this call: {'; '.join(reasons)}"
            )


def _contrastive_loss() -> Op:
    from clipfast_kernels.ops.contrastive.api import BACKENDS

    return BACKENDS


def _sigmoid_loss() -> Op:
    from clipfast_kernels.ops.sigmoid.api import BACKENDS

    return BACKENDS


def _gathered_similarity() -> Op:
    from clipfast_kernels.ops.similarity.api import BACKENDS

    return BACKENDS


OPS: dict[str, Callable[[], Op]] = {
    "contrastive_loss": _contrastive_loss,
    "sigmoid_loss": _sigmoid_loss,
    "gathered_similarity": _gathered_similarity,
}


def backends(op: str, *args: object, **kwargs: object) -> Backends:
    """Says which backends can serve a call of an op, and which one "auto" would take.

    Args:
        op: the op's public name, e.g. ``"contrastive_loss"``.
        *args, **kwargs: the call's arguments; its tensors decide. Without any, the answer is for
            this machine in general.

    Returns:
        Backends(reasons, auto).

    Raises:
        ValueError: no op of that name.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}; got {op!r}")
    arguments = [local_rows(a) for a in (*args, *kwargs.values())]
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    reasons = OPS[op]().reasons(*tensors)
    usable = [name for name, why in reasons.items() if not why]
    if FROM_ENVIRONMENT in reasons or FROM_ENVIRONMENT not in NAMES:
        usable = [name for name in usable if name == FROM_ENVIRONMENT]
    return Backends(reasons, usable[0] if usable else None)
