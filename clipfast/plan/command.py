"""`clipfast plan`: memory, time, exchange and feed of a training that has not begun."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from clipfast.errors import UserError
from clipfast.plan.calibration import read_calibration
from clipfast.plan.estimate import make_plan
from clipfast.plan.hardware import GPUS, find_gpu
from clipfast.plan.published import CONFIDENCE
from clipfast.plan.record import as_json
from clipfast.plan.request import (
    Choice,
    Model,
    Request,
    check_batch,
    check_precision,
)
from clipfast.plan.table import show

_CAPTION_TOKENS = 18.0  # of alt texts on the web


def plan(arguments: Sequence[str]) -> int:
    """Plans, and prints what it found. A plan that does not fit is an answer too.

    Raises:
        UserError: what is asked for cannot be.
        OSError: a file cannot be written.
    """
    args = _parse(arguments)
    found = make_plan(_request(args))
    record = as_json(found)
    if args.json == "-":
        print(json.dumps(record, indent=1))
    else:
        show(found)
        if args.json is not None:
            Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
            print(f"\nstored in {args.json}")
    if args.plot is not None:
        from clipfast.plan.picture import draw  # matplotlib takes a second

        draw(found, args.plot)
        if args.json != "-":
            print(f"drawn in {args.plot}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast plan",
        description="Memory, time, exchange and feed of a training, on paper.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what is trained").add_argument
    add("--model", required=True, help="as in training, or a .json configuration")
    add("--batch", type=int, required=True, help="pairs of a step, on all GPUs together")
    add("--samples", type=float, required=True, help="pairs seen in all, such as 12.8e9")
    add("--epochs", type=float, default=32, help="in how many these come (default 32)")
    add(
        "--caption-tokens",
        type=float,
        default=_CAPTION_TOKENS,
        help="of a caption on the average (default 18)",
    )
    add("--force-context-length", "--context-length", type=int, metavar="TOKENS")
    add("--siglip", action="store_true", help="the sigmoid loss")
    add = parser.add_argument_group("on what").add_argument
    add("--gpus", type=int, required=True)
    add("--gpu", required=True, help=f"one of {', '.join(GPUS)}")
    add("--network-gb-s", type=float, metavar="GB/S", help="of one GPU, one direction")
    add("--cores-per-gpu", type=float, help="default: those of NVIDIA's machine")
    add = parser.add_argument_group("how, with training's flags").add_argument
    add("--zero-stage", type=int, choices=[0, 1, 2, 3], help="default: without DeepSpeed")
    add("--precision", help="default: amp_bf16, or amp where a GPU has no bfloat16")
    add("--grad-checkpointing", action="store_true")
    add("--accum-freq", type=int, default=1, metavar="K")
    add = parser.add_argument_group("what is known better").add_argument
    add(
        "--utilisation",
        "--utilization",
        type=float,
        metavar="U",
        help=f"share of the GPU's peak, such as 0.3; default: of published trainings, with the "
        f"range in which {CONFIDENCE:.0%}% lie",
    )
    add("--decode-rate", type=float, metavar="IMAGES/S", help="of one core")
    add("--image-kb", type=float, metavar="KB", help="of a stored sample")
    add("--calibration", type=Path, metavar="FILE", help="what `clipfast bench --json` measured")
    add = parser.add_argument_group("output").add_argument
    add("--json", nargs="?", const="-", metavar="FILE", help="instead of the table, or in FILE")
    add("--plot", type=Path, metavar="FILE.png")
    return parser.parse_args(arguments)


_POSITIVE = (
    *("batch", "samples", "epochs", "gpus", "accum_freq", "caption_tokens"),
    *("force_context_length", "network_gb_s", "cores_per_gpu", "decode_rate", "image_kb"),
)


def _request(args: argparse.Namespace) -> Request:
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}: expected a positive number; got {value}")
    if args.utilisation is not None and not 0 < args.utilisation <= 1:
        raise UserError(
            f"--utilisation: expected a share of the peak, over 0 and up to 1; "
            f"got {args.utilisation:g}"
        )
    gpu = find_gpu(args.gpu)
    precision = args.precision or ("amp_bf16" if gpu.bfloat16 else "amp")
    check_precision(precision, gpu)
    check_batch(args.batch, args.gpus, args.accum_freq)
    _check_file("--plot", args.plot, ".png")
    _check_file("--json", None if args.json in (None, "-") else Path(args.json), "")
    calibration = None
    if args.calibration is not None:
        calibration = read_calibration(args.calibration, gpu, precision)
    model = Model(args.model, args.caption_tokens, args.force_context_length)
    if args.grad_checkpointing:
        model.check_checkpointing()
    cores = args.cores_per_gpu or gpu.cores / gpu.per_machine
    network = gpu.network_bytes if args.network_gb_s is None else args.network_gb_s * 1e9
    return Request(
        model=model,
        gpu=gpu,
        gpus=args.gpus,
        batch=args.batch,
        samples=args.samples,
        precision=precision,
        choice=Choice(args.zero_stage, args.grad_checkpointing, args.accum_freq),
        caption_tokens=args.caption_tokens,
        network_bytes=network,
        cores=cores * args.gpus,
        epochs=args.epochs,
        sigmoid=args.siglip,
        utilisation=args.utilisation,
        decode_rate=args.decode_rate,
        image_kb=args.image_kb,
        calibration=calibration,
    )


def _check_file(flag: str, path: Path | None, ending: str) -> None:
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: expected a folder that exists; got none")
    if ending and path.suffix.lower() != ending:
        raise UserError(f"{flag} {path}: expected a name that ends in {ending}")
