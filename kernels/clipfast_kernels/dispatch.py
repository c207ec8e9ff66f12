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
        modules: backend name to a function that imports and returns its module.
        planned: backend name to the reason why it has no module in this release.
    """

    name: str
    modules: dict[str, Callable[[], ModuleType]]
    planned: dict[str, str]

    def reasons(self, *tensors: Tensor | None) -> dict[str, list[str]]:
        present = [t for t in tensors if t is not None]
        known = {name: load().unusable(*present) for name, load in self.modules.items()}
        return known | {name: [reason] for name, reason in self.planned.items()}

    def module(self, backend: str, *tensors: Tensor | None) -> ModuleType:
        """The backend module that serves these tensors.

        Raises:
            ValueError: no such backend.
            RuntimeError: the backend asked for cannot serve the call, or none can.
        """
        if backend == "auto":
            backend = self._default()
        if backend != "auto":
            return self._named(backend, *tensors)
        present = [t for t in tensors if t is not None]
        for load in self.modules.values():
            module = load()
            if not module.unusable(*present):
                return module
        raise RuntimeError(f"{self.name}: no backend can serve this call: {self.reasons(*tensors)}")

    def _default(self) -> str:
        """What the environment asks for, if this op has it."""
        if FROM_ENVIRONMENT not in NAMES:
            raise ValueError(
                f"CLIPFAST_BACKEND: expected one of {', '.join(NAMES)}; got {FROM_ENVIRONMENT!r}"
            )
        has_it = FROM_ENVIRONMENT in self.modules or FROM_ENVIRONMENT in self.planned
        return FROM_ENVIRONMENT if has_it else "auto"

    def _named(self, backend: str, *tensors: Tensor | None) -> ModuleType:
        if backend in self.planned:
            raise RuntimeError(f"{self.name}: backend {backend!r}: {self.planned[backend]}")
        if backend not in self.modules:
            expected = ", ".join(["auto", *self.modules, *self.planned])
            raise ValueError(f"{self.name}: backend: expected one of {expected}; got {backend!r}")
        module = self.modules[backend]()
        if reasons := module.unusable(*(t for t in tensors if t is not None)):
            raise RuntimeError(
                f"{self.name}: backend {backend!r} cannot serve this call: {'; '.join(reasons)}"
            )
        return module


def _contrastive_loss() -> Op:
    from clipfast_kernels.ops.contrastive.api import BACKENDS

    return BACKENDS


OPS: dict[str, Callable[[], Op]] = {"contrastive_loss": _contrastive_loss}


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
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    reasons = OPS[op]().reasons(*tensors)
    usable = [name for name, why in reasons.items() if not why]
    if FROM_ENVIRONMENT in reasons or FROM_ENVIRONMENT not in NAMES:
        usable = [name for name in usable if name == FROM_ENVIRONMENT]
    return Backends(reasons, usable[0] if usable else None)
