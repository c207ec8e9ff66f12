"""`clipfast bench compare A B`: what became faster or slower from one run to another, and what is
no more than noise."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from clipfast_bench.harness.table import case_name, seconds_words
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from clipfast.errors import UserError

FASTER, SLOWER, NOISE = "faster", "slower", "within noise"
DEFAULT_FLOOR = 0.03
_RESAMPLES = 4000
_MANY_ROUNDS = 8
_CONFIDENCE = 0.99  # of dozens of cases some lie outside of 95 % by chance
_MACHINE = ("cpu", "gpu", "threads", "cpu_capability", "machine")
Row = Mapping[str, Any]


class Range(NamedTuple):
    """Of a ratio B/A: the ratio of the medians, and where it lies with 99 % confidence."""

    ratio: float
    low: float
    high: float


class Change(NamedTuple):
    """Of one case.

    Attributes:
        a, b: seconds of ours, medians.
        ours: B/A of our seconds; of our time over the peers' where machines differ.
        peers: B/A of the peers' seconds, which no change of ours moves; None without common peers.
        verdict: FASTER, SLOWER or NOISE.
    """

    name: str
    a: float
    b: float
    ours: Range
    peers: float | None
    verdict: str


class Comparison(NamedTuple):
    """Attributes:
    by_peers: whether ratios to peers are compared, as the machines differ.
    notes: what differs between the runs, in sentences.
    """

    changes: list[Change]
    by_peers: bool
    notes: list[str]


def compare(arguments: Sequence[str]) -> int:
    """Prints the comparison; 1 with --fail-on-slower if a case became slower, else 0.

    Raises:
        UserError: a file that is no result.
        OSError: it cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="clipfast bench compare",
        description="From the rounds that two runs stored: what changed, and what is noise.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("before", type=Path, metavar="A.json")
    add("after", type=Path, metavar="B.json")
    add(
        "--floor",
        type=float,
        default=100 * DEFAULT_FLOOR,
        metavar="PERCENT",
        help="a smaller change is noise, however sure (default 3)",
    )
    add("--fail-on-slower", action="store_true", help="exit code 1 if a case became slower")
    args = parser.parse_args(arguments)
    if not 0 <= args.floor < math.inf:
        raise UserError(f"--floor: expected a percentage from 0 on; got {args.floor}")
    found = compared(read(args.before), read(args.after), args.floor / 100)
    console = Console(width=shutil.get_terminal_size((110, 40)).columns, highlight=False)
    _show(found, args.floor, console)
    slower = any(change.verdict == SLOWER for change in found.changes)
    return int(args.fail_on_slower and slower)


def read(path: Path) -> dict[str, Any]:
    """A result file of any age.

    Raises:
        UserError: it is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("benchmarks"), list):
        raise UserError(f"{path}: expected the JSON of a benchmark run; got another file")
    return record


def compared(a: Mapping[str, Any], b: Mapping[str, Any], floor: float) -> Comparison:
    """Two runs, case by case.

    Args:
        a, b: before and after, in the form of result files.
        floor: a smaller share is noise.

    Raises:
        UserError: they have no case in common.
    """
    notes = list(_differences(a, b))
    by_peers = _machine(a) != _machine(b)
    before, after = _by_name(a), _by_name(b)
    common = [name for name in before if name in after]
    if not common:
        raise UserError("expected two runs with a case in common; these have none")
    changes = []
    for name in common:
        change = _change(name, before[name], after[name], floor, by_peers)
        if change is not None:
            changes.append(change)
    alone = len(before) + len(after) - 2 * len(common)
    if alone:
        notes.append(f"{alone} cases are in one of the files alone")
    left = len(common) - len(changes)
    if left:
        notes.append(
            f"{left} cases have no peer in both files, without which two machines cannot be "
            "compared"
        )
    return Comparison(changes, by_peers, notes)


def _by_name(record: Mapping[str, Any]) -> dict[str, Row]:
    """Those that were timed: a row of the old form that only measured memory was not."""
    return {
        row["name"]: row
        for row in record["benchmarks"]
        if row["stats"].get("data") and "_memory" not in row["name"].partition("[")[0]
    }


def _change(name: str, a: Row, b: Row, floor: float, by_peers: bool) -> Change | None:
    common = _common_peers(a, b)
    if by_peers and not common:
        return None
    own = [np.array(row["stats"]["data"]) for row in (a, b)]
    beside = [_over_peers(row, common) for row in (a, b)] if common else None
    against = _range(*beside) if beside else None
    ours = against if by_peers and against else _range(*own)
    peers = None
    if common:
        logs = [math.log(_median(b, peer) / _median(a, peer)) for peer in common]
        peers = math.exp(sum(logs) / len(logs))
    return Change(
        name,
        float(np.median(own[0])),
        float(np.median(own[1])),
        ours,
        peers,
        _verdict(ours, against, floor),
    )


def _verdict(ours: Range, against_peers: Range | None, floor: float) -> str:
    """Outside of noise by its own rounds; and by those of its peers too, where it has any: what
    moves peers as much is the machine."""
    for verdict, beyond in (
        (SLOWER, lambda found: found.low > 1 and found.ratio > 1 + floor),
        (FASTER, lambda found: found.high < 1 and found.ratio < 1 / (1 + floor)),
    ):
        if beyond(ours) and (against_peers is None or beyond(against_peers)):
            return verdict
    return NOISE


def _range(a: NDArray[np.float64], b: NDArray[np.float64]) -> Range:
    """Of the medians' ratio, by resampling the rounds of each run; of few rounds, whose resamples
    are too much alike, by Welch's t of their logarithms."""
    ratio, tail = float(np.median(b) / np.median(a)), (1 - _CONFIDENCE) / 2
    if min(len(a), len(b)) >= _MANY_ROUNDS:
        random = np.random.default_rng(0)
        medians = [np.median(random.choice(x, size=(_RESAMPLES, len(x))), axis=1) for x in (a, b)]
        low, high = np.quantile(medians[1] / medians[0], [tail, 1 - tail])
        return Range(ratio, float(low), float(high))
    if min(len(a), len(b)) < 2:
        return Range(ratio, 0.0, math.inf)
    logs = np.log(a), np.log(b)
    parts = [x.var(ddof=1) / len(x) for x in logs]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Range(ratio, ratio, ratio)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(x) - 1) for part, x in zip(parts, logs, strict=True)
    )
    reach = error * float(stats.t.ppf(1 - tail, freedom))
    middle = logs[1].mean() - logs[0].mean()
    return Range(ratio, math.exp(middle - reach), math.exp(middle + reach))


def _common_peers(a: Row, b: Row) -> list[str]:
    """Timed by both in every round."""
    samples = [row["extra_info"].get("peer_seconds", {}) for row in (a, b)]
    counts = [len(row["stats"]["data"]) for row in (a, b)]
    return [
        peer
        for peer in samples[0]
        if len(samples[0][peer]) == counts[0] and len(samples[1].get(peer, ())) == counts[1]
    ]


def _over_peers(row: Row, peers: Sequence[str]) -> NDArray[np.float64]:
    """By round: our seconds over the geometric mean of the peers'."""
    seconds = [row["extra_info"]["peer_seconds"][peer] for peer in peers]
    logs = np.log(np.array(row["stats"]["data"])) - np.log(np.array(seconds)).mean(axis=0)
    return np.exp(logs)


def _median(row: Row, peer: str) -> float:
    return float(np.median(row["extra_info"]["peer_seconds"][peer]))


def _machine(record: Mapping[str, Any]) -> dict[str, Any]:
    machine = record.get("machine_info", {})
    found = {name: machine.get(name) for name in _MACHINE}
    found["cpu"] = (machine.get("cpu") or {}).get("brand_raw")
    found["cores"] = (machine.get("cpu") or {}).get("count")
    return found


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    machines = _machine(a), _machine(b)
    for name, value in machines[0].items():
        if value != machines[1][name]:
            words = name.replace("_", " ")
            yield f"the machines differ in {words}: {value} and {machines[1][name]}"
    versions = [record.get("machine_info", {}).get("versions", {}) for record in (a, b)]
    for name in sorted({*versions[0], *versions[1]}):
        pair = [found.get(name, "none") for found in versions]
        if pair[0] != pair[1]:
            yield f"{name} differs: {pair[0]} and {pair[1]}"
    commits = [(record.get("commit_info") or {}).get("id") for record in (a, b)]
    if commits[0] != commits[1]:
        short = [(commit or "unknown")[:10] for commit in commits]
        yield f"the commits differ: {short[0]} and {short[1]}"


def _show(found: Comparison, floor: float, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("case", overflow="fold")
    what = "ours/peers, B/A" if found.by_peers else "B/A"
    for column in ("A", "B", what, "99 % range", "peers' B/A"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for change in found.changes:
        table.add_row(
            case_name(change.name),
            seconds_words(change.a),
            seconds_words(change.b),
            f"{change.ours.ratio:.2f}",
            f"{change.ours.low:.2f} – {change.ours.high:.2f}",
            "" if change.peers is None else f"{change.peers:.2f}",
            change.verdict,
        )
    console.print(table)
    counts = {v: sum(c.verdict == v for c in found.changes) for v in (FASTER, SLOWER, NOISE)}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    console.print(
        f"A change counts from {floor:g} % on, if its whole range lies beyond 1, and if the peers "
        "of the same rounds did not change with it."
    )
    if found.by_peers:
        console.print(
            "The machines differ: compared is our time over that of the peers in the same rounds, "
            "not seconds."
        )
    for note in found.notes:
        console.print(note)
