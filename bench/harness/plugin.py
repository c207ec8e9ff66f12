"""The pytest plugin: contests on pytest-benchmark's fixture, budgets, and what JSON says besides.

`clipfast bench` and `pytest bench --benchmark-only` run by it alike.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from clipfast_bench.harness import machine
from clipfast_bench.harness.budget import Allotment, Budget, parse_budget
from clipfast_bench.harness.cases import FAMILIES, FIRST, MORE, WEIGHTS
from clipfast_bench.harness.clock import Clock, clock_for
from clipfast_bench.harness.contest import Contest, LeftOut, Wrong
from clipfast_bench.harness.place import CPU, Place, chosen_device, places
from clipfast_bench.harness.table import show
from clipfast_kernels.verdicts import read_verdict
from rich.console import Console

# Of what remains of a budget: the first case of its kind tells more than a larger one of another.
_FIRST_MAY_TAKE = 0.4
_BEGAN = time.perf_counter()


class Replay:
    """A clock for pytest-benchmark that shows seconds measured by another."""

    def __init__(self) -> None:
        self._now = 0.0

    def read(self) -> float:
        return self._now

    def go_on(self, seconds: float) -> None:
        self._now += seconds


class _Fixture:
    """pytest-benchmark's, as a `Sink`."""

    def __init__(self, benchmark: Any, replay: Replay) -> None:
        self._benchmark, self._replay = benchmark, replay
        self.extra_info: dict[str, object] = benchmark.extra_info

    @property
    def timing(self) -> bool:
        return not self._benchmark.disabled

    def record(self, seconds: Sequence[float]) -> None:
        left = iter(seconds)
        self._benchmark.pedantic(lambda: self._replay.go_on(next(left)), rounds=len(seconds))


class Suite:
    """One session's: what its cases share."""

    def __init__(self, budget: Budget, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self.replay = Replay()
        self.not_timed: list[dict[str, str]] = []
        self.wrong = False
        self.on_round: Callable[[str], None] = lambda what: None
        self._clocks: dict[str, Clock] = {}
        self._weights: dict[str, float] = {}

    def plan(self, items: Sequence[pytest.Item]) -> None:
        self._weights = {item.nodeid: _case(item)["weight"] for item in items if _is_case(item)}

    def allot(self, item: pytest.Item) -> Allotment:
        """Of the case that begins now."""
        ids = list(self._weights)
        weights = list(self._weights.values())[ids.index(item.nodeid) :]
        first = _case(item)["tier"] == FIRST
        must = first and _family(item) == "ops"
        return self.budget.allot(weights, most=_FIRST_MAY_TAKE if first else 0.0, must=must)

    def clock(self, device: torch.device) -> Clock:
        if device.type not in self._clocks:
            self._clocks[device.type] = clock_for(device)
        return self._clocks[device.type]

    def rates(self) -> dict[str, float]:
        """Of the hardware, measured once."""
        return machine.rates(self.device)

    def leave(self, item: pytest.Item, reason: str) -> None:
        op = item.name.removeprefix("test_").partition("[")[0]
        self.not_timed.append(
            {"name": item.name, "op": op, "group": _family(item), "reason": reason}
        )

    def additions(self) -> dict[str, Any]:
        """To the JSON's top level."""
        verdict = read_verdict(self.device) if self.device.type == "cuda" else None
        return {
            "not_timed": self.not_timed,
            "verification": [row._asdict() for row in verdict.rows] if verdict else [],
            "budget_s": self.budget.seconds,
        }


SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipfast's benchmarks")
    group.addoption("--budget", metavar="TIME", help="30s, 2m, 1h: for all cases together")
    group.addoption("--device", default="auto", help="of the operations: auto, cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(tier, work, seconds, weight): its place in a budget")
    config.addinivalue_line("markers", "slow: takes minutes")
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")
    text = config.getoption("--budget")
    budget = Budget(parse_budget(text) if text else None, began=_BEGAN)
    config.stash[SUITE] = Suite(budget, chosen_device(config.getoption("--device")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        names = places(metafunc.config.stash[SUITE].device)
        metafunc.parametrize("place", names, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    suite = config.stash[SUITE]
    for item in filter(_is_case, items):
        timer = suite.replay.read
        item.add_marker(pytest.mark.benchmark(timer=timer, group=_family(item)))
    if suite.budget.seconds is not None:
        items.sort(key=lambda item: (_case(item)["tier"], _place_in_run(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[SUITE].plan(session.items)


def _case(item: pytest.Item) -> dict[str, Any]:
    """What `case` says of it, or its defaults."""
    marker = item.get_closest_marker("case")
    defaults = {"tier": MORE, "work": None, "seconds": 0.0, "weight": WEIGHTS[MORE]}
    return defaults if marker is None else defaults | marker.kwargs


def _is_case(item: pytest.Item) -> bool:
    return "contest" in getattr(item, "fixturenames", ())


def _family(item: pytest.Item) -> str:
    return item.path.parent.name


def _place_in_run(item: pytest.Item) -> int:
    family = _family(item)
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """The device and dtype of an op's case."""
    return Place.of(request.param)


@pytest.fixture
def contest(request: pytest.FixtureRequest, benchmark: Any) -> Contest:
    """A case's: `hold` asks for answers, then times."""
    suite, node = request.config.stash[SUITE], request.node
    case = _case(node)
    where = request.getfixturevalue("place") if "place" in node.fixturenames else CPU
    try:
        held = Contest(
            sink=_Fixture(benchmark, suite.replay),
            clock=suite.clock(where.device),
            device=where.device,
            budget=suite.budget,
            allotment=suite.allot(node),
            kind=f"{node.originalname} {where.dtype_name}",
            work=case["work"],
            least=case["seconds"],
            on_round=lambda what: suite.on_round(what),
        )
    except LeftOut as left_out:
        suite.leave(node, str(left_out))
        pytest.skip(str(left_out))
    return held


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    suite = pyfuncitem.config.stash[SUITE]
    try:
        with _alarm(pyfuncitem.funcargs.get("contest")):
            return (yield)
    except LeftOut as left_out:
        suite.leave(pyfuncitem, str(left_out))
        pytest.skip(str(left_out))
    except Wrong as wrong:
        suite.leave(pyfuncitem, str(wrong))
        pytest.fail(str(wrong), pytrace=False)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        suite.leave(pyfuncitem, f"failed: {type(error).__name__}: {first[:300]}")
        raise


@contextmanager
def _alarm(held: object) -> Iterator[None]:
    """Ends a case that takes longer than it may: what it needs, nobody knew before it began."""
    is_main = threading.current_thread() is threading.main_thread()
    if not isinstance(held, Contest) or held.budget.seconds is None or not is_main:
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda number, frame: held.end_if_overdue())
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine.describe(machine_info)
    machine_info["rates"] = config.stash[SUITE].rates()


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark looks at the folder that it is called in
def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return machine.commit_info()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json |= config.stash[SUITE].additions()


def record_of(config: pytest.Config) -> dict[str, Any]:
    """The session's results in the JSON's form, without the machine but for its rates."""
    suite, session = config.stash[SUITE], config._benchmarksession  # type: ignore[attr-defined]
    found = [b.as_dict() for b in session.benchmarks if b and not b.has_error]
    rates = suite.rates() if found else {}
    return {"machine_info": {"rates": rates}, "benchmarks": found, **suite.additions()}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    suite = terminalreporter.config.stash.get(SUITE, None)
    if suite is None or session is None or session.disabled:
        return
    record = record_of(terminalreporter.config)
    if record["benchmarks"] or record["not_timed"]:
        terminalreporter.ensure_newline()
        console = Console(file=terminalreporter._tw._file, width=terminalreporter._tw.fullwidth)
        show(record, console)
