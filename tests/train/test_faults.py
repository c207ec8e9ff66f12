"""Runs of several ranks that are killed, stopped, fed with faults, and go on elsewhere."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recorded
from recorded import Fault, recorded_train
from started import start_ranks

from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.ranks.watchdog import EXIT_CODE

pytestmark = pytest.mark.slow

STEPS = 18
STEPS_PER_EPOCH = 6


class Ran:
    """What a run left: exit codes, what each rank said, and notes of every step.

    Attributes:
        losses: by the number of the step.
        samples: by the number of the step, those of all ranks in their order.
        skipped: the numbers of steps that were not taken.
    """

    def __init__(self, notes: Path, world_size: int, exit_codes: list[int]) -> None:
        self.exit_codes = exit_codes
        self.said = [_text(notes / f"rank-{rank}") for rank in range(world_size)]
        ranks = [_notes(notes / f"notes-{rank}") for rank in range(world_size)]
        self.steps = [set(lines) for lines in ranks]
        # A rank that was killed may have noted fewer.
        known = sorted(set.intersection(*self.steps))
        for at in known:
            losses = {str(lines[at]["loss"]) for lines in ranks}
            assert len(losses) == 1, f"step {at}: ranks have different losses {losses}"
        self.losses = {at: ranks[0][at]["loss"] for at in known}
        self.samples = {at: [n for lines in ranks for n in lines[at]["samples"]] for at in known}
        self.skipped = [at for at in known if ranks[0][at]["skipped"]]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _notes(path: Path) -> dict[int, dict]:
    lines = map(json.loads, _text(path).splitlines())
    return {line["at"][0] * STEPS_PER_EPOCH + line["at"][1]: line for line in lines}


class Runs:
    """Starts runs of one set of shards, each with notes of its own."""

    def __init__(self, folder: Path, shards: str, model: str) -> None:
        self.folder, self.logs, self.count = folder, folder / "logs", 0
        self.flags = [
            *("--train-data", shards, "--model", model, "--epochs", "3", "--warmup", "2"),
            *("--workers", "1", "--precision", "fp32", "--device", "cpu"),
            *("--lr-scheduler", "const", "--save-frequency", "0"),
        ]

    def __call__(
        self, world_size: int, name: str, *more: str, fault=None, logs: Path | None = None
    ) -> Ran:
        notes, flags = self._prepared(world_size, name, more, logs)
        processes = start_ranks(notes, world_size, recorded_train, flags, notes, fault)
        for process in processes:
            process.join(timeout=120)
            process.kill()
            process.join()
        return Ran(notes, world_size, [process.exitcode for process in processes])

    def by_torchrun(self, world_size: int, name: str, *more: str, fault=None) -> Ran:
        notes, flags = self._prepared(world_size, name, more, None)
        notes.mkdir()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        # "--": torchrun takes the script's --logs for a short form of its own --logs-specs.
        command = [sys.executable, *launcher, str(world_size), "--", recorded.__file__, str(notes)]
        ended = subprocess.run([*command, json.dumps(fault), *flags], timeout=240)
        return Ran(notes, world_size, [ended.returncode])

    def _prepared(self, world_size, name, more, logs) -> tuple[Path, list[str]]:
        self.count += 1
        size = ["--batch-size", str(16 // world_size)]
        where = ["--logs", str(logs or self.logs), "--name", name]
        return self.folder / f"notes-{self.count}", [*self.flags, *size, *where, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digit_shards, tiny_model):
    return Runs(tmp_path_factory.mktemp("faults"), digit_shards.train_pattern, tiny_model)


@pytest.fixture(scope="module")
def whole(runs):
    """Two ranks that meet no fault."""
    ran = runs(2, "whole")
    assert ran.exit_codes == [0, 0], ran.said
    assert len(ran.losses) == STEPS
    return ran


@pytest.fixture(scope="module")
def stopped(runs):
    """The logs of two ranks, one of which got SIGTERM in the middle of step 7."""
    ran = runs(2, "stopped", fault=Fault("SIGTERM", 1, [7]))
    assert ran.exit_codes == [128 + signal.SIGTERM] * 2, ran.said
    assert len(ran.losses) == 9  # it is known to all from the next step's data on
    return runs.logs


def copied(logs: Path, to: Path) -> Path:
    shutil.copytree(logs / "stopped", to / "stopped")
    return to


def assert_same_run(ran, whole, *, rel):
    """From wherever it begins."""
    assert ran.losses
    for step, loss in ran.losses.items():
        assert ran.samples[step] == whole.samples[step]
        assert loss == pytest.approx(whole.losses[step], rel=rel, abs=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_of_torchrun_with_a_rank_killed_resumes_to_the_same_bits(runs, whole, seed):
    chance = random.Random(seed)
    at, rank, name = chance.randrange(5, 12), chance.randrange(2), f"killed-{seed}"
    fault = Fault("SIGKILL", rank, [at])
    assert runs.by_torchrun(2, name, "--save-every-steps", "2", fault=fault).exit_codes == [1]
    resumed = runs(2, name, "--resume", "latest")
    assert resumed.exit_codes == [0, 0], resumed.said
    assert 2 <= min(resumed.losses) <= at
    assert max(resumed.losses) == STEPS - 1
    assert_same_run(resumed, whole, rel=0)


def test_a_run_stopped_in_the_middle_of_a_step_resumes_to_the_same_bits(
    runs, whole, stopped, tmp_path
):
    resumed = runs(2, "stopped", "--resume", "latest", logs=copied(stopped, tmp_path))
    assert resumed.exit_codes == [0, 0], resumed.said
    assert sorted(resumed.losses) == list(range(9, STEPS))
    assert_same_run(resumed, whole, rel=0)


def test_one_rank_and_then_two_go_on_with_the_run_of_two(runs, whole, stopped, tmp_path):
    logs, resume = copied(stopped, tmp_path), ["stopped", "--resume", "latest"]
    one = runs(1, *resume, logs=logs, fault=Fault("SIGTERM", 0, [3]))
    two = runs(2, *resume, logs=logs)
    assert sorted(one.losses) == list(range(9, 14)), one.said
    assert sorted(two.losses) == list(range(14, STEPS)), two.said
    assert_same_run(one, whole, rel=1e-5)
    assert_same_run(two, whole, rel=1e-5)


def test_four_ranks_go_on_with_the_run_of_two(runs, whole, stopped, tmp_path):
    four = runs(4, "stopped", "--resume", "latest", logs=copied(stopped, tmp_path))
    assert sorted(four.losses) == list(range(9, STEPS)), four.said
    assert_same_run(four, whole, rel=1e-5)


# What stage 2 has of its own is the engine's: engines/test_deepspeed.py.
@pytest.mark.parametrize("stage", ["1", "3"])
def test_zero_goes_on_with_one_rank_then_two_and_with_four(runs, whole, tmp_path, stage):
    zero = [f"zero-{stage}", "--zero-stage", stage]
    begun = runs(2, *zero, fault=Fault("SIGTERM", 1, [3]))
    four_logs = tmp_path / "four"
    shutil.copytree(runs.logs / zero[0], four_logs / zero[0])
    resume = [*zero, "--resume", "latest"]
    one = runs(1, *resume, fault=Fault("SIGTERM", 0, [2]))
    two, four = runs(2, *resume), runs(4, *resume, logs=four_logs)
    for ran, steps in ((begun, range(5)), (one, range(5, 9)), (two, range(9, STEPS))):
        assert sorted(ran.losses) == list(steps), ran.said
        assert_same_run(ran, whole, rel=1e-5)
    assert sorted(four.losses) == list(range(5, STEPS)), four.said
    assert_same_run(four, whole, rel=1e-5)


def test_features_that_are_not_finite_on_one_rank_skip_the_step_on_all(runs):
    faulty = [3, *range(8, STEPS)]
    ran = runs(2, "nan", "--save-every-steps", "1", fault=Fault("nan", 1, faulty))
    assert ran.skipped == faulty
    assert ran.exit_codes == [2, 2]
    assert "expected a finite loss, got 10 steps in a row without" in ran.said[0]
    assert "Traceback" not in ran.said[0] + ran.said[1]
    resumed = runs(2, "nan", "--resume", "latest")
    assert min(resumed.losses) == 8
    assert resumed.exit_codes == [0, 0], resumed.said


def test_a_rank_that_meets_bad_images_takes_as_many_steps(runs, digit_shards, tmp_path):
    good = digit_shards.samples("train")
    with ShardWriter(tmp_path, "x", samples_per_shard=100) as writer:
        for number in range(93):
            writer.write(good.read(number).image, good.read(number).captions[0].decode())
        for number in range(93, 96):
            writer.write(good.read(number).image[:300], "a truncated image")
    data = ["--train-data", str(writer.shards[0]), "--max-unusable", "0.5"]
    ran = runs(2, "bad", *data, "--epochs", "1")
    assert ran.exit_codes == [0, 0], ran.said
    assert ran.steps == [set(range(6)), set(range(6))]
    lists = (runs.logs / "bad").glob("quarantine*.jsonl")
    entries = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    assert {entry["key"] for entry in entries} == {f"{n:09}" for n in range(93, 96)}


def test_a_rank_that_stalls_is_named_and_the_run_ends(runs):
    ran = runs(2, "stalled", "--rank-timeout", "20", fault=Fault("sleep", 1, [3]))
    assert ran.exit_codes == [EXIT_CODE, EXIT_CODE], ran.said
    assert "rank 1 has been in computing of step 3 for" in ran.said[0] + ran.said[1]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--train-data", "/nowhere/{0..1}.tar"], "/nowhere/0.tar"),
        (["--train-data", "/nowhere/*.tar"], "/nowhere/*.tar"),
        (["--logs", "/dev/null/logs"], "/dev/null/logs"),
    ],
    ids=["missing shard", "no shards", "unwritable folder"],
)
def test_a_start_that_fails_is_one_sentence_and_ends_all_ranks(runs, flags, sentence):
    ran = runs(2, "failed", *flags)
    assert ran.exit_codes == [2, 2], ran.said
    lines = [line for said in ran.said for line in said.splitlines() if "clipfast train: " in line]
    assert len(set(lines)) == 1  # a rank that comes upon it by itself says the same
    assert sentence in lines[0]
    assert "Traceback" not in ran.said[0] + ran.said[1]
