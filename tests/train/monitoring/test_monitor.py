"""The monitor: what reaches which file and dashboard, on which rank, and what it survives."""

import json
import logging
import sys
import textwrap

import pytest
from runs import monitor_of, record_of

from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.checkpoints.run_folder import Position
from clipfast.train.monitoring.history import read_history

logger = logging.getLogger("clipfast.train")


def take(monitor, losses, epoch=0, first=0):
    for step, loss in enumerate(losses, first):
        monitor.step(epoch, step, record_of(loss))


def test_the_start_is_one_aligned_block_with_a_name_once(tmp_path):
    with monitor_of(tmp_path) as monitor:
        monitor.announce(["model: tiny: small", "data: 3 pairs in a", "data: 4 pairs in b"])
    assert (
        (tmp_path / "out.log")
        .read_text()
        .endswith("  model  tiny: small\n  data   3 pairs in a\n         4 pairs in b\n")
    )
    (start,) = read_history(tmp_path / "history.jsonl").starts
    assert start["announced"][0] == ["model", "tiny: small"]
    assert (start["steps"], start["epochs"], start["global_batch"]) == (8, 2, 16)
    assert "torch" in start["environment"]


def test_lines_are_written_at_the_first_step_each_nth_and_the_last(tmp_path):
    with monitor_of(tmp_path, "--log-every-n-steps", "3", steps_per_epoch=6) as monitor:
        take(monitor, [1.0] * 6)
    lines = [line for line in (tmp_path / "out.log").read_text().splitlines() if "Train" in line]
    assert [line.partition("[")[2].partition("/")[0] for line in lines] == ["16", "64", "96"]


def test_tensorboard_has_open_clips_tags_and_a_resumed_run_hides_what_it_does_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--report-to", "tensorboard", "--log-every-n-steps", "1")
    with monitor_of(tmp_path, *flags) as monitor:
        take(monitor, [4.0, 3.0, 2.5])
    with monitor_of(tmp_path, *flags, start=Position(0, 2)) as monitor:
        take(monitor, [2.0, 1.0], first=2)
        monitor.evaluated(1, 4, {"image_to_text_R@1": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = "data_time batch_time samples_per_second samples_per_second_per_gpu scale lr"
    tags = {f"train/{name}" for name in [*names.split(), "contrastive_loss", "loss"]}
    assert set(events.Tags()["scalars"]) == tags | {"val/image_to_text_R@1"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (0, 4.0),
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]
    assert [(e.step, e.value) for e in events.Scalars("val/image_to_text_R@1")] == [(1, 0.5)]


def test_an_evaluation_is_open_clips_line(tmp_path):
    with monitor_of(tmp_path) as monitor:
        monitor.evaluated(3, 12, {"image_to_text_R@1": 0.25, "epoch": 3, "num_samples": 100})
    line = "Eval Epoch: 3 image_to_text_R@1: 0.2500\tepoch: 3.0000\tnum_samples: 100.0000\n"
    assert (tmp_path / "out.log").read_text().endswith(line)


def test_a_skipped_step_is_counted_and_is_no_loss(tmp_path):
    with monitor_of(tmp_path, "--log-every-n-steps", "1") as monitor:
        take(monitor, [3.0])
        monitor.step(0, 1, record_of(float("nan"), skipped=True))
        take(monitor, [2.0, 1.0], first=2)
        monitor.finish(replaced=0, files=[])
    assert monitor.losses == [3.0, 2.0, 1.0]
    log = (tmp_path / "out.log").read_text()
    assert "nan" not in log
    assert "4 in 2.0 s, 1 skipped" in log
    assert sum(p["skipped"] for p in read_history(tmp_path / "history.jsonl").points) == 1


def test_the_end_names_the_best_evaluation_of_all_starts_the_files_and_the_report(tmp_path):
    with monitor_of(tmp_path) as monitor:
        monitor.announce([])
        monitor.evaluated(1, 4, {"image_to_text_R@1": 0.75})
    with monitor_of(tmp_path, start=Position(1, 0)) as monitor:
        monitor.announce([])
        take(monitor, [1.0] * 4, epoch=1)
        monitor.evaluated(2, 8, {"image_to_text_R@1": 0.5})
        monitor.finish(replaced=3, files=[tmp_path / "epoch_2.pt"])
    end = (tmp_path / "out.log").read_text().partition("done: 2 epochs")[2].splitlines()
    assert end == [
        "; unusable samples replaced: 3, listed in quarantine.jsonl",
        "  steps   4 in 2.0 s",
        "  speed   32 samples/s, 20.0% of the time in data wait",
        end[3],
        "  last    image_to_text_R@1 0.5000, epoch 2",
        "  best    image_to_text_R@1 0.7500, epoch 1",
        f"  file    {tmp_path / 'epoch_2.pt'}",
        f"  report  clipfast report {tmp_path}",
    ]
    assert read_history(tmp_path / "history.jsonl").end["outcome"] == "done"


def test_a_fault_that_ends_the_run_is_in_its_history(tmp_path):
    def run():
        with monitor_of(tmp_path) as monitor:
            take(monitor, [1.0, 1.0])
            raise UserError("no more samples")

    with pytest.raises(UserError):
        run()
    end = read_history(tmp_path / "history.jsonl").end
    assert (end["outcome"], end["step"]) == ("no more samples", 2)


def test_other_ranks_print_and_write_nothing_and_keep_the_figures(tmp_path, capsys):
    with monitor_of(tmp_path, "--report-to", "all", world=World(1, 2)) as monitor:
        monitor.announce(["model: x"])
        take(monitor, [2.0, 1.0])
        monitor.evaluated(1, 4, {"x": 1.0})
        logger.warning("a warning")
        monitor.finish(replaced=0, files=[])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    assert monitor.losses == [2.0, 1.0]
    assert monitor.samples_per_second == 64.0


def test_with_log_local_the_first_rank_of_each_machine_writes_its_own_log(tmp_path):
    for rank, local_rank in ((2, 0), (3, 1)):
        with monitor_of(tmp_path, "--log-local", world=World(rank, 4, local_rank)):
            logger.warning("a warning")
    assert [path.name for path in tmp_path.iterdir()] == ["out-2"]
    assert (tmp_path / "out-2").read_text().endswith("| WARNING | a warning\n")


def test_debug_lines_are_written_where_they_are_asked_for(tmp_path):
    for name, flags in (("plain", ()), ("debug", ("--debug",))):
        (tmp_path / name).mkdir()
        with monitor_of(tmp_path / name, *flags):
            logger.debug("a detail")
    assert "a detail" not in (tmp_path / "plain" / "out.log").read_text()
    assert "| DEBUG | a detail" in (tmp_path / "debug" / "out.log").read_text()


def test_a_full_disk_costs_the_history_and_not_the_run(tmp_path, capsys):
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    with monitor_of(tmp_path) as monitor:
        monitor.announce(["model: x"])
        take(monitor, [2.0, 1.0, 1.0, 1.0])
        monitor.finish(replaced=0, files=[])
    assert monitor.losses == [2.0, 1.0, 1.0, 1.0]
    warning = "history.jsonl: No space left on device; the run goes on without it"
    assert capsys.readouterr().err.count(warning) == 1


def test_the_codebase_is_copied_once(tmp_path):
    for _ in range(2):
        with monitor_of(tmp_path, "--copy-codebase"):
            pass
    assert (tmp_path / "code" / "clipfast" / "train" / "loop.py").is_file()
    assert (tmp_path / "code" / "clipfast_kernels" / "__init__.py").is_file()
    assert not list((tmp_path / "code").rglob("__pycache__"))
    assert "is there already and stays as it is" in (tmp_path / "out.log").read_text()


# The real one has fourteen packages of its own below it; this takes down what it is called with.
WANDB = """
    import json

    def _told(name):
        def call(*values, **options):
            options.pop("config", None)
            with open(FILE, "a") as file:
                file.write(json.dumps([name, values, options]) + "\\n")
        return call

    init, log, save, finish, watch = map(_told, ("init", "log", "save", "finish", "watch"))
"""


def test_wandb_is_told_what_open_clip_tells_it(tmp_path, monkeypatch):
    told = tmp_path / "told"
    (tmp_path / "wandb.py").write_text(f"FILE = {str(told)!r}\n" + textwrap.dedent(WANDB))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    flags = ["--report-to", "wandb", "--wandb-notes", "why", "--resume", "latest", "--debug"]
    with monitor_of(tmp_path, *flags) as monitor:
        monitor.watch("the model")
        take(monitor, [2.0])
        monitor.evaluated(1, 4, {"image_to_text_R@1": 0.5})
    sys.modules.pop("wandb")
    init, save, watch, log, evaluated, finish = map(json.loads, told.read_text().splitlines())
    assert init[2] == {
        "project": "open-clip",
        "name": "a",
        "id": "a",
        "notes": "why",
        "tags": [],
        "resume": "auto",
    }
    assert save[1] == [str(tmp_path / "params.txt")]
    assert watch == ["watch", ["the model"], {"log": "all"}]
    ((values,), options) = log[1:]
    assert (values["train/loss"], values["train/lr"], values["step"]) == (2.0, 5e-4, 0)
    assert options == {"step": 0}
    assert evaluated[1:] == [[{"val/image_to_text_R@1": 0.5, "epoch": 1}], {"step": 4}]
    assert finish[0] == "finish"


def test_a_missing_wandb_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--report-to wandb: expected the package wandb"):
        monitor_of(tmp_path, "--report-to", "wandb").__enter__()
    assert not logging.getLogger("clipfast").handlers


def test_report_to_takes_open_clips_words_and_no_others():
    assert parse_args(["--train-data", "x"]).report_to == ""
    for words in ("tensorboard", "wandb", "all", "wandb,tensorboard"):
        parse_args(["--train-data", "x", "--report-to", words])
    with pytest.raises(UserError, match="--report-to: expected tensorboard, wandb, all"):
        parse_args(["--train-data", "x", "--report-to", "tensorbord"])
