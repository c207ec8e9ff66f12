"""Zero-shot classification: class names written as sentences are the classifier.

C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast.eval.sentences import encode_sentences
from clipfast.ranks.agreement import all_rows
from clipfast.ranks.world import World

# Of the classes that are encoded together: more share more of their words, and hold more features.
_SENTENCES = 8192


def zero_shot_classifier(
    model: Any,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    world: World | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Column c = unit(mean over templates of unit(encode_text(template with name c))).

    Args:
        model: in eval mode; ours or open_clip's.
        names: the classes' names.
        templates: sentences with ``{}`` where the name goes.
        world, progress: as `sentence_classifier`.

    Returns:
        (D, C) float, on the model's device; ``100 * unit image features @ it`` are the logits.

    Raises:
        ValueError: no class, no template, or a template without ``{}``.

    Source: Radford et al. 2021, arXiv 2103.00020, §3.1.4 (prompt ensembling).
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"templates: expected {{}} where the name goes; got {template!r}")
    sentences = [[t.replace("{}", n) for t in templates] for n in names]
    return sentence_classifier(model, sentences, world=world, progress=progress)


@torch.no_grad()
def sentence_classifier(
    model: Any,
    sentences: Sequence[Sequence[str]],
    *,
    world: World | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """As `zero_shot_classifier`, of each class's own sentences.

    Args:
        model: in eval mode.
        sentences: per class, one or more.
        world: whose ranks share the classes; None is this process alone. Collective.
        progress: told of how many classes are done, each time some are, on this rank.

    Returns:
        (D, C), the same on every rank whatever their number.

    Raises:
        ValueError: no class, or a class without a sentence.

    Memory: the features of 8,192 sentences, or of one class's if it has more.
    """
    if not sentences or not all(sentences):
        raise ValueError("classifier: expected at least one class and one sentence for each")
    world = world or World()
    runs = list(_runs([len(of_class) for of_class in sentences]))
    first, after = (len(runs) * rank // world.size for rank in (world.rank, world.rank + 1))
    rows = []
    for run in runs[first:after]:
        rows.append(_rows(model, sentences[run]))
        if progress is not None:
            progress(len(rows[-1]))
    return all_rows(world, rows).T


def _rows(model: Any, sentences: Sequence[Sequence[str]]) -> Tensor:
    """(C, D) of these classes."""
    features = encode_sentences(model, [s for of_class in sentences for s in of_class])
    by_class = features.split([len(of_class) for of_class in sentences])
    return F.normalize(torch.stack([f.mean(dim=0) for f in by_class]), dim=1)


def _runs(counts: Sequence[int]) -> Iterator[slice]:
    """Neighbouring classes of `_SENTENCES` sentences at most, if one alone has not more."""
    begin = total = 0
    for c, count in enumerate(counts):
        if c > begin and total + count > _SENTENCES:
            yield slice(begin, c)
            begin, total = c, 0
        total += count
    yield slice(begin, len(counts))
