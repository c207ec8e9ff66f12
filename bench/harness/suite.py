"""`clipfast bench run`: all cases by pytest and pytest-benchmark, under a terminal of our own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from clipfast_bench.harness.budget import parse_budget
from clipfast_bench.harness.cases import FAMILIES
from clipfast_bench.harness.machine import origin
from clipfast_bench.harness.place import DEVICES, chosen_device
from rich.console import Console

from clipfast.errors import UserError

DEFAULT_BUDGET = "5m"

_PACKAGE = Path(__file__).parents[1]
_INTERRUPTED = 128 + signal.SIGINT


class Outcome(NamedTuple):
    """Attributes:
    record: the results, in the form of a result file.
    code: 0, 1 where something of ours is wrong or failed, or 130 after Ctrl-C.
    said: by pytest, where a case failed.
    """

    record: dict[str, Any]
    code: int
    said: str


def run(arguments: Sequence[str], began: float) -> int:
    """Measures, prints the table, and stores what was asked for.

    Args:
        began: when the budget did, by time.perf_counter.

    Raises:
        UserError: a mistake in flags, or pytest-benchmark is missing.
        OSError: a file cannot be written.
    """
    args = parse(arguments)
    outcome = measure(args, began)
    return finish(args, outcome)


def finish(args: argparse.Namespace, outcome: Outcome) -> int:
    """Prints and stores."""
    from clipfast_bench.harness.table import show

    console = Console(width=shutil.get_terminal_size((110, 40)).columns, highlight=False)
    show(outcome.record, console)
    if outcome.said:
        print(outcome.said, file=sys.stderr)
    if outcome.code == _INTERRUPTED:
        print("clipfast bench: interrupted: the rows above were measured", file=sys.stderr)
    if args.json is not None:
        args.json.write_text(json.dumps(outcome.record, indent=1) + "\n")
        print(f"stored in {args.json}")
    if args.output is not None:
        _write_folder(outcome.record, args.output)
    return outcome.code


def _write_folder(record: dict[str, Any], folder: Path) -> None:
    from clipfast_bench.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    page, *_ = write_report(record, folder)
    print(f"written: {page}, its pictures, and results.json beside it")


def parse(
    arguments: Sequence[str],
    prog: str = "clipfast bench run",
    output: tuple[str, str] = ("FOLDER", "where a page with plots is written"),
) -> argparse.Namespace:
    """Args:
    output: of the flag of that name, what it takes and its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Every operation, the loader, the step and the trainer beside each peer that "
        "is installed: the answers first, then the times, in turn.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--budget",
        metavar="TIME",
        default=DEFAULT_BUDGET,
        help=f"30s, 2m, 1h, or `none` for every case at full length (default {DEFAULT_BUDGET})",
    )
    add("--only", metavar="NAMES", help=f"some of {','.join(FAMILIES)}")
    add("-k", metavar="EXPR", dest="expression", help="cases by name, as in pytest")
    add("--device", default="auto", help=f"of the operations: {', '.join(DEVICES)}")
    add("--json", type=Path, metavar="FILE", help="where the results are stored")
    add("--output", type=Path, metavar=output[0], help=output[1])
    # For cases of somebody's own, in the form of ours.
    add("--cases", type=Path, action="append", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.seconds = None if args.budget == "none" else parse_budget(args.budget)
    args.families = FAMILIES if args.only is None else tuple(args.only.split(","))
    unknown = [name for name in args.families if name not in FAMILIES]
    if unknown:
        raise UserError(f"--only: expected some of {', '.join(FAMILIES)}; got {unknown[0]!r}")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: expected a folder that exists; got none")
    chosen_device(args.device)
    for module in ("pytest", "pytest_benchmark"):
        if find_spec(module) is None:
            raise UserError(
                f"expected pytest and pytest-benchmark, which time the cases; {module} is not "
                'installed: pip install "clipfast[bench]"'
            )
    return args


def measure(args: argparse.Namespace, began: float) -> Outcome:
    """Runs the cases.

    Args:
        began: when the budget did, by time.perf_counter.

    Raises:
        UserError: there are no such cases.
    """
    import pytest
    from clipfast_bench.harness.terminal import Terminal

    paths = args.cases or [_PACKAGE / family for family in args.families]
    with tempfile.TemporaryDirectory(prefix="clipfast-bench-") as folder, _own_options():
        stored = Path(folder) / "results.json"
        words = [
            *map(str, paths),
            *("-c", os.devnull, f"--rootdir={_PACKAGE}", "-p", "no:cacheprovider"),
            *("-p", "clipfast_bench.harness.plugin", "-o", "python_files=bench_*.py"),
            *(
                "-q",
                "--tb=short",
                "--capture=fd",
                "--import-mode=importlib",
                "--benchmark-only",
                "--benchmark-quiet",
            ),
            *("-m", "not slow", f"--benchmark-json={stored}", f"--device={args.device}"),
        ]
        if args.expression is not None:
            words += ["-k", args.expression]
        if args.seconds is not None:
            words += ["--budget", f"{args.seconds}s"]
        with Terminal(began) as terminal, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Not saving anything")
            code = pytest.main(words, plugins=[terminal])
        if terminal.suite is None or code == pytest.ExitCode.USAGE_ERROR:
            raise UserError(f"pytest could not run the cases: {terminal.last_words()}")
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UserError(f"-k {args.expression}: expected the name of a case; none has it")
        record = _stored(stored, terminal.suite)
    if code == pytest.ExitCode.INTERRUPTED:
        return Outcome(record, _INTERRUPTED, "")
    failed = code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return Outcome(record, int(failed), terminal.failures() if failed else "")


def _stored(file: Path, suite: Any) -> dict[str, Any]:
    """pytest-benchmark stores nothing where nothing was timed."""
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    return {**origin(), "benchmarks": [], **suite.additions()}


@contextmanager
def _own_options() -> Iterator[None]:
    """What the caller's shell, or the pytest that calls us, set for its own pytest is not for this.

    Of a worker of pytest-xdist, pytest-benchmark believes that it cannot time.
    """
    names = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
