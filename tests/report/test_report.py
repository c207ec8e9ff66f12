"""`clipfast report`: what is on the page of our runs and of open_clip's, and what is no run."""

import re

import pytest
from pages import Page, page_of
from torch.utils.tensorboard import SummaryWriter

from clipfast.cli import main
from clipfast.ranks.world import World
from clipfast.report.page import render
from clipfast.report.run_data import read_run
from clipfast.train import parse_args
from clipfast.train.checkpoints.run_folder import Position
from clipfast.train.loop import train
from clipfast.train.monitoring.monitor import Monitor
from clipfast.train.monitoring.records import StepRecord

# Written by open_clip_train 3.3.0.
OPEN_CLIPS_LOG = """\
2026-11-29,00:02:47 | INFO | Train Epoch: 0 [ 64/512 (12%)] Data (t): 5.781 Batch (t): 8.791, \
7.28046/s, 7.28046/s/gpu LR: 0.000125 Logit Scale: 14.286 Contrastive_loss: 4.3902 (4.3902) \
Loss: 4.3902 (4.3902)
2026-11-29,00:02:52 | INFO | Train Epoch: 0 [512/512 (100%)] Data (t): 0.662 Batch (t): 2.498, \
18.3645/s, 18.3645/s/gpu LR: 0.000375 Logit Scale: 14.281 Contrastive_loss: 4.1615 (4.2759) \
Loss: 4.1615 (4.2759)
2026-11-29,00:03:06 | INFO | Eval Epoch: 1 [64 / 128]\tClip Loss: 3.980975\t
2026-11-29,00:03:26 | INFO | Eval Epoch: 1 image_to_text_mean_rank: 326.8350\t\
image_to_text_R@1: 0.0010\tclip_val_loss: 3.9329\tepoch: 1.0000\tnum_samples: 1000.0000
2026-11-29,00:03:33 | INFO | Train Epoch: 1 [ 64/512 (12%)] Data (t): 3.828 Batch (t): 6.627, \
9.65793/s, 9.65793/s/gpu LR: 0.000375 Logit Scale: 14.256 Contrastive_loss: 3.9047 (3.9047) \
Loss: 3.9047 (3.9047)
2026-11-29,00:04:10 | INFO | Eval Epoch: 2 imagenet-zeroshot-val-top1: 0.0125
"""


def made_run(folder, losses, ended=None):
    folder.mkdir(exist_ok=True)
    args = parse_args(["--train-data", "x", "--epochs", "2", "--batch-size", "16"])
    monitor = Monitor(args, folder, World(), steps_per_epoch=4, start=Position(0, 0))
    try:
        with monitor:
            monitor.announce(["model: a <model> & more"])
            for step, loss in enumerate(losses):
                parts = {"contrastive_loss": loss}
                monitor.step(
                    step // 4, step % 4, StepRecord(loss, 14.0, 1e-3, 0.1, 0.5, parts, 2.0)
                )
                if step % 4 == 3:
                    metrics = {"image_to_text_R@1": 0.5 - step / 40, "clip_val_loss": loss}
                    monitor.evaluated(step // 4 + 1, step + 1, metrics)
            if ended is not None:
                raise ended
            if len(losses) == 8:
                monitor.finish(replaced=0, files=[])
    except KeyboardInterrupt:
        pass
    return folder


def test_a_real_run_has_every_section_in_one_file(digit_shards, tiny_model, tmp_path, capsys):
    flags = {
        "--train-data": digit_shards.train_pattern,
        "--model": tiny_model,
        "--batch-size": "16",
        "--epochs": "1",
        "--workers": "1",
        "--logs": str(tmp_path),
        "--name": "one",
    }
    train(parse_args([word for pair in flags.items() for word in pair]))
    (tmp_path / "one" / "quarantine-1.jsonl").write_text(
        '{"shard": "a.tar", "offset": 512, "key": "7", "reason": "empty caption"}\n{"cut'
    )
    assert main(["report", str(tmp_path / "one"), "-o", str(tmp_path / "page.html")]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text())
    assert page.outside == []
    assert page.charts[0] == "Loss"
    curves = {"Learning rate", "Logit scale", "Samples per second", "Data wait", "Memory"}
    assert curves <= set(page.charts)
    assert "finished" in page.words
    assert "1 epoch, 6 steps, in" in page.words
    assert "empty caption a.tar 512" in page.words
    assert re.search(r"Settings that differ .* batch_size 16 64 .* All other settings", page.words)
    assert re.search(r"All other settings .* seed 0 ", page.words)
    (caption,) = re.findall(r"Examples .*? shown them +(.*?) Faults", page.words)
    assert caption.count(" ") > 30
    assert "torch" in page.words.partition("Environment")[2]


def test_the_best_of_each_metric_is_marked_and_in_the_verdict(tmp_path):
    html = render(read_run(made_run(tmp_path / "a", [4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0])))
    best = re.findall(r'class="best" title="best">([^<]+)<', html)
    assert best == ["42.5%", "1"]
    words = Page(html).words
    assert "Best image → text R@1: 42.5%, after epoch 1." in words
    assert "The loss fell from 4.00 to 1.00." in words
    assert "a <model> & more" in words


def test_how_a_run_ended_is_said(tmp_path):
    killed = made_run(tmp_path / "killed", [3.0, 2.0], ended=KeyboardInterrupt("pressed <Ctrl-C>"))
    assert "Stopped after step 2 of 8: pressed <Ctrl-C>." in page_of(killed).words
    (tmp_path / "going").mkdir()
    lines = (killed / "history.jsonl").read_text().splitlines()
    (tmp_path / "going" / "history.jsonl").write_text("\n".join(lines[:-1]))
    assert (
        "At step 2 of 8 it was still running, or was killed." in page_of(tmp_path / "going").words
    )


def test_a_run_without_a_step_has_a_page(tmp_path):
    assert "No step is recorded." in page_of(made_run(tmp_path / "a", [])).words


def test_a_history_that_says_less_than_ours_has_a_page(tmp_path):
    """Whoever writes "start" without the run's length, or points without times."""
    (tmp_path / "history.jsonl").write_text(
        '{"kind": "start", "step": 0}\n{"kind": "point", "step": 4, "loss": 2.0}\n'
    )
    assert "At step 5 it was still running, or was killed." in page_of(tmp_path).words
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"kind": "end", "step": 4, "outcome": "done"}\n')
    assert "5 steps, in" in page_of(tmp_path).words


def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    page = page_of(made_run(tmp_path / "a", [3.0, float("nan"), 2.0]))
    assert "The loss fell from 3.00 to 2.00." in page.words


def test_open_clips_log_and_results_give_curves_and_a_table(tmp_path):
    (tmp_path / "out.log").write_text(OPEN_CLIPS_LOG)
    (tmp_path / "params.txt").write_text(
        "model: ViT-B-32\nbeta2: 0.98\nhorovod: False\nlr: 0.001\n"
    )
    run = read_run(tmp_path)
    assert [point["step"] for point in run.history.points] == [0, 7, 8]
    assert [point["loss"] for point in run.history.points] == [4.3902, 4.1615, 3.9047]
    assert [setting.name for setting in run.settings if setting.changed] == ["model", "lr"]
    page = page_of(tmp_path)
    assert {"Loss", "Learning rate", "Logit scale", "Data wait"} <= set(page.charts)
    assert "image → text R@1" in page.words
    assert "Best ImageNet top-1: 1.2%, after epoch 2." in page.words


def test_results_have_more_digits_than_the_log(tmp_path):
    (tmp_path / "out.log").write_text(OPEN_CLIPS_LOG)
    (tmp_path / "checkpoints").mkdir()
    results = tmp_path / "checkpoints" / "results.jsonl"
    results.write_text('{"clip_val_loss": 3.93291}\n{"imagenet-zeroshot-val-top1": 0.01254}\n')
    evaluations = read_run(tmp_path).history.evaluations
    assert evaluations[0] == {"epochs": 1, "metrics": {"clip_val_loss": 3.93291}}
    assert evaluations[1] == {"epochs": 2, "metrics": {"imagenet-zeroshot-val-top1": 0.01254}}


def test_events_of_tensorboard_alone_give_curves(tmp_path):
    writer = SummaryWriter(str(tmp_path / "tensorboard"))
    for step in range(5):
        for name, value in {"loss": 4.0 - step, "data_time": 0.1, "batch_time": 0.5}.items():
            writer.add_scalar(f"train/{name}", value, step)
    writer.close()
    points = read_run(tmp_path).history.points
    assert [point["loss"] for point in points] == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert points[0]["data_wait"] == pytest.approx(0.2)
    assert {"Loss", "Data wait"} <= set(page_of(tmp_path).charts)


def test_what_is_no_run_is_a_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "expected the folder of a run, logs/NAME; there is none" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "expected a run's history.jsonl, out.log or tensorboard" in capsys.readouterr().err
    made_run(tmp_path / "a", [1.0])
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "no" / "x.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
