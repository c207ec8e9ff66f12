"""`clipfast report` of an evaluation: its figures beside the published ones, and its pictures."""

import base64
import json

import numpy as np
from pages import Page, page_of

from clipfast.cli import main
from clipfast.eval.pictures.confusion import save_confusion
from clipfast.eval.published import published
from clipfast.eval.results import FILE_NAME, NOTE, Picture, Result, append
from clipfast.report.evaluation import headlines, read_evaluation, sections

RECALLS = {f"{way}_retrieval_recall@{k}": 0.25 for way in ("image", "text") for k in (1, 5, 10)}


def result(suite="mnist", task="zero-shot", label="ViT-B-32 <x> & y", acc1=0.5, **more):
    metrics = more.pop("metrics", {"acc1": acc1, "acc5": 0.75})
    headline = more.pop("headline", tuple(metrics))
    return Result(suite, task, "ViT-B-32", label, label, metrics, headline, 10_000, 1.0, **more)


def with_picture(folder, name="c.png", title="mnist, zero-shot: confusion"):
    folder.mkdir(parents=True, exist_ok=True)
    save_confusion(folder / name, np.eye(3, dtype=np.int64), ["a", "b", "c"], title)
    return [Picture(name, title, f"{title}: images by their class")]


def test_a_figure_stands_beside_every_published_one_with_its_model_and_source(tmp_path):
    append(tmp_path, [result(acc1=0.1234)])
    words = page_of(tmp_path).words
    known = published("mnist", "zero-shot", "acc1")
    assert [one.value for one in known][:3] == [0.884, 0.925, 0.9975]
    after = words.partition("12.34%")[2]
    for one in known:
        _, found, after = after.partition(f"{100 * one.value:g} {one.model} ({one.source})")
        assert found, one
    assert NOTE in words, "that they are not comparable is said"


def test_each_metric_has_its_own_published_figures(tmp_path):
    append(tmp_path, [result(suite="flickr30k", task="retrieval", metrics=RECALLS)])
    (section,) = sections(read_evaluation(tmp_path))
    for line, metric in zip(section.suites[0].lines, RECALLS, strict=True):
        known = published("flickr30k", "retrieval", metric)
        assert known
        assert [words.split()[0] for words in line.beside] == [f"{100 * k.value:g}" for k in known]


def test_an_evaluation_alone_is_a_page_in_one_file(tmp_path, capsys):
    pictures = with_picture(tmp_path)
    append(tmp_path, [result(pictures=pictures), result(task="retrieval", metrics=RECALLS)])
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text())
    assert page.outside == []
    assert "clipfast evaluation" in page.words
    assert "1 model on 1 data set: zero-shot classification and retrieval." in page.words
    assert "ViT-B-32 <x> & y" in page.words
    assert "No step is recorded" not in page.words
    (image,) = page.images
    png = base64.b64decode(image["src"].partition("base64,")[2])
    assert png == (tmp_path / "c.png").read_bytes()
    assert image["alt"] == "mnist, zero-shot: confusion: images by their class"


def test_a_runs_page_has_the_evaluation_in_its_folder(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"kind": "point", "step": 0, "loss": 2.0}\n')
    assert "Zero-shot classification" not in page_of(tmp_path).words
    folder = tmp_path / "evaluation"
    append(folder, [result(pictures=with_picture(folder))])
    page = page_of(tmp_path)
    assert "clipfast run" in page.words
    assert "1 steps are recorded." in page.words
    assert "Zero-shot classification" in page.words
    assert len(page.images) == 1


def test_models_stand_side_by_side_and_what_is_missing_is_empty(tmp_path):
    rows = [
        result(label="one", acc1=0.1),
        result(label="two", acc1=0.2),
        result(label="two", suite="cifar10", acc1=0.3),
    ]
    append(tmp_path, rows)
    (section,) = sections(read_evaluation(tmp_path))
    assert section.models == ["one", "two"]
    assert [suite.suite for suite in section.suites] == ["cifar10", "mnist"]
    assert section.suites[0].lines[0].values == ["", "30.00%"]
    assert section.suites[1].lines[0].values == ["10.00%", "20.00%"]
    assert section.suites[1].images == "10,000 images"


def test_of_what_was_evaluated_twice_the_later_counts(tmp_path):
    append(tmp_path, [result(acc1=0.1), result(suite="cifar10"), result(acc1=0.9)])
    evaluation = read_evaluation(tmp_path)
    assert len(evaluation.rows) == 2
    assert next(headlines(evaluation))[:2] == ("mnist, zero-shot classification", "90.00%")


def test_sections_come_in_the_papers_order_with_words_for_names(tmp_path):
    few = {"lp_acc1@1": 0.3, "lp_acc1@16": 0.8}
    append(
        tmp_path,
        [
            result(task="retrieval", metrics=RECALLS),
            result(task="few-shot", metrics=few),
            result(task="linear-probe", metrics={"lp_mean_per_class_recall": float("nan")}),
            result(),
        ],
    )
    found = sections(read_evaluation(tmp_path))
    titles = ["Zero-shot classification", "Linear probe", "Few-shot probe", "Retrieval"]
    assert [section.title for section in found] == titles
    names = [[line.metric for line in section.suites[0].lines] for section in found]
    assert names[0] == ["top-1", "top-5"]
    assert names[1] == ["mean per class"]
    assert names[2] == ["1-shot top-1", "16-shot top-1"]
    assert names[3][0] == "text → image R@1"
    assert names[3][-1] == "image → text R@10"
    assert found[1].suites[0].lines[0].values == ["–"], "not a number"


def test_whether_the_gain_survives_is_said_beside_every_shift(tmp_path):
    metrics = {"zero-shot reference": 0.6, "zero-shot shifts": 0.5, "linear-probe reference": 0.9}
    sentence = "one: the probe gives +30.0 points on the reference, -1.0 on the shift"
    more = {"shifts": {"noise 3": [0.5, 0.49]}, "survival": [sentence]}
    append(tmp_path, [result(task="robustness", label="one", metrics=metrics, more=more)])
    words = page_of(tmp_path).words
    assert sentence in words
    assert "zero-shot linear-probe reference 60.00% 90.00% noise 3 50.00% 49.00%" in words


def test_a_picture_of_two_rows_is_shown_once_and_one_that_is_gone_is_passed_over(tmp_path):
    both = [*with_picture(tmp_path), Picture("gone.png", "gone", "gone")]
    outside = Picture("../c.png", "elsewhere", "elsewhere")
    rows = [result(label="one", pictures=both), result(label="two", pictures=[*both, outside])]
    append(tmp_path / "in", rows)
    assert page_of(tmp_path / "in").images == [], "nothing outside of the folder is read"
    append(tmp_path, rows[:1])
    append(tmp_path, [result(label="two", pictures=both)])
    assert len(page_of(tmp_path).images) == 1


def test_results_that_are_none_are_a_sentence(tmp_path, capsys):
    (tmp_path / FILE_NAME).write_text(json.dumps({"imagenet-zeroshot-val-top1": 0.5}) + '\n{"cut')
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected rows with dataset, task and metrics; got none" in error
