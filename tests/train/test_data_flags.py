"""The flags that name the data: every kind of source trains, faults are survived, order is kept."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from clipfast.data.sources.opening import open_samples
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError
from clipfast.train import parse_args
from clipfast.train.loop import train


@pytest.fixture
def flags(tiny_model, tmp_path):
    """Of a run of one epoch."""
    return [
        *("--model", tiny_model),
        *("--batch-size", "16"),
        *("--epochs", "1"),
        *("--warmup", "2"),
        *("--workers", "1"),
        *("--precision", "fp32"),
        *("--logs", str(tmp_path / "logs")),
    ]


@pytest.fixture
def pairs(digit_shards):
    samples = digit_shards.samples("train")
    read = [samples.read(number) for number in range(96)]
    return [(sample.image, sample.captions[0].decode()) for sample in read]


@pytest.fixture
def folder(pairs, tmp_path):
    """The same pairs as files side by side."""
    (tmp_path / "images").mkdir()
    for number, (image, caption) in enumerate(pairs):
        (tmp_path / "images" / f"{number:03d}.jpg").write_bytes(image)
        (tmp_path / "images" / f"{number:03d}.txt").write_text(caption)
    return tmp_path / "images"


def run(flags, *more):
    return train(parse_args([*flags, *more]))


def as_csv(folder, pairs):
    path = folder.parent / "pairs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerows([f"images/{n:03d}.jpg", caption] for n, (_, caption) in enumerate(pairs))
    return ["--csv-separator", ",", "--csv-img-key", "image", "--csv-caption-key", "text"], path


def as_parquet(folder, pairs):
    import pyarrow
    import pyarrow.parquet

    columns = {"image": [image for image, _ in pairs], "caption": [c for _, c in pairs]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder.parent / "pairs.parquet")
    return [], folder.parent / "pairs.parquet"


def as_hf_dataset(folder, pairs):
    import datasets

    columns = {
        "image": [{"bytes": i, "path": None} for i, _ in pairs],
        "text": [c for _, c in pairs],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features).save_to_disk(str(folder.parent / "hf"))
    return [], folder.parent / "hf"


def as_folder(folder, pairs):
    return [], folder


@pytest.mark.parametrize("make", [as_csv, as_parquet, as_hf_dataset, as_folder])
def test_every_kind_of_source_gives_the_losses_of_the_shards(
    flags, make, folder, pairs, digit_shards
):
    more, data = make(folder, pairs)
    expected = run(flags, "--train-data", digit_shards.train_pattern, "--name", "shards")
    summary = run(flags, "--train-data", str(data), *more, "--name", "other")
    assert summary.losses == expected.losses
    assert "96 pairs in" in summary.folder.log.read_text()


def test_synthetic_data_needs_no_files(flags):
    synthetic = ["--dataset-type", "synthetic", "--train-num-samples", "32"]
    assert len(run(flags, *synthetic, "--name", "a").losses) == 2
    with pytest.raises(UserError, match="synthetic: expected --train-num-samples; got none"):
        run(flags, *synthetic[:2], "--name", "b")


def test_sources_are_joined_and_drawn_by_their_factors(flags, digit_shards, folder):
    both = f"{digit_shards.train_pattern}::{folder}"
    summary = run(flags, "--train-data", both, "--name", "a")
    assert len(summary.losses) == 12
    drawn = ["--dataset-resampled", "--train-data-upsampling-factors", "1::3"]
    args = parse_args([*flags, "--train-data", both, *drawn])
    samples = open_samples(args, both, factors="1::3", resampled=True)
    assert samples.shards.weights.tolist() == [1.0, 3.0]
    assert len(run(flags, "--train-data", both, *drawn, "--name", "b").losses) == 12


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--train-data-upsampling-factors", "1"], "expected --dataset-resampled with it"),
        (
            ["--dataset-resampled", "--train-data-upsampling-factors", "1::2"],
            "expected 1 numbers, one for each source",
        ),
        (
            ["--dataset-resampled", "--train-data-upsampling-factors", "much"],
            "expected numbers joined by ::; got 'much'",
        ),
    ],
)
def test_factors_that_do_not_fit_are_a_sentence(flags, digit_shards, more, sentence):
    with pytest.raises(UserError, match=sentence):
        run(flags, "--train-data", digit_shards.train_pattern, *more)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("pairs.xyz", r"expected a name that ends in .tar, .csv, .tsv or .parquet"),
        ("SHARDS", "expected the shards themselves; got their folder, which holds"),
    ],
)
def test_data_that_cannot_be_told_is_a_sentence(flags, digit_shards, name, sentence):
    data = str(digit_shards.folder) if name == "SHARDS" else name
    with pytest.raises(UserError, match=sentence):
        run(flags, "--train-data", data)


def test_a_truncated_shard_trains_on_what_is_whole_and_is_listed(flags, digit_shards, tmp_path):
    cut = shutil.copy(digit_shards.folder / "train-000000.tar", tmp_path / "cut.tar")
    os.truncate(cut, os.path.getsize(cut) // 2)
    folder = run(flags, "--train-data", str(cut), "--name", "a").folder
    (entry,) = map(json.loads, folder.quarantine.read_text().splitlines())
    assert entry["shard"] == str(cut)
    assert "truncated" in entry["reason"]
    assert "done: 1 epochs; no faults" in folder.log.read_text()


def test_too_many_unusable_samples_stop_the_run(flags, pairs, tmp_path):
    with ShardWriter(tmp_path / "bad", "x", samples_per_shard=200) as writer:
        for number, (image, caption) in enumerate(pairs):
            writer.write(image if number % 4 else b"broken", caption)
    data = str(writer.shards[0])
    with pytest.raises(UserError, match=r"at most 1.00% unusable samples .*quarantine.jsonl"):
        run(flags, "--train-data", data, "--name", "a")
    summary = run(flags, "--train-data", data, "--name", "b", "--max-unusable", "1")
    assert summary.rejected == 24


@pytest.fixture
def json_shards(pairs, tmp_path):
    with ShardWriter(tmp_path / "json", "x", samples_per_shard=200) as writer:
        for image, caption in pairs:
            writer.write(image, [caption, f"another: {caption}"])
    return str(writer.shards[0])


def test_one_of_several_captions_is_chosen_anew_in_each_epoch_and_the_same_for_a_seed(
    flags, json_shards
):
    two = ["--train-data", json_shards, "--epochs", "2"]
    first = run(flags, *two, "--name", "a")
    assert run(flags, *two, "--name", "b", "--workers", "3").losses[:2] == first.losses[:2]
    assert run(flags, *two, "--name", "c", "--caption-key", "captions").losses == first.losses
    with pytest.raises(UserError, match="no field|expected .*wrong"):
        run(flags, *two, "--name", "d", "--caption-key", "wrong")


@pytest.mark.parametrize("change", [["--workers", "3"], ["--decoder", "dali"]])
def test_a_run_resumed_inside_an_epoch_sees_the_samples_of_one_uninterrupted(
    flags, change, pairs, tmp_path, seen
):
    with ShardWriter(tmp_path / "some", "x", samples_per_shard=30) as writer:
        for number, (image, caption) in enumerate(pairs):
            writer.write(b"broken" if number == 7 else image, caption)
    data = str(writer.shards[0]).replace("000000", "{000000..000003}")
    flags = [*flags, "--train-data", data, "--epochs", "2"]
    whole = run(flags, "--name", "whole", "--save-every-steps", "8")
    expected, seen[:] = list(seen), []
    for last in ("epoch_1.pt", "epoch_2.pt"):
        (whole.folder.checkpoints / last).unlink()
    stay = ["--workers", "1"] if change[0] != "--workers" else []
    summary = run(flags, "--name", "whole", "--resume", "latest", *stay, *change)
    assert len(summary.losses) == 4
    assert seen == expected[8:]
    assert len(summary.folder.quarantine.read_text().splitlines()) == 1


@pytest.fixture
def seen(monkeypatch):
    """The numbers of every batch that the trainer takes."""
    from clipfast.data.loader import Loader

    numbers = []
    original = Loader.epoch

    def epoch(self, *arguments):
        for batch in original(self, *arguments):
            numbers.append(batch.numbers.tolist())
            yield batch

    monkeypatch.setattr(Loader, "epoch", epoch)
    return numbers


def test_images_of_a_table_that_are_missing_are_replaced(flags, folder, pairs):
    more, data = as_csv(folder, pairs)
    Path(folder / "005.jpg").unlink()
    summary = run(flags, "--train-data", str(data), *more, "--name", "a")
    (entry,) = map(json.loads, summary.folder.quarantine.read_text().splitlines())
    assert (entry["offset"], entry["key"]) == (5, "images/005.jpg")
    assert "no such file" in entry["reason"]
