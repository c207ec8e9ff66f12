"""csrc/cuda/attention.cu compiled for the CPU, and run on cases of attention.

tests/emulation has the emulation of CUDA and the program whose files are written and read here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from attention_inputs import Answer
from clipfast_kernels.ops.attention import cuda, tiles
from clipfast_kernels.ops.attention.sequences import Sequences
from torch import Tensor

ROOT = Path(__file__).parents[2]
KERNELS, EMULATION = ROOT / "csrc/cuda", ROOT / "tests/emulation"
CACHE = ROOT / "build/emulation"
_SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g"
FLAGS = {"plain": "-O2", "asan": _SANITIZE, "tsan": "-fsanitize=thread -O1 -g"}


class Case(NamedTuple):
    """Inputs of attention, how the passes are cut up, and the seed of the threads' order."""

    sequences: Sequences
    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    plans: tuple[tiles.Plan, tiles.Plan, tiles.Plan]
    seed: int = 0


def case(sequences, tensors, *, seed=0, **changes):
    """A case with the plans that the host would choose, and `changes` to all three."""
    q, k = tensors[:2]
    batch = sequences.batch
    sides = {
        "q": (sequences.max_q, -(-len(q) // batch)),
        "k": (sequences.max_k, -(-len(k) // batch)),
    }
    plans = []
    for step in tiles.PASSES:
        own, other = ("k", "q") if step == "bwd_kv" else ("q", "k")
        plan = tiles.plan(
            step,
            batch=batch,
            heads=q.shape[1],
            width=q.shape[2],
            longest=sides[own][0],
            typical=sides[own][1],
            other_longest=sides[other][0],
        )
        plans.append(plan._replace(**changes))
    return Case(sequences, *tensors, tuple(plans), seed)


def build(kind="plain", edits=()):
    """The runner, compiled unless it was before.

    Args:
        kind: one of FLAGS.
        edits: (file, old, new): mistakes to plant in the kernels' sources.
    """
    runner = CACHE / f"runner-{kind}-{_key(FLAGS[kind], tuple(edits))}"
    if runner.exists():
        return runner
    parts = _parts_around(kind)
    with _scratch() as folder:
        for path in KERNELS.iterdir():
            text = path.read_text()
            for name, old, new in edits:
                if name == path.name:
                    assert text.count(old) == 1, f"{name} has {text.count(old)} of {old!r}"
                    text = text.replace(old, new)
            (folder / path.name).write_text(text)
        _compile(folder / "attention.cu", folder / "attention.o", folder, FLAGS[kind])
        made = folder / "runner"
        objects = [folder / "attention.o", *parts]
        subprocess.run(["g++", *FLAGS[kind].split(), *objects, "-o", made], check=True)
        made.rename(runner)
    return runner


def only(width):
    """Edits that leave the kernels of one head width, in float16, which compile in a tenth."""
    halves = "arguments.shape.bfloat16 ? choose_width<Pass, BFloat16>(arguments, plan)"
    edits = [("attention.cu", halves, "false ? nullptr")]
    for other in set(cuda.WIDTHS) - {width}:
        case = f"case {other}:\n            return Pass<T, {other}>::run(arguments, plan);"
        edits.append(("attention.cu", case, ""))
    return sorted(edits)


def _parts_around(kind):
    """Objects of the emulation and of the program, which no edit touches; compiled once."""
    hidden = "-O1 -DEMULATION_TSAN" if kind == "tsan" else FLAGS[kind]
    parts = []
    for stem, flags in (("attention_runner", FLAGS[kind]), ("cuda_emulation", hidden)):
        parts.append(CACHE / f"{stem}-{kind}-{_key(flags)}.o")
        if not parts[-1].exists():
            with _scratch() as folder:
                _compile(EMULATION / f"{stem}.cpp", folder / "made.o", KERNELS, flags)
                (folder / "made.o").rename(parts[-1])
    return parts


def _key(*of):
    """A name for what is compiled from these sources in this way."""
    key = hashlib.sha256(repr(of).encode())
    for path in sorted([*KERNELS.iterdir(), *EMULATION.iterdir()]):
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


@contextlib.contextmanager
def _scratch():
    """A folder to compile in, beside what it makes: a half-written file never has its name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        yield Path(folder)


def _compile(source, made, headers, flags):
    common = ["g++", "-std=c++17", "-DCLIPFAST_EMULATED", f"-I{headers}", f"-I{EMULATION}"]
    common += ["-Wno-unknown-pragmas", "-x", "c++", "-c"]
    subprocess.run([*common, *flags.split(), source, "-o", made], check=True)


class Failed(Exception):
    """The runner stopped; its last words."""


def run(runner, folder, words):
    """The runner's answers to the cases in `words`, as bytes."""
    (folder / "cases").write_bytes(b"".join(words))
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        [runner, folder / "cases", folder / "answers"],
        env={**os.environ, **options},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {done.stderr[:2000]}")
    return (folder / "answers").read_bytes()


def attention(runner, folder, cases):
    """Answers, and of all cases the tensor cores' instructions and ldmatrix's bank conflicts."""
    answers = memoryview(run(runner, folder, [_written(case) for case in cases]))
    found, counts = [], (0, 0)
    for each in cases:
        rows, heads, _ = each.q.shape
        kinds = [(each.q, each.q.dtype), (each.q.new_empty(heads, rows), torch.float32)]
        kinds += [(x, x.dtype) for x in (each.q, each.k, each.v)]
        tensors = []
        for like, dtype in kinds:
            size = like.numel() * dtype.itemsize
            flat = (
                torch.frombuffer(bytearray(answers[:size]), dtype=dtype) if size else like.to(dtype)
            )
            tensors.append(flat.reshape(like.shape))
            answers = answers[size:]
        counts = struct.unpack("2q", answers[:16])
        answers = answers[16:]
        found.append(Answer(*tensors))
    assert len(answers) == 0
    return found, *counts


def _written(case):
    s, q = case.sequences, case.q
    total, heads, width = q.shape
    numbers = [0, case.seed, q.dtype == torch.bfloat16, s.batch, s.max_q, s.max_k, s.causal]
    numbers += [heads, width, total, len(case.k), s.cu_q is not None, s.cu_k is not None]
    words = [struct.pack("13i", *numbers), struct.pack("f", s.scale)]
    words += [struct.pack("4i", *plan) for plan in case.plans]
    words += [bytes_of(cu) for cu in (s.cu_q, s.cu_k) if cu is not None]
    words += [bytes_of(x) for x in (q, case.k, case.v, case.d_out)]
    return b"".join(words)


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
