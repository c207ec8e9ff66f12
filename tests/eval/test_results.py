"""Rows that other tools read, and a table that does not claim what was not measured."""

import json

import pytest
from rich.console import Console

from clipfast.errors import UserError
from clipfast.eval.results import FILE_NAME, NOTE, Picture, Result, append, read_rows, shown

MNIST = Result(
    "mnist",
    "zero-shot",
    "ViT-B-32",
    "openai",
    "ViT-B-32 openai",
    {"acc1": 0.4819, "acc5": float("nan"), "mean_per_class_recall": 0.47},
    ("acc1",),
    samples=10_000,
    seconds=1.23456,
    more={"templates": ["a photo of the number: {}."]},
    pictures=[Picture("a.png", "title", "alt")],
)


def printed(*results):
    console = Console(width=160, record=True)
    for part in shown(results):
        console.print(part)
    return console.export_text()


def test_a_row_has_clip_benchmarks_fields_and_the_published_figures(tmp_path):
    append(tmp_path / "new", [MNIST])
    (row,) = read_rows(tmp_path / "new")
    assert {"dataset": "mnist", "model": "ViT-B-32", "pretrained": "openai"}.items() <= row.items()
    assert (row["task"], row["language"]) == ("zeroshot_classification", "en")
    assert row["metrics"] == {"acc1": 0.4819, "acc5": None, "mean_per_class_recall": 0.47}
    assert [figure["value"] for figure in row["published"]][:3] == [0.884, 0.925, 0.9975]
    assert all({"metric", "model", "source"} <= figure.keys() for figure in row["published"])
    assert row["templates"] == ["a photo of the number: {}."]
    assert row["pictures"] == [{"file": "a.png", "title": "title", "alt": "alt"}]
    assert (row["samples"], row["seconds"]) == (10_000, 1.235)


def test_rows_are_appended_and_one_that_a_crash_cut_short_is_none(tmp_path):
    append(tmp_path, [MNIST])
    append(tmp_path, [MNIST, MNIST])
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"dataset": "mni')
    assert [row["dataset"] for row in read_rows(tmp_path)] == ["mnist"] * 3
    with pytest.raises(UserError, match="expected an evaluation's results.jsonl; got none"):
        read_rows(tmp_path / "nowhere")


def test_a_row_is_plain_json_for_every_reader(tmp_path):
    append(tmp_path, [MNIST])

    def refused(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refused)


def test_mnists_line_stands_beside_the_papers_the_pixels_and_peoples_figure():
    text = printed(MNIST)
    assert "48.19%" in text
    assert "88.4 ViT-L/14@336px [1]" in text
    assert "92.5 logistic regression on raw pixels [1]" in text
    assert "99.75 people [2]" in text
    assert "[1] arXiv 2103.00020" in text
    assert "not as a comparison" in text
    assert NOTE in " ".join(text.split())


def test_of_many_published_models_the_same_one_is_shown():
    figures = {"acc1": 0.1}
    own = Result("imagenet1k", "zero-shot", "RN50-quickgelu", "x", "x", figures, ("acc1",), 1, 1)
    other = Result("imagenet1k", "zero-shot", "tiny", "x", "x", figures, ("acc1",), 1, 1)
    assert "59.6 RN50 " in printed(own)
    assert "76.2 " not in printed(own)
    assert "76.2 ViT-L/14@336px" in printed(other)
    assert "59.6" not in printed(other)


def test_a_probes_figures_are_beside_probes_and_ranks_are_no_shares():
    probe = Result(
        "imagenet1k", "linear-probe", "m", "w", "l", {"lp_acc1": 0.5}, ("lp_acc1",), 1, 1
    )
    assert "85.4 ViT-L/14@336px" in printed(probe)
    ranks = {"image_to_text_mean_rank": 12.5}
    found = Result("pairs", "retrieval", "m", "w", "l", ranks, tuple(ranks), 1, 1)
    assert " 12.5 " in printed(found)


def test_every_shift_is_a_line_and_what_survives_is_said():
    metrics = {"zero-shot reference": 0.5, "zero-shot shifts": 0.4, "linear-probe reference": 0.9}
    more = {"shifts": {"blur 3": [0.41, 0.39]}, "survival": ["the gain does not survive"]}
    found = Result("x", "robustness", "m", "w", "l", metrics, tuple(metrics), 1, 1, more)
    lines = [" ".join(line.split()) for line in printed(found).splitlines()]
    assert "reference 50.00% 90.00%" in lines
    assert "blur 3 41.00% 39.00%" in lines
    assert "the gain does not survive" in lines
    assert NOTE not in lines
