"""A Hugging Face encoder as text tower: open_clip's outputs and gradients, without the padding."""

import logging

import pytest
import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from torch import nn

from clipfast.errors import UserError
from clipfast.models import hf_packed, hf_text
from clipfast.models.config import HFTextConfig, parse_model_config
from clipfast.models.hf_text import HFTextTower
from clipfast.packed_text import PackedText, pack_ids, pad_packed

WIDTH, EMBED_DIM, CONTEXT = 32, 24, 20
SMALL = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OTHER_NAMES = {
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "dropout": 0.0}
    | {"attention_dropout": 0.0},
    "electra": {"embedding_size": 16},
    "eurobert": {"num_key_value_heads": 2, "attention_dropout": 0.0, "pad_token_id": 0},
    "gte": {"pad_token_id": 0},
    "nomic_bert": {"pad_token_id": 0},
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    | {"dropout_rate": 0.0},
    "mt5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    | {"dropout_rate": 0.0, "pad_token_id": 0},
}
# The oldest transformers has not all of them.
PACKED = sorted(
    (hf_packed._FROM_ZERO | hf_packed._AFTER_PAD_ID).intersection(transformers.CONFIG_MAPPING)
)
PADDED = ["albert", "mpnet", "t5", "mt5", "deberta-v2"]
LENGTHS = [7, 1, CONTEXT, 2, 13]
POOLERS = ["mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler", "eos_pooler"]


@pytest.fixture
def folder(tmp_path):
    """Makes folders with tiny random encoders."""

    def make(kind, **fields) -> str:
        hf_config = transformers.AutoConfig.for_model(
            kind, **(SMALL | OTHER_NAMES.get(kind, {}) | fields)
        )
        path = tmp_path / kind
        model = transformers.AutoModel.from_config(hf_config)
        for parameter in model.parameters():  # biases and LayerNorms too: fresh ones hide mistakes
            nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(path)
        return str(path)

    return make


def tower_of(folder, pooler="mean_pooler", proj="mlp", **fields) -> HFTextTower:
    config = HFTextConfig(
        folder, hf_pooler_type=pooler, hf_proj_type=proj, context_length=CONTEXT, **fields
    )
    return HFTextTower(config, EMBED_DIM)


def captions(tower) -> PackedText:
    """Random ones, whose tokens are not the pad token."""
    pad = tower.transformer.config.pad_token_id
    ids = [torch.randint(4, 60, (length,)).tolist() for length in LENGTHS]
    assert pad < 4
    return pack_ids(ids)


def padded_for(tower, text, length=CONTEXT) -> torch.Tensor:
    return pad_packed(text, length, tower.transformer.config.pad_token_id)


def original(tower, ids) -> torch.Tensor:
    """The same weights through transformers' own attention, padded, pooled by the formulas."""
    encoder = tower.transformer
    ours = encoder.config._attn_implementation
    mask = (ids != encoder.config.pad_token_id).long()
    encoder.config._attn_implementation = "eager"
    out = encoder(input_ids=ids, attention_mask=mask)
    encoder.config._attn_implementation = ours
    hidden, last = out.last_hidden_state, mask.sum(1) - 1
    own = getattr(out, "pooler_output", None)
    pooled = {
        "mean_pooler": lambda: (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
        "max_pooler": lambda: hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1),
        "cls_pooler": lambda: hidden[:, 0] if own is None else own,
        "cls_last_hidden_state_pooler": lambda: hidden[:, 0],
        "eos_pooler": lambda: hidden[torch.arange(len(ids)), last],
    }[tower.pooler_type]()
    return tower.proj(pooled)


def assert_same_with_gradients(module, actual, reference, expected) -> None:
    """Of all parameters, by name; those without a gradient have none on both sides."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    d_out = torch.randn_like(expected)
    module.zero_grad()
    actual.backward(d_out)
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    reference.zero_grad()
    expected.backward(d_out)
    wanted = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", PACKED)
def test_each_packed_encoder_equals_its_padded_original(folder, kind):
    tower = tower_of(folder(kind))
    assert tower.padded_because is None
    text = captions(tower)
    expected = original(tower, padded_for(tower, text))
    assert_same_with_gradients(tower, tower(text), tower, expected)
    torch.testing.assert_close(tower(padded_for(tower, text)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PADDED)
def test_other_encoders_are_padded_and_say_why(folder, kind, caplog):
    with caplog.at_level(logging.INFO, "clipfast"):
        tower = tower_of(folder(kind, max_position_embeddings=40))
    assert kind in tower.padded_because
    assert [record.message for record in caplog.records if tower.padded_because in record.message]
    text = captions(tower)
    expected = original(tower, padded_for(tower, text))
    assert_same_with_gradients(tower, tower(text), tower, expected)
    torch.testing.assert_close(tower(padded_for(tower, text)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "distilbert", "mpnet"])
def test_poolers_take_real_tokens(folder, kind, pooler):
    tower = tower_of(folder(kind), pooler)
    text = captions(tower)
    torch.testing.assert_close(
        tower(text), original(tower, padded_for(tower, text)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("proj", ["linear", "mlp"])
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "mt5"])
def test_weights_outputs_and_gradients_are_open_clips(folder, kind, pooler, proj):
    path = folder(kind)
    ours = tower_of(path, pooler, proj).train()
    theirs = HFTextEncoder(path, EMBED_DIM, pooler_type=pooler, proj_type=proj).train()
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    text = captions(ours)
    ids = padded_for(ours, text)
    assert_same_with_gradients(ours, ours(text), theirs, theirs(ids))
    for mode in (True, False):
        torch.testing.assert_close(
            ours.train(mode)(ids), theirs.train(mode)(ids), rtol=1e-4, atol=1e-5
        )


def test_pad_tokens_before_others_take_a_place_as_in_open_clip(folder):
    for kind in ("bert", "roberta"):
        path = folder(kind)
        ours = tower_of(path, proj="linear").eval()
        theirs = HFTextEncoder(path, EMBED_DIM, pooler_type="mean_pooler", proj_type="linear")
        theirs.eval().load_state_dict(ours.state_dict())
        ids = padded_for(ours, captions(ours)).roll(3, dims=1)
        torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_no_linear_layer_and_no_attention_computes_a_pad_token(folder, monkeypatch, padded):
    tower = tower_of(folder("bert"))
    text = captions(tower)
    rows, attended = set(), set()
    linear, attention = nn.Linear.forward, hf_packed.attention

    def counting_linear(self, x):
        rows.add(x.shape[:-1].numel())
        return linear(self, x)

    def counting_attention(q, k, v, *args, **options):
        attended.update((len(q), len(k), len(v)))
        return attention(q, k, v, *args, **options)

    monkeypatch.setattr(nn.Linear, "forward", counting_linear)
    monkeypatch.setattr(hf_packed, "attention", counting_attention)
    tower(padded_for(tower, text) if padded else text)
    assert attended == {sum(LENGTHS)}
    assert rows == {sum(LENGTHS), len(LENGTHS)}  # all tokens; then the pooled ones


def test_hooks_see_padded_blocks_and_the_same_result(folder):
    tower = tower_of(folder("roberta")).eval()
    text = captions(tower)
    expected = tower(text)
    seen = []
    handle = tower.transformer.encoder.layer[0].register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape)
    )
    torch.testing.assert_close(tower(text), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower(padded_for(tower, text)), expected, rtol=1e-4, atol=1e-5)
    assert seen == [(len(LENGTHS), CONTEXT, WIDTH)] * 2
    handle.remove()
    tower(text)
    assert len(seen) == 2


def test_attention_stays_within_each_caption():
    text = pack_ids([[5] * length for length in LENGTHS])
    q, k, v = torch.randn(3, 1, 4, sum(LENGTHS), 8, dtype=torch.float64)
    out, _ = hf_packed.packed_attention(
        nn.Identity(), q, k, v, None, scaling=0.3, cu_seqlens=text.cu_seqlens, max_seqlen=CONTEXT
    )
    parts = [x.split(LENGTHS, dim=2) for x in (q, k, v)]
    expected = [(0.3 * a @ b.mT).softmax(-1) @ c for a, b, c in zip(*parts, strict=True)]
    torch.testing.assert_close(out, torch.cat(expected, 2).transpose(1, 2))


def test_attention_dropout_is_at_work_and_keeps_the_mean(folder):
    tower = tower_of(folder("bert", attention_probs_dropout_prob=0.2)).train()
    text = captions(tower)
    assert not torch.equal(tower(text), tower(text))
    q, k, v = torch.randn(3, 1, 4, sum(LENGTHS), 8, dtype=torch.float64)
    bounds = {"scaling": 0.3, "cu_seqlens": text.cu_seqlens, "max_seqlen": CONTEXT}

    def attend(dropout):
        return hf_packed.packed_attention(tower, q, k, v, None, dropout=dropout, **bounds)[0]

    torch.testing.assert_close(attend(1e-12), attend(0.0))
    draws = torch.stack([attend(0.2) for _ in range(3000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - attend(0.0)).abs() < 6 * error + 1e-9).all()
    alone = LENGTHS.index(1)  # a token that sees itself alone is dropped whole
    dropped = (draws[:, 0, text.cu_seqlens[alone]] == 0).double().mean()
    assert 0.18 < dropped < 0.22


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_recomputing_layers_changes_no_gradient(folder, kind):
    tower = tower_of(folder(kind)).train()
    text = captions(tower)
    expected = tower(text)
    tower.set_grad_checkpointing()
    assert_same_with_gradients(tower, tower(text), tower, expected)
    tower.set_grad_checkpointing(False)


@pytest.mark.parametrize("freeze_layer_norm", [True, False])
@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_locking_freezes_what_open_clip_freezes(folder, kind, unlocked, freeze_layer_norm):
    path = folder(kind)
    ours = tower_of(path)
    theirs = HFTextEncoder(path, EMBED_DIM, pooler_type="mean_pooler", proj_type="mlp")
    for tower in (ours, theirs):
        tower.lock(unlocked, freeze_layer_norm)
    expected = {n: p.requires_grad for n, p in theirs.named_parameters()}
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == expected
    assert all(p.requires_grad for p in ours.proj.parameters())


@pytest.mark.parametrize("kind", PACKED + PADDED)
def test_every_encoder_can_be_locked_but_for_its_last_layer(folder, kind):
    tower = tower_of(folder(kind))
    tower.lock(1)
    *frozen, last = tower._embeddings(), *tower._layers()
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert all(p.requires_grad for p in last.parameters())


def test_without_pretrained_weights_only_the_configuration_is_read(folder, tmp_path):
    path = folder("bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    tower = tower_of(path, hf_model_pretrained=False)
    assert tower(captions(tower)).shape == (len(LENGTHS), EMBED_DIM)
    with pytest.raises(UserError, match="AutoModel"):
        tower_of(path)


def test_the_mean_is_not_summed_in_half_precision():
    hidden = (torch.randn(600, 8) + 3).bfloat16()
    bounds = torch.tensor([0, 500, 600], dtype=torch.int32)
    mean = hf_text._Tokens(hidden, bounds).reduced("mean")
    expected = torch.stack([part.float().mean(0) for part in hidden.split([500, 100])])
    torch.testing.assert_close(mean.float(), expected, rtol=2**-8, atol=0)  # one rounding


def test_a_packed_tower_compiles_whole(folder):
    """Nothing of it waits for a number, which on a GPU would stall every layer."""
    tower = tower_of(folder("bert"))
    text, other = captions(tower), pack_ids([[5, 6, 7], [8]])
    torch.compiler.reset()
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    for captions_ in (text, other):
        torch.testing.assert_close(compiled(captions_), tower(captions_), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_half_precisions_compute(folder, precision):
    from clipfast.models.precision import convert_weights

    tower = tower_of(folder("bert")).eval()
    text = captions(tower)
    expected = tower(text)
    actual = convert_weights(tower, precision)(text)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_projection_is_none(folder, empty):
    text = {"hf_model_name": folder("bert"), "hf_proj_type": empty, "context_length": CONTEXT}
    vision = {"tower": "conv", "image_size": 32, "channels": [16]}
    config = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    tower = HFTextTower(parse_model_config(config).text, WIDTH)
    assert isinstance(tower.proj, nn.Identity)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pooler": "last"}, "hf_pooler_type: expected one of mean_pooler.*; got 'last'"),
        ({"proj": "conv"}, "hf_proj_type: expected linear, mlp or null; got 'conv'"),
        ({"proj": None}, "width 32 is not embed_dim, 24"),
    ],
)
def test_fields_that_do_not_go_with_the_encoder_are_refused(folder, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        tower_of(folder("bert"), **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("vit", {"image_size": 16, "patch_size": 8}, "of text, with pad_token_id; .* type vit"),
        (
            "speech_to_text",
            {"pad_token_id": 1, "d_model": WIDTH, "encoder_attention_heads": 4}
            | {"decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 1},
            "an encoder of input_ids; got one of input_features",
        ),
    ],
)
def test_encoders_of_something_else_are_refused(folder, kind, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        tower_of(folder(kind, **fields))


def test_a_context_beyond_the_encoders_positions_is_refused(folder):
    path = folder("roberta", max_position_embeddings=CONTEXT + 1)
    with pytest.raises(UserError, match=f"at most the encoder's {CONTEXT - 1} positions; got 20"):
        tower_of(path)


def test_weights_that_are_missing_are_named(folder, caplog):
    path = folder("bert")
    transformers.BertModel.from_pretrained(path, add_pooling_layer=False).save_pretrained(path)
    tower_of(path, "cls_pooler")
    assert "pooler.dense.bias, pooler.dense.weight" in caplog.text


def test_a_model_that_is_nowhere_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="text model .*nowhere: expected a folder"):
        tower_of(str(tmp_path / "nowhere"))
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="text model .*void: expected a folder"):
        tower_of(str(tmp_path / "void"))


def test_without_transformers_the_sentence_names_the_extra(monkeypatch):
    from clipfast.models import hf_loading

    monkeypatch.setattr(hf_loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clipfast\[hf\]'"):
        tower_of("anything")


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    import json

    path = tmp_path / "bert"
    folder("bert")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    about = json.loads((path / "config.json").read_text())
    about["auto_map"] = {"AutoConfig": "evil.C", "AutoModel": "evil.C"}
    (path / "config.json").write_text(json.dumps(about))
    tower_of(str(path))
    about["model_type"] = "evil"
    (path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="text model"):
        tower_of(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path):
    path = tmp_path / "bert"
    folder("bert")
    (path / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"x": Evil()}, path / "pytorch_model.bin")
    with pytest.raises(UserError, match="text model"):
        tower_of(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_text_of_another_shape_is_refused(folder, kind):
    tower = tower_of(folder(kind))
    for text in (torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="text: expected"):
            tower(text)
    with pytest.raises(ValueError, match=f"1 to {CONTEXT} tokens; got 21 to 21"):
        tower(pack_ids([[5] * 21]))
