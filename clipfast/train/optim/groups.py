"""Which parameters decay, and at which share of the learning rate each one trains."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from clipfast.errors import UserError
from clipfast.models.locking import clip_text_parts, parameters_of

Rule = Callable[[str, nn.Parameter], bool]


def parameter_groups(
    model: nn.Module, weight_decay: float, undecayed: Rule
) -> list[dict[str, Any]]:
    """The parameters that are not locked: group 0, which does not decay, and group 1, which does.

    The order of the groups and of the parameters in them is open_clip 3.3.0's, because a saved
    optimizer state knows its parameters by position only.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if undecayed(name, p)]
    decayed = [p for name, p in named if not undecayed(name, p)]
    return [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]


def layer_decay_groups(
    model: Any,
    weight_decay: float,
    undecayed: Rule,
    *,
    image: float | None = None,
    text: float | None = None,
) -> list[dict[str, Any]]:
    """Groups whose "lr_scale" falls from a tower's head, 1, to its input, by a factor for each
    layer: decay ** (layers between). What is in neither tower, and a tower without decay, has 1.

    Args:
        image, text: the tower's factor; None is 1.

    Returns:
        Groups with a "name": image.0.no_decay, image.0.decay, image.1.no_decay…, from the input to
        the head, those of the text, then the rest; none is empty.

    Raises:
        UserError: a tower that has no layers to tell apart.

    Source: Clark et al. 2020 (ELECTRA), arXiv 2003.10555.
    """
    layers = (_image_layers(model) if image else []), (_text_layers(model) if text else [])
    place = {
        p: (tower, layer)
        for tower, groups in enumerate(layers)
        for layer, group in enumerate(groups)
        for p in group
    }
    sorted_in: dict[tuple[int, int, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            key = (*place.get(p, (len(layers), 0)), not undecayed(name, p))
            sorted_in.setdefault(key, []).append(p)
    groups = []
    for (tower, layer, decays), parameters in sorted(sorted_in.items(), key=lambda item: item[0]):
        name = (f"image.{layer}", f"text.{layer}", "rest")[tower]
        below_head = len(layers[tower]) - 1 - layer if tower < len(layers) else 0
        groups.append(
            {
                "params": parameters,
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": (image or 1.0, text or 1.0, 1.0)[tower] ** below_head,
                "name": f"{name}.{'decay' if decays else 'no_decay'}",
            }
        )
    return groups


def open_clip_rule(exclude: Sequence[str] = ()) -> Rule:
    """What does not decay by open_clip's rule: gains, biases, the scale, and names that match."""
    markers = ("bn", "ln", "bias", "logit_scale")

    def undecayed(name: str, parameter: nn.Parameter) -> bool:
        return (
            parameter.ndim < 2
            or any(marker in name for marker in markers)
            or _matches(name, exclude)
        )

    return undecayed


def timm_rule(model: Any, exclude: Sequence[str] = ()) -> Rule:
    """What does not decay by timm's rule: vectors, biases, what the model says, and names that
    match."""
    patterns = [*getattr(model, "no_weight_decay", set)(), *exclude]

    def undecayed(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim < 2 or name.endswith(".bias") or _matches(name, patterns)

    return undecayed


def check_patterns(model: nn.Module, patterns: Iterable[str]) -> None:
    """Raises:
    UserError: a pattern of `--wd-exclude` that no parameter's name matches.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            raise UserError(
                "--wd-exclude: expected patterns of parameters' names, such as "
                f"'*positional_embedding'; got {pattern!r}, which none matches"
            )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _image_layers(model: Any) -> list[list[nn.Parameter]]:
    # Not False where it is True, or the tower would forget it.
    freezes = getattr(model.visual, "freeze_bn_stats", False)
    return _layers(
        "image", model, [model.visual], lambda unlocked: model.lock_image_tower(unlocked, freezes)
    )


def _text_layers(model: Any) -> list[list[nn.Parameter]]:
    parts = [model.text] if hasattr(model, "text") else clip_text_parts(model)
    return _layers("text", model, parts, lambda unlocked: model.lock_text_tower(unlocked, True))


def _layers(
    tower: str, model: Any, parts: Sequence[Any], lock: Callable[[int], None]
) -> list[list[nn.Parameter]]:
    """From the input to the head. A layer is what `lock` leaves unlocked when it is told to leave
    one group more: the one thing that all towers, ours, open_clip's and timm's, can be asked."""
    parameters = list(parameters_of(parts))
    trains = [p.requires_grad for p in parameters]
    left, layers = parameters, []
    try:
        for unlocked in range(len(parameters) + 1):
            for p in parameters:
                p.requires_grad_(True)
            lock(unlocked)
            if free := [p for p in left if p.requires_grad]:
                layers.append(free)
            left = [p for p in left if not p.requires_grad]
            if not left:
                break
    except (AssertionError, AttributeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"--{tower}-layer-decay: expected a model whose {tower} tower tells its layers; "
            f"got one that does not: {error}"
        ) from None
    finally:
        for p, train in zip(parameters, trains, strict=True):
            p.requires_grad_(train)
        model.train(model.training)
    return [*([left] if left else []), *reversed(layers)]
