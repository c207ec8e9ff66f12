"""The zero-shot classifier: ensembling as published, equal to open_clip's."""

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_others import make_open_clip
from ranks import run_ranks

from clipfast import accelerate, create_model, tokenize, zero_shot_classifier
from clipfast.eval import zero_shot
from clipfast.eval.zero_shot import sentence_classifier
from clipfast.ranks.world import World

NAMES = ["cat", "dog", "old bicycle"]
TEMPLATES = ["a photo of a {}.", "{} in the snow", "the {}"]


@pytest.fixture
def few_at_once(monkeypatch):
    """Runs of some classes, as there are of many classes."""
    monkeypatch.setattr(zero_shot, "_SENTENCES", 7)


def test_columns_are_unit_means_of_unit_features(tiny_model):
    model = create_model(tiny_model).eval()
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    assert classifier.shape == (32, 3)
    for column, name in enumerate(NAMES):
        sentences = [t.format(name) for t in TEMPLATES]
        features = F.normalize(model.encode_text(tokenize(sentences, 32)), dim=1)
        expected = F.normalize(features.mean(dim=0), dim=0)
        torch.testing.assert_close(classifier[:, column], expected, rtol=1e-4, atol=1e-5)


def test_it_equals_open_clips_builder():
    theirs = open_clip.create_model("ViT-B-32").eval()
    ours = create_model("ViT-B-32").eval()
    ours.load_state_dict(theirs.state_dict())
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    templates = [t.format for t in TEMPLATES]
    expected = open_clip.build_zero_shot_classifier(theirs, tokenizer, NAMES, templates)
    for model in (ours, accelerate(theirs, verbose=False)):
        actual = zero_shot_classifier(model, NAMES, TEMPLATES)
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", ["vit", "custom text", "both ways", "class token"])
def test_with_imagenets_names_and_templates_it_is_open_clips(kind, few_at_once):
    model = make_open_clip(kind).double().eval()
    names, templates = open_clip.IMAGENET_CLASSNAMES[:5], open_clip.OPENAI_IMAGENET_TEMPLATES[::9]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    accelerate(model, verbose=False)
    actual = zero_shot_classifier(model, names, [template("{}") for template in templates])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_classes_with_sentences_of_their_own_number_stay_apart(tiny_model, few_at_once):
    model = create_model(tiny_model).double().eval()
    sentences = [["a cat"], [f"dog {i}" for i in range(9)], ["old bicycle", "a bike"], ["a cat"]]
    actual = sentence_classifier(model, sentences)
    for column, of_class in enumerate(sentences):
        expected = F.normalize(model.encode_text(tokenize(of_class, 32)), dim=1).mean(0)
        expected = F.normalize(expected, dim=0)
        torch.testing.assert_close(actual[:, column], expected, rtol=0, atol=1e-12)


def on_a_rank(config, names):
    """With its progress; made in runs of two classes."""
    zero_shot._SENTENCES = 7
    torch.manual_seed(0)
    everyone = dist.group.WORLD
    world = World(dist.get_rank(), dist.get_world_size(), group=everyone, control=everyone)
    model, done = create_model(config).eval(), []
    classifier = zero_shot_classifier(model, names, TEMPLATES, world=world, progress=done.append)
    return classifier, sum(done)


def test_every_rank_has_the_bits_of_one_process_even_without_a_class_of_its_own(
    tiny_model, few_at_once
):
    names = ["cat", "dog"]  # one run for two ranks
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have: sums over threads round otherwise
    torch.manual_seed(0)
    expected = zero_shot_classifier(create_model(tiny_model).eval(), names, TEMPLATES)
    torch.set_num_threads(before)
    results = run_ranks(2, on_a_rank, tiny_model, names)
    assert all(torch.equal(classifier, expected) for classifier, _ in results)
    assert sum(done for _, done in results) == len(names)


@pytest.mark.parametrize(
    ("names", "templates", "sentence"),
    [
        ([], TEMPLATES, "at least one class"),
        (NAMES, [], "at least one class and one sentence"),
        (NAMES, ["a photo"], r"expected \{\} where the name goes; got 'a photo'"),
    ],
)
def test_missing_classes_templates_or_placeholders_are_named(
    tiny_model, names, templates, sentence
):
    with pytest.raises(ValueError, match=sentence):
        zero_shot_classifier(create_model(tiny_model), names, templates)
