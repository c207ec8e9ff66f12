"""Loading is strict, says every difference at once, and resizes as open_clip does."""

from types import SimpleNamespace

import open_clip
import pytest
import torch
import weight_peers as peer
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import nn
from weight_peers import KINDS, assert_same_features

from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.weights.checkpoint import save_checkpoint
from clipfast.weights.loading import load_checkpoint, load_weights
from clipfast.weights.resize import resize_grid, resize_sequence


def our_model(kind, vision=None, text=None):
    config = KINDS[kind]
    towers = {
        "vision_cfg": config["vision_cfg"] | (vision or {}),
        "text_cfg": config["text_cfg"] | (text or {}),
    }
    return build_model(parse_model_config(config | towers)).eval()


def test_missing_unexpected_and_misshapen_weights_are_all_named_in_one_sentence(peers):
    state = peers["tiny-ViT"].state_dict()
    del state["ln_final.bias"]
    state |= {"visual.extra": torch.ones(1), "visual.proj": torch.ones(3, 4)}
    with pytest.raises(UserError) as caught:
        load_weights(our_model("tiny-ViT"), state, "a.pt")
    assert str(caught.value) == (
        "checkpoint a.pt: lacks ln_final.bias; has what the model does not: visual.extra; "
        "visual.proj: expected shape (128, 48); got (3, 4)"
    )


def test_of_many_differing_names_three_are_shown(peers):
    with pytest.raises(UserError, match=r"lacks visual\.\S+, \S+, visual\.\S+ and \d+ more; has"):
        load_weights(our_model("tiny-ViT"), peers["tiny-RN"].state_dict(), "a.pt")


def test_a_model_stays_as_it_was_when_its_weights_do_not_fit(peers):
    state = peers["tiny-ViT"].state_dict()
    del state["ln_final.bias"]
    model = our_model("tiny-ViT")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, state, "a.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_with_its_text_tower_apart_takes_weights_in_either_form(peers):
    theirs = open_clip.create_model("tiny-ViT", force_custom_text=True).eval()
    state = peers["tiny-ViT"].state_dict()
    for form in (state, convert_to_custom_text_state_dict(state)):
        for tensor in theirs.state_dict().values():
            tensor.zero_()
        load_weights(theirs, form, "a.pt")
        assert_same_features(theirs, peers["tiny-ViT"])


def test_weights_are_cast_to_the_models_dtypes(peers):
    state = {name: tensor.half() for name, tensor in peers["tiny-ViT"].state_dict().items()}
    model = our_model("tiny-ViT")
    load_weights(model, state, "a.pt")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual.proj, state["visual.proj"].float())


def test_batch_norms_old_files_without_a_counter_load(peers):
    state = peers["tiny-RN"].state_dict()
    state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    model = our_model("tiny-RN")
    load_weights(model, state, "a.pt")
    assert_same_features(model, peers["tiny-RN"])


def test_a_checkpoint_comes_back_for_its_epoch_and_optimizer(peers, tmp_path):
    content = {"epoch": 3, "state_dict": peers["tiny-ViT"].state_dict(), "optimizer": {"a": 1}}
    save_checkpoint(tmp_path / "a.pt", content)
    loaded = load_checkpoint(our_model("tiny-ViT"), tmp_path / "a.pt")
    assert (loaded["epoch"], loaded["optimizer"]) == (3, {"a": 1})


@pytest.mark.parametrize("image_size", [8, 16, 40, 64])
def test_a_vits_positions_are_resized_to_open_clips_bits(image_size, peers, tmp_path):
    torch.save(peers["tiny-ViT"].state_dict(), tmp_path / "a.pt")
    theirs = peer.open_clip_model("tiny-ViT", str(tmp_path / "a.pt"), force_image_size=image_size)
    ours = our_model("tiny-ViT", vision={"image_size": image_size})
    load_checkpoint(ours, tmp_path / "a.pt")
    assert torch.equal(ours.visual.positional_embedding, theirs.visual.positional_embedding)
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("context_length", [5, 11, 13, 40])
def test_text_positions_are_resized_to_open_clips_bits(context_length, peers, tmp_path):
    torch.save(peers["tiny-ViT"].state_dict(), tmp_path / "a.pt")
    theirs = peer.open_clip_model(
        "tiny-ViT", str(tmp_path / "a.pt"), force_context_length=context_length
    )
    ours = our_model("tiny-ViT", text={"context_length": context_length})
    load_checkpoint(ours, tmp_path / "a.pt")
    assert torch.equal(ours.positional_embedding, theirs.positional_embedding)
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("image_size", [32, 96, 128])
def test_a_resnets_pooling_positions_are_resized_as_a_vits(image_size, peers):
    """open_clip does not resize them, so its function for ViTs is given them."""
    ours = our_model("tiny-RN", vision={"image_size": image_size})
    state = peers["tiny-RN"].state_dict()
    load_weights(ours, state, "a.pt")
    expected = {"visual.positional_embedding": state["visual.attnpool.positional_embedding"]}
    side = image_size // 32
    resize_pos_embed(expected, SimpleNamespace(visual=SimpleNamespace(grid_size=(side, side))))
    actual = ours.visual.attnpool.positional_embedding
    assert torch.equal(actual, expected["visual.positional_embedding"])


def test_the_same_size_and_the_class_token_keep_their_bits():
    positions = torch.randn(10, 4)
    assert torch.equal(resize_grid(positions, 17)[0], positions[0])
    torch.testing.assert_close(resize_grid(positions, 10), positions)
    torch.testing.assert_close(resize_sequence(positions, 10), positions)


def test_resizing_is_logged(peers, caplog):
    model = our_model("tiny-ViT", vision={"image_size": 64}, text={"context_length": 20})
    with caplog.at_level("INFO", "clipfast.weights"):
        load_weights(model, peers["tiny-ViT"].state_dict(), "a.pt")
    assert [record.getMessage() for record in caplog.records] == [
        "positional_embedding resized from 12 to 20 positions",
        "visual.positional_embedding resized from 17 to 65 positions",
    ]


def test_positions_that_may_not_or_cannot_be_resized_are_told_by_their_shapes(peers):
    state = peers["tiny-ViT"].state_dict()
    message = r"visual\.positional_embedding: expected shape \(65, 128\); got \({}, 128\)"
    model = our_model("tiny-ViT", vision={"image_size": 64})
    with pytest.raises(UserError, match=message.format(17)):
        load_weights(model, state, "a.pt", resize=False)
    for length in (1, 16):
        odd = {"visual.positional_embedding": torch.ones(length, 128)}
        with pytest.raises(UserError, match=message.format(length)):
            load_weights(model, state | odd, "a.pt")


def test_lengths_that_are_no_grid_are_refused():
    for old, new in ((16, 10), (10, 16), (1, 10), (10, 1)):
        with pytest.raises(ValueError, match=f"one more than a square; got {old} to {new}"):
            resize_grid(torch.ones(old, 4), new)


def test_other_modules_load_too():
    model, state = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    load_weights(model, state, "a.pt")
    assert torch.equal(model.weight, state["weight"])
