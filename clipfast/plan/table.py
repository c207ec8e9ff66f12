"""A plan as text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from clipfast.plan.advice import advice_of
from clipfast.plan.assumptions import assumptions
from clipfast.plan.communication import open_clip_features
from clipfast.plan.estimate import Plan
from clipfast.plan.memory import GIB, Memory
from clipfast.plan.request import Choice

_WIDTH = 116  # columns: narrower tables would lose digits


def show(plan: Plan) -> None:
    columns = shutil.get_terminal_size((_WIDTH, 40)).columns
    console = Console(width=max(_WIDTH, columns), highlight=False)
    for line in _head(plan):
        console.print(line, soft_wrap=True)
    for title, table in (
        ("Memory of one GPU, GiB", _memory(plan)),
        ("Exchanged in a step by each GPU", _exchange(plan)),
    ):
        console.print(f"\n{title}")
        console.print(table)
    for title, lines in (
        ("", _after_memory(plan)),
        ("Arithmetic", _arithmetic(plan)),
        ("Feeding", _feeding(plan)),
        ("Advice", advice_of(plan) or ["none"]),
        ("Where the figures come from", [f"{k}: {v}" for k, v in assumptions(plan).items()]),
    ):
        if title:
            console.print(f"\n{title}")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


def stage_name(stage: int | None) -> str:
    return "no ZeRO" if stage is None else f"ZeRO {stage}"


def way_name(choice: Choice) -> str:
    return stage_name(choice.zero_stage) + ", recomputed" * choice.checkpointing


def _head(plan: Plan) -> Iterator[str]:
    request, outcome = plan.request, plan.outcome
    choice = outcome.choice
    ways = [
        request.precision,
        stage_name(choice.zero_stage),
        *["checkpointing"] * choice.checkpointing,
        *[f"{choice.micro_batches} micro-batches"] * (choice.micro_batches > 1),
    ]
    yield (
        f"{request.model.name} on {request.gpus:,} × {request.gpu.name}: {request.samples:.3g} "
        f"pairs in {plan.steps:,} steps of {request.batch:,} ({request.step_pairs:,} a GPU); "
        f"{', '.join(ways)}"
    )
    yield "An estimate on paper: no GPU has run any of this."
    if not outcome.fits:
        yield f"It {advice_of(plan)[0]}."
    yield ""
    low, high = plan.days(plan.fast), plan.days(plan.slow)
    days, hours = plan.days(outcome.step), 24 * request.gpus
    reach = f"  ({_short(low)} to {_short(high)})" if low < high else ""
    yield f"days        {_short(days)}{reach}"
    yield f"GPU-hours   {days * hours:,.0f}" + (
        f"  ({low * hours:,.0f} to {high * hours:,.0f})" if low < high else ""
    )
    yield (
        f"a step      {outcome.step.total:.3g} s: compute {outcome.step.compute:.3g}, exchange "
        f"that nothing hides {outcome.step.exposed:.2g}, waiting for images "
        f"{outcome.step.waiting:.2g}"
    )
    yield f"bound by    {plan.bound_by}"
    theirs, *ends = (plan.days(step) for step in plan.open_clip_steps)
    reach = f"  ({_short(ends[0])} to {_short(ends[1])})" if low < high else ""
    yield (
        f"open_clip's way (77 tokens, every token in every block), days: {_short(theirs)}{reach}"
    )


def _memory(plan: Plan) -> Table:
    table = _table([""], [*Memory._fields, "total", "fits", "largest"])
    asked = plan.outcome
    rows = [asked, *(o for o in plan.others if o.choice != asked.choice)]
    for outcome in sorted(
        rows, key=lambda o: (o.choice.checkpointing, _order(o.choice.zero_stage))
    ):
        mark = "→ " if outcome is asked else "  "
        table.add_row(
            mark + way_name(outcome.choice),
            *(f"{part / GIB:,.2f}" for part in outcome.memory),
            f"{outcome.memory.total / GIB:,.1f}",
            "yes" if outcome.fits else "no",
            f"{outcome.largest:,}" if outcome.largest else "none",
        )
    return table


def _order(stage: int | None) -> int:
    return -1 if stage is None else stage


def _after_memory(plan: Plan) -> Iterator[str]:
    request, outcome = plan.request, plan.outcome
    local, whole = (size / GIB for size in plan.dense_loss)
    yield (
        f"usable: {outcome.usable / GIB:.1f} of {request.gpu.memory_gib} GiB; largest: pairs of a "
        "GPU's micro-batch that fit"
    )
    of_all = outcome.largest * request.gpus * outcome.choice.micro_batches
    yield f"the largest batch that fits as asked: {of_all:,} on all GPUs"
    yield (
        f"loss: {outcome.memory.loss / GIB:.2f} GiB; open_clip's n×N arrays would take "
        f"{local:,.2f} with --local-loss, {whole:,.1f} without"
    )


def _exchange(plan: Plan) -> Table:
    table = _table(["what", "how"], ["whole, MB", "sent, MB", "ms"])
    ranks = plan.request.gpus
    for c in plan.collectives:
        sent = c.sent(ranks)
        table.add_row(
            c.what + (", behind the backward" if c.hidden else ""),
            c.kind,
            f"{c.bytes / 1e6:,.1f}",
            f"{sent / 1e6:,.1f}",
            f"{1e3 * sent / plan.bus_bytes:,.1f}",
        )
    if not plan.collectives:
        table.add_row("nothing", "", "", "", "")
    return table


def _arithmetic(plan: Plan) -> Iterator[str]:
    ours, theirs = plan.request.model.flops, plan.request.model.open_clip_flops
    yield (
        f"GFLOP a pair, forward and backward: {ours.step / 1e9:,.1f}; open_clip's way "
        f"{theirs.step / 1e9:,.1f}, {theirs.step / ours.step:.2f} times as much"
    )
    if plan.outcome.choice.checkpointing:
        yield f"blocks computed again: {ours.blocks / 1e9:,.1f} more"
    rate = plan.request.batch / plan.outcome.step.total
    yield f"{rate:,.0f} pairs/s, {rate / plan.request.gpus:,.1f} a GPU"
    if plan.request.gpus > 1:
        request = plan.request
        size = open_clip_features(request.batch, request.model.features, request.precision)
        ours_mb, theirs_mb = plan.collectives[-1].bytes / 1e6, size / 1e6
        yield f"features exchanged: {ours_mb:,.1f} MB a step; open_clip's way {theirs_mb:,.1f}"


def _feeding(plan: Plan) -> Iterator[str]:
    feed = plan.feed
    yield (
        f"{feed.images_per_second:,.0f} images/s wanted: {feed.cores:,.0f} cores at "
        f"{feed.decode_rate:,.0f} images/s each; the machines have {feed.available_cores:,.0f}"
    )
    yield (
        f"storage: {feed.storage_bytes_per_second / 1e9:,.2f} GB/s"
        + (f", {feed.dataset_bytes / 1e12:,.1f} TB in all" if feed.dataset_bytes else "")
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for word in words:
        table.add_column(word, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table
