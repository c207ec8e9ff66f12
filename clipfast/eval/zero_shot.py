"""Zero-shot classification: class names written as sentences are the classifier.

C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.models.clip import CLIP

_BATCH = 256


def zero_shot_classifier(model: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Column c = unit(mean over templates of unit(encode_text(template with name c))).

    Args:
        model: in eval mode.
        names: the classes' names.
        templates: sentences with ``{}`` where the name goes.

    Returns:
        (D, C) float, on the model's device; ``100 * unit image features @ it`` are the logits.

    Raises:
        ValueError: no class, no template, or a template without ``{}``.

    Source: Radford et al. 2021, arXiv 2103.00020, §3.1.4 (prompt ensembling).
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates: expected {{}} where the name goes; got {template!r}")
    return sentence_classifier(model, [[t.replace("{}", n) for t in templates] for n in names])


@torch.no_grad()
def sentence_classifier(model: CLIP, sentences: Sequence[Sequence[str]]) -> Tensor:
    """As `zero_shot_classifier`, of each class's own sentences.

    Args:
        model: in eval mode.
        sentences: per class, one or more.

    Returns:
        (D, C).

    Raises:
        ValueError: no class, or a class without a sentence.
    """
    if not sentences or not all(sentences):
        raise ValueError("classifier: expected at least one class and one sentence for each")
    device = model.logit_scale.device
    flat = [sentence for of_class in sentences for sentence in of_class]
    tokenize = tokenizer_for(model)
    features = []
    for start in range(0, len(flat), _BATCH):
        text = tokenize(flat[start : start + _BATCH])
        features.append(model.encode_text(text.to(device), normalize=True))
    by_class = torch.cat(features).split([len(of_class) for of_class in sentences])
    return F.normalize(torch.stack([f.mean(dim=0) for f in by_class]), dim=1).T
