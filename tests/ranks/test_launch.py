"""Who a process is by its launcher's variables, and how the processes of a run meet."""

import os

import pytest
import torch
from started import free_port, launch_args, slurm_environ, start_ranks

from clipfast.errors import UserError
from clipfast.ranks.launch import Launch, first_host, joined, launched
from clipfast.train import parse_args

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}
ALONE = Launch("the shell")


def test_torchrun_and_the_deepspeed_launcher_set_the_same():
    assert launched(TORCHRUN) == Launch("torchrun", 9, 16, 1, "node1", 1234)


def test_slurm_needs_no_address_and_no_port():
    launch = launched(SLURM)
    assert launch[:4] == ("SLURM", 9, 16, 1)
    assert launch.address == "gpu07"
    assert 12000 <= launch.port < 32000


def test_jobs_and_steps_on_the_same_nodes_meet_at_ports_of_their_own():
    ports = {
        launched(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in range(4711, 4721)
        for step in range(10)
    }
    assert len(ports) == 100


def test_slurms_step_may_leave_the_jobs_first_node_out():
    assert launched(SLURM | {"SLURM_STEP_NODELIST": "gpu08"}).address == "gpu08"


def test_the_node_that_launched_is_taken_where_slurm_lists_none():
    environ = {name: value for name, value in SLURM.items() if "NODELIST" not in name}
    environ["SLURM_LAUNCH_NODE_IPADDR"] = "10.0.0.7"
    assert launched(environ).address == "10.0.0.7"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[12,03-05]", "gpu12"),
        ("rack[2-3]-n[001-004].cluster,x", "rack2-n001.cluster"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_host(nodes) == first


def test_open_mpi_on_one_machine_needs_no_address():
    assert launched(OPEN_MPI) == Launch("Open MPI", 1, 2, 1, "127.0.0.1", 29500)


def test_mpi_on_several_machines_asks_for_the_address():
    with pytest.raises(UserError, match="MASTER_ADDR: expected the host of rank 0"):
        launched(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


def test_mpich_and_intel_mpi():
    assert launched(MPICH | {"MASTER_ADDR": "a"}) == Launch("MPICH", 1, 2, 0, "a", 29500)


@pytest.mark.parametrize("inner", [TORCHRUN, OPEN_MPI, MPICH | {"MASTER_ADDR": "a"}])
def test_a_launcher_inside_a_slurm_job_goes_before_slurm(inner):
    assert launched(SLURM | {"SLURM_NTASKS": "2"} | inner).by != "SLURM"


def test_sruns_own_pmi_is_not_mpichs():
    assert launched(SLURM | {"PMI_RANK": "9", "PMI_SIZE": "16"}).by == "SLURM"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "1"},
        SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
    ],
    ids=["shell", "address", "size", "srun shell", "batch script", "torchrun of one"],
)
def test_one_process_is_alone(environ):
    assert launched(environ)[1:] == ALONE[1:]


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_half_set_environment_names_what_is_missing(missing):
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"^{missing}: expected a number, as .* is set; got none"):
        launched(environ)


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_torchruns_meeting_place_is_named_if_it_is_missing(missing):
    with pytest.raises(UserError, match=f"^{missing}: expected"):
        launched({name: value for name, value in TORCHRUN.items() if name != missing})


def test_a_shell_of_salloc_is_told_how_to_go_on():
    with pytest.raises(UserError, match=r"^SLURM_PROCID: .* or unset SLURM_NTASKS for one process"):
        launched({"SLURM_NTASKS": "8"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"RANK": "x"}, "RANK: expected a whole number of at least 0; got 'x'"),
        ({"RANK": "16"}, "RANK: expected 0 to 15, as WORLD_SIZE is 16; got 16"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT: expected a whole number from 1 to 65535"),
    ],
)
def test_a_value_that_cannot_be_is_named(change, sentence):
    with pytest.raises(UserError, match=sentence):
        launched(TORCHRUN | change)


def test_a_batch_script_that_exports_another_world_size_is_told():
    assert launched(SLURM | {"WORLD_SIZE": "16"}).size == 16
    with pytest.raises(UserError, match="WORLD_SIZE: expected SLURM_NTASKS's 16, .* got 8"):
        launched(SLURM | {"WORLD_SIZE": "8"})


def test_the_dist_url_goes_before_the_launcher():
    assert launched(TORCHRUN, "tcp://other:99")[4:] == ("other", 99)
    assert launched(SLURM, "file:///shared/meeting")[4:] == ("", 0)
    with pytest.raises(UserError, match="--dist-url: expected tcp://HOST:PORT; got 'tcp://other'"):
        launched(TORCHRUN, "tcp://other")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--horovod"], "--horovod: expected processes that torchrun"),
        (["--dist-url", "http://a"], "--dist-url: expected env://"),
        (["--rank-timeout", "0"], "--rank-timeout: expected a positive number"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_args(["--train-data", "x", *flags])


def test_a_process_alone_joins_nobody(monkeypatch):
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    with joined(launch_args()) as world:
        assert (world.rank, world.size, world.group, world.store) == (0, 1, None, None)
        assert world.device == torch.device("cpu")


def as_rank(monkeypatch, rank):
    for name, value in (slurm_environ(rank, 3) | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)


def test_ranks_that_do_not_come_are_named(monkeypatch):
    as_rank(monkeypatch, 0)
    with (
        pytest.raises(UserError, match=r"expected 3 processes .* got none for rank 1, rank 2"),
        joined(launch_args(rank_timeout=0.5)),
    ):
        pass


def test_a_rank_that_finds_nobody_says_where_it_looked(monkeypatch):
    as_rank(monkeypatch, 1)
    with (
        pytest.raises(UserError, match=r"rank 1: expected to meet the others at localhost:\d+"),
        joined(launch_args(rank_timeout=0.5)),
    ):
        pass


def test_a_backend_that_the_device_has_not_is_refused(monkeypatch):
    as_rank(monkeypatch, 0)
    args = launch_args()
    args.dist_backend = "nccl"
    with (
        pytest.raises(UserError, match="--dist-backend: expected gloo on cpu; got 'nccl'"),
        joined(args),
    ):
        pass


def meet(rank, folder):
    args = launch_args()
    args.dist_url = f"file://{folder}/meeting"
    with joined(args) as world:
        assert world.all(rank) == [0, 1]
        assert world.local_rank == rank
        assert world.control is world.group
        share = max(1, len(os.sched_getaffinity(0)) // 2)
        assert torch.get_num_threads() == share


def differ(rank):
    torch.__version__ = f"2.{rank}"
    with joined(launch_args()):
        pass


def ended(processes):
    for process in processes:
        process.join(timeout=120)
        process.kill()
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_ranks_of_one_machine_share_its_cores(tmp_path):
    assert ended(start_ranks(tmp_path, 2, meet, tmp_path)) == [0, 0], (
        tmp_path / "rank-0"
    ).read_text() + (tmp_path / "rank-1").read_text()


@pytest.mark.slow
def test_ranks_of_different_versions_are_named_on_all(tmp_path):
    assert ended(start_ranks(tmp_path, 2, differ)) == [1, 1]
    for rank in range(2):
        said = (tmp_path / f"rank-{rank}").read_text()
        assert "expected what rank 0 on" in said
        assert "cpu, gloo, torch 2.0; got cpu, gloo, torch 2.1" in said
