"""Which samples form step s of epoch e: a pure function of (seed, e, s), whatever reads them.

The samples lie on a *line*. A small set is shuffled as a whole, and steps are cut from it. In a
large one that would have every rank read everywhere at once, so the line is made of the shards in
an order of the epoch's own and cut into *lanes* of equal length. A step takes the next few samples
of every lane; a lane is shuffled inside windows of about a shard. Ranks share a step out by lanes:
with another number of ranks the same samples form it, in the same order. Nothing that grows with
the number of samples is held in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.mixing import U64, key_of, mix, permute
from clipfast.errors import UserError

# Samples of a lane that are shuffled together.
WINDOW = 1 << 13
# The largest set that is shuffled as a whole.
WHOLE = 1 << 17
# In a larger one, how many samples that are drawn with replacement follow each other in a shard.
RUN = 256
# Substitutes are looked for in the sample's own shard first: another may have to be fetched.
_NEAR = 4

_SHARDS, _DRAWS, _WHOLE, _WINDOWS, _SUBSTITUTES, _SAMPLES = range(6)  # what a key is for


class Shards(NamedTuple):
    """The samples that there are.

    Attributes:
        counts: (shards,) int64, how many each shard has.
        weights: (shards,) float64, what a sample of the shard weighs where samples are drawn with
            replacement; None takes each sample once an epoch.
    """

    counts: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Order:
    """What besides the samples fixes their order; a checkpoint holds it.

    Attributes:
        batch_size: samples per step, of all ranks together.
        steps_per_epoch: of one epoch.
        seed: with the epoch, fixes the order.
        lanes: divides the batch size, and is divided by the number of ranks.
        drawing: "once", or the weights' digest.
    """

    batch_size: int
    steps_per_epoch: int
    seed: int
    lanes: int
    drawing: str

    def world_sizes(self) -> list[int]:
        """The numbers of ranks that can share the lanes out evenly."""
        return [size for size in range(1, self.lanes + 1) if self.lanes % size == 0]

    def misfit(self, world_size: int) -> str | None:
        """Why so many ranks cannot take this order, and which can; None where they can."""
        if self.lanes % world_size == 0:
            return None
        possible = self.world_sizes()
        near = [size for size in possible if size < world_size][-1:]
        near += [size for size in possible if size > world_size][:1]
        return (
            f"world size: expected a divisor of {self.lanes}, the lanes that the samples are dealt "
            f"to; got {world_size}; the nearest are {' and '.join(map(str, near))}"
        )


class Sampler:
    """Each sample once before any comes again, in the set or in a lane of it; the last steps go on
    from the beginning, so that all steps are full. With weights, independent draws.

    Args:
        shards: the samples.
        order: of this or an earlier run.
        rank, world_size: whose part of each step `batch` gives.

    Raises:
        UserError: the ranks cannot share the lanes out evenly.

    Memory: O(shards), and O(batch) per call.
    """

    def __init__(self, shards: Shards, order: Order, rank: int = 0, world_size: int = 1) -> None:
        self.shards, self.order, self.rank, self.world_size = shards, order, rank, world_size
        self.steps_per_epoch, self.seed = order.steps_per_epoch, order.seed
        self._first = _first(shards.counts)
        self.samples = int(self._first[-1])
        self._lane_cuts = np.arange(order.lanes + 1) * self.samples // order.lanes
        self._shard_order = lru_cache(2)(self._shuffled_shards)
        if (misfit := order.misfit(world_size)) is not None:
            raise UserError(misfit)

    @staticmethod
    def of(
        shards: Shards,
        batch_size: int,
        workers: int,
        seed: int,
        epoch_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ) -> Sampler:
        """open_clip's epoch: batches rounded up, then up to a multiple of the workers; of those
        that are left over when steps take several, none.

        Args:
            batch_size: of all ranks together.
            epoch_samples: how many samples an epoch has instead of all; fewer leave some out, other
                ones in each epoch, more begin anew.
            micro_batches: how many such batches make a step.

        Raises:
            UserError: an epoch has less than one step.
        """
        samples = int(shards.counts.sum())
        batches = -(-(epoch_samples or samples) // batch_size)
        batches = -(-batches // max(1, workers)) * max(1, workers)
        steps, of_step = batches // micro_batches, batch_size * micro_batches
        if steps == 0:
            raise UserError(
                f"--accum-freq: expected at most {batches}, the batches of {batch_size} in an "
                f"epoch; got {micro_batches}"
            )
        lanes = _lanes(samples, len(shards.counts), of_step, world_size)
        order = Order(of_step, steps, seed, lanes, _drawing(shards.weights))
        return Sampler(shards, order, rank, world_size)

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """(batch_size / world_size,) sample numbers: this rank's part of the step."""
        if self.samples <= WHOLE:
            own = self.order.batch_size // self.world_size
            begin = step * self.order.batch_size + self.rank * own
            places = np.arange(begin, begin + own)
            if self.shards.weights is not None:
                return self._drawn(epoch, places)
            key = key_of(self.seed, epoch, _WHOLE)
            return _shuffle(places % self.samples, self.samples, key)
        line, lap = self._shuffled_in_lanes(epoch, step)
        if self.shards.weights is not None:
            return self._drawn(epoch, line + lap * self.samples)
        return self._laid(epoch, line)

    def substitute(self, epoch: int, number: int, attempt: int) -> int:
        """The sample that takes the place of an unusable one, `attempt` = 1, 2, …"""
        random = Random(key_of(self.seed, epoch, _SUBSTITUTES, number, attempt))
        if attempt > _NEAR:
            return random.randrange(self.samples)
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return random.randrange(int(self._first[shard]), int(self._first[shard + 1]))

    def generator(self, epoch: int, number: int) -> Random:
        """The random numbers of one sample in one epoch: of its caption and its augmentation."""
        return Random(key_of(self.seed, epoch, _SAMPLES, number))

    def _shuffled_in_lanes(
        self, epoch: int, step: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places on the line, and how often their lanes have begun anew."""
        per_lane = self.order.batch_size // self.order.lanes
        own = self.order.lanes // self.world_size
        lanes = np.repeat(np.arange(self.rank * own, (self.rank + 1) * own), per_lane)
        first = self._lane_cuts[lanes]
        length = self._lane_cuts[lanes + 1] - first
        lap, places = np.divmod(step * per_lane + np.tile(np.arange(per_lane), own), length)
        window = places // WINDOW
        size = np.minimum(WINDOW, length - window * WINDOW)
        which = (lanes << 32 | window).astype(np.uint64)
        keys = mix(which ^ np.uint64(key_of(self.seed, epoch, _WINDOWS)))
        return first + window * WINDOW + _shuffle(places % WINDOW, size, keys), lap

    def _laid(self, epoch: int, line: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at places of the line of all shards."""
        order, first = self._shard_order(epoch)
        at = np.searchsorted(first, line, side="right") - 1
        return self._first[order[at]] + line - first[at]

    def _shuffled_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shards = len(self.shards.counts)
        order = _shuffle(np.arange(shards), shards, key_of(self.seed, epoch, _SHARDS))
        return order, _first(self.shards.counts[order])

    def _drawn(self, epoch: int, line: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples drawn at places of the line: runs that begin anywhere in a shard."""
        counts, weights = self.shards
        assert weights is not None
        length = 1 if self.samples <= WHOLE else RUN
        draws = mix(
            (line // length).astype(np.uint64) ^ np.uint64(key_of(self.seed, epoch, _DRAWS))
        )
        ends = np.cumsum(counts * weights)
        shard = np.searchsorted(ends, _unit(draws) * ends[-1], side="right")
        begin = (_unit(mix(draws)) * counts[shard]).astype(np.int64)
        return self._first[shard] + (begin + line % length) % counts[shard]


def _lanes(samples: int, shards: int, batch_size: int, world_size: int) -> int:
    """As many as leave each about a shard, or a window; more, shorter ones where there are more
    ranks than that."""
    if samples <= WHOLE:
        return batch_size
    most = min(batch_size, max(shards, samples // WINDOW))
    divisors = [lanes for lanes in range(1, batch_size + 1) if batch_size % lanes == 0]
    shared = [lanes for lanes in divisors if lanes % world_size == 0] or divisors
    return next((lanes for lanes in reversed(shared) if lanes <= most), shared[0])


def _drawing(weights: NDArray[np.float64] | None) -> str:
    if weights is None:
        return "once"
    return f"weighted {key_of(*weights.view(np.uint64).tolist()):016x}"


def _first(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)])


def _shuffle(
    places: NDArray[np.int64], sizes: NDArray[np.int64] | int, keys: U64 | int
) -> NDArray[np.int64]:
    shape = places.shape
    sizes_64, keys_64 = (np.broadcast_to(np.asarray(x, np.uint64), shape) for x in (sizes, keys))
    return permute(places.astype(np.uint64), sizes_64, keys_64).astype(np.int64)


def _unit(x: U64) -> NDArray[np.float64]:
    """Uniform in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order_of(state: Mapping[str, Any]) -> Order:
    """From a checkpoint."""
    return Order(**{name: state[name] for name in Order.__dataclass_fields__})
