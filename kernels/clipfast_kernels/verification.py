"""`verify`: which backends are right and which of them is fastest on the device at hand.

None of the GPU kernels has met every GPU: a kernel serves "auto" there once it was measured there.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import torch
import torch.distributed as dist

from clipfast_kernels.dispatch import OPS
from clipfast_kernels.distributed import alone_is_none
from clipfast_kernels.measuring import DTYPES
from clipfast_kernels.verdicts import (
    Row,
    Verdict,
    device_name,
    dtype_name,
    read_verdict,
    use,
    versions,
    write_verdict,
)

_CODE = (
    "import sys; from clipfast_kernels.measuring import measure_in_child as m; "
    "m(sys.argv[1], int(sys.argv[2]))"
)
# The child's code, which the tests replace.
CHILD = ["-c", _CODE]

# A kernel that has not come back by then hangs; compiling one takes a minute at most.
SILENCE_SECONDS = 300

Progress = Callable[[int, int, str], None]
_Cache = str | os.PathLike[str] | None


def verify(
    device: torch.device | str | None = None,
    ops: Sequence[str] | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    cache: _Cache = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Verdict:
    """Checks every usable backend of every op against the reference, and times the right ones.

    From then on ``backend="auto"`` takes, on a GPU, the fastest backend that was right on calls of
    that kind; on a CPU the order stays that in which the op lists its backends. A backend that was
    wrong once is not taken for that dtype, and one that crashed or hung for none. Later processes
    find the verdict in the user's cache folder; a call of an op only looks it up. Without a
    verdict, "auto" on a GPU takes "torch".

    A backend is right if, on random data, forward and every gradient keep
    ``max|kernel − ref64| ≤ 2·(max|low − ref64| + eps·max|ref64|)``, where ref64 is the reference
    in float64 and low the reference in the kernel's dtype; who misses that by little is asked again
    on other data. Everything runs in a child process, so
    that a kernel's crash stays there; on a GPU it may take minutes, and gigabytes of its memory.

    Args:
        device: whose calls it is about; None is the current CUDA device, or else the CPU.
        ops: names of the ops to verify; None is all.
        group: a torch.distributed process group, every rank of which calls this: rank 0 decides,
            and all take its verdict. None is this process alone.
        cache: the folder of the verdict's file; None is ``$XDG_CACHE_HOME/clipfast`` or
            ``~/.cache/clipfast``.
        refresh: measure even where a verdict of this device and these versions is there.
        progress: called as progress(done, total, what_runs_now).

    Returns:
        The verdict, with a row for every op, shape class, dtype and backend.

    Raises:
        ValueError: an unknown op, or a device that is neither a CPU nor a CUDA GPU.
        TypeError: group is no process group.
        RuntimeError: the device is not there or cannot compute anything; on every rank.

    Warns:
        RuntimeWarning: a file that cannot be used; a pinned backend that is wrong; another model of
            device on this rank than on rank 0.
    """
    names = _checked_ops(ops)
    target = _placed(device)
    group = alone_is_none(group)
    if group is None:
        verdict = _decided(target, names, cache, refresh, progress)
    else:
        verdict = _decided_for_all(group, target, names, cache, refresh, progress)
    use(verdict, target)
    return verdict


def pin_backend(
    op: str,
    backend: str | None,
    *,
    device: torch.device | str | None = None,
    cache: _Cache = None,
) -> None:
    """Makes ``backend="auto"`` take this backend for an op, on this model of device.

    It is kept in the verdict's file. As with an explicit ``backend=``, which beats it, as
    ``CLIPFAST_BACKEND`` does, a call that the backend cannot serve raises.

    Args:
        op: the op's public name.
        backend: its name; None takes the pin away.
        device, cache: as in `verify`.

    Raises:
        ValueError: no such op or backend; or `verify` found the backend wrong on this device.
    """
    _checked_ops([op])
    known = OPS[op]().modules
    if backend is not None and backend not in known:
        raise ValueError(f"backend: expected one of {', '.join(known)} or None; got {backend!r}")
    target = _placed(device)
    verdict = read_verdict(target, cache) or _empty(target)
    damning = [r for (o, _, b), r in verdict.untrusted().items() if (o, b) == (op, backend)]
    if damning:
        raise ValueError(
            f"backend: expected one that verify() trusts with {op} on {verdict.device}; got "
            f"{backend!r}, which {_damned(damning[0])}"
        )
    pins = {o: name for o, name in verdict.pins.items() if o != op}
    if backend is not None:
        pins[op] = backend
    verdict = verdict._replace(pins=pins)
    write_verdict(verdict, target, cache)
    use(verdict, target)


def _damned(row: Row) -> str:
    where = f"on {row.shape_class} in {row.dtype}"
    if row.status == "wrong":
        return f"is wrong {where}: {row.note}: error {row.error:.1e}, {row.allowed:.1e} allowed"
    return f"crashed {where}: {row.note}"


def _checked_ops(ops: Sequence[str] | None) -> list[str]:
    names = list(OPS) if ops is None else list(ops)
    for name in names:
        if name not in OPS:
            raise ValueError(f"ops: expected some of {', '.join(OPS)}; got {name!r}")
    return names


def _placed(device: torch.device | str | None) -> torch.device:
    """The device as tensors on it name it."""
    found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.type not in DTYPES:
        raise ValueError(f"device: expected cpu or cuda; got {str(found)!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device: {str(found)!r} is not usable: torch sees no GPU here")
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if found.type == "cpu" else found


def _empty(device: torch.device) -> Verdict:
    return Verdict(device_name(device), versions(), {}, [])


def _decided(
    device: torch.device, ops: list[str], cache: _Cache, refresh: bool, progress: Progress | None
) -> Verdict:
    known = read_verdict(device, cache) or _empty(device)
    ops = [name for name in ops if OPS[name]().trials is not None]
    measured = {row.op for row in known.rows}
    missing = [name for name in ops if refresh or name not in measured]
    if not missing:
        return known
    rows = [row for row in known.rows if row.op not in missing]
    units = [(op, dtype_name(dtype)) for op in missing for dtype in DTYPES[device.type]]
    rows += _measured_apart(units, device, progress or (lambda done, total, what: None))
    verdict = _without_wrong_pins(known._replace(rows=rows))
    write_verdict(verdict, device, cache)
    return verdict


def _without_wrong_pins(verdict: Verdict) -> Verdict:
    kept = dict(verdict.pins)
    for (op, _, backend), row in verdict.untrusted().items():
        if kept.get(op) == backend:
            del kept[op]
            _warn(f"{op} was pinned to {backend!r}, which {_damned(row)}; the pin is taken away")
    return verdict._replace(pins=kept)


def _decided_for_all(group: dist.ProcessGroup, device: torch.device, *how: Any) -> Verdict:
    """Rank 0's verdict, or its error, on every rank."""
    box: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            box = [_decided(device, *how)]
        except Exception as error:  # the others wait for an answer
            box = [error]
    dist.broadcast_object_list(box, group=group, group_src=0)
    if isinstance(box[0], Exception):
        raise RuntimeError(f"verify() failed on rank 0: {box[0]}") from box[0]
    verdict: Verdict = box[0]
    own = device_name(device)
    if own != verdict.device:
        _warn(
            f"rank {dist.get_rank(group)} runs on {own}, rank 0 on {verdict.device}, "
            "whose verdict all ranks take"
        )
    return verdict


def _measured_apart(
    units: list[tuple[str, str]], device: torch.device, progress: Progress
) -> list[Row]:
    """The units' rows. A child that dies is replaced by one that leaves the culprit out."""
    rows: list[Row] = []
    excluded: set[tuple[str, str]] = set()
    done = 0
    while done < len(units):
        running: list[str] = []
        request = {
            "device": str(device),
            "units": units[done:],
            "excluded": sorted(excluded),
        }
        try:
            for event in _child_events(json.dumps(request)):
                if "begin" in event:
                    running = event["begin"]
                    progress(done, len(units), ", ".join(running))
                else:
                    rows += [Row(**row) for row in event["rows"]]
                    running, done = [], done + 1
        except _ChildDied as died:
            if not running:
                raise RuntimeError(f"{device} could not be measured: {died}") from None
            op, dtype, backend, shape_class = running
            rows.append(
                Row(op, shape_class, dtype, backend, "crashed", None, None, None, str(died))
            )
            excluded.add((op, backend))
    progress(done, len(units), "")
    return rows


class _ChildDied(Exception):
    """How, as a sentence."""


def _child_events(request: str) -> Iterator[dict[str, Any]]:
    """What a child of its own says until it has done all that the request asks.

    Raises:
        _ChildDied: it ended otherwise, or went silent.
    """
    reading, writing = os.pipe()
    # The search path is the parent's, and not where it happens to stand.
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    with os.fdopen(reading, "rb") as pipe, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", *CHILD, request, str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[writing],
                env=os.environ | {"PYTHONPATH": path},
            )
        finally:
            os.close(writing)
        try:
            yield from _events(pipe)
            code = child.wait(timeout=SILENCE_SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise _ChildDied(f"it did not come back within {SILENCE_SECONDS} s") from None
        finally:
            child.kill()
            child.wait()
        if code != 0:
            raise _ChildDied(_last_words(code, errors))


def _events(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    pending = b""
    while True:
        if not select.select([pipe], [], [], SILENCE_SECONDS)[0]:
            raise TimeoutError
        chunk = os.read(pipe.fileno(), 2**16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _last_words(code: int, errors: IO[bytes]) -> str:
    how = (
        f"its process was ended by signal {-code}" if code < 0 else f"its process ended with {code}"
    )
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"{how}: {lines[-1].strip()}" if lines else how


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)
