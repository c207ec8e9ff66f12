"""Which elements of each parameter this rank updates, and where DeepSpeed keeps them.

Every stage has its own flat float32 tensors that the optimizer sees in the parameters' place. Here
they look alike: a `Shard` is a run of elements of one parameter, and of all that is kept per
element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfast.ranks.world import World

MASTER = "master"  # the weights themselves, among what an optimizer keeps for each of them
STEPS = "step"  # what optimizers call the one thing that they do not keep for each element


@dataclass(frozen=True)
class Shard:
    """Attributes:
    start, numel: which elements of the parameter, in its own order.
    flat: the optimizer's tensor that has their float32 masters.
    offset: where they begin there.
    """

    start: int
    numel: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """(numel,) view of a tensor that is laid out as `flat`."""
        return flat.detach().view(-1)[self.offset : self.offset + self.numel]

    @property
    def master(self) -> Tensor:
        return self.of(self.flat)


class Shards:
    """This rank's shard of each parameter that trains.

    Args:
        engine: DeepSpeed's.
        names: of the parameters, in the model.
        world: the ranks that hold the rest.
    """

    def __init__(self, engine: Any, names: Mapping[nn.Parameter, str], world: World) -> None:
        self.world = world
        self.optimizer = engine.basic_optimizer
        found, self._publish, self._fill = _READERS[engine.zero_optimization_stage()](
            engine, [p for p in names if p.requires_grad], world
        )
        self.of = {names[p]: shard for p, shard in found.items()}
        self.parameters = {name: p for p, name in names.items() if p.requires_grad}
        # Where every rank holds everything, one of them speaks for all.
        self.speaks = engine.zero_optimization_stage() > 0 or world.is_main

    def state(self, shard: Shard) -> dict[str, Tensor]:
        """What the optimizer keeps for each element, as (numel,) views."""
        content = self.optimizer.state.get(shard.flat, {})
        return {key: shard.of(value) for key, value in content.items() if key != STEPS}

    def keys(self) -> list[str]:
        """Of what the optimizer keeps for each element, on every rank the same; none before the
        first step."""
        contents = self.optimizer.state.values()
        return sorted({key for content in contents for key in content} - {STEPS})

    def steps(self) -> float | None:
        """How many the optimizer has taken; None before the first, and where its groups say it."""
        taken = [float(c[STEPS]) for c in self.optimizer.state.values() if STEPS in c]
        return max(taken, default=None)

    def set_steps(self, steps: float) -> None:
        """Of every tensor that has a state."""
        torchs = type(self.optimizer).__module__.startswith("torch.")  # DeepSpeed's count in int
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        for flat, content in self.optimizer.state.items():
            device = flat.device if fused else "cpu"
            content[STEPS] = torch.tensor(steps, device=device) if torchs else int(steps)

    @torch.no_grad()
    def set(self, name: str, start: int, values: Mapping[str, Tensor]) -> int:
        """Copies what this rank's shard has of some elements.

        Args:
            start: of the first element, in the parameter.
            values: (n,) each, by the optimizer's names, the weights themselves as MASTER.

        Returns:
            How many elements that were.
        """
        shard = self.of.get(name)
        if shard is None:
            return 0
        begin, end = start, start
        for key, value in values.items():
            content = {MASTER: shard.flat} if key == MASTER else self.optimizer.state[shard.flat]
            if key not in content:
                content[key] = torch.zeros_like(shard.flat)
            own = shard.of(content[key])
            begin = max(start, shard.start)
            end = max(begin, min(start + len(value), shard.start + shard.numel))
            own[begin - shard.start : end - shard.start] = value[begin - start : end - start]
        return end - begin

    @torch.no_grad()
    def gathered(self, name: str, key: str) -> Tensor:
        """Collective. A whole parameter's masters, or state, flat, on every rank."""
        whole = torch.zeros(self.numel(name), device=self.world.device)
        shard = self.of.get(name)
        if shard is not None and self.speaks:
            part = shard.master if key == MASTER else self.state(shard)[key]
            whole[shard.start : shard.start + shard.numel] = part
        if self.world.group is not None:
            dist.all_reduce(whole, group=self.world.group)
        return whole

    def numel(self, name: str) -> int:
        parameter = self.parameters[name]
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def publish(self) -> None:
        """Collective. Makes the model's weights those of the masters."""
        self._publish()

    @torch.no_grad()
    def fill(self, name: str, value: float) -> None:
        """Sets a parameter of one element, master and model's, on every rank that holds it."""
        if name in self.of:
            self.of[name].master.fill_(value)
        self._fill(self.parameters[name], value)


_Found = tuple[dict[nn.Parameter, Shard], Callable[[], None], Callable[[nn.Parameter, float], None]]


def _whole(engine: Any, parameters: list[nn.Parameter], world: World) -> _Found:
    """ZeRO-0: every rank has everything; half precision has float32 masters beside it."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        masters = {p: Shard(0, p.numel(), p, 0) for p in parameters}
    elif hasattr(optimizer, "fp32_groups"):
        masters = {
            p: Shard(0, p.numel(), master, 0)
            for halves, group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            for p, master in zip(halves, group, strict=True)
        }
    else:
        masters = {}
        for halves, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for p in halves:
                masters[p] = Shard(0, p.numel(), flat, offset)
                offset += p.numel()

    @torch.no_grad()
    def publish() -> None:
        for p, shard in masters.items():
            p.view(-1).copy_(shard.master)

    return masters, publish, _fill_whole


def _sliced(engine: Any, parameters: list[nn.Parameter], world: World) -> _Found:
    """ZeRO-1 and 2: a group's parameters are one flat tensor, of which each rank has a slice."""
    flats = [group["params"][0] for group in engine.basic_optimizer.param_groups]
    found = {}
    for p in parameters:
        mapping = p._hp_mapping  # type: ignore[attr-defined]  # None where all is elsewhere
        if mapping is not None:
            own, master = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = flats[mapping.param_group_index]
            found[p] = Shard(own.start, own.numel, flat, master.start)
    return found, engine.optimizer.update_lp_params, _fill_whole


def _partitioned(engine: Any, parameters: list[nn.Parameter], world: World) -> _Found:
    """ZeRO-3: each parameter is cut in equal parts, the last ones filled up or empty."""
    optimizer = engine.optimizer
    found = {}
    for p in parameters:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(p)]
        start = world.rank * size
        numel = min(size, p.ds_numel - start)  # type: ignore[attr-defined]
        if numel > 0:
            found[p] = Shard(start, numel, optimizer.fp32_partitioned_groups_flat[group], offset)

    def publish() -> None:
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if persistent := optimizer.persistent_parameters:
            persistent[0].all_gather(persistent)

    def fill(p: nn.Parameter, value: float) -> None:
        if p in found:
            p.ds_tensor.data[0] = value  # type: ignore[attr-defined]
        p.data.fill_(value)  # empty where it is not gathered now

    return found, publish, fill


def _fill_whole(p: nn.Parameter, value: float) -> None:
    p.data.fill_(value)


_READERS: dict[int, Callable[[Any, list[nn.Parameter], World], _Found]] = {
    0: _whole,
    1: _sliced,
    2: _sliced,
    3: _partitioned,
}
