"""The trainer's flags: open_clip_train 3.3.0's names, defaults and meanings, and a few of ours."""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Callable, Sequence

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import DECODERS
from clipfast.data.sources.opening import add_source_flags
from clipfast.errors import UserError
from clipfast.models.precision import PRECISIONS

_DEFAULTS_BY_TOWER = {
    True: {"lr": 5e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6},  # a ViT
    False: {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a trainer command line into a namespace with open_clip_train's attribute names.

    Raises:
        UserError: a value out of range, or a choice that this release cannot honour.
        SystemExit: an unknown flag or an unreadable value (argparse's message, exit code 2).
    """
    args = _parser().parse_args(arguments)
    for name, value in _DEFAULTS_BY_TOWER["vit" in args.model.lower()].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.force_image_size is not None and len(args.force_image_size) == 1:
        (args.force_image_size,) = args.force_image_size
    args.amp_on_cpu = (
        (args.precision, args.device) == ("amp", "cpu")
        and _is_written("--precision", arguments)
        and _is_written("--device", arguments)
    )
    _check(args)
    return args


def _is_written(flag: str, arguments: Sequence[str]) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clipfast train", description=__doc__, allow_abbrev=False)
    _add_data_flags(parser.add_argument_group("data"))
    _add_training_flags(parser)
    _add_model_flags(parser.add_argument_group("in place of the model's configuration"))
    _add_locking_flags(parser.add_argument_group("locked towers"))
    _add_file_flags(parser.add_argument_group("files"))
    _add_own_flags(parser.add_argument_group("clipfast's own"))
    return parser


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--train-data",
        metavar="DATA",
        help="WebDataset tars, a CSV, Parquet files, a folder or a Hugging Face dataset on disk: "
        "paths or URLs with brace ranges, several sources joined by ::",
    )
    add(
        "--train-num-samples",
        type=int,
        metavar="N",
        help="samples in an epoch (default: all, which are counted)",
    )
    add(
        "--dataset-resampled",
        action="store_true",
        help="draw samples with replacement, in place of each one once an epoch",
    )
    add(
        "--train-data-upsampling-factors",
        metavar="FACTORS",
        help="with --dataset-resampled, how often each source's samples are drawn, joined by ::",
    )
    add_source_flags(group)
    add_loading_flags(group)


def add_loading_flags(group: argparse._ArgumentGroup) -> None:
    """How samples become batches."""
    add = group.add_argument
    add("--workers", type=int, default=4, help="decoding threads (default 4)")
    add(
        "--decoder",
        choices=DECODERS,
        default="auto",
        help="auto takes DALI on a GPU where it is installed, else the native one",
    )
    add(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: sooner, and not the same pixels",
    )
    add(
        "--max-unusable",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the samples tried, above which the run stops (default 0.01)",
    )
    add("--image-mean", type=float, nargs=3, help="default: CLIP's")
    add("--image-std", type=float, nargs=3, help="default: CLIP's")
    add(
        "--aug-cfg",
        nargs="*",
        default={},
        action=_ParseKeyValues,
        metavar="KEY=VALUE",
        help="open_clip's: scale='(0.9, 1.0)', color_jitter='(.4, .4, .4, .1)', "
        "color_jitter_prob=.8, gray_scale_prob=.2, use_timm=True",
    )


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="RN50", help="a built-in model or the path of a .json configuration")
    add("--pretrained", default="", metavar="FILE", help="start from these weights")
    add("--batch-size", type=int, default=64)
    add("--epochs", type=int, default=32)
    add("--lr", type=float, help="default by model: 5e-4")
    add("--beta1", type=float, help="default by model: .9")
    add("--beta2", type=float, help="default by model: .98 (ViT) or .999")
    add("--eps", type=float, help="default by model: 1e-6 (ViT) or 1e-8")
    add("--wd", type=float, default=0.2, help="weight decay (default 0.2)")
    add("--warmup", type=int, default=10000, help="steps (default 10000)")
    add("--lr-scheduler", choices=["cosine", "const"], default="cosine")
    add("--skip-scheduler", action="store_true", help="keep the learning rate at --lr")
    add("--grad-clip-norm", type=float)
    add("--seed", type=int, default=0)
    add("--device", default="cuda", help="falls back to cpu where there is no GPU (default cuda)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="amp",
        help="amp autocasts to float16; on a CPU it computes in fp32, unless --precision amp and "
        "--device cpu are both written (default amp)",
    )
    add("--grad-checkpointing", action="store_true", help="recompute blocks in the backward")
    add("--torchcompile", action="store_true", help="compute both towers by torch.compile")


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--force-quick-gelu", action="store_true")
    add("--force-image-size", type=int, nargs="+", metavar="SIDE")
    add("--force-context-length", type=int, metavar="TOKENS")
    add("--force-patch-dropout", type=float, metavar="SHARE", help="of patches left out")


def _add_locking_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--lock-image", action="store_true", help="freeze the image tower")
    add("--lock-image-unlocked-groups", type=int, default=0, help="but its last N groups")
    add(
        "--lock-image-freeze-bn-stats",
        action="store_true",
        help="and the BatchNorm statistics of what is frozen",
    )
    add("--lock-text", action="store_true", help="freeze the text tower")
    add("--lock-text-unlocked-layers", type=int, default=0, help="but its last N layers")
    add(
        "--lock-text-freeze-layer-norm",
        action="store_true",
        help="and the LayerNorms of what is frozen, which train otherwise",
    )


def _add_file_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--logs", default="./logs/", help="folder of all runs")
    add("--name", help="this run's folder in it (default: made of time and settings)")
    add("--resume", metavar="FILE|latest", help="go on from a checkpoint of this or another run")
    add("--save-frequency", type=int, default=1, help="epochs between checkpoints")
    add("--save-most-recent", action="store_true", help="always keep epoch_latest.pt")
    add("--report-to", default="", help="tensorboard")
    add("--log-every-n-steps", type=int, default=100)


def _add_own_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--backend", default="auto", help="of the loss; `clipfast doctor` lists them")
    add("--save-every-steps", type=int, default=0, help="keep a resumable state every N steps")
    add(
        "--cache-locked-features",
        metavar="DIR",
        help="compute the features of a wholly locked tower once, and keep them there",
    )


class _ParseKeyValues(argparse.Action):
    """``key=value`` words to a dict; values are Python literals, or strings if they are none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        parsed = {}
        for word in values or ():
            key, equals, value = word.partition("=")
            if not equals:
                parser.error(f"{option_string}: expected KEY=VALUE; got {word!r}")
            try:
                parsed[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError):
                parsed[key] = value
        setattr(namespace, self.dest, parsed)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "batch_size": ("at least 1", lambda x: x >= 1),
    "epochs": ("at least 1", lambda x: x >= 1),
    "workers": ("at least 0", lambda x: x >= 0),
    "warmup": ("at least 0", lambda x: x >= 0),
    "lr": ("a positive number", lambda x: 0 < x < math.inf),
    "wd": ("0 or more", lambda x: 0 <= x < math.inf),
    "beta1": ("0 ≤ β1 < 1", lambda x: 0 <= x < 1),
    "beta2": ("0 ≤ β2 < 1", lambda x: 0 <= x < 1),
    "eps": ("a positive number", lambda x: 0 < x < math.inf),
    "grad_clip_norm": ("a positive number", lambda x: x > 0),
    "save_frequency": ("0 (only at the end) or more", lambda x: x >= 0),
    "log_every_n_steps": ("at least 1", lambda x: x >= 1),
    "save_every_steps": ("0 (never) or more", lambda x: x >= 0),
    "seed": ("0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
    "train_num_samples": ("at least 1", lambda x: x >= 1),
    "max_unusable": ("0 ≤ share ≤ 1", lambda x: 0 <= x <= 1),
    "data_cache_gb": ("a positive number", lambda x: 0 < x < math.inf),
    "force_context_length": ("at least 2, a start and an end token", lambda x: x >= 2),
    "force_patch_dropout": ("0 ≤ share < 1", lambda x: 0 <= x < 1),
    "lock_image_unlocked_groups": ("at least 0", lambda x: x >= 0),
    "lock_text_unlocked_layers": ("at least 0", lambda x: x >= 0),
}


def _check(args: argparse.Namespace) -> None:
    for name, (expected, holds) in _RANGES.items():
        value = getattr(args, name)
        if value is not None and not holds(value):
            raise UserError(f"--{name.replace('_', '-')}: expected {expected}; got {value}")
    for name, expected, holds in (
        ("image_mean", "three finite numbers", math.isfinite),
        ("image_std", "three positive numbers", lambda x: 0 < x < math.inf),
    ):
        if not all(map(holds, getattr(args, name) or ())):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: expected {expected}; got {getattr(args, name)}")
    side = args.force_image_size
    if isinstance(side, list) or (side is not None and side < 1):
        raise UserError(
            "--force-image-size: expected one side, of at least 1 pixel, as images are square; "
            f"got {side}"
        )
    if args.cache_locked_features is not None and not (args.lock_image or args.lock_text):
        raise UserError("--cache-locked-features: expected --lock-image or --lock-text; got none")
    if args.train_data is None and args.dataset_type != "synthetic":
        raise UserError("--train-data: expected the training data; got none")
    if args.resume == "latest" and args.name is None:
        raise UserError("--resume latest: expected --name, the run to go on with; got none")
    if args.report_to not in ("", "tensorboard"):
        raise UserError(f"--report-to: expected tensorboard; got {args.report_to!r}")
    Augmentation.of(args.aug_cfg)
