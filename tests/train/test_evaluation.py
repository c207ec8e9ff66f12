"""Evaluation during training: open_clip's figures, the same on any number of ranks."""

import json
import logging
import random

import pytest
import torch
from evaluation_data import classes, evaluated, evaluated_on_a_rank, pairs, picture, telling_weights
from ranks import run_ranks

from clipfast.data.images.decode import eval_pixels
from clipfast.data.images.normalize import Normalize
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.errors import UserError
from clipfast.eval.zero_shot import zero_shot_classifier
from clipfast.models.factory import create_model
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.evaluation import make_evaluator, write_results
from clipfast.train.loop import train


@pytest.fixture(scope="module")
def weights(tiny_model, tmp_path_factory):
    return telling_weights(tiny_model, tmp_path_factory.mktemp("weights"), seed=1)


@pytest.fixture
def base(tiny_model):
    words = ["--model", tiny_model, "--precision", "fp32", "--device", "cpu", "--workers", "1"]
    return [*words, "--batch-size", "8"]


def open_clips(flags, tiny_model, weights, folder, epoch=1):
    """open_clip_train's own data and evaluation, by the same flags."""
    import open_clip
    from open_clip_train import data, train
    from open_clip_train.params import parse_args as their_parse_args

    args = their_parse_args(flags)
    args.distributed, args.horovod, args.rank, args.world_size = False, False, 0, 1
    args.log_local, args.wandb, args.save_logs = False, False, True
    args.checkpoint_path = str(folder)
    with open(tiny_model) as file:
        model = open_clip.CLIP(**json.load(file), output_dict=True)
    model.load_state_dict(torch.load(weights, weights_only=True))
    preprocess = open_clip.image_transform(32, is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    sets = data.get_data(args, (preprocess, preprocess), tokenizer=tokenizer)
    metrics = train.evaluate(model, sets, epoch, args, tokenizer=tokenizer)
    return metrics, (folder / "results.jsonl").read_text()


def imagenet(folder, tiny_model, weights, templates):
    """A picture in each folder, and in some the pictures that the model finds there, now and then
    as its first choice."""
    import open_clip

    found = {f"n{number:08d}": [number % 10] for number in range(1000)}
    model = create_model(tiny_model, weights).eval()
    sentences = [template("{}") for template in templates]
    classifier = zero_shot_classifier(model, open_clip.IMAGENET_CLASSNAMES, sentences)
    for number in range(100, 200):
        image = Normalize()(eval_pixels(picture(number), 32)[None])
        with torch.no_grad():
            best = (model.encode_image(image, normalize=True) @ classifier)[0].topk(8).indices
        found[f"n{int(best[number % 8]):08d}"].append(number)
    return classes(folder, found)


@pytest.mark.slow
def test_metrics_and_their_line_are_open_clips(base, tiny_model, weights, tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    their_zero_shot = pytest.importorskip("open_clip_train.zero_shot")
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES[:1]  # of 80, for the sake of time
    for module in (open_clip, their_zero_shot):
        monkeypatch.setattr(module, "OPENAI_IMAGENET_TEMPLATES", templates)
    # Its accuracy takes float() of arrays of one element, which NumPy 2.4 refuses.
    monkeypatch.setattr(their_zero_shot, "float", lambda x: x.item(), raising=False)
    flags = [*base, "--val-data", pairs(tmp_path, 61), "--zeroshot-frequency", "1"]
    flags += ["--batch-size", "25"]
    flags += ["--imagenet-val", imagenet(tmp_path / "val", tiny_model, weights, templates)]
    theirs, line = open_clips(flags, tiny_model, weights, tmp_path)
    ours = evaluated(flags, weights, epochs_done=1)
    assert 0.01 < theirs["imagenet-zeroshot-val-top1"] < theirs["imagenet-zeroshot-val-top5"] < 1
    assert ours == pytest.approx(theirs, rel=1e-5)
    (tmp_path / "ours").mkdir()
    write_results(ours, tmp_path / "ours")
    assert (tmp_path / "ours" / "results.jsonl").read_text().count("\n") == line.count("\n")
    assert json.loads(line).keys() == ours.keys()


@pytest.fixture
def one_thread():
    """As ranks have, for the same bits: sums over threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_each_rank_has_what_one_process_has_whatever_their_number(
    base, weights, tmp_path, one_thread
):
    own = classes(tmp_path / "own", {"cat": [1, 2, 3], "dog": [4], "old bicycle": range(5, 15)})
    cases = [
        ["--val-data", pairs(tmp_path, 61), "--zeroshot-data", own],
        ["--val-data", pairs(tmp_path, 5)],  # one batch: a rank has none
        ["--val-data", pairs(tmp_path, 30, bad=[0, 9, 10, 29])],
        ["--val-data", pairs(tmp_path, 30, bad=range(8, 30))],  # nothing is left to a rank
        ["--val-data", pairs(tmp_path, 9, bad=range(9))],
    ]
    command_lines = [[*base, *case] for case in cases]
    first, second = run_ranks(2, evaluated_on_a_rank, command_lines, weights)
    assert first == second
    *metrics, problem = first
    assert metrics == [evaluated(flags, weights) for flags in command_lines[:-1]]
    assert [found["num_samples"] for found in metrics] == [61, 5, 26, 8]
    assert metrics[0].keys() >= {"zeroshot-val-top1", "zeroshot-val-top5", "clip_val_loss"}
    assert problem == "--val-data: expected samples that can be used; got none"


def test_a_bad_sample_is_left_out_as_if_it_were_not_there_and_told_once(
    base, weights, tmp_path, tiny_model, caplog
):
    faulty = pairs(tmp_path, 30, bad=[3, 20])
    with ShardWriter(tmp_path, "good", samples_per_shard=100) as writer:
        source = TarSource(faulty, Storage())
        for number in set(range(30)) - {3, 20}:
            sample = source.read(number)
            writer.write(sample.image, sample.captions[0].decode())
    evaluator = make_evaluator(parse_args([*base, "--val-data", faulty]), World())
    model = create_model(tiny_model, weights)
    with caplog.at_level(logging.WARNING, "clipfast.train"):
        found = evaluator(model, 0)
        told = list(caplog.messages)
        assert evaluator(model, 0) == found
    whole = evaluated([*base, "--val-data", str(writer.shards[0])], weights)
    assert found == pytest.approx(whole, rel=1e-5)
    assert [message.split(" in ")[0] for message in told] == [
        "--val-data: 000000003",
        "--val-data: 000000020",
        "--val-data: 2 of 30 cannot be used and are left out",
    ]
    assert caplog.messages[len(told) :] == told[2:]


def test_the_model_its_modes_and_all_random_numbers_are_left_as_they_were(
    base, tmp_path, tiny_model
):
    flags = [*base, "--val-data", pairs(tmp_path, 9)]
    evaluator = make_evaluator(parse_args(flags), World())
    model = create_model(tiny_model)
    model.lock_image_tower()
    model.train()
    before = [(name, module.training) for name, module in model.named_modules()]
    assert {mode for _, mode in before} == {True, False}
    state = torch.get_rng_state(), random.getstate()
    evaluator(model, 0)
    assert [(name, module.training) for name, module in model.named_modules()] == before
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_an_error_inside_puts_the_models_mode_back(base, tmp_path, tiny_model):
    flags = [*base, "--val-data", pairs(tmp_path, 3, bad=range(3))]
    evaluator = make_evaluator(parse_args(flags), World())
    model = create_model(tiny_model).train()
    with pytest.raises(UserError, match="--val-data: expected samples that can be used; got none"):
        evaluator(model, 0)
    assert model.training


@pytest.mark.parametrize("precision", ["amp_bf16", "pure_bf16"])
def test_it_computes_in_the_runs_precision(base, tmp_path, tiny_model, weights, precision):
    flags = [*base, "--val-data", pairs(tmp_path, 20)]
    exact = evaluated(flags, weights)
    found = evaluated([*flags, "--precision", precision], weights)
    assert found["clip_val_loss"] != exact["clip_val_loss"]
    assert found["clip_val_loss"] == pytest.approx(exact["clip_val_loss"], rel=0.1)


@pytest.mark.parametrize(
    ("val", "zero_shot", "expected"),
    [
        (1, 2, ["val", "val zeroshot", "val", "val zeroshot", "val zeroshot"]),
        (2, 3, ["", "val", "zeroshot", "val", "val zeroshot"]),
        (0, 2, ["", "zeroshot", "", "zeroshot", "zeroshot"]),
        (0, 0, ["", "", "", "", ""]),
    ],
)
def test_it_is_due_when_open_clip_evaluates(
    base, tmp_path, tiny_model, weights, val, zero_shot, expected
):
    shard = pairs(tmp_path, 3)
    flags = [*base, "--train-data", shard, "--epochs", "5", "--val-data", shard]
    flags += ["--val-frequency", str(val), "--zeroshot-frequency", str(zero_shot)]
    flags += ["--zeroshot-data", classes(tmp_path / "own", {"a": [1], "b": [2]})]
    evaluator = make_evaluator(parse_args(flags), World())
    if not (val or zero_shot):
        assert evaluator is None
        return
    model = create_model(tiny_model, weights)
    for epochs_done, names in enumerate(expected, 1):
        assert evaluator.due(epochs_done) == bool(names)
        metrics = evaluator(model, epochs_done) if names else {}
        assert ("clip_val_loss" in metrics) == ("val" in names.split())
        assert ("zeroshot-val-top1" in metrics) == ("zeroshot" in names)


def test_without_training_data_all_is_evaluated_at_once(base, tmp_path, weights):
    flags = [*base, "--val-data", pairs(tmp_path, 3), "--val-frequency", "2"]
    flags += ["--zeroshot-data", classes(tmp_path / "own", {"a": [1], "b": [2]})]
    metrics = evaluated(flags, weights, epochs_done=3)
    assert metrics.keys() >= {"clip_val_loss", "zeroshot-val-top1"}
    assert metrics["epoch"] == 3


def test_a_run_without_training_data_evaluates_a_checkpoint_and_writes_its_files(
    base, tmp_path, tiny_model, weights
):
    model = create_model(tiny_model, weights)
    checkpoint = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "name": "x", "state_dict": model.state_dict()}, checkpoint)
    flags = [*base, "--val-data", pairs(tmp_path, 9), "--logs", str(tmp_path / "logs")]
    more = ["--name", "a", "--resume", str(checkpoint), "--report-to", "tensorboard"]
    summary = train(parse_args([*flags, *more]))
    folder = summary.folder.path
    (line,) = (folder / "checkpoints" / "results.jsonl").read_text().splitlines()
    assert json.loads(line) == evaluated(flags, weights, epochs_done=3)
    assert "Eval Epoch: 3 image_to_text_mean_rank: " in (folder / "out.log").read_text()
    assert "batch_size: 8\n" in (folder / "params.txt").read_text()
    assert list((folder / "tensorboard").glob("events.*"))
    assert not summary.model.training
    assert summary.losses == []
    with pytest.raises(UserError, match="--zero-stage 1: expected --train-data with it"):
        train(parse_args([*flags, "--name", "b", "--zero-stage", "1"]))


def test_a_run_evaluates_after_its_epochs(base, tmp_path):
    shard = pairs(tmp_path, 16)
    flags = [*base, "--train-data", shard, "--val-data", shard, "--epochs", "3", "--warmup", "1"]
    flags += ["--val-frequency", "2", "--logs", str(tmp_path / "logs"), "--name", "a"]
    summary = train(parse_args(flags))
    path = summary.folder.checkpoints / "results.jsonl"
    second, third = map(json.loads, path.read_text().splitlines())
    assert (second["epoch"], third["epoch"]) == (2, 3)
    last = str(summary.folder.checkpoints / "epoch_3.pt")
    assert evaluated(flags, last, epochs_done=3) == pytest.approx(third, rel=1e-5)


def test_without_data_there_is_no_evaluator(base):
    assert make_evaluator(parse_args([*base, "--train-data", "x.tar"]), World()) is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--val-data", "nowhere"], "--val-data nowhere: no such file or folder"),
        (["--val-data", "nowhere.tar"], "nowhere.tar"),
        (["--imagenet-val", "nowhere"], "--imagenet-val: nowhere: no such folder"),
        (["--imagenet-val", "FOLDER"], "--imagenet-val: .*: expected 1,000 folders, .*; got 1"),
        (["--imagenet-v2", "FOLDER"], "--imagenet-v2: .*: expected the folders 0 to 999"),
        (["--zeroshot-data", "FOLDER/a"], "--zeroshot-data: .*: expected a folder for each class"),
    ],
)
def test_mistakes_are_told_before_training(base, tmp_path, flags, sentence):
    classes(tmp_path / "folder", {"a": [1]})
    flags = [word.replace("FOLDER", str(tmp_path / "folder")) for word in flags]
    with pytest.raises(UserError, match=sentence):
        make_evaluator(parse_args([*base, "--train-data", "x.tar", *flags]), World())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--val-frequency", "-1"], r"--val-frequency: expected 0 \(never\) or more; got -1"),
        (["--zeroshot-frequency", "-1"], "--zeroshot-frequency: expected 0 .* got -1"),
        (["--val-num-samples", "0"], "--val-num-samples: expected at least 1; got 0"),
    ],
)
def test_a_frequency_or_number_that_cannot_be_is_named(base, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_args([*base, "--train-data", "x.tar", *flags])


def test_the_start_tells_what_is_evaluated_and_how_often(base, tmp_path):
    shard = pairs(tmp_path, 3)
    flags = [*base, "--train-data", shard, "--val-data", shard, "--val-num-samples", "9"]
    flags += ["--zeroshot-data", classes(tmp_path / "own", {"a": [1], "b": [2]})]
    lines = list(make_evaluator(parse_args(flags), World()).describe())
    assert lines == [
        f"evaluation: retrieval and loss, 3 samples in {shard}, every epoch",
        "evaluation: all of --val-data, 3 pairs, as in open_clip, though --val-num-samples says 9",
        f"evaluation: zero-shot among 2 classes, 2 samples in {tmp_path / 'own'}, "
        "every 2 epochs and after the last",
    ]


def test_results_are_appended_line_by_line(tmp_path):
    write_results({"a": 1.5, "epoch": 1}, tmp_path)
    write_results({"a": float("nan"), "epoch": 2}, tmp_path)
    first, second = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(first) == {"a": 1.5, "epoch": 1}
    assert json.loads(second)["epoch"] == 2
