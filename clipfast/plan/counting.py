"""Parameters, arithmetic and kept activations, counted on the model itself without computing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import floor
from typing import Any, NamedTuple

import torch
from clipfast_kernels.ops.attention.cost import attention_flops, seen_pairs
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from clipfast.models.precision import computed_dtype
from clipfast.models.resnet import Bottleneck
from clipfast.models.transformer import ResidualAttentionBlock
from clipfast.plan.towers import PlannedModel

_AUTOCAST = ("amp", "amp_bf16", "amp_bfloat16")


class Line(NamedTuple):
    """A number that grows with the pairs of a micro-batch: ``fixed + each · pairs``."""

    fixed: float
    each: float

    def at(self, pairs: float) -> float:
        return self.fixed + self.each * pairs


class Flops(NamedTuple):
    """Of one pair; a multiply-add is two.

    Attributes:
        forward: of both towers.
        backward: the same.
        blocks: of `forward`, what checkpointing computes again.
    """

    forward: float
    backward: float
    blocks: float

    @property
    def step(self) -> float:
        return self.forward + self.backward


class Saved(NamedTuple):
    """Bytes that autograd keeps from a forward of both towers, without parameters.

    Attributes:
        all: of them.
        checkpointed: with blocks' inputs in the place of what blocks keep.
        block: what the block with the most keeps, which is computed again beside those.
    """

    all: Line
    checkpointed: Line
    block: Line


class Tensors(NamedTuple):
    """Of a model's parameters.

    Attributes:
        tensors: how many.
        numbers: in all of them.
        bytes: as they are kept.
        cast_bytes: of the 16-bit copies that autocast keeps until the backward.
        buffer_bytes: of what is no parameter: BatchNorm's statistics.
    """

    tensors: int
    numbers: int
    bytes: int
    cast_bytes: int
    buffer_bytes: int


def parameters(model: nn.Module, precision: str) -> Tensors:
    """Args:
    model: in the precision that its parameters are kept in.
    precision: that it computes in, open_clip's name.
    """
    tensors = list(model.parameters())
    size = computed_dtype(precision).itemsize
    cast = _cast_numbers(model) * size if precision in _AUTOCAST else 0
    return Tensors(
        len(tensors),
        sum(p.numel() for p in tensors),
        sum(p.nbytes for p in tensors),
        cast,
        sum(b.nbytes for b in model.buffers()),
    )


def _cast_numbers(model: nn.Module) -> int:
    """Of the parameters of matrix products, which autocast copies: those that `convert_weights`
    keeps in 16 bits."""
    return sum(p.numel() for p in _matrices(model))


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield from module.parameters(recurse=False)
        for name in ("text_projection", "proj", "in_proj_weight", "in_proj_bias"):
            if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                yield parameter


def kept_precision(precision: str, zero_stage: int | None) -> str:
    """In which towers keep what they compute, as a name without autocast: what autocast computes in
    16 bits is what bf16 and fp16 do, and DeepSpeed keeps all weights so."""
    dtype = computed_dtype(precision)
    if dtype == torch.float32:
        return "fp32"
    half = "bf16" if dtype == torch.bfloat16 else "fp16"
    return half if zero_stage is None and not precision.startswith("pure_") else f"pure_{half}"


def feature_bytes(precision: str) -> int:
    """Of a number of the features that go into the loss (`clipfast/train/engines/towers.py`)."""
    return 2 if computed_dtype(precision) == torch.bfloat16 else 4


class _Counted(NamedTuple):
    """Of a tower's forward and backward."""

    forward: float
    backward: float
    blocks: float


def flops(model: PlannedModel, caption_tokens: float) -> Flops:
    """Of clipfast's way: packed captions, one token per sequence in the last block."""
    image = _flops(lambda: model.image_features(1), model)
    text = between(
        caption_tokens, lambda tokens: _flops(lambda: model.text_features(1, tokens), model)
    )
    return Flops(*map(sum, zip(image, text, strict=True)))


def open_clip_flops(model: PlannedModel) -> Flops:
    """Of open_clip's way: captions padded, every token in every block, no causal half spared."""
    image = _flops(lambda: model.image_features(1, every_token=True), model)
    text = _flops(lambda: model.text_features(1, 0, padded=True), model)
    return Flops(*map(sum, zip(image, text, strict=True)))


def saved(model: PlannedModel, caption_tokens: float) -> Saved:
    """What clipfast's way keeps, on a GPU.

    Two micro-batches, of one pair and of two, say how it grows: everything that is kept has the
    batch for a factor, or is kept once.
    """
    lines = []
    for tower in ("image", "text"):
        one, two = (_saved_by(tower, model, caption_tokens, pairs) for pairs in (1, 2))
        lines.append([Line(2 * a - b, b - a) for a, b in zip(one, two, strict=True)])
    image, text = lines
    return Saved(
        _sum(image[0], text[0]),
        _sum(image[1], text[1]),
        max(image[2], text[2], key=lambda line: line.each),
    )


def between(x: float, count: Callable[[int], tuple[float, ...]]) -> tuple[float, ...]:
    """`count` at x, which lies between whole numbers: on the line between theirs."""
    low = floor(x)
    at_low = count(low)
    if x == low:
        return at_low
    share = x - low
    return tuple(a + share * (b - a) for a, b in zip(at_low, count(low + 1), strict=True))


def _flops(forward: Callable[[], Tensor], model: PlannedModel) -> _Counted:
    custom = {
        torch.ops.clipfast_kernels.attention_fwd: _attention_forward,
        torch.ops.clipfast_kernels.attention_bwd: _attention_backward,
    }
    marks: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        with _around_blocks(model, lambda *_: marks.append(counter.get_total_flops())):
            features = forward()
        of_forward = counter.get_total_flops()
        features.backward(torch.empty_like(features))
        of_both = counter.get_total_flops()
    return _Counted(of_forward, of_both - of_forward, sum(marks[1::2]) - sum(marks[::2]))


def _attention_forward(packs: Any, *where: Any, **_: Any) -> int:
    return _attention(packs, where, backward=False)


def _attention_backward(d_out: Any, packs: Any, out: Any, lse: Any, *where: Any, **_: Any) -> int:
    return _attention(packs, where, backward=True) - _attention(packs, where, backward=False)


def _attention(packs: Any, where: Any, *, backward: bool) -> int:
    """Args: of the operator, tensors as their shapes."""
    _, _, batch, queries, keys, causal, *_ = where
    *_, heads, width = packs[0]
    pairs = batch * (seen_pairs(queries, keys, causal))
    return attention_flops(pairs, heads, width, backward)


def _saved_by(tower: str, model: PlannedModel, tokens: float, pairs: int) -> tuple[float, ...]:
    if tower == "image":
        return _saved(lambda: model.image_features(pairs), model)
    return between(tokens, lambda n: _saved(lambda: model.text_features(pairs, n), model))


def _saved(forward: Callable[[], Tensor], model: PlannedModel) -> tuple[float, float, float]:
    """In bytes: all, all with checkpointing, the largest block's."""
    kept = KeptStorages(model.model)
    inputs: list[Tensor] = []

    def at_block(entered: Tensor | None) -> None:
        kept.block = None if entered is None else len(inputs)
        if entered is not None:
            inputs.append(entered)

    with kept, _around_blocks(model, at_block):
        features = forward()
    assert features.requires_grad
    outside = kept.bytes_of(None)
    with_inputs = kept.bytes_of(None, also=inputs)
    blocks = [kept.bytes_of(number) for number in range(len(inputs))]
    return kept.bytes, (with_inputs if blocks else outside), max(blocks, default=0)


class KeptStorages:
    """Within it: what autograd keeps for the backward, each storage once, without a model's
    parameters and buffers.

    Attributes:
        block: the number of the block that is being computed; None outside of blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._own = {_key(x) for x in own}
        self._known: dict[int, tuple[torch.UntypedStorage, set[int | None]]] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda x: x)
        self.block: int | None = None

    def __enter__(self) -> KeptStorages:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: Tensor) -> Tensor:
        if (key := _key(x)) not in self._own:
            # Held, or another storage might come to lie where it was.
            self._known.setdefault(key, (x.untyped_storage(), set()))[1].add(self.block)
        return x.detach() if x.requires_grad and not x.is_leaf else x

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage, _ in self._known.values())

    def bytes_of(self, block: int | None, also: Sequence[Tensor] = ()) -> int:
        """What was kept inside a block, or outside of all, and these tensors' storages."""
        chosen = {key: s for key, (s, blocks) in self._known.items() if block in blocks}
        chosen |= {_key(x): x.untyped_storage() for x in also}
        return sum(storage.nbytes() for storage in chosen.values())


def _key(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


@contextmanager
def _around_blocks(model: PlannedModel, call: Callable[[Tensor | None], object]) -> Iterator[None]:
    """Calls with what a block that checkpointing would compute again is given, and with None
    behind it."""
    handles = []
    for block in model.model.modules():
        if isinstance(block, (ResidualAttentionBlock, Bottleneck)):
            handles.append(block.register_forward_pre_hook(lambda _, given: call(given[0])))
            handles.append(block.register_forward_hook(lambda *_: call(None)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sum(a: Line, b: Line) -> Line:
    return Line(a.fixed + b.fixed, a.each + b.each)
