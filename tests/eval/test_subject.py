"""The model under test, from every form that a checkpoint has."""

import json

import open_clip
import pytest
import torch
from torch.testing import assert_close

from clipfast.errors import UserError
from clipfast.eval.subject import open_subject
from clipfast.models.factory import create_model
from clipfast.models.penultimate import image_parts
from clipfast.weights.convert import convert_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def opened():
    return lambda checkpoint, **options: open_subject(str(checkpoint), device=CPU, **options)


@pytest.fixture
def small(tmp_path):
    """A model whose shapes tell all of it."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "width": 64, "heads": 1, "layers": 1}
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A run's folder, as the trainer leaves it: two epochs of other weights."""
    folder = tmp_path_factory.mktemp("logs") / "first"
    (folder / "checkpoints").mkdir(parents=True)
    for epoch in (2, 10):
        torch.manual_seed(epoch)
        state = create_model(tiny_model).state_dict()
        content = {"epoch": epoch, "name": "first", "state_dict": state}
        torch.save(content, folder / "checkpoints" / f"epoch_{epoch}.pt")
    params = {"model": tiny_model, "pretrained": "", "image_mean": [0.1, 0.2, 0.3], "siglip": False}
    lines = [f"{name}: {value}\n" for name, value in params.items()]
    (folder / "params.txt").write_text("".join(lines))
    return folder


def weights_of(subject):
    return subject.model.visual.proj.detach()


def test_a_runs_folder_is_its_newest_epoch_with_its_model_and_image_settings(run, opened):
    subject = opened(run)
    newest = torch.load(run / "checkpoints" / "epoch_10.pt", weights_only=True)["state_dict"]
    assert torch.equal(weights_of(subject), newest["visual.proj"])
    assert (subject.name, subject.weights) == ("tiny-vit", str(run / "checkpoints/epoch_10.pt"))
    assert subject.preprocess.mean == (0.1, 0.2, 0.3)
    assert subject.run == run
    assert subject.label == "tiny-vit first/epoch_10"
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())


def test_a_file_of_a_run_is_that_file_and_other_weights_have_another_fingerprint(run, opened):
    early, late = opened(run / "checkpoints" / "epoch_2.pt"), opened(run)
    assert not torch.equal(weights_of(early), weights_of(late))
    assert early.fingerprint != late.fingerprint
    assert late.fingerprint == opened(run / "checkpoints").fingerprint


def test_a_bare_state_dict_takes_the_model_that_is_named(tiny_model, tmp_path, opened):
    model = create_model(tiny_model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    subject = opened(tmp_path / "weights.pt", model=tiny_model)
    assert torch.equal(weights_of(subject), model.visual.proj)
    assert subject.run is None


def test_without_a_name_shapes_tell_the_model_and_that_is_said(small, tmp_path, opened, caplog):
    model = create_model(small)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    subject = opened(tmp_path / "weights.pt")
    assert subject.name == "weights"
    assert "told by the shapes of the weights alone, with GELU" in caplog.text
    image = torch.randn(1, 3, 32, 32)
    assert_close(subject.model.encode_image(image), model.eval().encode_image(image))


def test_open_clips_and_hugging_faces_folders_are_models(small, tmp_path, opened):
    model = create_model(small)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for form in ("local-dir", "huggingface"):
        flags = [str(tmp_path / "weights.pt"), str(tmp_path / form), "--to", form]
        convert_checkpoint([*flags, "--model", small])
        subject = opened(tmp_path / form)
        assert torch.equal(weights_of(subject), model.visual.proj)
        assert subject.name == form


@pytest.mark.slow
def test_a_tag_takes_the_file_that_open_clips_cache_has(tmp_path, opened):
    url = open_clip.get_pretrained_cfg("RN50", "openai")["url"]
    model = create_model("RN50-quickgelu")
    torch.save(model.state_dict(), tmp_path / url.rpartition("/")[2])
    subject = opened("RN50:openai", cache_dir=str(tmp_path))
    pool = subject.model.visual.attnpool.c_proj.weight
    assert torch.equal(pool, model.visual.attnpool.c_proj.weight)
    assert (subject.name, subject.weights, subject.label) == ("RN50", "openai", "RN50 openai")


def test_penultimate_features_project_to_what_open_clip_encodes(tiny_model):
    """Of our ViT, of open_clip's own ViT and ResNet, and of a timm tower."""
    image = torch.randn(2, 3, 32, 32)
    with open(tiny_model) as file:
        config = json.load(file)
    theirs = open_clip.CLIP(**config).eval()
    ours = create_model(tiny_model).eval()
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.encode_image(image)
    for model in (ours, theirs):
        trunk, head = image_parts(model)
        assert trunk(image).shape == (2, 64)
        assert_close(head(trunk(image)), expected)
    trunk, _ = image_parts(theirs)
    assert_close(trunk(image) @ theirs.visual.proj, theirs.encode_image(image))
    resnet = open_clip.CLIP(
        32, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, config["text_cfg"]
    ).eval()
    trunk, head = image_parts(resnet)
    assert_close(head(trunk(image)), resnet.encode_image(image))


def test_timms_towers_end_in_a_head(tiny_model):
    pytest.importorskip("timm")
    with open(tiny_model) as file:
        text = json.load(file)["text_cfg"]
    vision = {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear"}
    model = open_clip.CustomTextCLIP(16, vision | {"image_size": 64}, text).eval()
    image = torch.randn(1, 3, 64, 64)
    trunk, head = image_parts(model)
    assert trunk(image).shape == (1, 512)
    assert_close(head(trunk(image)), model.encode_image(image))


@pytest.mark.parametrize(
    ("checkpoint", "sentence"),
    [
        ("nowhere.pt", "nowhere.pt: expected a checkpoint, a run's folder, or NAME:TAG .*; got no"),
        ("ViT-B-32:nothing", "expected weights that open_clip knows for ViT-B-32: .*openai"),
        ("ViT-B-32:openai", "nothing is fetched unasked; got none; --download fetches them"),
        ("FOLDER", r"expected a run with checkpoints/epoch_N.pt, or a model's folder"),
        ("FOLDER/text.pt", "checkpoint .*text.pt: .*not a checkpoint|cut short or damaged"),
        ("FOLDER/other.pt", "say by --model which model it is of: .* is missing"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_a_sentence(tmp_path, opened, checkpoint, sentence):
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    checkpoint = checkpoint.replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=sentence):
        opened(checkpoint, cache_dir=str(tmp_path / "cache"))
