"""The programs that the documentation's commands start, found before the real ones.

Each does what it is asked for with the real clipfast, on less: trainings get a small model and few
steps by flags after their own, launchers of 8 processes start 2, ``make`` and ``pip`` say what they
would do. ``srun`` starts its tasks here, with SLURM's variables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

SANDBOX = os.environ["DOCS_SANDBOX"]
MODEL = f"{SANDBOX}/small.json"
LESS = {
    "train": f"--model {MODEL} --batch-size 4 --train-num-samples 16 --epochs 2 --warmup 1 "
    "--workers 1",
    "demo": "--pairs 256 --epochs 1",
    "bench train": "--steps 1 --rounds 1 --workers 1 --batch-size 4",
    "bench run": "--budget 20s -k quick_gelu",
    "bench feed": "--seconds 0.3 --step-seconds 1 --threads 1",
    "bench contribute": "--budget 20s -k quick_gelu",
}
PROCESSES = 2


def clipfast(*arguments: str) -> list[str]:
    return ["-m", "clipfast", *less(list(arguments))]


def less(arguments: list[str]) -> list[str]:
    """The same command with what makes it quick after it."""
    command = arguments[0]
    if command == "bench":
        what = arguments[1] if len(arguments) > 1 and arguments[1][0] != "-" else "run"
        command = f"bench {what}"
        arguments = [MODEL if re.match("ViT|RN", a) and "@" not in a else a for a in arguments]
    return [*arguments, *LESS.get(command, "").split()]


def python(*arguments: str) -> list[str]:
    if arguments[:2] == ("-m", "clipfast.train"):
        return ["-m", "clipfast.train", *less(["train", *arguments[2:]])[1:]]
    return list(arguments)


def torchrun(*arguments: str) -> list[str]:
    at = arguments.index("--")
    module, *rest = arguments[at + 1 :]
    rest = less(["train", *rest])[1:] if module == "clipfast.train" else less(rest)
    return [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)),
        *("-m", "--", module, *rest),
    ]


def srun(*arguments: str) -> int:
    """Starts the command's tasks on this machine, each with its own number."""
    command = [a for a in arguments if not a.startswith("--kill-on-bad-exit")]
    tasks = []
    for rank in range(PROCESSES):
        variables = {
            "SLURM_PROCID": rank,
            "SLURM_NTASKS": PROCESSES,
            "SLURM_LOCALID": rank,
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_JOB_ID": os.getpid(),
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        tasks.append(subprocess.Popen(command, env=environment))
    return max(task.wait() for task in tasks)


def make(*arguments: str) -> int:
    """Prints what the target would do: an unknown one is an error."""
    return subprocess.call(["/usr/bin/make", "-n", "-C", os.environ["DOCS_REPOSITORY"], *arguments])


def pip(*arguments: str) -> int:
    """Whether all that is to be installed is here, and clipfast has the extras."""
    extras = metadata.metadata("clipfast").get_all("Provides-Extra")
    for wanted in arguments[1:]:
        if wanted == "." or wanted.startswith("-"):
            continue
        name, _, asked = wanted.rstrip("]").partition("[")
        if name == "clipfast":
            missing = set(asked.split(",")) - set(extras)
            if missing:
                print(f"clipfast has no extra {missing}")
                return 1
        else:
            metadata.version(re.split("[=<>]", name)[0])
    return 0


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if name in ("scontrol", "scancel"):
        return 0
    done = globals()[name](*arguments)
    return done if isinstance(done, int) else subprocess.call([sys.executable, *done])


if __name__ == "__main__":
    sys.exit(main())
