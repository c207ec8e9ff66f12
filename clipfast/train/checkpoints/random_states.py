"""The random numbers of each rank, in a checkpoint and after it.

Only torch's own matter: what a sample is shown as has generators of its own (`data.sampler`).
"""

from __future__ import annotations

from typing import Any

import torch

from clipfast.data.mixing import key_of
from clipfast.ranks.world import World
from clipfast.train.random_state import RandomState


def random_states(world: World) -> list[dict[str, Any]]:
    """The generators of every rank, in rank order. Collective."""
    state = RandomState.now(world.device)
    return world.all({"cpu": state.cpu, "cuda": state.cuda})


def restore_random_state(
    states: list[dict[str, Any]], world: World, *, seed: int, global_step: int
) -> None:
    """Sets this rank's generators to its state; a rank that did not exist then gets one of seed,
    rank and step."""
    if world.rank >= len(states):
        torch.manual_seed(key_of(seed, world.rank, global_step))
        return
    state = states[world.rank]
    on_cuda = world.device.type == "cuda"
    RandomState(state["cpu"], world.device, state["cuda"] if on_cuda else None).restore()
