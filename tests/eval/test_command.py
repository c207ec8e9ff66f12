"""`clipfast eval`, as a user calls it: rows, table and pictures of real digits and of pairs."""

import io
import json
import struct
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from evaluation_data import classes, pairs, telling_weights
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from started import start_ranks

from clipfast.cli import main
from clipfast.eval.results import read_rows
from clipfast.models.factory import create_model

TEST, TRAIN = 80, 160
MNIST_TEMPLATE = 'a photo of the number: "{}".'


@pytest.fixture(scope="module")
def digits():
    """Real ones, 28 × 28: images and labels."""
    found = load_digits()
    images = [
        np.asarray(Image.fromarray(np.uint8(image * 15.9)).resize((28, 28), Image.BICUBIC))
        for image in found.images[: TEST + TRAIN]
    ]
    return np.stack(images), found.target[: TEST + TRAIN].astype(np.uint8)


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    """MNIST's four files, of these digits."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = digits
    for name, rows in (("t10k", slice(0, TEST)), ("train", slice(TEST, None))):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[rows])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[rows])
    return str(root)


def write_idx(path, array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(struct.pack(">I", 0x800 + array.ndim) + sizes + array.tobytes())


@pytest.fixture(scope="module")
def weights(tiny_model, tmp_path_factory):
    return telling_weights(tiny_model, tmp_path_factory.mktemp("weights"), seed=3)


@pytest.fixture
def call(tiny_model, weights, data, tmp_path, capsys):
    """Runs the command on the digits and returns its rows and what it printed."""

    def called(*flags, suite="mnist", checkpoints=(weights,)):
        words = [*checkpoints, "--suite", suite, "--data", data, "--model", tiny_model]
        words += ["--cache", tmp_path / "cache", "--output", tmp_path / "out"]
        words += ["--batch-size", "16", "--workers", "1", "--device", "cpu", *flags]
        assert main(["eval", *map(str, words)]) == 0
        return read_rows(tmp_path / "out"), capsys.readouterr().out

    return called


def open_clips_model(tiny_model, weights):
    with open(tiny_model) as file:
        model = open_clip.CLIP(**json.load(file)).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def open_clips_pixels(images):
    transform = open_clip.image_transform(32, is_train=False)
    return torch.stack([transform(image) for image in images])


def open_clips(tiny_model, weights, images):
    """open_clip's own model, transform and classifier on the same images: similarities."""
    model = open_clips_model(tiny_model, weights)
    pixels = open_clips_pixels(map(Image.fromarray, images))
    tokenize = open_clip.SimpleTokenizer(context_length=32)
    names = [str(digit) for digit in range(10)]
    template = lambda name: MNIST_TEMPLATE.replace("{}", name)  # noqa: E731
    classifier = open_clip.build_zero_shot_classifier(model, tokenize, names, [template])
    with torch.no_grad():
        return model.encode_image(pixels, normalize=True) @ classifier


def test_zero_shot_is_open_clips_and_its_line_stands_beside_the_papers(
    call, digits, tiny_model, weights, tmp_path
):
    (row,), printed = call()
    images, labels = digits[0][:TEST], digits[1][:TEST]
    similar = open_clips(tiny_model, weights, images).numpy()
    found = similar.argmax(axis=1)
    assert len(set(found)) > 2
    assert row["metrics"] == pytest.approx(
        {
            "acc1": accuracy_score(labels, found),
            "acc5": top_k_accuracy_score(labels, similar, k=5, labels=range(10)),
            "mean_per_class_recall": balanced_accuracy_score(labels, found),
        },
        abs=1e-12,
    )
    assert (row["dataset"], row["task"]) == ("mnist", "zeroshot_classification")
    assert row["templates"] == [MNIST_TEMPLATE]
    assert row["samples"] == TEST
    assert {0.884, 0.925, 0.9975} <= {figure["value"] for figure in row["published"]}
    for words in ("88.4 ViT-L/14@336px", "92.5 logistic", "99.75 people", "not as a comparison"):
        assert words in " ".join(printed.split())
    for picture in row["pictures"]:
        assert Image.open(tmp_path / "out" / picture["file"]).width == 1000


@pytest.mark.slow
def test_probes_and_robustness_leave_rows_and_pictures(call, tmp_path):
    flags = ["--task", "linear-probe,few-shot,robustness", "--shots", "2", "--seeds", "1"]
    flags += ["--corruption", "contrast,rotation", "--severity", "1,5"]
    (probe, few, robust), printed = call(*flags)
    assert probe["task"] == "linear_probe"
    assert probe["metrics"]["lp_acc1"] > 0.5
    assert probe["lambda"] in [lam for lam, _ in probe["tried"]]
    assert list(few["metrics"]) == ["lp_acc1@2"]
    assert [len(shots["accuracies"]) for shots in few["few_shot"]] == [1]
    assert robust["metrics"]["linear-probe reference"] == probe["metrics"]["lp_acc1"]
    assert list(robust["shifts"]) == ["contrast", "rotation"]
    under = np.mean([values[1] for values in robust["shifts"].values()])
    assert robust["metrics"]["linear-probe shifts"] == pytest.approx(under)
    assert "linear-probe effective" in robust["metrics"]
    assert robust["survival"][0] in " ".join(printed.split())
    for row in (probe, few, robust):
        assert row["pictures"]
        assert all((tmp_path / "out" / picture["file"]).is_file() for picture in row["pictures"])


def test_a_folder_of_classes_is_a_suite_and_two_checkpoints_have_a_row_each(
    call, tiny_model, weights, tmp_path
):
    folder = classes(tmp_path / "own", {"cat": [1, 2, 3], "dog": [4, 5], "old bicycle": [6]})
    torch.manual_seed(9)
    other = tmp_path / "other.pt"
    torch.save(create_model(tiny_model).state_dict(), other)
    rows, printed = call(
        "--json", tmp_path / "rows.json", suite=folder, checkpoints=[weights, other]
    )
    assert [row["pretrained"] for row in rows] == [weights, str(other)]
    assert rows[0]["weights"] != rows[1]["weights"]
    assert {row["dataset"] for row in rows} == {"own"}
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert "published" in printed
    assert "not as a comparison" not in printed
    again, _ = call(suite=folder, checkpoints=[weights])
    assert [row["metrics"] for row in again] == [row["metrics"] for row in (*rows, rows[0])]


def test_pairs_are_retrieved_as_dense_torch_finds_them(call, tiny_model, weights, tmp_path):
    shard = pairs(tmp_path, 30, bad=[3])
    (row,), _ = call(suite=shard)
    assert row["task"] == "zeroshot_retrieval"
    assert (row["samples"], row["texts"]) == (29, 29)
    expected = dense_recalls(tiny_model, weights, shard, 5)
    assert row["metrics"]["text_retrieval_recall@5"] == pytest.approx(expected[0])
    assert row["metrics"]["image_retrieval_recall@5"] == pytest.approx(expected[1])
    assert row["metrics"]["image_to_text_R@5"] == row["metrics"]["text_retrieval_recall@5"]
    assert len(row["pictures"]) == 2


def dense_recalls(tiny_model, weights, shard, k):
    from clipfast.data.images.decode import eval_pixels
    from clipfast.data.images.normalize import Normalize
    from clipfast.data.sources.storage import Storage
    from clipfast.data.sources.tar_source import TarSource
    from clipfast.data.text.tokenizer import tokenize

    model, source = create_model(tiny_model, weights).eval(), TarSource(shard, Storage())
    samples = [source.read(n) for n in range(30) if n != 3]
    pixels = torch.stack([eval_pixels(sample.image, 32) for sample in samples])
    captions = [sample.captions[0].decode() for sample in samples]
    with torch.no_grad():
        image = model.encode_image(Normalize()(pixels), normalize=True)
        text = model.encode_text(tokenize(captions, 32), normalize=True)
    similar, right = image @ text.T, torch.arange(29)[:, None]
    hits = [(s.topk(k).indices == right).any(dim=1) for s in (similar, similar.T)]
    return [hit.double().mean().item() for hit in hits]


def test_zero_shot_metrics_are_of_clip_benchmarks_logits(call, digits, tiny_model, weights):
    """Its `evaluate` itself ends in an error under numpy 2.4, in the line that makes floats."""
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    (row,), _ = call()
    model, names = open_clips_model(tiny_model, weights), [str(digit) for digit in range(10)]
    pixels = open_clips_pixels(map(Image.fromarray, digits[0][:TEST]))
    batches = [(pixels, torch.from_numpy(digits[1][:TEST]).long())]
    tokenize = open_clip.SimpleTokenizer(context_length=32)
    template = MNIST_TEMPLATE.replace("{}", "{c}")
    classifier = theirs.zero_shot_classifier(model, tokenize, names, [template], "cpu", amp=False)
    logits, labels = theirs.run_classification(model, classifier, batches, "cpu", amp=False)
    assert row["metrics"] == pytest.approx(
        {
            "acc1": accuracy_score(labels, logits.argmax(1)),
            "acc5": top_k_accuracy_score(labels, logits, k=5, labels=range(10)),
            "mean_per_class_recall": balanced_accuracy_score(labels, logits.argmax(1)),
        },
        abs=1e-12,
    )


def test_retrieval_metrics_are_clip_benchmarks(call, tiny_model, weights, tmp_path):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    shard = pairs(tmp_path, 30)
    (row,), _ = call(suite=shard)
    with tarfile.open(shard) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()}
    captions = [[text.decode()] for name, text in files.items() if name.endswith(".txt")]
    images = [Image.open(io.BytesIO(x)) for name, x in files.items() if not name.endswith(".txt")]
    expected = theirs.evaluate(
        open_clips_model(tiny_model, weights),
        [(open_clips_pixels(images), captions)],
        open_clip.SimpleTokenizer(context_length=32),
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    assert {name: row["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_run_has_its_evaluation_beside_its_checkpoints(tiny_model, weights, data, tmp_path):
    run = tmp_path / "logs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    state = torch.load(weights, weights_only=True)
    torch.save({"epoch": 1, "state_dict": state}, run / "checkpoints" / "epoch_1.pt")
    (run / "params.txt").write_text(f"model: {tiny_model}\n")
    flags = ["--suite", "mnist", "--data", data, "--device", "cpu", "--workers", "1"]
    assert main(["eval", str(run), *flags, "--cache", str(tmp_path / "cache")]) == 0
    (row,) = read_rows(run / "evaluation")
    assert row["label"] == "tiny-vit first/epoch_1"


def of_a_rank(rank, arguments):
    raise SystemExit(main(["eval", *arguments]))


@pytest.mark.slow
def test_two_ranks_write_the_rows_of_one(tiny_model, weights, data, tmp_path):
    shard = pairs(tmp_path, 30, bad=[3])
    rows = []
    for ranks in (1, 2):
        out = tmp_path / f"out-{ranks}"
        words = [weights, "--suite", "mnist", shard, "--data", data, "--model", tiny_model]
        words += ["--task", "zero-shot,linear-probe,retrieval", "--batch-size", "16"]
        words += ["--output", out, "--cache", tmp_path / f"cache-{ranks}", "--device", "cpu"]
        arguments = [str(word) for word in words]
        processes = start_ranks(tmp_path / f"said-{ranks}", ranks, of_a_rank, arguments)
        for process in processes:
            process.join(300)
        said = "\n".join(path.read_text() for path in (tmp_path / f"said-{ranks}").iterdir())
        assert [process.exitcode for process in processes] == [0] * ranks, said
        rows.append([{**row, "seconds": 0} for row in read_rows(out)])
    assert len(rows[0]) == 3
    for one, two in zip(*rows, strict=True):
        assert one.pop("metrics") == pytest.approx(two.pop("metrics"), abs=1e-12)
        assert [t[0] for t in one.pop("tried", [])] == [t[0] for t in two.pop("tried", [])]
        assert one == two


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--suite", "mnist"], "CHECKPOINT: expected one or more, before --suite; got none"),
        (["WEIGHTS"], "--suite: expected a name of --list, or a path; got none"),
        (["WEIGHTS", "--suite", "mnits"], "--suite mnits: expected one of mnist, "),
        (["WEIGHTS", "--suite", "mnist", "--data", "EMPTY"], "--download"),
        (["nowhere.pt", "--suite", "mnist"], "nowhere.pt: expected a checkpoint, a run's folder"),
        (["WEIGHTS", "--suite", "OWN", "--task", "retrieval"], "--task retrieval: expected one"),
        (["WEIGHTS", "--suite", "OWN", "--task", "linear-probe"], "expected training images"),
        (["WEIGHTS", "--suite", "OWN", "--task", "probe"], "--task: expected some of zero-shot, "),
        (["WEIGHTS", "--suite", "OWN", "--severity", "6"], "--severity: expected some of 1, 2"),
        (["WEIGHTS", "--suite", "OWN", "--corruption", "fog"], "--corruption: expected some of g"),
        (["WEIGHTS", "--suite", "OWN", "--batch-size", "0"], "--batch-size: expected at least 1"),
        (["WEIGHTS", "--suite", "OWN", "--shots", "1,x"], "--shots: expected whole numbers"),
        (["WEIGHTS", "--suite", "OWN", "--workers", "-1"], "--workers: expected 0 or more"),
        (["--pretrained", "x", "--suite", "OWN"], "--pretrained x: expected --model with it"),
        (["WEIGHTS", "--suite", "OWN", "--templates", "TEXT"], "TEXT: expected {} where"),
        (["WEIGHTS", "--suite", "OWN", "--classes", "nofile"], "nofile"),
        (
            ["WEIGHTS", "--suite", "OWN", "--task", "robustness", "--shift", "OTHER"],
            "expected classes of own",
        ),
    ],
)
def test_a_mistake_is_one_sentence(flags, sentence, weights, tmp_path, capsys):
    named = {
        "WEIGHTS": weights,
        "OWN": classes(tmp_path / "own", {"a": [1], "b": [2]}),
        "OTHER": classes(tmp_path / "other", {"z": [1]}),
        "EMPTY": str(tmp_path),
        "TEXT": str(tmp_path / "TEXT"),
    }
    (tmp_path / "TEXT").write_text("a photo\n")
    words = [named.get(word, word) for word in flags]
    assert main(["eval", *words, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("clipfast eval: ")
    assert said.count("\n") == 1


def test_the_list_names_every_suite_and_where_it_is_looked_for(capsys):
    assert main(["eval", "--list"]) == 0
    printed = capsys.readouterr().out
    for words in ("mnist", "cifar100", "imagenet1k", "flickr30k", "88.4", "demo"):
        assert words in printed
