"""How the processes of a run find each other: who started them, where they meet, what each has."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from clipfast.errors import UserError
from clipfast.ranks.watchdog import SLOW
from clipfast.ranks.world import World

logger = logging.getLogger("clipfast.train")

_DEFAULT_PORT = 29500  # torch's


class Launch(NamedTuple):
    """Attributes:
    by: who started the processes.
    rank, size: of all processes of the run.
    local_rank: among those of this machine.
    address, port: where rank 0, or the launcher, can be met; "" and 0 for a process alone.
    """

    by: str = "the shell"
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0


class _Launcher(NamedTuple):
    """Who sets which variables."""

    name: str
    rank: str
    size: str
    local_rank: str


# In the order in which they are believed. torchrun, mpirun and mpiexec run inside SLURM's jobs and
# have its variables too, where they are those of the shell that they were started in.
_LAUNCHERS = (
    _Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    _Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    _Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    _Launcher("SLURM", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def launched(environ: Mapping[str, str], url: str | None = None) -> Launch:
    """Who this process is, by the variables of torchrun, deepspeed, SLURM, Open MPI, MPICH or Intel
    MPI.

    Args:
        environ: the process's.
        url: --dist-url; tcp://HOST:PORT goes before what the launcher says.

    Raises:
        UserError: a variable is missing beside others, contradicts one, or cannot be read.
    """
    launcher = _launcher(environ)
    if launcher is None:
        return Launch()
    size = _number(environ, launcher.size, 1)
    if size == 1:
        return Launch(launcher.name)
    rank = _number(environ, launcher.rank, 0)
    if rank >= size:
        raise UserError(
            f"{launcher.rank}: expected 0 to {size - 1}, as {launcher.size} is {size}; got {rank}"
        )
    local_rank = _number(environ, launcher.local_rank, 0)
    if url is not None and url.startswith("tcp://"):
        address, port = _of_url(url)
    elif url is not None and url.startswith("file://"):
        address, port = "", 0
    else:
        address, port = _address(environ, launcher), _port(environ, launcher)
    return Launch(launcher.name, rank, size, local_rank, address, port)


def _launcher(environ: Mapping[str, str]) -> _Launcher | None:
    """The first that set all it sets; None where there is one process."""
    for launcher in _LAUNCHERS:
        if all(name in environ for name in launcher[1:]):
            _check_agreement(environ, launcher)
            return launcher
    for launcher in _LAUNCHERS:
        if _is_half_set(environ, launcher):
            present = [name for name in launcher[1:] if name in environ]
            missing = next(name for name in launcher[1:] if name not in environ)
            raise UserError(
                f"{missing}: expected a number, as {present[0]} is set; got none: start all "
                "processes by torchrun, srun, mpirun or deepspeed, or unset "
                f"{' and '.join(present)} for one process"
            )
    return None


def _is_half_set(environ: Mapping[str, str], launcher: _Launcher) -> bool:
    if launcher.size in environ:
        return environ[launcher.size] != "1"
    # A batch script that asks for no number of tasks is task 0 of a job without SLURM_NTASKS.
    return launcher.rank in environ and launcher.name != "SLURM"


def _check_agreement(environ: Mapping[str, str], launcher: _Launcher) -> None:
    """Batch scripts export WORLD_SIZE for programs that know nothing but that."""
    if launcher.name != "SLURM":
        return
    for exported, own in (("WORLD_SIZE", launcher.size), ("RANK", launcher.rank)):
        if environ.get(exported, environ[own]) != environ[own]:
            raise UserError(
                f"{exported}: expected {own}'s {environ[own]}, as srun started the processes; got "
                f"{environ[exported]}"
            )


def _number(environ: Mapping[str, str], name: str, least: int, most: float = math.inf) -> int:
    text = environ[name]
    if not text.isdecimal() or not least <= int(text) <= most:
        expected = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise UserError(f"{name}: expected a whole number {expected}; got {text!r}")
    return int(text)


def _of_url(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host = port = None
    if not host or not port:
        raise UserError(f"--dist-url: expected tcp://HOST:PORT; got {url!r}")
    return host, port


def _address(environ: Mapping[str, str], launcher: _Launcher) -> str:
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    # Of the step before of the job: srun may have been told to leave the job's first nodes out.
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environ.get(name):
            return first_host(environ[name])
    if environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return environ["SLURM_LAUNCH_NODE_IPADDR"]
    local_size = {"Open MPI": "OMPI_COMM_WORLD_LOCAL_SIZE", "MPICH": "MPI_LOCALNRANKS"}
    name = local_size.get(launcher.name, "")
    if name in environ and environ[name] == environ[launcher.size]:
        return "127.0.0.1"
    raise UserError("MASTER_ADDR: expected the host of rank 0, where the processes meet; got none")


def first_host(nodes: str) -> str:
    """The first of a SLURM list of nodes: "gpu[07-09,12],login" begins with gpu07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UserError(f"SLURM_JOB_NODELIST: expected names of nodes; got {nodes!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _port(environ: Mapping[str, str], launcher: _Launcher) -> int:
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT", 1, 65535)
    if launcher.name == "torchrun":
        raise UserError("MASTER_PORT: expected a port, as RANK is set; got none")
    if "SLURM_JOB_ID" not in environ:
        return _DEFAULT_PORT
    # Jobs and steps that share a node need ports of their own, below those that systems hand out.
    job, step = _number(environ, "SLURM_JOB_ID", 0), environ.get("SLURM_STEP_ID", "0")
    return 12000 + (job * 64 + (int(step) if step.isdecimal() else 0)) % 20000


@contextmanager
def joined(args: argparse.Namespace) -> Iterator[World]:
    """The processes of this run, once all are there; they part when the block ends.

    Args:
        args: `device`, `dist_url`, `dist_backend`, `rank_timeout` and `no_set_device_rank` are
            read.

    Raises:
        UserError: half-set variables, a device that is not there, ranks that do not come or that
            differ in what they compute on.
    """
    launch = launched(os.environ, args.dist_url)
    device = device_of(args, launch)
    if launch.size == 1:
        yield World(device=device)
        return
    backend = _backend(args.dist_backend, device)
    timeout = timedelta(seconds=args.rank_timeout)
    with _exported(launch):
        store = _store(launch, args.dist_url, timeout)
        ranks = _introduced(store, launch, device, backend, timeout)
        _share_cores(ranks, launch, device)
        group, control = _groups(store, launch, device, backend, timeout)
        yield World(
            rank=launch.rank,
            size=launch.size,
            local_rank=launch.local_rank,
            device=device,
            group=group,
            control=control,
            store=dist.PrefixStore("watchdog", store),
        )
        # Not where the block raised: others may be gone, or wait for this one in something else.
        dist.barrier(control)  # rank 0 may hold the store, which the others' ends still need
        dist.destroy_process_group()


def _groups(
    store: dist.Store, launch: Launch, device: torch.device, backend: str, timeout: timedelta
) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """All ranks, for what is on their devices and for what is on the CPU."""
    # A rank that stands still is the watchdog's to name; this is for what it cannot see.
    patience = timeout * SLOW * 2
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("world", store),
        rank=launch.rank,
        world_size=launch.size,
        timeout=patience,
        device_id=device if backend == "nccl" else None,
    )
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    if backend == "gloo":
        return group, group
    control = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(control, dist.ProcessGroup)
    return group, control


def device_of(args: argparse.Namespace, launch: Launch) -> torch.device:
    """open_clip's choice: --device, the CPU where there is no GPU, and each rank its own GPU.

    Raises:
        UserError: another kind of device, or fewer GPUs than local ranks.
    """
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device(args.device)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda; got {args.device!r}")
    if device.type == "cuda":
        if launch.size > 1 and not args.no_set_device_rank:
            device = torch.device("cuda", launch.local_rank)
        count, index = torch.cuda.device_count(), device.index or 0
        if index >= count:
            raise UserError(
                f"--device: expected GPU {index} for rank {launch.rank}; got {count} GPUs "
                "(where each process sees its own alone, --no-set-device-rank takes that)"
            )
        torch.cuda.set_device(index)
    return device


def _backend(asked: str | None, device: torch.device) -> str:
    backend = asked or ("nccl" if device.type == "cuda" else "gloo")
    allowed = ["gloo", "nccl"] if device.type == "cuda" else ["gloo"]
    if backend not in allowed:
        raise UserError(
            f"--dist-backend: expected {' or '.join(allowed)} on {device}; got {backend!r}"
        )
    return backend


@contextmanager
def _exported(launch: Launch) -> Iterator[None]:
    """torchrun's variables, for libraries that look there."""
    values = {
        "RANK": launch.rank,
        "WORLD_SIZE": launch.size,
        "LOCAL_RANK": launch.local_rank,
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": launch.port,
    }
    added = {name: str(value) for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _store(launch: Launch, url: str | None, timeout: timedelta) -> dist.Store:
    """Where the processes leave each other messages."""
    if url is not None and url.startswith("file://"):
        return dist.FileStore(urlsplit(url).path, launch.size)
    by_agent = url is None or url == "env://"
    by_agent = by_agent and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            launch.address,
            launch.port,
            launch.size,
            is_master=launch.rank == 0 and not by_agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, RuntimeError) as error:
        what = "could not listen" if launch.rank == 0 and not by_agent else "found nobody"
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {launch.rank}: expected to meet the others at {launch.address}:{launch.port}, "
            f"as {launch.by} says; {what} there: {reason}"
        ) from None
    # torchrun's store outlives processes that it starts again.
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _introduced(
    store: dist.Store, launch: Launch, device: torch.device, backend: str, timeout: timedelta
) -> list[dict[str, Any]]:
    """What every rank says of itself.

    Raises:
        UserError: some do not come in time, or compute on other things.
    """
    own = {
        "host": socket.gethostname(),
        "cores": f"{sum(1 << core for core in os.sched_getaffinity(0)):x}",
        "computes": f"{device.type}, {backend}, torch {torch.__version__}",
    }
    store.set(f"rank {launch.rank}", json.dumps(own))
    names = [f"rank {rank}" for rank in range(launch.size)]
    try:
        store.wait(names, timeout)
    except (dist.DistError, RuntimeError):
        absent = [name for name in names if not store.check([name])]
        raise UserError(
            f"expected {launch.size} processes at {launch.address}:{launch.port}, as {launch.by} "
            f"says; after {timeout.total_seconds():g} s got none for {listed(absent)}"
        ) from None
    ranks = [json.loads(text) for text in store.multi_get(names)]
    store.set(f"rank {launch.rank} has read", "")
    for rank, other in enumerate(ranks):
        if other["computes"] != ranks[0]["computes"]:
            if launch.rank == 0:  # it may hold the store, which ends with it
                with suppress(dist.DistError, RuntimeError):
                    store.wait([f"{name} has read" for name in names], timeout)
            raise UserError(
                f"rank {rank} on {other['host']}: expected what rank 0 on {ranks[0]['host']} "
                f"computes with, {ranks[0]['computes']}; got {other['computes']}"
            )
    return ranks


def listed(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _share_cores(ranks: list[dict[str, Any]], launch: Launch, device: torch.device) -> None:
    """Ranks that may run on the same cores of a machine share them evenly."""
    own = ranks[launch.rank]
    sharing = [r for r in ranks if (r["host"], r["cores"]) == (own["host"], own["cores"])]
    share = max(1, len(os.sched_getaffinity(0)) // len(sharing))
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is None:
        torch.set_num_threads(share)
    elif asked == "1" and share > 1 and device.type == "cpu" and launch.rank == 0:
        logger.warning(
            f"OMP_NUM_THREADS is 1, which torchrun sets; OMP_NUM_THREADS={share} would use all "
            "cores of this machine"
        )
