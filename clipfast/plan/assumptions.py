"""What a plan rests on."""

from __future__ import annotations

from clipfast.plan.estimate import Plan
from clipfast.plan.memory import RESERVE
from clipfast.plan.published import CONFIDENCE


def assumptions(plan: Plan) -> dict[str, str]:
    """What the plan rests on, each with its source."""
    request, gpu, share = plan.request, plan.request.gpu, plan.utilisation
    reach = f" ({share.low:.1%} to {share.high:.1%})" if share.low < share.high else ""
    return {
        "utilisation": f"{share.middle:.1%}{reach} of {request.peak / 1e12:,.0f} "
        f"TFLOP/s; {plan.utilisation_source}",
        "range": f"of days and GPU-hours: that of utilisation, in which {CONFIDENCE:.0%} of "
        "trainings like the published ones lie"
        if share.low < share.high
        else "none: the utilisation is taken as it was given",
        "GPU": gpu.sheet,
        "bandwidth": f"{plan.bus_bytes / 1e9:,.0f} GB/s from each GPU at peak, of "
        f"{request.network_bytes / 1e9:g} GB/s of network a GPU; {gpu.machine}",
        "memory": f"{RESERVE:.0%} kept free for the driver, workspaces and gaps; activations by "
        "what autograd keeps, with attention by clipfast's kernels",
        "captions": f"{request.caption_tokens:g} tokens of {request.model.context_length} on the "
        "average; `clipfast shards stats` counts yours",
        "decoding": f"{plan.decode.value:,.0f} images/s of a core; {plan.decode.source}",
        "samples": f"{plan.image_kb.value:,.1f} kB each; {plan.image_kb.source}",
        **_unused(plan),
    }


def _unused(plan: Plan) -> dict[str, str]:
    calibration = plan.request.calibration
    if calibration is None:
        return {}
    missing = [m.source for m in calibration if m.value is None]
    return {"not from the calibration": "; ".join(missing)} if missing else {}
