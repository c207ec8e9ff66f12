"""The trainer: what it writes, that it learns, and that a run resumed is the run uninterrupted."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch

from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError
from clipfast.models.factory import create_model
from clipfast.train import parse_args
from clipfast.train.loop import train
from clipfast.weights.checkpoint import read_checkpoint


@pytest.fixture
def flags(digit_shards, tiny_model, tmp_path):
    """Of a run of two epochs of six steps."""
    return [
        *("--train-data", digit_shards.train_pattern),
        *("--model", tiny_model),
        *("--batch-size", "16"),
        *("--epochs", "2"),
        *("--warmup", "2"),
        *("--workers", "1"),
        *("--precision", "fp32"),
        *("--logs", str(tmp_path / "logs")),
    ]


def run(flags, *more):
    return train(parse_args([*flags, *more]))


def assert_same_weights(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def test_a_run_writes_open_clips_files(flags):
    summary = run(flags, "--name", "a", "--report-to", "tensorboard", "--save-most-recent")
    folder = summary.folder.path
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "epoch_1.pt",
        "epoch_2.pt",
        "epoch_latest.pt",
    ]
    assert "batch_size: 16\n" in (folder / "params.txt").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    checkpoint = torch.load(folder / "checkpoints" / "epoch_2.pt", weights_only=True)
    assert checkpoint.keys() == {"epoch", "name", "state_dict", "optimizer"}
    assert (checkpoint["epoch"], checkpoint["name"]) == (2, "a")
    line = (
        r"Train Epoch: 1 \[96/96 \(100%\)\] Data \(t\): [\d.]+ Batch \(t\): [\d.]+, [\d.]+/s, "
        r"[\d.]+/s/gpu LR: [\d.]+ Logit Scale: [\d.]+ Contrastive_loss: [\d.]+ \([\d.]+\) "
        r"Loss: [\d.]+ \([\d.]+\)"
    )
    assert re.search(line, (folder / "out.log").read_text())


def test_tensorboard_has_open_clips_tags(flags):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = run(flags, "--name", "a", "--report-to", "tensorboard", "--log-every-n-steps", "1")
    events = EventAccumulator(str(summary.folder.tensorboard))
    events.Reload()
    tags = "data_time batch_time samples_per_second samples_per_second_per_gpu scale lr"
    expected = {f"train/{tag}" for tag in [*tags.split(), "contrastive_loss", "loss"]}
    assert set(events.Tags()["scalars"]) == expected
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(summary.losses)


def test_the_loss_falls(flags):
    losses = run(flags, "--name", "a", "--epochs", "12", "--lr", "2e-3").losses
    assert sum(losses[-6:]) / 6 < 0.75 * sum(losses[:6]) / 6
    assert losses[0] == pytest.approx(math.log(16), rel=0.2)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(flags):
    first = run(flags, "--name", "a", "--seed", "5")
    second = run(flags, "--name", "b", "--seed", "5", "--workers", "0")
    other = run(flags, "--name", "c", "--seed", "6")
    assert first.losses == second.losses
    assert_same_weights(first.model, second.model)
    assert first.losses != other.losses


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_ended_inside_an_epoch_resumes_to_the_bits_of_one_uninterrupted(flags, ending):
    flags = [*flags, "--epochs", "20"]
    whole = run(flags, "--name", "whole")
    logs = whole.folder.path.parent
    process = start(flags, "--name", "ended", "--save-every-steps", "5", "--save-frequency", "0")
    # A state that is being written has another name until it is whole.
    states = logs / "ended" / "state"
    wait_for(process, lambda: [s for s in states.glob("step_*") if s.name[5:].isdigit()])
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    if ending != signal.SIGKILL:
        assert process.returncode == 128 + ending
        assert "go on with --name ended --resume latest" in errors
    resumed = run(flags, "--name", "ended", "--resume", "latest")
    assert 0 < len(resumed.losses) < len(whole.losses)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert_same_weights(resumed.model, whole.model)


def start(flags, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "clipfast.train", *flags, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_resuming_from_an_epoch_checkpoint_gives_the_bits_of_the_run_uninterrupted(flags):
    whole = run(flags, "--name", "whole")
    first_epoch = whole.folder.checkpoints / "epoch_1.pt"
    resumed = run(flags, "--name", "again", "--resume", str(first_epoch))
    assert resumed.losses == whole.losses[6:]
    assert_same_weights(resumed.model, whole.model)


def test_a_convolutional_model_resumes_to_the_same_bits(flags):
    flags = [*flags, "--model", "digits-conv", "--epochs", "1"]
    whole = run(flags, "--name", "whole", "--save-every-steps", "4")
    (whole.folder.checkpoints / "epoch_1.pt").unlink()
    resumed = run(flags, "--name", "whole", "--resume", "latest")
    assert resumed.losses == whole.losses[4:]
    assert_same_weights(resumed.model, whole.model)


def test_a_state_that_was_half_written_is_not_taken_for_one(flags):
    whole = run(flags, "--name", "a", "--save-every-steps", "5")
    half = whole.folder.states / "step_99.partial"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert run(flags, "--name", "a", "--resume", "latest").losses == []


def test_resuming_inside_an_epoch_with_another_batch_size_is_refused(flags):
    state = run(flags, "--name", "a", "--save-every-steps", "5").folder.states / "step_10"
    with pytest.raises(UserError, match="expected batch size 16; got 8"):
        run(flags, "--name", "b", "--resume", str(state), "--batch-size", "8")


def test_resuming_inside_an_epoch_with_other_shards_is_refused(flags, digit_shards):
    state = run(flags, "--name", "a", "--save-every-steps", "5").folder.states / "step_10"
    other = str(digit_shards.folder / "test-000000.tar")
    with pytest.raises(UserError, match="expected the samples that the state was saved under"):
        run(flags, "--name", "b", "--resume", str(state), "--train-data", other)


def test_a_start_that_fails_leaves_the_name_free(flags, tmp_path):
    for bad in (["--resume", "latest"], ["--resume", str(tmp_path / "none.pt")]):
        with pytest.raises(UserError):
            run(flags, "--name", "a", *bad)
    assert len(run(flags, "--name", "a").losses) == 12


def test_a_corrupt_sample_is_replaced_counted_and_listed_and_training_goes_on(
    flags, digit_shards, tmp_path
):
    good = digit_shards.samples("train")
    with ShardWriter(tmp_path / "faulty", "x", samples_per_shard=100) as writer:
        for number in range(31):
            writer.write(good.read(number).image, good.read(number).captions[0].decode())
        writer.write(good.read(31).image[:300], "a truncated image")
    folder = run(flags, "--name", "a", "--train-data", str(writer.shards[0])).folder
    (entry,) = map(json.loads, (folder.path / "quarantine.jsonl").read_text().splitlines())
    assert entry["shard"] == str(writer.shards[0])
    assert entry["key"] == "000000031"
    assert entry["offset"] > 0
    assert "truncated JPEG" in entry["reason"]
    assert "unusable samples replaced: 1, listed in quarantine.jsonl" in folder.log.read_text()


def test_an_epoch_has_as_many_samples_as_asked(flags):
    assert len(run(flags, "--name", "a", "--train-num-samples", "40").losses) == 2 * 3


def test_open_clip_loads_our_checkpoint_and_we_resume_open_clips(flags, tiny_model):
    summary = run(flags, "--name", "a")
    theirs = open_clip.CLIP(**open_clip_form(tiny_model), output_dict=True)
    ours = torch.load(summary.folder.checkpoints / "epoch_2.pt", weights_only=True)
    theirs.load_state_dict(ours["state_dict"])
    named = list(theirs.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and "ln" not in n]
    plain = [p for n, p in named if p.ndim < 2 or "ln" in n]
    optimizer = torch.optim.AdamW([{"params": plain}, {"params": decayed}])
    optimizer.load_state_dict(ours["optimizer"])
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    path = summary.folder.path / "theirs.pt"
    state = {f"module.{n}": t for n, t in theirs.state_dict().items()}
    content = {"epoch": 1, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(content, path)
    assert len(run(flags, "--name", "b", "--resume", str(path)).losses) == 6


def open_clip_form(path):
    raw = json.loads(Path(path).read_text())
    return {
        "embed_dim": raw["embed_dim"],
        "vision_cfg": raw["vision_cfg"],
        "text_cfg": raw["text_cfg"],
    }


def test_a_bare_state_dict_starts_from_its_weights(flags, tiny_model, tmp_path):
    torch.save(create_model(tiny_model).state_dict(), tmp_path / "weights.pt")
    assert len(run(flags, "--name", "a", "--pretrained", str(tmp_path / "weights.pt")).losses) == 12


def test_the_scale_is_clamped_to_a_hundred(flags, tiny_model, tmp_path):
    model = create_model(tiny_model)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    summary = run(flags, "--name", "a", "--pretrained", str(tmp_path / "weights.pt"))
    assert summary.model.logit_scale.exp().item() <= 100.001


def test_a_loss_that_stays_non_finite_stops_the_run_and_no_bad_weights_are_saved(flags):
    with pytest.raises(UserError, match=r"step \d+: loss is nan; of 16 samples, .* not finite"):
        run(flags, "--name", "a", "--lr", "1e30", "--skip-scheduler", "--epochs", "20")
    folder = Path(flags[flags.index("--logs") + 1]) / "a" / "checkpoints"
    for saved in folder.iterdir():
        for name, tensor in read_checkpoint(saved)["state_dict"].items():
            assert tensor.isfinite().all(), name


def test_a_run_that_ends_in_skipped_steps_is_no_success(flags):
    with pytest.raises(UserError, match="steps had no finite loss"):
        run(flags, "--name", "a", "--lr", "1e30", "--skip-scheduler", "--epochs", "1")


def test_a_skipped_step_leaves_batch_norms_statistics_alone(flags):
    flags = [*flags, "--model", "digits-conv", "--lr", "1e30", "--skip-scheduler"]
    seen = []
    original = torch.nn.BatchNorm2d.forward

    def forward(self, x):
        seen.append(self)
        return original(self, x)

    torch.nn.BatchNorm2d.forward = forward
    try:
        with pytest.raises(UserError, match="loss is nan"):
            run(flags, "--name", "a", "--epochs", "20")
    finally:
        torch.nn.BatchNorm2d.forward = original
    first = seen[0]
    assert first.running_mean.isfinite().all()
    assert first.num_batches_tracked < 3


def test_a_truncated_checkpoint_is_named(flags, tmp_path):
    good = run(flags, "--name", "a").folder.checkpoints / "epoch_1.pt"
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut.pt: cut short or damaged"):
        run(flags, "--name", "b", "--resume", str(cut))


def test_a_checkpoint_that_would_execute_code_is_refused(flags, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"state_dict": {"x": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="only executing code would load"):
        run(flags, "--name", "a", "--resume", str(tmp_path / "trap.pt"))
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_model_names_what_differs(flags, tmp_path):
    torch.save(create_model("ViT-B-32").state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt: has what the model does not: .* more"):
        run(flags, "--name", "a", "--pretrained", str(tmp_path / "other.pt"))
