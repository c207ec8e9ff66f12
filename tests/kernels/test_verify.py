"""verify(): what is wrong, slow or deadly never serves; the file; pins; one answer on all ranks."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import fake_ops
import pytest
import torch
import torch.distributed as dist
from clipfast_kernels import (
    backends,
    contrastive_loss,
    dispatch,
    pin_backend,
    verdicts,
    verification,
    verify,
)
from clipfast_kernels.dispatch import OPS, CannotServe
from clipfast_kernels.measuring import measure
from clipfast_kernels.verdicts import Row, Verdict
from pairs import features
from ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_verdict_before_or_after(monkeypatch):
    monkeypatch.setattr(verdicts, "_IN_USE", {})


@pytest.fixture
def fake(monkeypatch):
    """A function that makes fake_ops' op, with these backends, the only one there is."""

    def make(*names):
        op = fake_ops.fake_op(["reference", *names])
        monkeypatch.setattr(verification, "OPS", {"doubled": lambda: op})
        monkeypatch.setitem(OPS, "doubled", lambda: op)
        child = [fake_ops.__file__, ",".join(op.modules)]
        monkeypatch.setattr(verification, "CHILD", child)
        return op

    return make


@pytest.fixture
def measured_on_cpu(monkeypatch):
    """The CPU decides by its verdict, as a GPU does."""
    monkeypatch.setattr(verdicts, "MEASURED_DEVICES", {"cpu"})


def row(backend, milliseconds=1.0, status="right", shape_class="short", dtype="float32"):
    return Row("doubled", shape_class, dtype, backend, status, 0.0, 1.0, milliseconds, "y")


def verdict(*rows, pins=None):
    return Verdict(verdicts.device_name(CPU), verdicts.versions(), pins or {}, list(rows))


def statuses(rows):
    return {(r.backend, r.shape_class): r.status for r in rows}


@pytest.mark.parametrize(
    ("backend", "note"),
    [
        ("wrong", "y"),
        ("zero_gradient", "d_x"),
        ("unfilled", "y"),
        ("nan", "y"),
        ("other_dtype", "y: expected torch.float32 (3,); got torch.float64 (3,)"),
    ],
)
def test_a_wrong_answer_is_found_and_not_timed(fake, backend, note):
    found = measure(fake("quick", backend), torch.float32, CPU, set())
    bad = [r for r in found if r.backend == backend]
    assert {r.status for r in bad} == {"wrong"}
    assert all(r.error > r.allowed for r in bad)
    assert bad[0].note.startswith(note)
    assert {r.milliseconds for r in bad} == {None}
    assert {r.status for r in found if r.backend == "quick"} == {"right"}


def test_who_misses_by_little_and_only_once_is_right(fake):
    found = measure(fake("unlucky"), torch.float32, CPU, set())
    assert {r.status for r in found} == {"right"}


def test_an_exception_is_a_row_and_an_unserved_call_is_none(fake):
    op = fake("quick", "raising", "without_memory", "unable")
    found = measure(op, torch.float32, CPU, set())
    assert statuses(found) == {
        (backend, kind): status
        for kind in ("odd sizes", "short")
        for backend, status in [
            ("quick", "right"),
            ("raising", "crashed"),
            ("without_memory", "out of memory"),
        ]
    }
    notes = {r.backend: r.note for r in found}
    assert notes["raising"] == "RuntimeError: no such instruction"


@pytest.mark.slow
def test_what_ends_its_process_is_reported_and_the_others_are_measured(fake, tmp_path):
    fake("torch", "dying", "quick", "leaving", "wrong")
    steps = []
    found = verify("cpu", cache=tmp_path, progress=lambda *step: steps.append(step))
    bad = found.untrusted()
    assert set(bad) == {
        ("doubled", "float32", "wrong"),  # by less than bfloat16 can show
        *(("doubled", d, b) for d in ("float32", "bfloat16") for b in ("dying", "leaving")),
    }
    assert bad["doubled", "bfloat16", "dying"].note == "its process was ended by signal 11"
    assert "7: CUDA error: an illegal memory access" in bad["doubled", "float32", "leaving"].note
    assert found.rankings()["doubled", "float32", "short"] == ("quick", "torch")
    assert set(found.rankings()["doubled", "bfloat16", "short"]) == {"quick", "wrong", "torch"}
    assert steps[-1][:2] == (2, 2)
    assert any("dying" in what for _, _, what in steps)


@pytest.mark.slow
def test_what_hangs_is_ended(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "SILENCE_SECONDS", 30)
    fake("hanging", "quick")
    found = verify("cpu", cache=tmp_path)
    assert (
        "did not come back within 30 s" in found.untrusted()["doubled", "float32", "hanging"].note
    )
    assert found.rankings()["doubled", "float32", "short"] == ("quick",)


def test_a_device_that_does_nothing_is_a_sentence(fake, tmp_path, monkeypatch):
    fake("quick")
    monkeypatch.setattr(verification, "CHILD", ["-c", "raise OSError('no device')"])
    with pytest.raises(RuntimeError, match="cpu could not be measured: .* OSError: no device"):
        verify("cpu", cache=tmp_path)


def test_a_verdict_is_measured_once(fake, tmp_path, monkeypatch):
    fake("quick")
    first = verify("cpu", cache=tmp_path)
    monkeypatch.setattr(verification, "CHILD", ["-c", "raise OSError('measured again')"])
    assert verify("cpu", cache=tmp_path) == first
    with pytest.raises(RuntimeError, match="measured again"):
        verify("cpu", cache=tmp_path, refresh=True)


def test_auto_takes_the_fastest_right_one_of_that_kind_of_call(fake, measured_on_cpu):
    op = fake("slow", "wrong", "torch", "quick")
    verdicts.use(
        verdict(
            row("torch", 2.0),
            row("quick", 1.0),
            row("wrong", 0.1),
            row("wrong", None, "wrong", "long"),
            row("slow", 3.0),
            row("torch", 1.0, dtype="bfloat16"),
            row("wrong", 0.9, dtype="bfloat16"),
            row("slow", None, "crashed", dtype="float16"),
        ),
        CPU,
    )
    assert op.order([torch.ones(5)]) == ["quick", "torch", "reference"]
    assert op.choose("auto", torch.ones(5)) == "quick"
    bfloat16 = torch.ones(5, dtype=torch.bfloat16)
    assert op.order([bfloat16]) == ["wrong", "torch", "reference", "quick"], "right in this dtype"
    assert op.choose("auto", torch.ones(500)) == "torch", "nothing was measured for long ones"
    assert op.choose("wrong", torch.ones(5)) == "wrong", "who asks for it by name gets it"


def test_one_that_cannot_serve_the_call_leaves_it_to_the_next(fake, measured_on_cpu):
    op = fake("torch", "unable", "quick")
    verdicts.use(verdict(row("unable", 0.1), row("quick", 1.0), row("gone", 0.5)), CPU)
    assert op.choose("auto", torch.ones(5)) == "quick"


def test_without_a_verdict_a_measured_device_takes_torch(fake, measured_on_cpu):
    op = fake("quick", "torch")
    assert op.choose("auto", torch.ones(5)) == "torch"
    assert backends("doubled", torch.ones(5)).auto == "torch"


def test_on_the_cpu_the_order_stays_as_it_was(fake):
    op = fake("torch", "quick")
    verdicts.use(verdict(row("torch", 2.0), row("quick", 1.0)), CPU)
    assert op.choose("auto", torch.ones(5)) == "reference"


def test_a_pin_beats_the_measurement_and_what_is_asked_for_beats_the_pin(
    fake, measured_on_cpu, tmp_path, monkeypatch
):
    op, x = fake("torch", "quick", "unable"), torch.ones(5)
    pin_backend("doubled", "reference", device="cpu", cache=tmp_path)
    assert op.choose("auto", x) == "reference"
    assert op.choose("quick", x) == "quick"
    with monkeypatch.context() as environment:
        environment.setattr(dispatch, "FROM_ENVIRONMENT", "torch")
        assert op.choose("auto", x) == "torch"
    pin_backend("doubled", "unable", device="cpu", cache=tmp_path)
    with pytest.raises(CannotServe, match="'unable' cannot serve this call: it serves nothing"):
        op.choose("auto", x)
    pin_backend("doubled", None, device="cpu", cache=tmp_path)
    assert op.choose("auto", x) == "torch"


def test_a_pin_is_kept_in_the_file_until_its_backend_is_found_wrong(fake, tmp_path):
    fake("quick", "wrong")
    for name in ("quick", "wrong"):
        pin_backend("doubled", name, device="cpu", cache=tmp_path)
        assert verdicts.read_verdict(CPU, tmp_path).pins == {"doubled": name}
    with pytest.warns(RuntimeWarning, match="pinned to 'wrong', which is wrong on short in"):
        found = verify("cpu", cache=tmp_path)
    assert found.pins == verdicts.read_verdict(CPU, tmp_path).pins == {}
    with pytest.raises(ValueError, match=r"got 'wrong', which is wrong .*: error .* allowed"):
        pin_backend("doubled", "wrong", device="cpu", cache=tmp_path)


def test_unknown_names_are_sentences(fake, tmp_path):
    fake("quick")
    with pytest.raises(ValueError, match="backend: expected one of reference, quick or None; got"):
        pin_backend("doubled", "fast", cache=tmp_path)
    with pytest.raises(ValueError, match="ops: expected some of doubled; got 'tripled'"):
        pin_backend("tripled", "quick", cache=tmp_path)
    with pytest.raises(ValueError, match="ops: expected some of doubled; got 'tripled'"):
        verify("cpu", ["tripled"], cache=tmp_path)
    with pytest.raises(ValueError, match="device: expected cpu or cuda; got 'meta'"):
        verify("meta", cache=tmp_path)
    with pytest.raises(TypeError, match="group: expected a torch.distributed process group"):
        verify("cpu", group="all", cache=tmp_path)


def test_a_file_is_read_back_as_it_was(tmp_path):
    kept = verdict(row("quick"), row("wrong", None, "wrong"), pins={"doubled": "quick"})
    verdicts.write_verdict(kept, CPU, tmp_path)
    assert verdicts.read_verdict(CPU, tmp_path) == kept
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"], "nothing half-written is left"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'{"format": "another"}',
        b'{"format": "clipfast verdict 1", "device": 1, "versions": {}, "pins": {}, "rows": []}',
        b'{"format": "clipfast verdict 1", "device": "x", "versions": {}, "pins": {}, "rows": [1]}',
    ],
)
def test_a_file_that_is_none_is_ignored_with_a_sentence(tmp_path, content):
    verdicts.verdict_path(CPU, tmp_path).write_bytes(content)
    with pytest.warns(RuntimeWarning, match="ignored"):
        assert verdicts.read_verdict(CPU, tmp_path) is None


def test_a_verdict_of_other_versions_is_measured_anew_and_its_pins_stay(fake, tmp_path):
    fake("quick", "torch")
    old = verdict(row("torch"), pins={"doubled": "quick"})
    old.versions["torch"] = "1.0"
    verdicts.write_verdict(old, CPU, tmp_path)
    with pytest.warns(RuntimeWarning, match=r"out of date and ignored \(torch 1.0 then, "):
        found = verify("cpu", cache=tmp_path)
    assert found.versions == verdicts.versions()
    assert {r.backend for r in found.rows} == {"quick", "torch"}
    assert found.pins == {"doubled": "quick"}


def test_a_verdict_of_another_device_is_ignored(tmp_path, monkeypatch):
    verdicts.write_verdict(verdict()._replace(device="Tesla T4"), CPU, tmp_path)
    with pytest.warns(RuntimeWarning, match="this verdict is of Tesla T4; it is ignored"):
        assert verdicts.read_verdict(CPU, tmp_path) is None


def test_a_folder_that_cannot_be_written_costs_only_the_file(fake, tmp_path):
    fake("quick")
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning) as told:
        found = verify("cpu", cache=tmp_path / "file")
    assert "cannot be kept" in str(told[-1].message)
    assert found.rows


def test_a_call_reads_the_file_once_and_only_looks_afterwards(measured_on_cpu, monkeypatch):
    image, text = features(4, 8)
    reads = []
    monkeypatch.setattr(verdicts, "read_verdict", lambda device: reads.append(device))
    for _ in range(3):
        contrastive_loss(image, text, 10.0)
    assert reads == [CPU]


def test_another_process_finds_the_verdict(tmp_path):
    code = "import torch; from clipfast_kernels import backends, pin_backend as pin\n"
    code += "import sys; pin('sigmoid_loss', 'reference') if sys.argv[1] == 'pin' else "
    code += "print(backends('sigmoid_loss', torch.ones(2, 2)).auto)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for word, printed in (("pin", ""), ("read", "reference\n")):
        done = subprocess.run(
            [sys.executable, "-c", code, word], capture_output=True, text=True, env=environment
        )
        assert done.stdout == printed, done.stderr


def test_a_compiled_call_reads_the_verdict_whole_and_of_each_kind(measured_on_cpu):
    ranked = [
        Row("contrastive_loss", kind, "float32", backend, "right", 0.0, 1.0, 1.0, "loss")
        for kind, backend in (("N≤1024 D≤512", "reference"), ("N>4096 D≤512", "torch"))
    ]
    verdicts.use(verdict(*ranked), CPU)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(image, text, scale):
        return contrastive_loss(image, text, scale)

    scale = torch.tensor(10.0)
    for n, taken in ((9, "reference"), (30, "reference"), (4100, "torch")):
        image, text = features(n, 8)
        assert backends("contrastive_loss", image, text).auto == taken
        expected = contrastive_loss(image, text, scale, backend=taken)
        torch.testing.assert_close(loss(image, text, scale), expected, rtol=0, atol=0)


def test_a_compiled_call_loads_the_file_and_takes_a_pin():
    pin_backend("contrastive_loss", "torch", device="cpu")
    verdicts._IN_USE.clear()
    seen = []

    def graph_of(graph, inputs):
        seen.append(graph.code)
        return graph

    @torch.compile(fullgraph=True, backend=graph_of)
    def loss(image, text, scale):
        return contrastive_loss(image, text, scale)

    loss(*features(5, 8), torch.tensor(10.0))
    assert "'torch'" in seen[0]
    assert verdicts._IN_USE[CPU].pins == {"contrastive_loss": "torch"}


@pytest.mark.parametrize("op", OPS)
def test_a_trial_is_of_the_kind_that_its_call_asks_the_verdict_for(op):
    module = OPS[op]().trials()
    timed = [t for t in module.trials(torch.device("meta"), torch.bfloat16) if t.timed]
    assert len({t.shape_class for t in timed}) == len(timed) > 0
    for trial in timed:
        present = [x for x in trial.draw(0) if x is not None]
        assert module.shape_class(*present) == trial.shape_class


@pytest.mark.parametrize("op", OPS)
def test_the_backends_of_this_machine_are_found_right(op):
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("the interpreter takes minutes for the sizes that are timed")
    found = measure(OPS[op](), torch.float32, CPU, set())
    assert {r.status for r in found} == {"right"}
    timed = {r.backend for r in found if r.milliseconds is not None}
    assert timed == {n for n, why in backends(op).reasons.items() if not why} - {"reference"}


def on_a_rank(names, folder):
    """What verify(group) gives, what is warned, and what auto then takes."""
    op = fake_ops.fake_op(names)
    rank = dist.get_rank()
    verification.OPS = {"doubled": lambda: op}
    OPS["doubled"] = lambda: op
    verification.CHILD = [fake_ops.__file__, ",".join(names)]
    verdicts.MEASURED_DEVICES = {"cpu"}
    own_name = verdicts.device_name
    other = rank == 1
    verification.device_name = lambda device: "another CPU" if other else own_name(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = verify("cpu", group=dist.group.WORLD, cache=Path(folder, str(rank)))
    return found, [str(w.message) for w in told], op.choose("auto", torch.ones(5))


def test_all_ranks_take_the_verdict_of_rank_0_which_alone_writes(tmp_path):
    results = run_ranks(2, on_a_rank, ["reference", "torch", "quick"], str(tmp_path))
    (found, told, taken), (found_1, told_1, taken_1) = results
    assert found == found_1
    assert taken == taken_1 == found.rankings()["doubled", "float32", "short"][0] == "quick"
    assert [p.name for p in tmp_path.iterdir()] == ["0"]
    assert json.loads(next(tmp_path.glob("0/*.json")).read_text())["rows"]
    assert told == []
    assert told_1 == [
        f"rank 1 runs on another CPU, rank 0 on {found.device}, whose verdict all ranks take"
    ]


def fails_on_a_rank():
    verification.CHILD = ["-c", "raise OSError('no device')"]
    with pytest.raises(RuntimeError, match="verify.. failed on rank 0: cpu could not be measured"):
        verify("cpu", group=dist.group.WORLD, refresh=True)


def test_a_failure_of_rank_0_is_raised_on_every_rank():
    run_ranks(2, fails_on_a_rank)
