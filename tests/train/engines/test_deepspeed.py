"""ZeRO 0–3 on real ranks: they train as one process does, and lose nothing."""

import json
import math

import deepspeed_runs as runs
import pytest
import torch
from ranks import run_ranks

from clipfast.ranks.world import World
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.engines.deepspeed.state import file_of

pytestmark = pytest.mark.slow

ALONE = World()
GENEROUS = 600  # seconds, for ranks on a machine that has other work
OFFLOADED = ("1, optimizer", "2, optimizer", "3, optimizer", "3, param")


@pytest.fixture(scope="module")
def plain():
    """One process without DeepSpeed: what every stage has to follow."""
    engine = runs.make_engine(runs.flags(), ALONE)
    shown = {"losses": runs.losses(engine, ALONE, 0, runs.STEPS)}
    shown["written"] = host_copy(engine.checkpoint())
    shown["weights"] = runs.weights(engine)
    shown["on"] = runs.losses(engine, ALONE, runs.STEPS, 3)
    engine = runs.make_engine(runs.flags("--grad-clip-norm", "0.5"), ALONE, runs.lock_image)
    shown["clipped"] = [runs.step(engine, ALONE, number) for number in range(3)]
    return shown


@pytest.fixture(scope="module")
def two(plain, tmp_path_factory):
    """What each of two ranks shows, and the folder with what they wrote."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "empty").mkdir()
    (folder / "cut.json").write_text(json.dumps(runs.CUT))
    engine = runs.make_engine(runs.flags(), ALONE)
    runs.losses(engine, ALONE, 0, 3)
    shown = run_ranks(2, runs.two_ranks, folder, engine.checkpoint(), timeout=GENEROUS)
    return shown, folder


@pytest.mark.parametrize("stage", runs.STAGES)
def test_every_stage_follows_one_process(two, plain, stage):
    for rank in two[0]:
        assert rank["losses", stage] == pytest.approx(plain["losses"], rel=1e-5)
        for name, x in plain["weights"].items():
            if name.endswith("in_proj_bias"):
                continue  # keys' have no gradient but rounding, of which Adam makes whole steps
            torch.testing.assert_close(rank["weights", stage][name], x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_checkpoint_has_the_plain_engines_names_shapes_and_positions(two, plain, stage):
    (written, other), wanted = (rank["written", stage] for rank in two[0]), plain["written"]
    assert other is None
    assert list(written["state_dict"]) == list(wanted["state_dict"])
    for name, x in wanted["state_dict"].items():
        assert written["state_dict"][name].shape == x.shape, name
        assert written["state_dict"][name].dtype == x.dtype, name
    assert written["state_dict"]["logit_scale"].ndim == 0
    ours, theirs = written["optimizer"], wanted["optimizer"]
    assert [g["params"] for g in ours["param_groups"]] == [
        g["params"] for g in theirs["param_groups"]
    ]
    assert [g["weight_decay"] for g in ours["param_groups"]] == [0.0, 0.1, 0.2]
    assert ours["state"].keys() == theirs["state"].keys()
    for place, content in theirs["state"].items():
        assert ours["state"][place].keys() == content.keys()
        for key, x in content.items():
            found = ours["state"][place][key]
            torch.testing.assert_close(found, x, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_plain_run_goes_on_under_zero_and_back(two, plain, stage):
    main = two[0][0]
    assert main["loaded", stage] == pytest.approx(plain["losses"][3:6], rel=1e-5)
    engine = runs.make_engine(runs.flags(), ALONE, runs.set_scale(5.0))
    engine.load_checkpoint(main["returned", stage], "returned.pt")
    assert runs.losses(engine, ALONE, 6, 3) == pytest.approx(plain["losses"][6:9], rel=1e-5)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_micro_batches_clipping_locks_and_recomputed_blocks_are_as_in_one_process(
    two, plain, stage
):
    assert_same_steps(two[0], ("clipped", stage), plain["clipped"])


@pytest.mark.parametrize("stage", OFFLOADED)
def test_offloading_changes_no_step(two, plain, stage):
    assert_same_steps(two[0], ("offloaded", stage), plain["clipped"])


def assert_same_steps(ranks, key, wanted):
    for rank in ranks:
        for (loss, stepped), (wanted_loss, wanted_stepped) in zip(rank[key], wanted, strict=True):
            assert loss == pytest.approx(wanted_loss, rel=1e-5)
            assert stepped.taken
            assert stepped.grad_norm == pytest.approx(wanted_stepped.grad_norm, rel=1e-4)
            assert stepped.grad_norm > 0.5


@pytest.mark.parametrize("stage", runs.STAGES)
def test_locked_weights_are_saved_as_they_were(two, stage):
    model = runs.make_engine(runs.flags(), ALONE).model
    saved = two[0][0]["locked", stage]["state_dict"]
    for name, x in model.state_dict().items():
        assert torch.equal(saved[name], x) == name.startswith("visual."), name


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_scale_above_100_is_back_at_100_after_one_step(two, stage):
    for rank, (master, live, used) in enumerate(r["clamped", stage] for r in two[0]):
        assert live == pytest.approx(math.log(100), abs=1e-6)
        assert used == pytest.approx(100, rel=1e-6)
        assert rank > 0 or master == pytest.approx(math.log(100), abs=1e-6)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_bfloat16_learns_with_the_scale_of_its_masters(two, stage):
    for rank in two[0]:
        assert rank["bf16", stage][-1] < 0.8 * rank["bf16", stage][0]
        _, live, used = rank["bf16 clamped", stage]
        assert live == 4.59375  # ln 100, rounded
        assert used == pytest.approx(100, rel=1e-5)
    assert two[0][0]["bf16 clamped", stage][0] == pytest.approx(math.log(100), abs=1e-6)


@pytest.mark.parametrize("stage", runs.STAGES)
def test_bfloat16_begins_with_the_float32_weights_and_saves_such(two, stage):
    model = runs.make_engine(runs.flags(), ALONE, runs.set_scale(4.7)).model
    begins = two[0][0]["bf16 begins", stage]["state_dict"]
    for name, x in model.state_dict().items():
        assert torch.equal(begins[name], x), name
    saved = two[0][0]["bf16 checkpoint", stage]
    assert {x.dtype for x in saved["state_dict"].values()} == {torch.float32}
    assert {float(content["step"]) for content in saved["optimizer"]["state"].values()} == {10.0}


@pytest.mark.parametrize("stage", runs.STAGES)
@pytest.mark.parametrize("kind", ["spoilt", "bf16 spoilt"])
def test_a_nan_in_one_ranks_gradients_leaves_the_step_out_everywhere(two, kind, stage):
    assert [rank[kind, stage] for rank in two[0]] == [(False, 0.0)] * 2


@pytest.mark.parametrize("stage", OFFLOADED)
def test_a_nan_leaves_the_step_out_where_the_optimizer_is_offloaded(two, stage):
    assert [rank["offloaded spoilt", stage] for rank in two[0]] == [(False, 0.0)] * 2


@pytest.mark.parametrize("stage", runs.STAGES)
def test_discarded_gradients_and_steps_left_out_leave_no_trace(two, plain, stage):
    for rank in two[0]:
        assert rank["discarded", stage] == 0.0
        assert rank["on", stage] == pytest.approx(plain["on"], rel=1e-5)


def test_nothing_is_written_into_the_working_directory(two):
    assert [rank["files", ""] for rank in two[0]] == [[], []]


@pytest.fixture(scope="module")
def one(two):
    (shown,) = run_ranks(1, runs.go_on, two[1], "two", 2, "one", timeout=GENEROUS)
    return shown


@pytest.fixture(scope="module")
def other_worlds(two, one):
    """By the ranks that wrote and those that go on."""
    folder = two[1]
    return {
        "2→1": [one],
        "2→1→2": run_ranks(2, runs.go_on, folder, "one", 1, timeout=GENEROUS),
        "2→4": run_ranks(4, runs.go_on, folder, "two", 2, timeout=GENEROUS),
    }


@pytest.mark.parametrize("stage", runs.SHARED_OUT)
@pytest.mark.parametrize("worlds", ["2→1", "2→1→2", "2→4"])
def test_a_run_goes_on_in_another_world_as_if_nothing_had_happened(
    other_worlds, two, plain, worlds, stage
):
    written = two[0][0]["written", stage]
    for rank in other_worlds[worlds]:
        assert rank["on", stage] == pytest.approx(plain["on"], rel=1e-5)
    restored = other_worlds[worlds][0]["restored", stage]
    for name, x in written["state_dict"].items():
        assert torch.equal(restored["state_dict"][name], x), name
    for place, content in written["optimizer"]["state"].items():
        for key, x in content.items():
            assert torch.equal(restored["optimizer"]["state"][place][key], x), (place, key)
    assert restored["optimizer"]["param_groups"] == written["optimizer"]["param_groups"]


@pytest.mark.parametrize("stage", runs.SHARED_OUT)
def test_a_rank_writes_its_share_alone(two, stage):
    whole = sum(x.numel() for x in two[0][0]["written", stage]["state_dict"].values())
    for rank in range(2):
        content = torch.load(file_of(two[1] / f"two {stage}", rank), weights_only=True)
        share = sum(x.numel() for x in content["state_dict"].values())
        assert share == pytest.approx(whole / 2, rel=0.05)
