"""The trainer: what it writes, that it learns, and that a run resumed is the run uninterrupted."""

import json
import math
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from recorded import Fault, recorded_train
from started import start_ranks

from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError
from clipfast.models.factory import create_model
from clipfast.train import parse_args
from clipfast.train.loop import train
from clipfast.weights.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def base(digit_shards, tiny_model):
    """Of a run of two epochs of six steps, but for where it goes."""
    return [
        *("--train-data", digit_shards.train_pattern),
        *("--model", tiny_model),
        *("--batch-size", "16"),
        *("--epochs", "2"),
        *("--warmup", "2"),
        *("--workers", "1"),
        *("--precision", "fp32"),
    ]


@pytest.fixture
def flags(base, tmp_path):
    return [*base, "--logs", str(tmp_path / "logs")]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run that nothing interrupted, with all that a run can leave."""
    logs = ["--logs", str(tmp_path_factory.mktemp("whole")), "--name", "whole"]
    written = ["--report-to", "tensorboard", "--log-every-n-steps", "1"]
    saved = ["--save-most-recent", "--save-every-steps", "5"]
    return run([*base, *logs, *written, *saved])


def run(flags, *more):
    return train(parse_args([*flags, *more]))


def assert_same_weights(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def test_a_run_writes_open_clips_files(whole):
    folder = whole.folder.path
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "epoch_1.pt",
        "epoch_2.pt",
        "epoch_latest.pt",
    ]
    assert "batch_size: 16\n" in (folder / "params.txt").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    checkpoint = torch.load(folder / "checkpoints" / "epoch_2.pt", weights_only=True)
    assert checkpoint.keys() == {"epoch", "name", "state_dict", "optimizer"}
    assert (checkpoint["epoch"], checkpoint["name"]) == (2, "whole")
    line = (
        r"Train Epoch: 1 \[96/96 \(100%\)\] Data \(t\): [\d.]+ Batch \(t\): [\d.]+, [\d.]+/s, "
        r"[\d.]+/s/gpu LR: [\d.]+ Logit Scale: [\d.]+ Contrastive_loss: [\d.]+ \([\d.]+\) "
        r"Loss: [\d.]+ \([\d.]+\)"
    )
    assert re.search(line, (folder / "out.log").read_text())


def test_tensorboard_has_open_clips_tags(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole.folder.tensorboard))
    events.Reload()
    tags = "data_time batch_time samples_per_second samples_per_second_per_gpu scale lr"
    expected = {f"train/{tag}" for tag in [*tags.split(), "contrastive_loss", "loss"]}
    assert set(events.Tags()["scalars"]) == expected
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(whole.losses)


def test_the_loss_falls(flags):
    flags = [*flags, "--save-frequency", "0"]
    losses = run(flags, "--name", "a", "--epochs", "12", "--lr", "2e-3").losses
    assert sum(losses[-6:]) / 6 < 0.75 * sum(losses[:6]) / 6
    assert losses[0] == pytest.approx(math.log(16), rel=0.2)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(flags, whole):
    flags = [*flags, "--save-frequency", "0"]
    again = run(flags, "--name", "a", "--workers", "0")
    other = run(flags, "--name", "b", "--seed", "6", "--epochs", "1")
    assert again.losses == whole.losses
    assert_same_weights(again.model, whole.model)
    assert other.losses != whole.losses[:6]


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_ended_inside_an_epoch_resumes_to_the_bits_of_one_uninterrupted(
    flags, whole, tmp_path, ending
):
    flags = [*flags, "--name", "ended", "--save-frequency", "0"]
    # A save waits for the one before it: in step 7, after those of 3 and 6, the first is whole.
    fault = Fault(ending, 0, [7])
    saving = [*flags, "--save-every-steps", "3"]
    (process,) = start_ranks(tmp_path / "said", 1, recorded_train, saving, tmp_path, fault)
    process.join(timeout=120)
    number = getattr(signal, ending)
    said = (tmp_path / "said" / "rank-0").read_text()
    if number == signal.SIGKILL:
        assert process.exitcode == -number, said
    else:
        assert process.exitcode == 128 + number, said
        assert "go on with --name ended --resume latest" in said
    resumed = run(flags, "--resume", "latest")
    assert 0 < len(resumed.losses) < len(whole.losses)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert_same_weights(resumed.model, whole.model)


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--train-data", "x", "--batch-size", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("clipfast.train", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "clipfast train: --batch-size: expected at least 1; got 0\n"


def test_resuming_from_an_epoch_checkpoint_gives_the_bits_of_the_run_uninterrupted(flags, whole):
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
    saved = run(flags, "--name", "a", "--save-every-steps", "5")
    half = saved.folder.states / "step_99.partial"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert run(flags, "--name", "a", "--resume", "latest").losses == []


def test_resuming_inside_an_epoch_with_another_batch_size_is_refused(flags, whole):
    state = whole.folder.states / "step_10"
    with pytest.raises(UserError, match="expected a global batch of 16; got 8"):
        run(flags, "--name", "b", "--resume", str(state), "--batch-size", "8")


def test_resuming_inside_an_epoch_with_other_shards_is_refused(flags, whole, digit_shards):
    state = whole.folder.states / "step_10"
    other = str(digit_shards.folder / "test-000000.tar")
    with pytest.raises(UserError, match="expected the samples that the state was saved under"):
        run(flags, "--name", "b", "--resume", str(state), "--train-data", other)


def test_resuming_a_run_that_saved_nothing_yet_starts_it(flags):
    assert len(run(flags, "--name", "a", "--epochs", "1", "--resume", "latest").losses) == 6


def test_a_start_that_fails_leaves_the_name_free(flags, tmp_path):
    with pytest.raises(UserError):
        run(flags, "--name", "a", "--resume", str(tmp_path / "none.pt"))
    assert len(run(flags, "--name", "a", "--epochs", "1").losses) == 6


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


def test_open_clip_loads_our_checkpoint_and_we_resume_open_clips(
    flags, whole, tiny_model, tmp_path
):
    theirs = open_clip.CLIP(**open_clip_form(tiny_model), output_dict=True)
    ours = torch.load(whole.folder.checkpoints / "epoch_2.pt", weights_only=True)
    theirs.load_state_dict(ours["state_dict"])
    named = list(theirs.named_parameters())
    decayed = [p for n, p in named if p.ndim >= 2 and "ln" not in n]
    plain = [p for n, p in named if p.ndim < 2 or "ln" in n]
    optimizer = torch.optim.AdamW([{"params": plain}, {"params": decayed}])
    optimizer.load_state_dict(ours["optimizer"])
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    path = tmp_path / "theirs.pt"
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
    flags = [*flags, "--epochs", "1", "--pretrained", str(tmp_path / "weights.pt")]
    assert len(run(flags, "--name", "a").losses) == 6


def test_the_scale_is_clamped_to_a_hundred(flags, tiny_model, tmp_path):
    model = create_model(tiny_model)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    flags = [*flags, "--epochs", "1", "--pretrained", str(tmp_path / "weights.pt")]
    summary = run(flags, "--name", "a")
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


def test_a_truncated_checkpoint_is_named(flags, whole, tmp_path):
    good = whole.folder.checkpoints / "epoch_1.pt"
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
    torch.save(create_model("digits-conv").state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"other.pt: lacks .* more; has what the model does not: .* more"
    ):
        run(flags, "--name", "a", "--pretrained", str(tmp_path / "other.pt"))
