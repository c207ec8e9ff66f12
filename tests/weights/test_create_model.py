"""`create_model` takes the activation, and from a folder the whole model, that the weights tell."""

import pytest
import torch
import weight_peers as peer
from open_clip.openai import load_openai_model
from weight_peers import KINDS, QUICK_GELU, VITS, assert_same_features

from clipfast.cli import main
from clipfast.errors import UserError
from clipfast.models.factory import create_model

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")

TELLING = {  # forms that tell the activation
    "open_clip": "b.pt",
    "safetensors": "b.safetensors",
    "local-dir": "b",
    "huggingface": "b",
}


@pytest.fixture
def written(peers, kinds_folder, tmp_path):
    """Writes a kind's weights in a form that tells their activation."""

    def write(kind, form):
        source, destination = tmp_path / "a.pt", tmp_path / TELLING[form]
        torch.save(peers[kind].state_dict(), source)
        model = ["--model", str(kinds_folder / f"{kind}.json")]
        assert main(["convert", str(source), str(destination), "--to", form, *model]) == 0
        return destination

    return write


def with_the_other_activation(kind):
    return kind.removesuffix("-quickgelu") if "quickgelu" in kind else f"{kind}-quickgelu"


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("form", TELLING)
def test_a_model_takes_the_activation_that_its_weights_tell(
    kind, form, written, peers, kinds_folder
):
    name = str(kinds_folder / f"{with_the_other_activation(kind)}.json")
    assert_same_features(create_model(name, written(kind, form)).eval(), peers[kind])


@pytest.mark.parametrize("kind", QUICK_GELU)
def test_openais_archive_makes_a_model_without_quickgelu_in_its_name_take_it(
    kind, peers, kinds_folder, tmp_path
):
    path = tmp_path / "openai.pt"
    torch.jit.save(peer.scripted(peers[kind]), path)
    model = create_model(str(kinds_folder / f"{with_the_other_activation(kind)}.json"), path)
    assert_same_features(model.eval(), load_openai_model(str(path), "fp32", "cpu"))


@pytest.mark.parametrize("kind", VITS)
def test_weights_that_tell_no_activation_leave_the_models_own(kind, peers, kinds_folder, tmp_path):
    torch.save(peers[kind].state_dict(), tmp_path / "a.pt")
    model = create_model(str(kinds_folder / f"{kind}.json"), tmp_path / "a.pt")
    assert_same_features(model.eval(), peers[kind])


@pytest.mark.parametrize(
    ("kind", "form"),
    [(k, f) for k in KINDS for f in ("local-dir", "huggingface") if f == "local-dir" or k in VITS],
)
def test_a_folder_by_its_name_alone_is_the_model_it_holds(kind, form, written, peers):
    folder = str(written(kind, form))
    for name in (folder, f"local-dir:{folder}"):
        assert_same_features(create_model(name).eval(), peers[kind])


def test_a_folder_for_another_image_size_is_resized_as_open_clips(written):
    folder = written("tiny-ViT", "local-dir")
    theirs = peer.open_clip_model(f"local-dir:{folder}", force_image_size=64)
    assert_same_features(create_model(str(folder), force_image_size=64).eval(), theirs)


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="expected a folder with open_clip_config.json and one of"):
        create_model(str(tmp_path))
