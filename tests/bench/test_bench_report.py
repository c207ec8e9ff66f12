"""`clipfast bench report`: what is drawn and written of a run, and what never is."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from clipfast_bench.report import command, losses, write_report
from clipfast_bench.report.curves import curve_plots, curves_of
from clipfast_bench.report.drawing import Named, label_points, new_figure, save, styled
from clipfast_bench.report.ratios import ratio_plots
from clipfast_bench.report.results import read_result
from clipfast_bench.report.roofline import points_of, roof_of, roofline_plot
from clipfast_bench.report.writing import plots_of
from matplotlib.text import Text

from clipfast.errors import UserError

RESULTS = Path(__file__).parents[2] / "bench" / "results"
_LARGE = ["losses", "losses-memory", "attention", "feeding"]
OLD = ["batch-norm", "models", *(pytest.param(n, marks=pytest.mark.slow) for n in _LARGE)]
VOID = {"meta", "link", "br", "img", "input"}


def stored(name):
    return json.loads((RESULTS / f"cpu-2-cores-{name}.json").read_text())


def benchmark(name="test_loss[256]", op="loss", seconds=(1.0, 2.0, 3.0), peers=None, **extra):
    peers = {"peer": [2.0, 4.0, 9.0]} if peers is None else peers
    return {
        "name": name,
        "group": "ops",
        "params": None,
        "stats": {"median": sorted(seconds)[len(seconds) // 2], "data": list(seconds)},
        "extra_info": {"op": op, "device": "cpu", "dtype": "float32", "peer_seconds": peers}
        | extra,
    }


def sized(value, **extra):
    size = {"axis": "N", "value": value}
    return benchmark(f"test_loss[{value}]", size=size, **extra)


def answer(right, error=1e-6, allowed=1e-5, of="d_image"):
    return {"error": error, "allowed": allowed, "right": right, "of": of}


def run(*benchmarks, **top):
    machine = {"cpu": {"brand_raw": "A <fast> CPU"}, "threads": 2, "versions": {"torch": "2.15"}}
    machine |= top.pop("machine", {})
    return {"machine_info": machine, "commit_info": {}, "benchmarks": list(benchmarks), **top}


class Page(HTMLParser):
    """Its words, ids, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.outside, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, "unclosed"

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.look_at(attributes)

    def handle_startendtag(self, tag, attributes):
        self.look_at(attributes)

    def look_at(self, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset") and not value.startswith("#"):
                self.outside.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.outside += re.findall(r"url\(|@import", data)
        else:
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def written(result, folder):
    files = write_report(result, folder)
    assert all(path.is_file() for path in files)
    return Page(files[0].read_text()), files


def drawn_texts(figure):
    """(words, where they lie) of everything written in a figure, as it is drawn."""
    with styled():
        figure.canvas.draw()
        texts = [t for axes in figure.axes for t in (*axes.texts, axes.title, axes.xaxis.label)]
        ticks = [t for axes in figure.axes for t in (*axes.get_xticklabels(),)]
        # Of the words alone: an annotation's own extent has its arrow.
        return [(t.get_text(), Text.get_window_extent(t)) for t in (*texts, *ticks) if t.get_text()]


@pytest.mark.parametrize("name", OLD)
def test_a_stored_run_of_the_old_form_becomes_one_page_that_fetches_nothing(tmp_path, name):
    result = stored(name)
    page, files = written(result, tmp_path)
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))
    assert result["machine_info"]["cpu"]["brand_raw"] in page.words
    assert result["commit_info"]["id"][:12] in page.words
    for row in read_result(result).rows:
        assert row.title in page.words
    kinds = {path.suffix for path in files[1:]}
    assert kinds == {".png", ".svg"}
    assert len({path.stem for path in files[1:]}) == len(files[1:]) / 2


@pytest.mark.parametrize("name", OLD)
def test_no_word_of_a_plot_is_cut_off_or_written_over_another(name):
    for _, plot in plots_of(read_result(stored(name))):
        texts = drawn_texts(plot.figure)
        frame = plot.figure.bbox
        for words, box in texts:
            assert box.x0 >= -1, (plot.name, words)
            assert box.x1 <= frame.x1 + 1, (plot.name, words)
            assert box.y0 >= -1, (plot.name, words)
            assert box.y1 <= frame.y1 + 1, (plot.name, words)
        for i, (words, box) in enumerate(texts):
            for others, other in texts[i + 1 :]:
                assert not box.shrunk(0.98, 0.7).overlaps(other.shrunk(0.98, 0.7)), (
                    plot.name,
                    words,
                    others,
                )


def test_an_old_runs_curves_have_the_points_of_their_width_alone():
    rows = read_result(stored("losses")).rows
    assert [row.size for row in rows if "D = " in row.title] == [None, None]
    (curves,) = [c for c in curves_of(rows) if c.op == "contrastive_loss"]
    assert list(curves.seconds["ours"]) == [256, 1024, 4096, 8192, 32768]
    assert curves.seconds["ours"][4096] == pytest.approx(0.396264520)
    assert list(curves.seconds["open_clip ClipLoss"]) == [256, 1024, 4096, 8192]


def test_an_old_runs_memory_is_a_curve_and_its_process_no_time():
    found = {c.op: c for c in curves_of(read_result(stored("losses-memory")).rows)}
    curves = found["sigmoid_loss"]
    assert not curves.seconds
    assert curves.mebibytes["ours"][8192] == pytest.approx(35.285156)
    assert curves.mebibytes["open_clip SigLipLoss"][8192] == pytest.approx(1305.8984)
    assert [plot.name for plot in curve_plots(curves)] == ["sigmoid-loss-memory-n-float32-on-cpu"]


def test_an_old_runs_unit_is_no_peer():
    rows = read_result(stored("losses")).rows
    assert not [p for row in rows for p in row.peers if "product" in p.name]


def test_an_old_runs_cases_are_words():
    titles = [row.title for row in read_result(stored("feeding")).rows]
    assert "loader, 512 × 600" in titles
    assert "tokenizer, prose" in titles
    first = read_result(stored("batch-norm")).rows[0]
    assert first.title == "batch_norm, 16 × 64 × 112 × 112"
    assert read_result(stored("models")).rows[0].title == "train_step, ViT-B-32, batch 32"
    assert read_result(stored("models")).rows[0].family == "training"


def test_todays_cases_are_words_without_the_place_they_ran_on():
    def named(name, dtype="float32", **extra):
        return benchmark(name, dtype=dtype, **extra)

    rows = read_result(
        run(
            named("test_a[cpu-float32-32x50 ViT-B-32]", op="a"),
            named("test_b[cpu-float32-N=1024]", op="b", size={"axis": "N", "value": 1024}),
            named("test_c[cuda-float16-1x2]", "float16", op="c"),
            named("test_c[cuda-bfloat16-1x2]", "bfloat16", op="c"),
            named("test_d[cpu-float32]", op="d"),
        )
    ).rows
    assert [row.title for row in rows] == [
        "a, 32x50 ViT-B-32",
        "b, N = 1,024",
        "c, 1x2, float16",
        "c, 1x2, bfloat16",
        "d",
    ]


def test_a_spread_is_of_the_rounds_ratios():
    (row,) = read_result(run(benchmark())).rows
    (peer,) = row.peers
    assert peer.ratio == 2.0
    assert peer.spread == (2.0, 3.0)
    stated = benchmark(peer_over_ours={"peer": 1.9}, spread={"peer": [1.5, 2.5]})
    (peer,) = read_result(run(stated)).rows[0].peers
    assert (peer.ratio, peer.spread) == (1.9, (1.5, 2.5))


def test_a_wrong_peer_has_no_speed_anywhere(tmp_path):
    answers = {"ours": answer(True), "liar": answer(False, error=None), "peer": answer(True)}
    peers = {"peer": [2.0] * 3, "liar": [0.123, 0.123, 0.123]}
    result = run(*(sized(n, peers=peers, answers=answers) for n in (256, 512)))
    for row in read_result(result).rows:
        assert {p.name: p.seconds for p in row.peers} == {"peer": 2.0, "liar": None}
        assert row.peers[1].ratio is None
    (curves,) = curves_of(read_result(result).rows)
    assert set(curves.seconds) == {"ours", "peer"}
    (plot,) = ratio_plots("ops", read_result(result).rows)
    assert "liar" not in plot.alt
    page, _ = written(result, tmp_path)
    assert "123 ms" not in page.words
    assert "2 answers are wrong and have no speed here" in page.words
    assert "not finite" in page.words


def test_where_ours_is_wrong_it_has_no_speed_and_nobody_is_compared_with_it():
    answers = {"ours": answer(False), "peer": answer(True)}
    result = read_result(run(*(sized(n, answers=answers, flops=9, bytes=3) for n in (1, 2))))
    assert all(row.ours.seconds is None for row in result.rows)
    assert list(ratio_plots("ops", result.rows)) == []
    assert points_of(result.rows) == []
    (curves,) = curves_of(result.rows)
    assert "ours" not in curves.seconds


def test_there_is_no_plot_without_data_for_it():
    alone = read_result(run(benchmark(peers={}), sized(256, peers={})))
    assert list(plots_of(alone)) == []
    no_rates = read_result(run(benchmark(peers={}, flops=10, bytes=2)))
    assert roof_of(no_rates) is None
    assert roofline_plot(no_rates) is None


def test_a_benchmark_that_was_not_timed_has_no_point():
    untimed = sized(256) | {"stats": {}}
    untimed["extra_info"] |= {"peer_seconds": {}}
    result = read_result(run(untimed, sized(512), sized(1024)))
    (curves,) = curves_of(result.rows)
    assert list(curves.seconds["ours"]) == [512, 1024]


def test_a_roofline_has_the_works_intensity_and_speed():
    rates = {"rates": {"matmul_flops": 200e9, "copy_bytes": 20e9}}
    rows = [benchmark(flops=6e9, bytes=1e9, peers={"peer": [6.0] * 3})]
    result = read_result(run(*rows, machine=rates))
    (point,) = points_of(result.rows)
    assert (point.intensity, point.flops) == (6, 3e9)
    roof = roof_of(result)
    assert roof.ridge == 10
    assert (roof.at(6), roof.at(1000)) == (120e9, 200e9)
    plot = roofline_plot(result)
    assert "2% of the roof" in plot.alt


def test_a_page_says_what_is_missing_and_why(tmp_path):
    page, _ = written(
        run(
            benchmark(absent={"apex": "apex is <not> installed"}),
            benchmark("test_other", op="other", absent={"apex": "apex is <not> installed"}),
            not_timed=[
                {
                    "name": "test_slow[cpu-float32-N=9]",
                    "op": "slow",
                    "reason": "it needs about 90 s",
                }
            ],
            verification=[{"op": "attention", "backend": "triton", "right": True, "error": 1e-3}],
            budget_s=120,
            machine={"gpu": "NVIDIA Imaginary"},
        ),
        tmp_path,
    )
    assert "apex loss, other apex is <not> installed" in page.words
    assert "it needs about 90 s slow, N=9" in page.words
    assert "attention triton yes 0.001" in page.words
    assert "NVIDIA Imaginary" in page.words
    assert "120 s" in page.words


def test_a_plot_is_written_in_the_same_bytes_twice(tmp_path):
    def files(folder):
        (curves,) = curves_of(read_result(run(sized(256), sized(512))).rows)
        return [p.read_bytes() for plot in curve_plots(curves) for p in save(plot, folder)]

    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_plot_in_the_page_takes_its_colours_and_leaves_the_page_alone(tmp_path):
    page = write_report(run(sized(256), sized(512)), tmp_path)[0].read_text()
    svg = page[page.index("<svg") : page.rindex("</svg>")]
    assert "var(--k0, #0072b2)" in svg
    assert "<style" not in svg
    assert "fill: #ffffff" not in svg
    assert "stroke: #ffffff" not in svg


def named_points(points, line=()):
    """Boxes of the names, and where the points are, in pixels."""
    with styled():
        figure = new_figure(3)
        axes = figure.subplots()
        axes.plot(*zip(*line, strict=True), alpha=0)
        label_points(axes, [Named(*point, "#000000") for point in points])
    boxes = [box for words, box in drawn_texts(figure) if words.startswith("point")]
    assert len(boxes) == len(points)
    return boxes, [axes.transData.transform(point[:2]) for point in points]


def test_names_of_points_cover_no_point_and_no_other_name():
    points = [(0.5 + i / 100, 0.5 + i / 100, f"point {i}") for i in range(4)]
    boxes, places = named_points(points, [(0, 0), (0, 1), (1, 1)])
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_a_name_is_nearer_to_its_own_point_than_to_another():
    points = [(0.5, 0.50, "point a"), (0.5, 0.55, "point b"), (0.5, 0.60, "point c")]
    boxes, places = named_points(points, [(0, 0), (0, 1), (1, 1)])
    for own, box in enumerate(boxes):
        gaps = [max(box.x0 - x, x - box.x1, 0) + max(box.y0 - y, y - box.y1, 0) for x, y in places]
        assert gaps[own] == min(gaps)


def test_a_curves_name_keeps_off_the_curves():
    (box,), (place,) = named_points([(0.5, 0.5, "point")], [(0, 0.5), (1, 0.5)])
    assert not box.y0 < place[1] < box.y1


def test_many_bars_are_several_pictures_with_every_bar_once():
    names = [f"peer {i}" for i in range(40)]
    rows = [benchmark(f"test_a[{n}]", op="a", peers={n: [2.0] * 3}) for n in names]
    plots = list(ratio_plots("ops", read_result(run(*rows)).rows))
    assert len(plots) == 2
    assert len({plot.name for plot in plots}) == 2
    drawn = [t for plot in plots for t, _ in drawn_texts(plot.figure) if t.startswith("peer ")]
    assert sorted(drawn) == sorted(names)


def test_readmes_picture_has_both_losses_and_both_libraries(tmp_path):
    rows = [r for name in ("losses", "losses-memory") for r in read_result(stored(name)).rows]
    plot = losses.draw(rows)
    words = [w for w, _ in drawn_texts(plot.figure)]
    for name in ("contrastive_loss", "open_clip ClipLoss", "sigmoid_loss", "open_clip SigLipLoss"):
        assert words.count(name) == 2


@pytest.mark.parametrize(
    "content", ["no json", "[]", '{"benchmarks": 3}', '{"benchmarks": [{"name": "test_a"}]}']
)
def test_a_file_that_is_no_result_is_refused_in_a_sentence(tmp_path, content, monkeypatch, capsys):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"expected .*; got"):
        command.report([str(path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["report", str(path)])
    assert command.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_writes_beside_the_result(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(run(sized(256), sized(512))))
    assert command.report([str(path)]) == 0
    assert (tmp_path / "mine-report" / "report.html").is_file()
    assert "mine-report" in capsys.readouterr().out
