"""The zero-shot classifier: ensembling as published, equal to open_clip's."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clipfast import create_model, tokenize, zero_shot_classifier

NAMES = ["cat", "dog", "old bicycle"]
TEMPLATES = ["a photo of a {}.", "{} in the snow", "the {}"]


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
    expected = open_clip.build_zero_shot_classifier(
        theirs, open_clip.get_tokenizer("ViT-B-32"), NAMES, [t.format for t in TEMPLATES]
    )
    actual = zero_shot_classifier(ours, NAMES, TEMPLATES)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


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
