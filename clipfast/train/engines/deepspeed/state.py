"""A run's state out of the ranks' shards, and into them.

Two forms. The whole one is open_clip's, with names and positions, gathered. The sharded one is a
file per rank with what that rank updates; any number of ranks reads it, at any stage, because it
says which elements of which parameter it has. (DeepSpeed's own files fit the world size that wrote
them, and become another's by a conversion on disk.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.errors import UserError
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.engines.deepspeed.shards import MASTER, STEPS, Shards
from clipfast.weights.checkpoint import read_checkpoint


class Positions:
    """The optimizer as it was before DeepSpeed put flat tensors into its groups: a saved state
    knows its parameters by their position there.

    Args:
        optimizer: over the model's parameters.
        names, shapes: of the parameters, in the model.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[Any, str],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self.defaults = optimizer.defaults
        self._names = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        self._shapes = shapes
        # DeepSpeed drops the groups that are empty, and changes the others in place.
        self._hyperparameters = list(optimizer.param_groups)
        self.shards: Shards  # once DeepSpeed has made them

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, with names in the parameters' place."""
        pairs = zip(self._hyperparameters, self._names, strict=True)
        return [group | {"params": names} for group, names in pairs]

    def set_hyperparameters(self, groups: list[dict[str, Any]]) -> None:
        for own, given in zip(self._hyperparameters, groups, strict=True):
            own.update({key: value for key, value in given.items() if key != "params"})

    def state_dict(self) -> dict[str, Any]:
        """Collective. What the optimizer's own would be, on the CPU of rank 0."""
        shards = self.shards
        keys, steps = shards.keys(), shards.steps()
        state: dict[int, dict[str, Tensor]] = {}
        groups = []
        for group in self.param_groups:
            places = range(len(state), len(state) + len(group["params"]))
            for place, name in zip(places, group["params"], strict=True):
                state[place] = {} if steps is None else {STEPS: torch.tensor(steps)}
                for key in keys:
                    whole = shards.gathered(name, key).view(self._shapes[name])
                    state[place][key] = whole.cpu() if shards.world.is_main else whole.new_empty(0)
            groups.append(group | {"params": list(places)})
        return {"state": state if keys else {}, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each rank takes its elements; parameters without a state keep theirs."""
        self.set_hyperparameters(state["param_groups"])
        names = [name for group in self._names for name in group]
        for place, content in state["state"].items():
            elements = {key: x.reshape(-1) for key, x in content.items() if key != STEPS}
            self.shards.set(names[place], 0, elements)
        # ZeRO's flat tensors take the steps of all their parameters together.
        steps = [float(c[STEPS]) for c in state["state"].values() if STEPS in c]
        if steps:
            self.shards.set_steps(max(steps))


def sharded_state(positions: Positions) -> dict[str, Any]:
    """What this rank updates, copied to the CPU's memory: masters as the state_dict's slices."""
    shards = positions.shards
    own = shards.of if shards.speaks else {}
    return {
        "state_dict": {name: host_copy(shard.master) for name, shard in own.items()},
        "starts": {name: shard.start for name, shard in own.items()},
        "optimizer": {
            "state": {name: host_copy(shards.state(shard)) for name, shard in own.items()},
            "steps": shards.steps(),
            "param_groups": positions.param_groups,
        },
    }


def file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05}.pt"


def load_sharded_state(
    positions: Positions, folder: Path, saved_world_size: int, where: str
) -> None:
    """Takes this rank's elements out of as few ranks' files as have them.

    Raises:
        UserError: they are of another model, or lack elements.
    """
    shards = positions.shards
    needed = sum(shard.numel for shard in shards.of.values())
    for content in _nearest_first(folder, saved_world_size, shards.world.rank):
        _check_names(content, positions, where)
        optimizer = content["optimizer"]
        for name, master in content["state_dict"].items():
            elements = {MASTER: master} | optimizer["state"][name]
            needed -= shards.set(name, content["starts"][name], elements)
        if needed == 0:
            positions.set_hyperparameters(optimizer["param_groups"])
            if optimizer["steps"] is not None:
                shards.set_steps(optimizer["steps"])
            return
    raise UserError(f"checkpoint {where}: expected all weights that train; {needed:,} are missing")


def _nearest_first(folder: Path, saved_world_size: int, rank: int) -> Iterator[dict[str, Any]]:
    first = min(rank, saved_world_size - 1)
    for number in sorted(range(saved_world_size), key=lambda number: abs(number - first)):
        yield read_checkpoint(file_of(folder, number))


def _check_names(content: Mapping[str, Any], positions: Positions, where: str) -> None:
    groups = [group["params"] for group in content["optimizer"]["param_groups"]]
    if groups != (own := [group["params"] for group in positions.param_groups]):
        raise UserError(
            f"checkpoint {where}: expected groups of {[len(g) for g in own]} parameters, those of "
            f"this model that train; got {[len(g) for g in groups]}: go on with the --model and "
            "the --lock flags that it was saved under"
        )
    for name, master in content["state_dict"].items():
        end = content["starts"][name] + len(master)
        if end > (numel := positions.shards.numel(name)):
            raise UserError(
                f"checkpoint {where}: {name}: expected {numel} weights; got {end} or more"
            )
