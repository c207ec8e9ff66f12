"""Runs small enough to be saved a hundred times, and disks small enough to be full."""

import contextlib
import resource
import subprocess
from types import SimpleNamespace

import torch

from clipfast.ranks.world import World
from clipfast.train.checkpoints.checkpoints import Checkpoints
from clipfast.train.checkpoints.run_folder import Position, RunFolder
from clipfast.weights.checkpoint import read_dict, save_checkpoint

CONTENT = {"skipped": 3, "ema": {"x": torch.ones(2)}}


def flags(tmp_path, **changed):
    """Of the checkpoints."""
    defaults = {
        "logs": str(tmp_path),
        "resume": None,
        "trust_checkpoint": False,
        "save_frequency": 1,
        "save_most_recent": False,
        "delete_previous_checkpoint": False,
        "save_every_steps": 0,
        "save_every_minutes": 0.0,
        "keep_states": 2,
        "remote_sync": None,
        "remote_sync_frequency": 300,
        "epochs": 3,
        "batch_size": 8,
        "accum_freq": 1,
        "seed": 0,
        "data_cache": None,
        "data_cache_gb": 1.0,
    }
    return SimpleNamespace(**defaults | changed)


class ShardEngine:
    """Each rank holds a part of the weights, and writes a file of its own, as ZeRO does."""

    name = "shards"

    def __init__(self, world=World(), width=1000):  # noqa: B008, a value
        self.world = world
        self.part = torch.full((width,), 1.0 + world.rank)
        self.momentum = torch.zeros(width)

    def step(self):
        self.momentum += 1
        self.part += self.momentum

    def snapshot(self, folder):
        content = {"part": self.part.clone(), "momentum": self.momentum.clone()}
        return lambda: save_checkpoint(folder / f"part_{self.world.rank}.pt", content)

    def restore(self, folder, saved_world_size, where):
        content = read_dict(folder / f"part_{self.world.rank % saved_world_size}.pt")
        self.part, self.momentum = content["part"], content["momentum"]

    def checkpoint(self):
        if not self.world.is_main:
            return None
        return {"state_dict": {"part": self.part}, "optimizer": {"state": {0: self.momentum}}}

    def load_checkpoint(self, checkpoint, where):
        self.part = checkpoint["state_dict"]["part"]
        if "optimizer" in checkpoint:
            self.momentum = checkpoint["optimizer"]["state"][0]


class SmallRun:
    """A run of 10 steps an epoch, without data.

    Attributes:
        global_step: steps taken.
    """

    def __init__(self, tmp_path, world=World(), **changed):  # noqa: B008, a value
        self.args, self.world = flags(tmp_path, **changed), world
        self.folder = RunFolder(str(tmp_path), "run", resume=True)
        self.engine = ShardEngine(world)
        self.checkpoints = Checkpoints(self.args, self.folder, world)
        self.global_step = 0

    def save(self, steps=1, content=CONTENT):
        """After so many steps more."""
        for _ in range(steps):
            self.engine.step()
        self.global_step += steps
        position = Position(*divmod(self.global_step, 10))
        self.checkpoints.save_state(position, self.global_step, self.engine, content)

    def save_epoch(self, content=CONTENT, ema=None):
        epoch = self.global_step // 10 + 1
        self.global_step = 10 * epoch
        self.engine.step()
        self.checkpoints.after_epoch(epoch, self.global_step, self.engine, content, ema)

    def states(self):
        return names_in(self.folder.states)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def full_disk(folder, size):
    """The folder takes no file larger than `size` bytes: a small disk of its own, or, where none
    may be mounted, a limit on files."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0:
            try:
                yield
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
