"""Flags have open_clip's names, defaults and meanings; a value that cannot be is named."""

import sys

import pytest

from clipfast.errors import UserError
from clipfast.train import parse_args

SHARDS = ["--train-data", "x.tar"]


@pytest.mark.parametrize("model", ["RN50", "ViT-B-32"])
def test_every_flag_of_open_clips_is_there_with_its_default(model, monkeypatch):
    open_clip_params = pytest.importorskip("open_clip_train.params")
    monkeypatch.setattr(sys, "argv", ["main.py"])
    theirs = vars(open_clip_params.parse_args([*SHARDS, "--model", model]))
    ours = vars(parse_args([*SHARDS, "--model", model]))
    for name, default in theirs.items():
        assert ours[name] == default, name
        assert type(ours[name]) is type(default), name


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size: expected at least 1; got 0"),
        (["--epochs", "0"], "--epochs: expected at least 1; got 0"),
        (["--lr", "-1"], "--lr: expected a positive number; got -1.0"),
        (["--lr", "nan"], "--lr: expected a positive number; got nan"),
        (["--beta2", "1"], "--beta2: expected 0 ≤ β2 < 1; got 1.0"),
        (["--workers", "-2"], "--workers: expected at least 0; got -2"),
        (["--log-every-n-steps", "0"], "--log-every-n-steps: expected at least 1; got 0"),
        (["--aug-cfg", "scale=(0.9, 1.5)"], r"--aug-cfg: scale: expected 0 < low"),
        (["--aug-cfg", "colour=0.4"], r"--aug-cfg: expected .*; got colour"),
        (["--aug-cfg", "scale={[]:1}"], r"--aug-cfg: scale: expected 0 < low"),
        (["--image-std", "1", "0", "1"], r"--image-std: expected three positive numbers"),
        (["--image-mean", "nan", "0", "0"], r"--image-mean: expected three finite numbers"),
        (["--seed", "99999999999999999999"], r"--seed: expected 0 to 2\^32 - 1"),
        (["--resume", "latest"], "--resume latest: expected --name"),
        (["--max-unusable", "2"], "--max-unusable: expected 0 ≤ share ≤ 1; got 2.0"),
        (["--data-cache-gb", "0"], "--data-cache-gb: expected a positive number; got 0.0"),
        (["--report-to", "paper"], "--report-to: expected .*; got 'paper'"),
        (["--accum-freq", "0"], "--accum-freq: expected at least 1; got 0"),
    ],
)
def test_a_value_out_of_range_is_named(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_args([*SHARDS, *flags])


def test_the_training_data_is_asked_for_unless_it_is_synthetic():
    with pytest.raises(UserError, match="--train-data: expected the training data; got none"):
        parse_args([])
    assert parse_args(["--dataset-type", "synthetic"]).train_data is None


@pytest.mark.parametrize("flags", [["--no-such-flag"], ["--epochs", "many"], ["--batch", "3"]])
def test_unknown_flags_and_unreadable_values_exit_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args([*SHARDS, *flags])
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err
