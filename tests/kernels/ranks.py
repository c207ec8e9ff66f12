"""Real process groups for tests: W processes on gloo, their results in rank order."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import CONTEXT


def run_ranks(
    world_size: int, work: Callable[..., Any], *args: Any, timeout: float = 120
) -> list[Any]:
    """work(*args) on every rank of a group; raises with the traceback of a rank that failed."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_rank, args=(rank, world_size, folder, work, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
        results = []
        for rank in range(world_size):
            path = Path(folder, f"{rank}.pt")
            assert path.exists(), f"rank {rank} of {world_size} ended without a result"
            results.append(torch.load(path, weights_only=False))
    failed = [r for r in results if isinstance(r, _Failure)]
    assert not failed, "\n".join(f.text for f in failed)
    return results


class _Failure:
    def __init__(self, text: str):
        self.text = text


def _rank(rank: int, world_size: int, folder: str, work: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        result = work(*args)
    except BaseException:
        result = _Failure(f"rank {rank}: {traceback.format_exc()}")
    torch.save(result, Path(folder, f"{rank}.tmp"))
    Path(folder, f"{rank}.tmp").rename(Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
