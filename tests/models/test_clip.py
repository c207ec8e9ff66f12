"""Our models' own promises: packing and the one-token last block change nothing, names are checked,
and weights go out and come back."""

import pytest
import torch
import torch.nn.functional as F
from clipfast_kernels import contrastive_loss

from clipfast import PackedText, create_model, load_checkpoint, save_checkpoint, tokenize
from clipfast.errors import UserError
from clipfast.models.config import model_names, read_model_config
from clipfast.models.layouts import BatchedTokens, PackedTokens
from clipfast.models.transformer import Transformer

CAPTIONS = ["a cat", "", "a much longer caption about two dogs in the snow", "sun " * 100]


@pytest.fixture
def model(tiny_model):
    return create_model(tiny_model).eval()


def cu_seqlens(*lengths):
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def test_packed_and_padded_text_give_the_same_features_and_gradients(model):
    gradients = []
    for text in (tokenize(CAPTIONS, 32), tokenize(CAPTIONS, 32, packed=True)):
        model.zero_grad()
        features = model.encode_text(text)
        features.square().sum().backward()
        gradients.append(
            [p.grad.clone() for n, p in model.named_parameters() if p.grad is not None]
        )
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_a_caption_is_encoded_the_same_alone_and_among_longer_ones(model):
    together = model.encode_text(tokenize(CAPTIONS, 32, packed=True))
    for row, caption in enumerate(CAPTIONS):
        alone = model.encode_text(tokenize([caption], 32, packed=True))[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_repeated_steps_give_the_same_gradient_bits(all_threads):
    """Indexing a parameter, whose gradient torch adds up in any order of the threads, does not."""
    model = create_model("digits-conv").train()
    images = torch.randn(128, 3, 32, 32)
    text = tokenize([f"a {c} handwritten seven" for c in ("red", "dark blue")] * 64, packed=True)
    runs = []
    for _ in range(6):
        model.zero_grad()
        features = model.encode_image(images), model.encode_text(text)
        contrastive_loss(*features, model.logit_scale.exp()).backward()
        runs.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, first in runs[0].items():
        assert all(torch.equal(run[name], first) for run in runs), name


def test_the_one_token_last_block_equals_the_whole_block():
    transformer = Transformer(width=32, layers=3, heads=4)
    images = torch.randn(5, 17, 32)
    layout = BatchedTokens(heads=4)
    whole = images
    for block in transformer.blocks():
        whole = block(whole, layout)
    torch.testing.assert_close(transformer(images, layout), whole[:, 0], rtol=1e-4, atol=1e-5)

    layout = PackedTokens.of(cu_seqlens(3, 1, 7), 11, heads=4, max_length=7)
    tokens = torch.randn(11, 32)
    whole = tokens
    for block in transformer.blocks():
        whole = block(whole, layout)
    last = whole[torch.tensor([2, 3, 10])]
    torch.testing.assert_close(transformer(tokens, layout), last, rtol=1e-4, atol=1e-5)


def test_packed_positions_start_anew_in_every_caption():
    layout = PackedTokens.of(cu_seqlens(3, 1, 2), 6, heads=1, max_length=3)
    assert layout.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.last.tolist() == [2, 3, 5]


def test_later_tokens_cannot_change_earlier_ones():
    layout = PackedTokens.of(cu_seqlens(6, 4), 10, heads=2, max_length=6)
    qkv = torch.randn(10, 3 * 8)
    before = layout.attend(qkv)
    qkv[4] += 1
    changed = (layout.attend(qkv) != before).any(dim=1)
    assert changed.tolist() == [False] * 4 + [True] * 2 + [False] * 4


def test_the_tuple_and_the_dict_hold_unit_features_and_the_multiplier(tiny_model):
    images, text = torch.randn(4, 3, 32, 32), tokenize(CAPTIONS, 32)
    for output_dict in (False, True):
        out = create_model(tiny_model, output_dict=output_dict)(images, text)
        image, caption, scale = out.values() if output_dict else out
        for features in (image, caption):
            torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
        assert scale.item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(
    ("images", "text", "sentence"),
    [
        (torch.ones(2, 3, 30, 32), None, r"image: expected shape \(B, 3, 32, 32\); got"),
        (torch.ones(3, 32, 32), None, "image: expected shape"),
        (None, torch.ones(2, 32), "text: expected PackedText or integer ids"),
        (None, tokenize(["a b c d e f"] * 2, 77)[:, :1].repeat(1, 40).cumsum(1), "1 to 32 tokens"),
        (None, PackedText(torch.tensor([1]), cu_seqlens(0, 1)), "got 0 to 1"),
    ],
)
def test_wrong_shapes_are_named(model, images, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(images, text)


@pytest.mark.parametrize("name", model_names())
def test_every_built_in_configuration_is_readable(name):
    assert read_model_config(name).embed_dim > 0


@pytest.mark.parametrize(("name", "parameters"), [("ViT-B-32", 151_277_313), ("RN50", 102_007_137)])
def test_parameter_counts_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(UserError, match=r"one of RN101, RN50, .*ViT-B-32.*; got 'ViT-B-33'"):
        create_model("ViT-B-33")


def test_weights_come_back_bit_for_bit(model, tiny_model, tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"epoch": 3, "state_dict": model.state_dict()})
    other = create_model(tiny_model)
    assert load_checkpoint(other, tmp_path / "a.pt")["epoch"] == 3
    for (name, a), (_, b) in zip(
        model.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_initial_weights_have_the_published_spread():
    with torch.no_grad():
        model = create_model("ViT-B-32")
    width, layers = 512, 12
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert model.positional_embedding.std().item() == pytest.approx(0.01, rel=0.05)
    block = model.transformer.blocks()[3]
    assert block.attn.in_proj_weight.std().item() == pytest.approx(width**-0.5, rel=0.02)
    expected = width**-0.5 * (2 * layers) ** -0.5
    assert block.attn.out_proj.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert block.mlp.c_fc.weight.std().item() == pytest.approx((2 * width) ** -0.5, rel=0.02)
