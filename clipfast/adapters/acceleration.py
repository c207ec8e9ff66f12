"""`accelerate` and `undo`: clipfast's kernels inside other libraries' models."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch.distributed as dist
from torch import nn

from clipfast.adapters import patches

Model = TypeVar("Model", bound=nn.Module)


class Adapter(NamedTuple):
    """How modules of one class are replaced.

    Attributes:
        what: they gain, for the report.
        apply: replaces the methods of one; returns a reason instead where it cannot be.
    """

    what: str
    apply: Callable[[nn.Module], str | None]


class Left(NamedTuple):
    """Why modules of one class stay as they are."""

    why: str


Adapters = dict[type[nn.Module], Adapter | Left]


def accelerate(model: Model, *, verbose: bool = True) -> Model:
    """Lets open_clip's and transformers' CLIP models compute with clipfast's kernels.

    The same function of the same parameters: outputs and gradients are equal to rounding. Attention
    is fused and without padding, text is packed (PackedText is taken too), the last block computes
    the one token that is pooled, QuickGELU is fused, convolutions run channels-last. Modules of
    these classes are replaced wherever they are in `model`: open_clip 3.3's VisionTransformer,
    ModifiedResNet, CLIP, TextTransformer; transformers' CLIPVisionModel and CLIPTextModel. Whatever
    needs whole blocks takes the library's own way: a forward hook inside a tower,
    `forward_intermediates`, `output_hidden_states`, an attention mask of its own.

    Classes, parameters and state dict stay, so do DDP, DeepSpeed, FSDP, autocast, gradient
    checkpointing, torch.compile, deepcopy and pickling. transformers' `last_hidden_state` is
    computed when it is asked for.

    Args:
        model: changed in place.
        verbose: say on stderr what was replaced, what was not, and why (rank 0 alone).

    Returns:
        `model`. One in which nothing is known is left untouched, and that is said.
    """
    replaced: Counter[str] = Counter()
    left: Counter[str] = Counter()
    known = _adapters()
    for name, module in model.named_modules():
        adapter = known.get(type(module))
        if adapter is None:
            continue
        where = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(adapter, Left):
            left[f"{where}: {adapter.why}"] += 1
        elif (reason := adapter.apply(module)) is not None:
            left[f"{where}: {reason}"] += 1
        else:
            replaced[f"{type(module).__name__}: {adapter.what}"] += 1
    if verbose and not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        print("\n".join(_report(model, replaced, left)), file=sys.stderr)
    return model


def undo(model: Model) -> Model:
    """Takes `accelerate` back: every module computes as its library has it. Returns `model`."""
    for module in model.modules():
        patches.restore(module)
    return model


def _adapters() -> Adapters:
    """Of the libraries that are loaded: a model's classes come from one that is."""
    found: Adapters = {}
    if "open_clip" in sys.modules:
        from clipfast.adapters import open_clip

        found |= open_clip.adapters()
    if "transformers" in sys.modules:
        from clipfast.adapters import transformers

        found |= transformers.adapters()
    return found


def _report(model: nn.Module, replaced: Counter[str], left: Counter[str]) -> Iterator[str]:
    name = type(model).__name__
    if not replaced:
        yield (
            f"clipfast.accelerate: {name} is left as it is: expected a model of open_clip 3.3 or a "
            "CLIPModel of transformers; found no module of theirs that can be replaced"
        )
    else:
        yield f"clipfast.accelerate: {name}"
    for what, count in replaced.items():
        yield f"  replaced: {count} × {what}"
    for what, count in left.items():
        yield f"  left: {what}" + (f" ({count} times)" if count > 1 else "")
