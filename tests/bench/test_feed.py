"""`clipfast bench feed`: it measures real data, computes needs of it, and explains mistakes."""

import json

import pytest
from clipfast_bench.feeding.feed_report import Feeding, Reading, Step, needs_of, starved_share
from clipfast_bench.feeding.targets import GPU_DECODING, parse_target

from clipfast.cli import main
from clipfast.data.sources.shard_writer import ShardWriter


@pytest.fixture
def quick(digit_shards, tiny_model):
    """The words of a run of a second."""
    return [
        *("bench", "feed", digit_shards.train_pattern, "--model", tiny_model),
        *("--seconds", "0.2", "--decoder", "native", "--threads", "1,2", "--batch-size", "16"),
    ]


def run(words, tmp_path):
    """The figures that the command stores."""
    file = tmp_path / "figures.json"
    assert main([*words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_a_run_measures_each_decoder_and_thread_count(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no cell is broken between two lines
    found = run(quick, tmp_path)
    assert [(f["decoder"], f["threads"]) for f in found["feedings"]] == [
        ("native", 1),
        ("native", 2),
    ]
    for feeding in found["feedings"]:
        assert feeding["images"] >= 16
        assert feeding["images_per_second"] > 0
        assert feeding["images_per_core_second"] > 0
    assert found["reading"]["samples"] >= 96
    assert found["step"]["samples"] == 16
    assert found["replaced"] == 0
    shown = capsys.readouterr().out
    for words in ("images/s", "captions/s", "MB/s", "estimate", "published", "measured"):
        assert words in shown
    assert "ViT-L-14 on 256 × H100" in shown


def test_every_decoder_of_the_machine_is_measured_unless_one_is_named(quick, tmp_path):
    at = quick.index("--decoder")
    found = run([*quick[:at], *quick[at + 2 :]], tmp_path)
    decoders = {feeding["decoder"] for feeding in found["feedings"]}
    assert "native" in decoders
    assert ("dali" in decoders) == (found["left_out"] == [])


def test_a_steps_given_time_is_taken_for_its_own(quick, tmp_path):
    found = run([*quick, "--step-seconds", "0.001"], tmp_path)
    assert found["step"] == {"model": quick[4], "samples": 16, "seconds": 0.001, "device": ""}
    assert all(0 < share < 1 for share in found["starved"])


def test_unusable_images_are_replaced_and_counted(digit_shards, quick, tmp_path):
    with ShardWriter(tmp_path, "bad", 100) as writer:
        for number in range(20):
            writer.write(b"\xff\xd8\xff no image", f"caption {number}")
    both = f"{digit_shards.train_pattern}::{tmp_path}/bad-000000.tar"
    words = [*quick[:2], both, *quick[3:], "--max-unusable", "1"]
    assert run(words, tmp_path)["replaced"] == 20


def test_synthetic_data_needs_no_name(quick, tmp_path):
    found = run([*quick[:2], *quick[3:], "--dataset-type", "synthetic"], tmp_path)
    assert found["data"] == "synthetic"


def test_a_model_waits_for_the_share_that_data_comes_too_late():
    step = Step("m", 10, 1.0, "cpu")
    assert starved_share(Feeding("native", "cpu", 1, 9, 2.5, 2.5), step) == 0.75
    assert starved_share(Feeding("native", "cpu", 1, 9, 20.0, 5.0), step) == 0.0


def test_needs_are_the_rate_over_what_a_core_or_a_gpu_was_measured_to_give():
    feedings = [
        Feeding("native", "cpu", 1, 9, 90.0, 100.0),
        Feeding("native", "cpu", 4, 9, 300.0, 80.0),
        Feeding("dali", "cuda", 4, 9, 4000.0, 500.0),
    ]
    targets = [parse_target("ViT-B-32@2xH100=1000")]
    native, dali, published = needs_of(targets, feedings, Reading(9, 25e3, 1e9))
    assert (native.images_per_second, native.bytes_per_second) == (2000, 50e6)
    assert (native.cores, native.decoding_gpus) == (25, 0)
    assert (dali.cores, dali.decoding_gpus) == (4, 0.5)
    assert published.decoding_gpus == 2000 / GPU_DECODING.images_per_second
    assert published.cores == published.decoding_gpus * GPU_DECODING.cpu_threads


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--threads", "0"], "--threads: expected whole numbers from 1 on, such as 1,2; got '0'"),
        (["--threads", "two"], "--threads: expected whole numbers from 1 on"),
        (["--decoder", "native,pil"], "--decoder: expected some of dali,native; got 'native,pil'"),
        (["--seconds", "0"], "--seconds: expected a positive number; got 0.0"),
        (["--batch-size", "-1"], "--batch-size: expected a positive number; got -1"),
        (["--target", "fast"], "--target: expected MODEL@NxGPU, such as ViT-B-32@256xH100"),
        (["--model", "ViT-Z-1"], "model: expected a .json file or one of"),
        (["--aug-cfg", "scale=2"], "--aug-cfg"),
        (["--json", "no/x"], "--json no/x: expected a folder that exists; got none"),
    ],
)
def test_a_mistake_is_one_sentence(quick, capsys, words, sentence):
    assert main([*quick, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clipfast bench: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "DATA: expected a path, a brace list or a URL; got none"),
        (["nowhere/{0..3}.tar"], "nowhere/0.tar"),
        (["nowhere"], "no such file or folder"),
    ],
)
def test_data_that_is_not_there_is_one_sentence(capsys, data, sentence):
    assert main(["bench", "feed", *data]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
