"""Models that only open_clip has: its own classes, its numbers, our kernels."""

import json

import open_clip
import pytest
import torch

from clipfast import create_model, tokenize
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.errors import UserError
from clipfast.models.clip import TwoTowers
from clipfast.models.factory import image_size

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TIMM = {"timm_model_name": "convnext_atto", "timm_proj": "linear", "image_size": 32}
FOREIGN = {
    "ConvNeXt": {"vision_cfg": TIMM, "text_cfg": TEXT},
    "SigLIP's text": {
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "average pool": {"vision_cfg": VIT | {"pool_type": "avg"}, "text_cfg": TEXT},
}


@pytest.fixture(params=FOREIGN)
def path(request, tmp_path):
    file = tmp_path / f"{request.param.replace(' ', '-')}.json"
    file.write_text(json.dumps({"embed_dim": 32} | FOREIGN[request.param]))
    return file


def test_features_are_open_clips(path):
    model = create_model(str(path)).eval()
    assert type(model).__module__ == "open_clip.model"
    assert image_size(model) == 32
    open_clip.add_model_config(path)
    theirs = open_clip.create_model(path.stem).eval()
    theirs.load_state_dict(model.state_dict())
    images, text = torch.randn(2, 3, 32, 32), tokenize(["a dog", "two cats in the sun"])
    with torch.no_grad():
        for ours, expected in zip(model(images, text), theirs(images, text), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_captions_are_tokenized_as_the_model_wants_them(path):
    model = create_model(str(path)).eval()
    text = tokenizer_for(model)(["a dog", "two cats in the sun"])
    assert model.encode_text(text).shape == (2, 32)


def test_weights_of_open_clips_checkpoints_load(path, tmp_path):
    model = create_model(str(path))
    torch.save({"epoch": 1, "name": "x", "state_dict": model.state_dict()}, tmp_path / "a.pt")
    again = create_model(str(path), tmp_path / "a.pt")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_names_that_only_open_clip_has_are_ours_where_our_classes_serve():
    with torch.device("meta"):
        model = create_model("ViT-S-32-alt")
    assert isinstance(model, TwoTowers)


def test_an_unbuildable_model_is_one_sentence(tmp_path):
    file = tmp_path / "wrong.json"
    raw = {"embed_dim": 32, "vision_cfg": TIMM | {"timm_model_name": "nonsense"}, "text_cfg": TEXT}
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="open_clip cannot build it: .*nonsense"):
        create_model(str(file))


def test_a_tokenizers_own_options_are_kept(tmp_path):
    options = {"tokenizer_kwargs": {"clean": "canonicalize"}}
    file = tmp_path / "canonical.json"
    file.write_text(json.dumps({"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT | options}))
    captions = ["A dog, it's sleeping!"]
    ids = tokenizer_for(create_model(str(file)))(captions)
    assert torch.equal(ids, open_clip.get_tokenizer("canonical")(captions))
    assert not torch.equal(ids, tokenize(captions))
