"""What ranks do for each other: they share a result, or the failure of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import torch
from clipfast_kernels.distributed import gathered
from torch import Tensor

from clipfast.data.sources.sample_set import SampleSet
from clipfast.errors import OtherRankError, UserError
from clipfast.ranks.world import World

T = TypeVar("T")


def by_main(world: World, work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank. Collective.

    Raises:
        UserError: `work` raised one, or an OSError, on rank 0; that one says so for all.
    """
    result, failure = None, None
    if world.is_main:
        try:
            result = work()
        except UserError as error:
            failure = str(error)
        except OSError as error:
            failure = sentence_of(error)
    result, failure = world.from_main((result, failure))
    if failure is not None:
        refuse(world, failure)
    return result


def refuse(world: World, sentence: str) -> NoReturn:
    """Ends the run for a reason that all ranks know. To be called by all.

    Raises:
        UserError: on rank 0, which says it; an OtherRankError on the others.
    """
    raise UserError(sentence) if world.is_main else OtherRankError(sentence)


def by_all(world: World, work: Callable[[], T]) -> T:
    """What `work`, in which ranks do not wait for each other, gives on each of them. Collective.

    Raises:
        UserError: `work` raised one, or an OSError, on some rank; the main one says so for all.
    """
    result, failure = None, None
    try:
        result = work()
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = sentence_of(error)
    failures = [sentence for sentence in world.all(failure) if sentence is not None]
    if failures:
        raise UserError(failures[0]) if world.is_main else OtherRankError(failures[0])
    return result  # type: ignore[return-value]  # no rank failed


def all_rows(world: World, own: Sequence[Tensor]) -> Tensor:
    """Every rank's rows (n, D) below each other, in rank order. Collective.

    Args:
        own: this rank's; it may have none.
    """
    kinds = world.all((own[0].shape[1], own[0].dtype) if own else None)
    width, dtype = next((kind for kind in kinds if kind is not None), (0, torch.float32))
    none = torch.empty(0, width, dtype=dtype, device=world.device)
    rows = torch.cat(list(own)) if own else none
    return gathered("rows", rows, world.group, ragged=True).wait()


def main_first(world: World, work: Callable[[], T]) -> T:
    """What `work` gives on each rank; rank 0 works first, as it makes what the others find.
    Collective.

    Raises:
        UserError: as `by_all`.
    """
    done: list[T] = []
    by_main(world, lambda: done.append(work()))
    return by_all(world, lambda: done.pop() if done else work())


def open_together(world: World, flag: str, opening: Callable[[], SampleSet]) -> SampleSet:
    """What `opening` gives on each rank, where rank 0 makes the indexes. Collective.

    Args:
        flag: that names the samples, for errors.

    Raises:
        UserError: `opening` raised one, or an OSError, on some rank, or ranks see other samples.
    """
    samples = main_first(world, opening)
    check_same_samples(world, flag, samples.fingerprint)
    return samples


def check_same_samples(world: World, flag: str, fingerprint: str) -> None:
    """Args:
        flag: that named them.
        fingerprint: of this rank's samples.

    Raises:
        UserError: ranks see others. Collective.
    """
    for rank, other in enumerate(world.all(fingerprint)):
        if other != fingerprint:
            raise UserError(
                f"{flag}: expected the same files on every rank; ranks {world.rank} and {rank} "
                "see others"
            )


def sentence_of(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
