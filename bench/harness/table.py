"""Results as a terminal shows them: a table of each family, and notes beneath it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipfast_bench.harness.budget import OVER
from clipfast_bench.harness.cases import FAMILIES
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_TITLES = {
    "ops": "operations, forward and backward",
    "feeding": "feeding: from files to batches",
    "training": "training",
    "evaluation": "evaluation",
}
_PLACE = re.compile(r"(cpu|cuda)-(\w+)-?")
_NEEDS = re.compile(r"it needs (?:about|more than) (\d+) s")
_SHORT = {"float32": "", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


def show(record: Mapping[str, Any], console: Console) -> None:
    """Prints a run's results.

    Args:
        record: in the form of a result file.
    """
    rates = record.get("machine_info", {}).get("rates", {})
    families = _by_family(record)
    for family, (results, left) in families.items():
        console.print()
        console.print(Text(_TITLES.get(family, family), style="bold"))
        if results:
            console.print(_table(results, rates))
        for note in _notes(results, left):
            console.print(Text(note), soft_wrap=False)
    if any(results for results, _ in families.values()):
        console.print()
        console.print(
            Text(
                "× is a contender's time over ours: the median of the rounds, and from the lowest "
                "to the highest. floor: how near our time is to the least that this machine's "
                "products and copies allow. MiB: memory beyond inputs and gradients, ours and its."
            )
        )


def case_name(name: str) -> str:
    """``contrastive loss N=1024`` of ``test_contrastive_loss[cpu-float32-N=1024]``.

    A narrow table breaks lines at spaces.
    """
    test, _, parameters = name.removeprefix("test_").rstrip("]").partition("[")
    test = test.replace("_", " ")
    found = _PLACE.match(parameters)
    if found:
        parameters = parameters[found.end() :]
        test = " ".join(filter(None, (test, _SHORT.get(found[2], found[2]))))
    return f"{test} {parameters}".strip()


def seconds_words(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds:.0f} s"
    raise AssertionError


def floor_share(result: Mapping[str, Any], rates: Mapping[str, float]) -> float | None:
    """The least time, by the rates of this machine, over ours; None where either is not known."""
    info = result["extra_info"]
    known = [
        info[work] / rates[rate]
        for work, rate in (("flops", "matmul_flops"), ("bytes", "copy_bytes"))
        if info.get(work) and rates.get(rate)
    ]
    return max(known) / result["stats"]["median"] if known else None


def _by_family(record: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Results and what is left out, of each family that has any."""
    found: dict[str, tuple[list[Any], list[Any]]] = {name: ([], []) for name in FAMILIES}
    for result in record["benchmarks"]:
        found.setdefault(result.get("group") or "results", ([], []))[0].append(result)
    for left in record.get("not_timed", ()):
        found.setdefault(left.get("group", "not timed"), ([], []))[1].append(left)
    return {name: both for name, both in found.items() if any(both)}


def _table(results: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> Table:
    shares = [floor_share(result, rates) for result in results]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("case", overflow="fold")
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("others", overflow="fold")
    table.add_column("×", justify="right", no_wrap=True)
    table.add_column("from – to", justify="right", no_wrap=True)
    with_memory = any(result["extra_info"].get("memory_mib") for result in results)
    if with_memory:
        table.add_column("MiB", justify="right", no_wrap=True)
    with_floor = any(share is not None for share in shares)
    if with_floor:
        table.add_column("floor", justify="right", no_wrap=True)
    for result, share in zip(results, shares, strict=True):
        for cells in _rows(result, share):
            kept = cells[:5] + [cells[5]] * with_memory + [cells[6]] * with_floor
            table.add_row(*kept)
    return table


def _rows(result: Mapping[str, Any], share: float | None) -> Iterator[list[str]]:
    """Of a case: ours with the first peer, then a row for each other."""
    info = result["extra_info"]
    memory, spread = info.get("memory_mib", {}), info.get("spread", {})
    peers = dict(info.get("peer_over_ours", {}))
    wrong = [n for n, a in info.get("answers", {}).items() if not a["right"]]
    others = [(name, f"{ratio:.2f}") for name, ratio in peers.items()]
    others += [(name, "wrong") for name in wrong]
    own = [case_name(result["name"]), seconds_words(result["stats"]["median"])]
    floor = "" if share is None else f"{share:.0%}"
    for name, ratio in others or [("", "")]:
        low_high = "{:.2f} – {:.2f}".format(*spread[name]) if name in spread else ""
        mib = " / ".join(_mib(memory[who]) for who in ("ours", name) if who in memory)
        yield [*own, name, ratio, low_high, mib if name in memory or not others else "", floor]
        own, floor = ["", ""], ""


def _mib(value: float) -> str:
    return f"{value:,.0f}"


def _notes(
    results: Sequence[Mapping[str, Any]], left: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    for result in results:
        for name, answer in result["extra_info"].get("answers", {}).items():
            if not answer["right"]:
                error = "not a number" if answer["error"] is None else f"{answer['error']:.1e}"
                yield (
                    f"wrong: {name} in {case_name(result['name'])}: error {error}, "
                    f"allowed {answer['allowed']:.1e} ({answer.get('of', '')})"
                )
    short, too_late = {}, []
    for one in left:
        needs = _NEEDS.match(one["reason"])
        if needs:
            short[case_name(one["name"])] = needs[1]
        elif one["reason"] == OVER:
            too_late.append(case_name(one["name"]))
        else:
            yield f"{case_name(one['name'])}: {one['reason']}"
    if short:
        cases = "; ".join(f"{name}: {seconds} s" for name, seconds in short.items())
        yield f"left out of this budget, with the time that each needs: {cases}"
    if too_late:
        yield f"not begun, as the budget had ended: {'; '.join(too_late)}"
    yield from _absent(results)


def _absent(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """By reason: the peers, and where not in all cases, of which operations."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for peer, reason in result["extra_info"].get("absent", {}).items():
            test = case_name(result["name"].partition("[")[0])
            found.setdefault(reason, {}).setdefault(peer, []).append(test)
    for reason, peers in found.items():
        words = "; ".join(
            f"{peer} ({', '.join(dict.fromkeys(tests))})" for peer, tests in peers.items()
        )
        yield f"absent: {words}: {reason}"
