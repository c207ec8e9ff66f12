"""Results that owners of other machines send: one command, one file, and the check of it."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import math
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfast.errors import UserError

FORM = "clipfast bench contribution 1"
_TOP = {
    "machine_info": dict,
    "commit_info": dict,
    "benchmarks": list,
    "not_timed": list,
    "verification": list,
    "contribution": dict,
}
_HOMES = re.compile(r"(?:/home/|/Users/|/root(?:/|\b)|[A-Za-z]:\\\\?Users\\)[^\s\"']*")
_COMMON_NAMES = {"", "root", "user", "localhost"}
_SHORTEST_NAME = 4  # a shorter one of a user or host stands in other words too


def contribute(arguments: Sequence[str]) -> int:
    """Runs the suite, verifies the kernels where there is a GPU, and writes the file to send.

    Raises:
        UserError: a mistake in flags.
        OSError: the file cannot be written.
    """
    from clipfast_bench.harness import suite

    args = suite.parse(arguments, "clipfast bench contribute", ("FILE", "to send (.json)"))
    file, args.output = args.output, None
    if file is None:
        raise UserError("--output: expected the file to write; got none")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: expected a folder that exists; got none")
    _verify(suite.chosen_device(args.device))
    outcome = suite.measure(args, time.perf_counter())
    code = suite.finish(args, outcome)
    missing = list(missing_from(outcome.record))
    record = without_names(outcome.record) | {
        "contribution": {"form": FORM, "missing": missing, "code": code}
    }
    file.write_text(json.dumps(record, indent=1) + "\n")
    for sentence in missing:
        print(f"missing: {sentence}")
    for fault in faults_of(record):
        print(f"to mend before it is sent: {fault}")
    print(f"written: {file}; bench/results/contributed/README.md of the repository says where to")
    return code


def _verify(device: Any) -> None:
    """Fills the cache that a run reads its verification from."""
    if device.type != "cuda":
        return
    from clipfast_kernels import verify

    verify(device, progress=lambda done, total, what: print(f"verifying {done}/{total}: {what}"))


def missing_from(record: Mapping[str, Any]) -> Iterator[str]:
    """What would make the results tell more, in sentences."""
    info = record.get("machine_info", {})
    if not info.get("gpu"):
        yield "a GPU: these are results of a CPU"
    if info.get("gpu") and not record.get("verification"):
        yield "the verification of the kernels"
    if (record.get("commit_info") or {}).get("dirty"):
        yield "a commit: the checkout has changes that nobody else has"
    left = record.get("not_timed", [])
    if left:
        yield f"{len(left)} cases that were not timed; a larger --budget times more"
    absent = {peer for row in record["benchmarks"] for peer in row["extra_info"].get("absent", ())}
    if absent:
        yield f"peers that could not be asked: {', '.join(sorted(absent))}"


def without_names(record: dict[str, Any]) -> dict[str, Any]:
    """The same without the names of this host and user, and without home folders."""
    return json.loads(_anonymous(json.dumps(record)))


def _anonymous(text: str) -> str:
    text = _HOMES.sub("~", text)
    for name in _own_names():
        text = re.sub(rf"\b{re.escape(name)}\b", "someone", text)
    return text


def _own_names() -> list[str]:
    """Of this host and user, where they are no common words."""
    found = [socket.gethostname(), socket.gethostname().partition(".")[0]]
    with contextlib.suppress(OSError, KeyError):
        found.append(getpass.getuser())
    return [n for n in found if len(n) >= _SHORTEST_NAME and n.lower() not in _COMMON_NAMES]


def contributed(arguments: Sequence[str]) -> int:
    """Checks a folder of contributed files; 1 if one has a fault.

    Raises:
        UserError: there is no such folder.
    """
    parser = argparse.ArgumentParser(
        prog="clipfast bench contributed",
        description="Whether contributed results have the form, say that the kernels are right, "
        "and tell nobody's name.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of contributed results; got none")
    faults, files = 0, sorted(folder.glob("*.json"))
    for file in files:
        found = faults_of_file(file)
        faults += len(found)
        print(f"{file.name}: {'right' if not found else f'{len(found)} faults'}")
        for fault in found:
            print(f"  {fault}", file=sys.stderr)
    print(f"{len(files)} files, {faults} faults")
    return int(faults > 0)


def faults_of_file(file: Path) -> list[str]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except ValueError as error:
        return [f"expected JSON; got none: {error}"]
    if not isinstance(record, dict):
        return ["expected a JSON object; got another value"]
    return list(faults_of(record))


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def faults_of(record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a contribution, in sentences."""
    missing = [n for n, kind in _TOP.items() if not isinstance(record.get(n), kind)]
    if missing:
        yield f"expected {', '.join(missing)} at the top level; got another form"
        return
    form = record["contribution"].get("form")
    if form != FORM:
        yield f"contribution: expected the form {FORM!r}; got {form!r}"
    for row in record["benchmarks"]:
        yield from _faults_of_row(row)
    yield from _faults_of_verification(record)
    yield from _names_in(record)


def _faults_of_row(row: Any) -> Iterator[str]:
    try:
        name, data = row["name"], row["stats"]["data"]
        info = row["extra_info"]
        answers, peers = info["answers"], info["peer_seconds"]
    except (KeyError, TypeError) as error:
        yield f"benchmarks: expected rows of a run; one lacks {error}"
        return
    times = [("ours", data), *peers.items()]
    for contender, seconds in times:
        if not all(isinstance(s, int | float) and 0 < s < math.inf for s in seconds) or not seconds:
            yield f"{name}: {contender}: expected seconds above 0; got others"
        right = answers.get(contender, {}).get("right")
        if right is False or (contender == "ours" and answers and right is None):
            yield f"{name}: {contender} has a speed, and its answer was not right"


def _faults_of_verification(record: Mapping[str, Any]) -> Iterator[str]:
    rows = record["verification"]
    if record["machine_info"].get("gpu") and not rows:
        yield "verification: expected the table of verify() of this GPU; got none"
    for row in rows:
        if not isinstance(row, dict) or not {"op", "backend", "dtype", "status"} <= row.keys():
            yield "verification: expected rows of verify(); one lacks its op, backend or status"
        elif row["status"] not in ("right", "out of memory"):
            yield (
                f"verification: {row['op']} by {row['backend']} in {row['dtype']} is "
                f"{row['status']}: {row.get('note', '')}"
            )


def _names_in(record: Mapping[str, Any]) -> Iterator[str]:
    if record["machine_info"].get("node"):
        yield "machine_info: expected no name of the host; got one under `node`"
    text = json.dumps(record)
    found = _HOMES.search(text)
    if found:
        yield f"expected no path of somebody's home; got {found[0]!r}"
    for name in _own_names():
        if re.search(rf"\b{re.escape(name)}\b", text):
            yield f"expected no name of a host or user; got {name!r}"
