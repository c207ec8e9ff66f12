"""`clipfast bench train`: it times both trainers only once they agree, and explains mistakes."""

import json

import pytest
from clipfast_bench.training.train_report import Comparison, show
from clipfast_bench.training.train_runs import OURS, Run, Span, run

from clipfast.cli import main
from clipfast.errors import UserError

pytest.importorskip("open_clip_train")


@pytest.mark.slow
def test_a_run_checks_chooses_settings_and_times_both_in_turn(
    digit_shards, tiny_model, tmp_path, capsys
):
    file = tmp_path / "figures.json"
    words = ["bench", "train", digit_shards.train_pattern, "--model", tiny_model]
    words += ["--batch-size", "8", "--steps", "4", "--rounds", "2", "--workers", "1"]
    assert main([*words, "--json", str(file)]) == 0
    stored = json.loads(file.read_text())
    assert stored["commit_info"]["project"] == "clipfast"
    assert "cpu_capability" in stored["machine_info"]
    (found,) = stored["comparisons"]
    assert stored["data"] == digit_shards.train_pattern
    assert stored["machine_info"]["versions"]["open_clip_torch"].startswith("3.")
    assert found["loss_difference"] <= 1e-4
    assert found["ours_with"] == "--workers 1"
    assert found["theirs_with"] in ("--workers 1", "GOMP_SPINCOUNT=5000 --workers 1")
    for side in ("ours", "theirs"):
        assert len(found[side]) == 2
        for timed in found[side]:
            assert 0 < timed["step_seconds"] < timed["whole_seconds"]
        assert found[f"{side}_memory"]["peak_bytes"] > 16 * found["parameters"]
    shown = capsys.readouterr().out
    for part in ("ratio", "from – to", "whole run", "MiB", "losses on the same weights"):
        assert part in shown


def test_a_trainer_that_fails_is_one_sentence_with_its_own_last_words(tmp_path):
    broken = OURS._replace(words=("-c", "raise SystemExit('no such weights')"))
    with pytest.raises(UserError, match="clipfast: expected a run to its end; got: no such"):
        run(broken, [], tmp_path / "run", None, lambda _: None)


def test_a_span_leaves_out_the_first_steps_and_those_whose_data_waits():
    for steps in (1, 3, 4, 13, 60):
        span = Span.of(steps)
        assert span.steps % span.every == 0
        assert 0 < span.steps <= steps
        assert span.all_steps > span.every + span.steps


def test_ratios_are_of_the_pairs_of_a_round(capsys):
    ours = [Run([], 0.1, 10, 0), Run([], 0.2, 10, 0), Run([], 0.1, 10, 0)]
    theirs = [Run([], 0.2, 12, 0), Run([], 0.6, 12, 0), Run([], 0.4, 12, 0)]
    memory = Run([], 0, 1, 700 * 2**20), Run([], 0, 1, 1000 * 2**20)
    comparison = Comparison(
        "m", 32, 8, 25 * 2**20, 2e-6, "--workers 1", "--workers 2", ours, theirs, *memory
    )
    assert comparison.ratios == pytest.approx([2, 3, 4])
    show("data", 2, [comparison])
    shown = capsys.readouterr().out
    for part in ("3.00×", "2.00 – 4.00", "1.20×", "320.0/s", "80.0/s", "400 MiB", "of 0.50"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1; got 0"),
        (["--workers", "1", "0"], "--workers: expected at least 1; got 0"),
        (["--json", "no/x"], "--json no/x: expected a folder that exists; got none"),
        (["pairs.csv"], "SHARDS: expected WebDataset tars; got 'pairs.csv'"),
        (["--model", "ViT-Z-1"], "model: expected a .json file or one of"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, words, sentence):
    assert main(["bench", "train", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clipfast bench: ")
    assert sentence in line
