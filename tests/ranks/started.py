"""Ranks of a run as real processes that a test may stop, kill and question."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from forked import CONTEXT


def start_ranks(
    folder: Path, world_size: int, work: Callable[..., Any], *args: Any
) -> list[BaseProcess]:
    """Starts work(rank, *args) in processes with srun's variables, and what they say on stderr in
    ``folder/rank-N``."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(world_size):
        environ = slurm_environ(rank, world_size) | {"MASTER_PORT": str(port)}
        process = CONTEXT.Process(target=_rank, args=(folder, environ, work, (rank, *args)))
        process.start()
        processes.append(process)
    return processes


def slurm_environ(rank: int, world_size: int) -> dict[str, str]:
    """srun's variables of a task on the one node of a job."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(world_size),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
    }


def launch_args(rank_timeout: float = 120) -> argparse.Namespace:
    """The flags that `joined` reads."""
    return argparse.Namespace(
        device="cpu",
        dist_url=None,
        dist_backend=None,
        rank_timeout=rank_timeout,
        no_set_device_rank=False,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(folder: Path, environ: dict[str, str], work: Callable[..., Any], args: Any) -> None:
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update(environ)
    with open(folder / f"rank-{args[0]}", "w") as errors:
        os.dup2(errors.fileno(), 2)
    work(*args)
