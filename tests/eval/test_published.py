"""Published figures: those of the sources, each with its model and place, under the rows' names."""

import pytest

from clipfast.eval.published import Published, published

PAPER = "arXiv 2103.00020"


def test_mnist_has_the_papers_figures_before_the_measured_one():
    figures = published("mnist", "zero-shot", "acc1")
    assert [figure.value for figure in figures] == pytest.approx([0.884, 0.925, 0.9975, 0.7916])
    assert "regression on raw pixels" in figures[1].model
    assert figures[2].model == "people"
    assert "released weights" in figures[3].model
    assert "open_clip" in figures[3].source


def test_imagenet_has_all_nine_models_of_the_paper():
    figures = [f for f in published("imagenet1k", "zero-shot", "acc1") if PAPER in f.source]
    assert {figure.model: round(100 * figure.value, 1) for figure in figures} == {
        "RN50": 59.6,
        "RN101": 62.2,
        "RN50x4": 65.8,
        "RN50x16": 70.5,
        "RN50x64": 73.6,
        "ViT-B/32": 63.2,
        "ViT-B/16": 68.6,
        "ViT-L/14": 75.3,
        "ViT-L/14@336px": 76.2,
    }


@pytest.mark.parametrize(
    ("suite", "zero_shot", "probe"),
    [
        ("imagenet1k", 76.2, 85.4),
        ("imagenetv2", 70.1, 75.9),
        ("imagenet-a", 77.2, 75.3),
        ("imagenet-r", 88.9, 84.2),
        ("objectnet", 72.3, 66.2),
        ("imagenet_sketch", 60.2, 57.4),
    ],
)
def test_shifts_have_the_papers_zero_shot_and_probe(suite, zero_shot, probe):
    for task, percent in (("zero-shot", zero_shot), ("linear-probe", probe)):
        figure = published(suite, task, "acc1")[0]
        assert round(100 * figure.value, 1) == percent
        assert (figure.model, PAPER in figure.source) == ("ViT-L/14@336px", True)


@pytest.mark.parametrize(
    ("suite", "direction", "percents"),
    [
        ("flickr30k", "text", (88.0, 98.7, 99.4)),
        ("flickr30k", "image", (68.7, 90.6, 95.2)),
        ("mscoco_captions", "text", (58.4, 81.5, 88.1)),
        ("mscoco_captions", "image", (37.8, 62.4, 72.2)),
    ],
)
def test_retrieval_has_the_papers_recalls_and_the_measured_ones_near_them(
    suite, direction, percents
):
    for k, percent in zip((1, 5, 10), percents, strict=True):
        paper, measured = published(suite, "retrieval", f"{direction}_retrieval_recall@{k}")
        assert round(100 * paper.value, 1) == percent
        assert measured.value == pytest.approx(paper.value, abs=0.025)
        assert "released weights" in measured.model


def test_sets_whose_mean_over_classes_is_published_have_no_accuracy_over_images():
    for suite in ("caltech101", "fgvc_aircraft", "flowers", "pets"):
        assert published(suite, "zero-shot", "mean_per_class_recall")
        assert published(suite, "zero-shot", "acc1") == ()


def test_nothing_is_published_of_what_nobody_measured():
    assert published("my photos", "zero-shot", "acc1") == ()
    assert published("mnist", "zero-shot", "acc5") == ()
    assert published("mnist", "few-shot", "acc1") == ()


def test_every_figure_is_a_share_with_model_source_and_note():
    from clipfast.eval import published as tables

    every = [
        f for t in (tables._OF_THE_PAPER, tables._MEASURED_AGAIN) for fs in t.values() for f in fs
    ]
    assert len(every) > 60
    for figure in every:
        assert isinstance(figure, Published)
        assert 0 < figure.value < 1
        assert figure.model
        assert figure.source
        assert figure.note
