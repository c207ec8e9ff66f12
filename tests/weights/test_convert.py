"""`clipfast convert`: what it writes, open_clip's and transformers' own classes load."""

import json
import os
import re
import stat

import open_clip
import pytest
import torch
import weight_peers as peer
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, CLIPModel, CLIPProcessor, CLIPTokenizer
from weight_peers import KINDS, VITS, assert_same_features

import clipfast
from clipfast.cli import main
from clipfast.models.config import parse_model_config
from clipfast.models.factory import create_model
from clipfast.weights import tokenizer_files
from clipfast.weights.reading import read_weights

NAME_OF_FORM = {
    "open_clip": "b.pt",
    "safetensors": "b.safetensors",
    "huggingface": "b",
    "local-dir": "b",
}

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")


@pytest.fixture
def sources(peers, kinds_folder, tmp_path):
    """A checkpoint of open_clip's and the flags that tell its model, by kind."""

    def source(kind):
        path = tmp_path / f"{kind}.pt"
        if not path.exists():
            torch.save({"state_dict": peers[kind].state_dict()}, path)
        return [str(path), "--model", str(kinds_folder / f"{kind}.json")]

    return source


def convert(source, destination, *flags):
    path, *model = source
    return main(["convert", str(path), str(destination), *model, *flags])


def failure(capsys, *arguments):
    assert main(["convert", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def theirs(form, kind, path, **options):
    """The written model, in the class of the form's own library."""
    if form == "huggingface":
        model = CLIPModel.from_pretrained(path, output_loading_info=True)
        assert not any(model[1].values())
        return model[0].eval()
    if form == "local-dir":
        return peer.open_clip_model(f"local-dir:{path}", **options)
    return peer.open_clip_model(kind, str(path), **options)


CELLS = [(k, f) for k in KINDS for f in NAME_OF_FORM if f != "huggingface" or k in VITS]


@pytest.mark.parametrize(("kind", "form"), CELLS)
def test_their_class_and_ours_compute_the_sources_features(kind, form, sources, peers, tmp_path):
    destination = tmp_path / NAME_OF_FORM[form]
    assert convert(sources(kind), destination, "--to", form) == 0
    assert_same_features(theirs(form, kind, destination), peers[kind])
    assert_same_features(peer.our_model(kind, destination), peers[kind])
    weights = read_weights(destination)
    assert weights.quick_gelu is KINDS[kind]["quick_gelu"]
    assert parse_model_config(weights.config) == parse_model_config(KINDS[kind])


@pytest.mark.parametrize("kind", VITS)
def test_a_round_trip_through_all_forms_keeps_every_bit(kind, sources, tmp_path):
    chain = [sources(kind)]
    for i, form in enumerate(["huggingface", "local-dir", "safetensors", "open_clip"]):
        destination = tmp_path / f"{i}{NAME_OF_FORM[form]}"
        assert convert(chain[-1], destination, "--to", form) == 0
        chain.append([destination])  # which tells its model itself
    first, last = (read_weights(link[0]).state_dict for link in (chain[0], chain[-1]))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_an_openai_archive_needs_no_model_and_keeps_its_activation(peers, tmp_path, capsys):
    torch.jit.save(peer.scripted(peers["tiny-ViT-quickgelu"]), tmp_path / "openai.pt")
    assert convert([tmp_path / "openai.pt"], tmp_path / "b") == 0
    written = CLIPModel.from_pretrained(tmp_path / "b").eval()
    assert written.config.text_config.hidden_act == "quick_gelu"
    assert_same_features(written, peer.our_model("tiny-ViT-quickgelu", tmp_path / "openai.pt"))
    count = sum(p.numel() for p in peers["tiny-ViT-quickgelu"].parameters())
    assert capsys.readouterr().out == (
        f"{tmp_path}/openai.pt -> {tmp_path}/b (huggingface): {count:,} parameters, float32, "
        "QuickGELU\n"
    )


@pytest.mark.parametrize("form", NAME_OF_FORM)
def test_half_writes_float16_that_their_class_loads(form, sources, peers, tmp_path):
    destination = tmp_path / NAME_OF_FORM[form]
    assert convert(sources("tiny-ViT"), destination, "--to", form, "--half") == 0
    for name, tensor in read_weights(destination).state_dict.items():
        assert torch.equal(tensor, peers["tiny-ViT"].state_dict()[name].half())
    model = theirs(form, "tiny-ViT", destination)
    assert_same_features(model.float(), peer.our_model("tiny-ViT", destination))


def test_half_refuses_a_weight_that_float16_cannot_hold(peers, tmp_path, capsys):
    state = peers["tiny-ViT"].state_dict()
    state["ln_final.bias"] = torch.full_like(state["ln_final.bias"], 1e5)
    torch.save(state, tmp_path / "a.pt")
    assert "--half: ln_final.bias: expected" in failure(
        capsys, tmp_path / "a.pt", tmp_path / "b.pt", "--half"
    )


@pytest.mark.parametrize("form", ["huggingface", "local-dir"])
def test_another_image_size_and_context_length_are_open_clips(form, sources, tmp_path):
    source = sources("tiny-ViT")
    sizes = ["--image-size", "64", "--context-length", "20"]
    assert convert(source, tmp_path / "b", "--to", form, *sizes) == 0
    expected = peer.open_clip_model(
        "tiny-ViT", source[0], force_image_size=64, force_context_length=20
    )
    assert_same_features(theirs(form, "tiny-ViT", tmp_path / "b"), expected)


def test_the_processor_gives_open_clips_ids_and_the_models_pixels(sources, tmp_path):
    assert convert(sources("tiny-ViT"), tmp_path / "b", "--context-length", "77") == 0
    captions = ["a person riding a motorcycle", "Hello  world!!!", "l'été à 3€, it's ünï", ""]
    captions += ["5kg", "word " * 100]
    expected = clipfast.tokenize(captions)
    for tokenizer in (
        CLIPTokenizer.from_pretrained(tmp_path / "b"),
        CLIPProcessor.from_pretrained(tmp_path / "b").tokenizer,
    ):
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(ids["input_ids"] * ids["attention_mask"], expected)
    processor = CLIPProcessor.from_pretrained(tmp_path / "b").image_processor
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert tuple(processor.image_mean) == open_clip.OPENAI_DATASET_MEAN
    assert tuple(processor.image_std) == open_clip.OPENAI_DATASET_STD


def test_without_open_clip_the_tokenizer_is_left_out_and_that_is_said(
    sources, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tokenizer_files, "merges_file_if_installed", lambda: None)
    assert convert(sources("tiny-ViT"), tmp_path / "b") == 0
    assert "no tokenizer, which needs an installed open_clip_torch" in capsys.readouterr().out
    assert not (tmp_path / "b" / "vocab.json").exists()
    CLIPModel.from_pretrained(tmp_path / "b")


def test_what_is_written_may_be_read_by_those_whom_the_umask_lets(sources, tmp_path):
    before = os.umask(0o022)
    try:
        for name in NAME_OF_FORM.values():
            assert convert(sources("tiny-ViT"), tmp_path / name, "--force") == 0
    finally:
        os.umask(before)
    for file in [tmp_path / "b.pt", tmp_path / "b.safetensors", *(tmp_path / "b").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, file


def test_a_checkpoint_that_tells_no_activation_gives_files_that_tell_none(
    sources, tmp_path, capsys
):
    path, *_ = sources("tiny-RN-quickgelu")
    assert convert([path], tmp_path / "b.safetensors") == 0
    assert capsys.readouterr().out.endswith(", float32, activation unknown\n")
    assert read_weights(tmp_path / "b.safetensors").quick_gelu is None
    assert load_file(tmp_path / "b.safetensors").keys() == read_weights(path).state_dict.keys()


def test_force_replaces_the_files_of_the_form_and_no_others(sources, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    (tmp_path / "b" / "config.json").write_text("{")
    assert convert(sources("tiny-ViT"), tmp_path / "b", "--force") == 0
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "clip"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("kind", "flags", "sentence"),
    [
        ("tiny-ViT", ["b.onnx"], r"DESTINATION: expected a name that ends in \.pt, .*b\.onnx$"),
        ("tiny-ViT", ["no/b.pt"], "DESTINATION: expected an existing folder; got .*no$"),
        ("tiny-ViT", ["full"], "DESTINATION: .*full exists; expected a new name, or --force$"),
        ("tiny-ViT", ["full/a.pt"], r"DESTINATION: .*a\.pt exists; expected a new name, or"),
        ("tiny-ViT", ["full", "--to", "open_clip"], "open_clip: expected a file; got the folder"),
        ("tiny-ViT", ["full/a.pt", "--to", "local-dir"], "local-dir: expected a folder; got the"),
        (
            "tiny-ViT",
            ["b", "--image-size", "30"],
            "image_size: expected a multiple of .* got 30$",
        ),
        (
            "tiny-ViT",
            ["b", "--image-size", "-8"],
            "image_size: .* at least 1; got -8$",
        ),
        (
            "tiny-ViT",
            ["b", "--context-length", "1"],
            "context_length: .* at least 2; got 1$",
        ),
        ("tiny-RN", ["b"], "huggingface: expected a model with a ViT image tower; got a ResNet$"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    kind, flags, sentence, sources, tmp_path, capsys
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.pt").write_text("mine")
    source = sources(kind)
    before = sorted(tmp_path.rglob("*"))
    destination, *rest = flags
    assert convert(source, tmp_path / destination, *rest) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line), line
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "a.pt").read_text() == "mine"


def test_a_model_that_only_open_clip_knows_by_name_is_converted(peers, tmp_path):
    torch.save(peers["tiny-ViT"].state_dict(), tmp_path / "a.pt")
    assert convert([tmp_path / "a.pt"], tmp_path / "b", "--model", "tiny-ViT") == 0
    assert_same_features(theirs("huggingface", "tiny-ViT", tmp_path / "b"), peers["tiny-ViT"])


def test_a_text_tower_of_hugging_faces_goes_where_open_clip_loads_it(tmp_path):
    bert = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**bert, intermediate_size=96)).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_proj_type": "linear"}
    config = KINDS["tiny-ViT"] | {"text_cfg": text}
    (tmp_path / "bert.json").write_text(json.dumps(config))
    model = create_model(str(tmp_path / "bert.json")).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    (tmp_path / "bert" / "model.safetensors").unlink()  # a.pt has what was in it
    source = [tmp_path / "a.pt", "--model", str(tmp_path / "bert.json")]
    assert convert(source, tmp_path / "b", "--to", "local-dir") == 0
    written = open_clip.create_model(f"local-dir:{tmp_path / 'b'}").eval()
    ours = create_model(str(tmp_path / "b")).eval()
    ids = torch.randint(1, 900, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encode_text(ids)
        torch.testing.assert_close(written.encode_text(ids), expected)
        torch.testing.assert_close(ours.encode_text(ids), expected)


@pytest.mark.parametrize("form", ["local-dir", "huggingface"])
def test_clipfasts_own_tower_is_refused_by_the_forms_of_others(form, tmp_path, capsys):
    torch.save(create_model("digits-conv").state_dict(), tmp_path / "a.pt")
    flags = ["--model", "digits-conv", "--to", form]
    line = failure(capsys, tmp_path / "a.pt", tmp_path / "b", *flags)
    assert f"{form}: expected a model" in line
    assert not (tmp_path / "b").exists()


def test_a_form_that_records_the_activation_asks_for_it_rather_than_guess(
    sources, tmp_path, capsys
):
    path, *_ = sources("tiny-ViT")
    line = failure(capsys, path, tmp_path / "b")
    assert "--to huggingface: expected a known activation" in line
    assert "--model NAME" in line


def test_a_model_of_another_activation_than_the_source_tells_is_refused(
    sources, kinds_folder, tmp_path, capsys
):
    assert convert(sources("tiny-ViT-quickgelu"), tmp_path / "b") == 0
    other = kinds_folder / "tiny-ViT.json"
    line = failure(capsys, tmp_path / "b", tmp_path / "c", "--model", other)
    assert line.endswith(
        f"tiny-ViT.json: expected a model with QuickGELU, as {tmp_path}/b has it; got GELU"
    )


def test_weights_of_another_model_are_named_key_by_key(sources, kinds_folder, tmp_path, capsys):
    path, *_ = sources("tiny-RN")
    model = kinds_folder / "tiny-ViT.json"
    line = failure(capsys, path, tmp_path / "b.pt", "--model", model)
    assert f"checkpoint {path}: lacks visual.class_embedding, " in line
    assert "has what the model does not: visual.attnpool." in line


def test_weights_that_tell_no_model_ask_for_it(tmp_path, capsys):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    line = failure(capsys, tmp_path / "a.pt", tmp_path / "b.pt")
    assert "expected a CLIP with a ViT or ResNet image tower" in line
    assert line.endswith("; or --model NAME")
