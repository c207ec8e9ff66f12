"""What is planned to travel is what real ranks send: gloo, and the trainer's own engines."""

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from measuring import CPU, Collectives, gathered_bytes
from ranks import run_ranks

from clipfast.plan.communication import bus, step_exchanges, timed
from clipfast.plan.counting import Tensors, parameters
from clipfast.plan.hardware import GPUS
from clipfast.plan.request import Model
from clipfast.plan.towers import PlannedModel

PAIRS, TOKENS = 4, 9  # of a rank


def a_plain_step(name, precision, sigmoid):
    """The trainer's parts of a step of a configuration: what each of its collectives put out."""
    from measuring import Trainer

    from clipfast.ranks.world import World
    from clipfast.train.engines.plain import PlainEngine
    from clipfast.train.objectives import Sigmoid, Softmax
    from clipfast.train.optim.optimizers import adamw

    trainer = Trainer(name, precision)
    group = dist.group.WORLD
    world = World(dist.get_rank(), dist.get_world_size(), device=CPU, group=group, control=group)
    optimizer = adamw(trainer.model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    engine = PlainEngine(trainer.model, optimizer, trainer.encoder, world)
    batch = trainer.batch(PAIRS, TOKENS)
    objective = (Sigmoid if sigmoid else Softmax)(group, "auto")
    found = []
    for _ in range(3):  # buckets are laid out anew after the first, shapes agreed upon in it
        with Collectives() as seen:
            gathered = gathered_bytes(
                lambda: engine.backward(objective(engine.encode(batch), batch).total)
            )
        engine.step(1e-3)
        found.append((gathered, seen.bytes_of("allreduce_"), seen.bytes_of("broadcast_")))
    return found[-1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("kind", "precision", "sigmoid"),
    [
        ("small_vit", "fp32", False),
        ("small_vit", "amp_bf16", False),
        ("small_vit", "fp32", True),
        ("small_vit", "amp_bf16", True),
        ("small_resnet", "fp32", False),
    ],
)
def test_a_plain_step_sends_what_is_planned(kind, precision, sigmoid, ranks, request):
    name = request.getfixturevalue(kind)
    model = Model(name, TOKENS)
    planned = step_exchanges(
        model.tensors(precision),
        precision,
        None,
        ranks=ranks,
        pairs=ranks * PAIRS,
        features=model.features,
        sigmoid=sigmoid,
    )
    by_kind = {kind: sum(c.bytes for c in planned if c.kind == kind) for kind in KINDS}
    for gathered, reduced, broadcast in run_ranks(ranks, a_plain_step, name, precision, sigmoid):
        assert gathered == by_kind["all-gather"]
        assert reduced == by_kind["all-reduce"]
        assert broadcast == by_kind["broadcast"]


KINDS = ("all-gather", "all-reduce", "broadcast")


def test_a_ring_sends_its_share_and_an_all_reduce_both_ways(small_vit):
    model = PlannedModel(small_vit)
    tensors = parameters(model.model, "fp32")
    planned = step_exchanges(tensors, "fp32", None, ranks=4, pairs=64, features=48)
    reduced, gathered = planned
    assert reduced.sent(4) == 2 * tensors.bytes * 3 / 4
    assert gathered.bytes == 2 * 64 * 48 * 4 + 2 * 64 * 4
    assert step_exchanges(tensors, "fp32", None, ranks=1, pairs=64, features=48) == []


def test_gradients_hide_behind_the_backward_as_long_as_it_lasts(small_vit):
    tensors = parameters(PlannedModel(small_vit).model, "fp32")
    planned = step_exchanges(tensors, "fp32", None, ranks=4, pairs=64, features=48)
    reduced, gathered = (c.sent(4) / 1e6 for c in planned)
    hidden = timed(planned, 4, 1e6, backward_seconds=1e9)
    assert hidden.exposed == pytest.approx(gathered)
    assert hidden.seconds == pytest.approx(reduced + gathered)
    assert timed(planned, 4, 1e6, reduced / 2).exposed == pytest.approx(gathered + reduced / 2)
    of_deepspeed = step_exchanges(tensors, "fp32", 1, ranks=4, pairs=64, features=48)
    assert timed(of_deepspeed, 4, 1e6, 1e9).exposed == timed(of_deepspeed, 4, 1e6, 1e9).seconds


def test_rings_between_machines_run_at_the_pace_of_all_their_ports_or_of_nvlink():
    h100 = GPUS["H100"]
    assert bus(h100, 8, 1e9) == 450e9
    assert bus(h100, 16, 10e9) == 80e9
    assert bus(h100, 256, 500e9) == 450e9


def a_deepspeed_step(stage):
    """Bytes of the collectives of a step without a loss, numbers that train, and what this rank
    holds of masters and moments."""
    sys.path.append(str(Path(__file__).parents[1] / "train" / "engines"))
    import deepspeed_runs as runs

    world = runs.this_world()
    engine = runs.make_engine(runs.flags("--zero-stage", str(stage), "--precision", "bf16"), world)
    for number in range(3):
        part = runs.rows(runs.global_batch(number), 0, runs.SAMPLES // world.size)
        with Collectives() as seen:
            encoded = engine.encode(part)
            engine.backward((encoded.image * encoded.text).sum() + encoded.logit_scale)
            engine.step(1e-4)
    parameters = list(engine.model.parameters())
    numbers = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
    state = [x for kept in engine._optimizer.state.values() for x in kept.values()]
    return seen.calls, numbers, len(parameters), sum(x.nbytes for x in state)


SCALARS = 8  # bytes: of norms and flags, which DeepSpeed exchanges one by one


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeeds_step_sends_what_is_planned_with_padding_and_scalars_on_top(stage):
    """Shares are padded to equal lengths; norms and flags are scalars. Nothing else differs."""
    ranks = 2
    for calls, numbers, count, moments in run_ranks(ranks, a_deepspeed_step, stage, timeout=600):
        tensors = Tensors(count, numbers, 4 * numbers, 0, 0)
        planned = step_exchanges(tensors, "amp_bf16", stage, ranks=ranks, pairs=8, features=16)
        sizes = dict.fromkeys(("all-reduce", "all-gather", "reduce-scatter"), 0)
        sizes |= {c.kind: c.bytes for c in planned[:-1]}
        calls = [call for call in calls if call[0] != "allreduce_" or call[1] > SCALARS]
        found = {name: sum(size for call, size in calls if call == name) for name in OPS}
        padding = count * ranks * 2
        assert found["allreduce_"] == sizes["all-reduce"]
        assert 0 <= found["_allgather_base_"] - sizes["all-gather"] <= padding
        assert 0 <= ranks * found["_reduce_scatter_base_"] - sizes["reduce-scatter"] <= padding
        shared = numbers / (ranks if stage else 1)
        assert moments == pytest.approx(8 * shared, rel=0.01)  # padding and counters


OPS = ("allreduce_", "_allgather_base_", "_reduce_scatter_base_")
