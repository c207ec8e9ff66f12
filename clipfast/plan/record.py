"""A plan as JSON."""

from __future__ import annotations

from typing import Any

from clipfast.plan.advice import advice_of
from clipfast.plan.assumptions import assumptions
from clipfast.plan.estimate import Outcome, Plan
from clipfast.plan.memory import GIB
from clipfast.plan.published import CONFIDENCE


def as_json(plan: Plan) -> dict[str, Any]:
    """`days`, `memory_gib`, `communication` and `bound_by` first; all else of the plan behind."""
    request, outcome = plan.request, plan.outcome
    days = plan.days(outcome.step)
    parts = outcome.memory._asdict()
    working = parts.pop("working")  # an allowance, which stands apart
    return {
        "days": days,
        "memory_gib": {name: size / GIB for name, size in parts.items()},
        "communication": _communication(plan),
        "bound_by": plan.bound_by,
        "fits": outcome.fits,
        "gpu_hours": days * 24 * request.gpus,
        "uncertainty": _uncertainty(plan),
        "memory": _memory(plan, working),
        "step_seconds": {
            "total": outcome.step.total,
            "compute": outcome.step.compute,
            "exposed_communication": outcome.step.exposed,
            "waiting_for_images": outcome.step.waiting,
        },
        "largest_batch": outcome.largest * request.gpus * outcome.choice.micro_batches,
        "flops_per_pair": {
            "clipfast": request.model.flops.step,
            "open_clip": request.model.open_clip_flops.step,
        },
        "open_clip_days": dict(
            zip(("middle", "low", "high"), map(plan.days, plan.open_clip_steps), strict=True)
        ),
        "feed": plan.feed._asdict(),
        "alternatives": [_alternative(other) for other in plan.others],
        "advice": advice_of(plan),
        "assumptions": assumptions(plan),
        "inputs": _inputs(plan),
    }


def _communication(plan: Plan) -> dict[str, Any]:
    step = plan.outcome.step
    return {
        "collectives": [
            {
                "what": c.what,
                "kind": c.kind,
                "bytes": c.bytes,
                "sent_bytes": c.sent(plan.request.gpus),
                "behind_backward": c.hidden,
            }
            for c in plan.collectives
        ],
        "sent_bytes": step.exchange.sent,
        "seconds": step.exchange.seconds,
        "exposed_seconds": step.exposed,
        "bytes_per_second": plan.bus_bytes,
    }


def _uncertainty(plan: Plan) -> dict[str, Any]:
    low, high = plan.days(plan.fast), plan.days(plan.slow)
    hours = 24 * plan.request.gpus
    return {
        "days": [low, high],
        "gpu_hours": [low * hours, high * hours],
        "utilisation": [plan.utilisation.low, plan.utilisation.high],
        "confidence": CONFIDENCE if low < high else None,
    }


def _memory(plan: Plan, working: float) -> dict[str, Any]:
    outcome = plan.outcome
    local_loss, without = plan.dense_loss
    return {
        "total_gib": outcome.memory.total / GIB,
        "working_gib": working / GIB,
        "usable_gib": outcome.usable / GIB,
        "open_clip_loss_gib": {"local_loss": local_loss / GIB, "without": without / GIB},
    }


def _alternative(outcome: Outcome) -> dict[str, Any]:
    return {
        "zero_stage": outcome.choice.zero_stage,
        "grad_checkpointing": outcome.choice.checkpointing,
        "memory_gib": outcome.memory.total / GIB,
        "fits": outcome.fits,
        "largest_micro_batch": outcome.largest,
        "step_seconds": outcome.step.total,
    }


def _inputs(plan: Plan) -> dict[str, Any]:
    request = plan.request
    return {
        "model": request.model.name,
        "gpu": request.gpu.name,
        "gpus": request.gpus,
        "batch": request.batch,
        "samples": request.samples,
        "zero_stage": request.choice.zero_stage,
        "precision": request.precision,
        "grad_checkpointing": request.choice.checkpointing,
        "accum_freq": request.choice.micro_batches,
        "caption_tokens": request.caption_tokens,
        "context_length": request.model.context_length,
        "network_gb_s": request.network_bytes / 1e9,
        "utilisation": plan.utilisation.middle,
        "decode_rate": plan.decode.value,
        "image_kb": plan.image_kb.value,
        "cores": request.cores,
        "epochs": request.epochs,
        "siglip": request.sigmoid,
    }
