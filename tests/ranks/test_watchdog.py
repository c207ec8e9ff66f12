"""A rank that stands still or is gone is named by the others, which end; a slow one is not."""

import os
import signal
import time
from pathlib import Path

import pytest
from started import launch_args, start_ranks

from clipfast.ranks.launch import joined
from clipfast.ranks.watchdog import EXIT_CODE, SLOW, Report, Seen, Watchdog, stalled
from clipfast.ranks.world import World

TIMEOUT = 6.0  # of the ranks below: long for phases that take no time


def seen(turn, phase="data", *, age=0.0, silence=0.0, slow=False, waits=False):
    report = Report(turn=turn, phase=phase, step=120, age=age, slow=slow, waits=waits)
    return Seen(report, silence)


def test_the_rank_that_the_others_wait_for_is_named():
    ranks = {0: seen(9, "loss", age=64), 1: seen(8, "data", age=63), 2: seen(9, "loss", age=63)}
    sentence = "rank 1 has been in data of step 120 for 63 s; expected at most 60 s"
    assert sentence in stalled(ranks, 60)


def test_a_rank_that_goes_on_is_waited_for():
    assert stalled({0: seen(9, "loss", age=64), 1: seen(8, age=3)}, 60) is None


def test_a_slow_phase_has_longer():
    waiting = seen(9, "loss", age=300)
    assert stalled({0: waiting, 1: seen(8, "evaluation", age=60 * SLOW - 1, slow=True)}, 60) is None
    assert "rank 1" in stalled({0: waiting, 1: seen(8, age=60 * SLOW + 1, slow=True)}, 60)


def test_of_ranks_in_the_same_phase_the_silent_one_is_named():
    ranks = {0: seen(8, "backward", age=61), 1: seen(8, "backward", age=31, silence=30)}
    sentence = "rank 1 has not reported for 30 s, last in backward of step 120"
    assert sentence in stalled(ranks, 60)


def test_of_ranks_in_the_same_phase_the_one_that_waits_for_no_other_is_named():
    ranks = {rank: seen(8, "computing", age=61, waits=rank != 2) for rank in range(4)}
    assert stalled(ranks, 60).startswith("rank 2 has been in computing of step 120 for 61 s")


def test_where_no_rank_is_behind_all_are_named():
    ranks = {rank: seen(8, "backward", age=61) for rank in range(20)}
    assert stalled(ranks, 60).startswith("all 20 ranks have been in backward of step 120")


def test_many_ranks_behind_are_named_by_the_first():
    ranks = {rank: seen(8 if rank else 9, age=61) for rank in range(20)}
    assert stalled(ranks, 60).startswith("ranks 1, 2, 3, 4, 5, 6, 7, 8, … have been in data")


def test_a_process_alone_is_not_watched():
    with Watchdog(World(), 1e-3) as watchdog:
        watchdog.phase("data", 0)
        assert watchdog.timeout == 1e-3


def work(rank, fault, culprit, folder):
    """Five steps; the culprit has its fault in step 3."""
    with joined(launch_args()) as world, Watchdog(world, TIMEOUT) as watchdog:
        watchdog.stacks = folder
        for step in range(5):
            watchdog.phase("data", step)
            if (step, rank) == (3, culprit):
                _FAULTS[fault]()
            world.most(0)


def _raise():
    raise KeyError("caption")


_FAULTS = {
    "none": lambda: None,
    "sleeps": lambda: time.sleep(1000),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": _raise,
}
_CASES = [("none", 0), *((fault, rank) for fault in list(_FAULTS)[1:] for rank in (0, 1))]


class Ended:
    """A run of two ranks that has ended: exit codes, and what each rank said."""

    def __init__(self, folder: Path, fault: str, culprit: int) -> None:
        self.folder, self.culprit, self.other = folder, culprit, 1 - culprit
        self._processes = start_ranks(folder, 2, work, fault, culprit, folder)

    def wait(self) -> None:
        others = [p for rank, p in enumerate(self._processes) if rank != self.culprit]
        for process in others:
            process.join(timeout=120)
        own = self._processes[self.culprit]
        own.join(timeout=0 if _is_stopped(own.pid) else 120)
        for process in self._processes:
            process.kill()
            process.join()
        self.exit_codes = [process.exitcode for process in self._processes]

    def said(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}").read_text()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """All cases, side by side: most of their time is the time-out."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {case: Ended(folder / f"{i}", *case) for i, case in enumerate(_CASES)}
    for run in runs.values():
        run.wait()
    return runs


@pytest.mark.slow
def test_ranks_without_a_fault_end_without_a_word(ended):
    run = ended["none", 0]
    assert run.exit_codes == [0, 0]
    assert "rank" not in run.said(0) + run.said(1)


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_stalled_rank_is_named_with_its_phase_by_the_other_and_both_end(ended, culprit):
    run = ended["sleeps", culprit]
    assert run.exit_codes == [EXIT_CODE, EXIT_CODE]
    assert f"rank {culprit} has been in data of step 3 for" in run.said(0) + run.said(1)
    assert "time.sleep" not in run.said(culprit)
    assert "in work" in (run.folder / f"stacks-{culprit}.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_stopped_process_is_named_also_where_it_keeps_the_store(ended, culprit):
    run = ended["is stopped", culprit]
    assert run.exit_codes[run.other] == EXIT_CODE
    assert f"rank {culprit} has not reported for" in run.said(run.other)
    assert "last in" in run.said(run.other)


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_killed_process_is_named_long_before_the_time_out(ended, culprit):
    run = ended["is killed", culprit]
    assert run.exit_codes[run.culprit] == -signal.SIGKILL
    assert run.exit_codes[run.other] == EXIT_CODE
    assert f"rank {culprit} is gone, last in" in run.said(run.other)
    assert "Traceback" not in run.said(run.other)


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_the_error_of_another_rank_is_told(ended, culprit):
    run = ended["raises", culprit]
    assert run.exit_codes[run.culprit] == 1
    assert run.exit_codes[run.other] == EXIT_CODE
    sentence = f"rank {culprit} ended in data of step 3: KeyError: 'caption'"
    assert sentence in run.said(run.other)
