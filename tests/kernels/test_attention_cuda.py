"""The CUDA kernels of attention: emulated on the CPU, and compiled by nvcc where it is there.

No GPU is needed, and none is used.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import attention_emulator as emulator
import pytest
import torch
from attention_inputs import batched, conditions, packed, reference_answer, tensors
from clipfast_kernels.ops.attention import tiles
from tolerance import assert_within_tolerance

emulated = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None,
    reason="the emulation needs g++ and switches stacks as x86-64 does",
)
HALVES = [torch.float16, torch.bfloat16]
NAMES = ("out", "lse", "d_q", "d_k", "d_v")


@pytest.fixture(scope="session")
def runner():
    return emulator.build()


def check(case, answer):
    """`answer` against the reference, by the rule of tolerance.py."""
    inputs = case[1:5]
    exact = reference_answer(*inputs, case.sequences, torch.float64)
    low = reference_answer(*inputs, case.sequences)
    single = reference_answer(*inputs, case.sequences, torch.float32)
    low = low._replace(lse=single.lse)  # the kernels' is float32 too
    how = conditions(*inputs, case.sequences)
    seen = exact.lse != -torch.inf
    assert torch.equal(answer.lse != -torch.inf, seen)
    for name in NAMES:
        a, b, e = (getattr(x, name) for x in (answer, low, exact))
        if name == "lse":
            a, b, e = a[seen], b[seen], e[seen]
        if e.numel():
            assert_within_tolerance([a], [b], [e], [name], how)


def check_all(runner, folder, cases):
    answers, _, conflicts = emulator.attention(runner, folder, cases)
    for case, answer in zip(cases, answers, strict=True):
        check(case, answer)
    assert conflicts == 0, "ldmatrix reads a bank twice"


def make(sequences, n_heads=2, width=64, dtype=torch.float16, **options):
    return emulator.case(sequences, tensors(sequences, n_heads, width, dtype), **options)


@emulated
@pytest.mark.parametrize("dtype", HALVES)
def test_the_emulated_product_has_the_layout_of_the_ptx_manual(runner, tmp_path, dtype):
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    fragments = {"a": torch.empty(32, 8, dtype=dtype), "b": torch.empty(32, 4, dtype=dtype)}
    place_c = torch.empty(32, 4, dtype=torch.int64)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):  # Figure "fragment layout for matrix A with .f16/.bf16", m16n8k16
            row = group if i < 2 or 4 <= i < 6 else group + 8
            fragments["a"][lane, i] = a[row, thread * 2 + (i & 1) + (0 if i < 4 else 8)]
        for i in range(4):
            fragments["b"][lane, i] = b[thread * 2 + (i & 1) + (0 if i < 2 else 8), group]
        for i in range(4):
            place_c[lane, i] = (group if i < 2 else group + 8) * 8 + thread * 2 + (i & 1)
    words = [fragments["a"], fragments["b"], c.flatten()[place_c]]
    words += [torch.tensor([dtype == torch.bfloat16], dtype=torch.int32)]
    kind = torch.tensor([1], dtype=torch.int32)
    found = emulator.run(runner, tmp_path, [emulator.bytes_of(x) for x in (kind, *words)])
    result = torch.empty(128)
    result[place_c.flatten()] = torch.frombuffer(bytearray(found), dtype=torch.float32)
    expected = a.double() @ b.double() + c
    torch.testing.assert_close(result.reshape(16, 8).double(), expected, rtol=1e-5, atol=1e-5)


@emulated
def test_the_emulated_matrix_load_has_the_layout_of_the_ptx_manual(runner, tmp_path):
    rows = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    kind = torch.tensor([2], dtype=torch.int32)
    found = emulator.run(runner, tmp_path, [emulator.bytes_of(x) for x in (kind, rows)])
    plain, transposed = torch.frombuffer(bytearray(found), dtype=torch.int16).reshape(2, 32, 4, 2)
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        assert torch.equal(plain[lane], rows[:, row, column : column + 2])
        assert torch.equal(transposed[lane], rows[:, column : column + 2, row])


@emulated
@pytest.mark.parametrize("causal", [False, True])
def test_every_length_to_80(runner, tmp_path, causal):
    cases = [
        make(batched(1, length, causal=causal), 1, dtype=HALVES[length % 2])
        for length in range(1, 81)
    ]
    check_all(runner, tmp_path, cases)


@emulated
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [197, 257, 577])
def test_lengths_of_images(runner, tmp_path, length, causal):
    check_all(runner, tmp_path, [make(batched(1, length, causal=causal), 1, dtype=torch.bfloat16)])


@emulated
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [32, 64, 80, 96, 128])
def test_every_width(runner, tmp_path, width, dtype):
    cases = [
        make(batched(2, 50), 3, width, dtype),
        make(packed([5, 77, 16, 30], causal=True), 2, width, dtype),
    ]
    check_all(runner, tmp_path, cases)


@emulated
@pytest.mark.parametrize("causal", [False, True])
def test_packs_with_empty_sequences_and_keys_unlike_queries(runner, tmp_path, causal):
    lengths = [
        ([5, 30, 17, 1, 77, 12], None),
        ([0, 8, 0, 0, 40, 0], None),
        ([3, 40, 1, 64], [40, 3, 64, 1]),
        ([0, 17, 33, 5], [20, 0, 34, 0]),
        ([4, 6], [0, 0]),
        ([0, 0], [5, 9]),
    ]
    cases = [make(packed(*pair, causal=causal), 3, dtype=torch.bfloat16) for pair in lengths]
    check_all(runner, tmp_path, cases)


@emulated
@pytest.mark.parametrize("causal", [False, True])
def test_one_query_of_a_sequence(runner, tmp_path, causal):
    cases = [make(batched(3, 1, keys, causal=causal)) for keys in (5, 16, 50, 77, 197, 577)]
    cases.append(make(packed([1, 1, 1, 1], [5, 50, 0, 577], causal=causal), dtype=torch.bfloat16))
    check_all(runner, tmp_path, cases)


@emulated
def test_longest_lengths_that_no_sequence_has(runner, tmp_path):
    sequences = packed([5, 18], causal=True)._replace(max_q=90, max_k=300)
    check_all(runner, tmp_path, [make(sequences)])


@emulated
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "plan", [{"tiles": 1}, {"tiles": 3, "warps": 2}, {"strips": 1, "heads": 2}]
)
def test_a_sequence_in_chunks_and_over_several_blocks(runner, tmp_path, plan, causal):
    cases = [make(batched(1, 150, causal=causal), **plan)]
    cases.append(make(packed([60, 7, 33], [12, 70, 33], causal=causal), 3, **plan))
    check_all(runner, tmp_path, cases)


@emulated
def test_a_sequence_beyond_shared_memory(runner, tmp_path):
    case = make(batched(1, 400), 1, 128)
    assert all(plan.tiles < 25 for plan in case.plans)
    check_all(runner, tmp_path, [case])


@emulated
@pytest.mark.parametrize("size", [8.0, 1e-3])
def test_scores_far_from_each_other_and_all_alike(runner, tmp_path, size):
    sequences = batched(1, 77, causal=True, scale=-1.0)
    inputs = tensors(sequences, 1, 64, torch.bfloat16, size=size)
    check_all(runner, tmp_path, [emulator.case(sequences, inputs)])


@emulated
def test_the_bits_do_not_depend_on_the_order_of_threads(runner, tmp_path):
    for sequences in (packed([5, 50, 0, 21, 77], causal=True), batched(1, 197)):
        cases = [make(sequences, seed=seed, tiles=6) for seed in range(5)]
        first, *others = emulator.attention(runner, tmp_path, cases)[0]
        for other in others:
            assert all(map(torch.equal, first, other))


@emulated
@pytest.mark.parametrize("name", NAMES)
def test_the_rule_finds_a_result_that_is_zero(runner, tmp_path, name):
    case = make(batched(1, 20))
    answer = emulator.attention(runner, tmp_path, [case])[0][0]
    with pytest.raises(AssertionError, match=name):
        check(case, answer._replace(**{name: torch.zeros_like(getattr(answer, name))}))


@emulated
@pytest.mark.parametrize("width", [64, 80, 128])
def test_the_products_on_paper_are_those_computed(runner, tmp_path, width):
    for queries, keys, causal in [(50, 50, False), (77, 77, True), (20, 70, True), (70, 20, True)]:
        case = make(batched(1, queries, keys, causal=causal), 1, width)
        products = emulator.attention(runner, tmp_path, [case])[1]
        paper = [tiles.cost(step, width, queries, keys, causal) for step in tiles.PASSES]
        assert products * 16 * 8 * 16 == sum(x.computed for x in paper) * width
        assert 2 * sum(x.needed for x in paper) == (2 + 5) * paper[0].needed


def odd_cases(width=None):
    """Small, and with every way through the kernels' loops; of one head width where it is given."""
    cases = [
        make(batched(2, 5), 3, 32),
        make(packed([5, 17, 0, 30, 1], [3, 0, 9, 30, 49], causal=True), 2, 80),
        make(batched(1, 77, causal=True), 2, 64, tiles=2),
        make(batched(1, 1, 147), 1, 96),
        make(batched(1, 129), 1, 128),
    ]
    return [case for case in cases if width in (None, case.q.shape[2])]


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_sanitizers_find_nothing(tmp_path, kind):
    runner = emulator.build(kind)
    check_all(runner, tmp_path, odd_cases())
    check_all(runner, tmp_path, [make(batched(1, 257, causal=True), 1, dtype=torch.bfloat16)])


# How each is found, on the case of which head width, what is planted, and what is said.
SWEEP = "attention_sweep.cuh"
BUGS = {
    "no barrier after a copy has come": (
        "tsan",
        64,
        (SWEEP, "piece_tiles);\n                    __syncthreads();", "piece_tiles);"),
        "data race",
    ),
    "no barrier before a chunk is overwritten": (
        "tsan",
        64,
        (SWEEP, "if (first_task > 0 || chunk > begin) __syncthreads();", ""),
        "data race",
    ),
    "one copy too many still under way": (
        "plain",
        64,
        (SWEEP, "copy_wait((chunk_end - 1 - piece)", "copy_wait((chunk_end - 1 + 4 - piece)"),
        "error nan|copies under way",
    ),
    "a barrier that idle warps pass by": (
        "plain",
        64,
        (
            SWEEP,
            "                if (copies) {\n                    copy",
            "                if (copies && active) {\n                    copy",
        ),
        "copies under way|waits in",
    ),
    "a copy past the end of shared memory": (
        "asan",
        64,
        (SWEEP, "lines = 16 * n_tiles;", "lines = 16 * n_tiles + 1;"),
        "heap-buffer-overflow",
    ),
    "an index past the end of a tile": (
        "asan",
        64,
        ("attention_bwd.cuh", "tile->lse[column]", "tile->lse[column + 1]"),
        "out of bounds",
    ),
    "a lane that leaves a shuffle out": (
        "plain",
        64,
        ("attention_fwd.cuh", "greatest[1] = row_max", "if (lane != 7) greatest[1] = row_max"),
        "thread .* waits in",
    ),
    "rows of one tile swizzled as another's": (
        "plain",
        32,
        ("attention_fragments.cuh", "* (2 * pair / kPeriod * kPeriod)", "* (2 * pair)"),
        "error|more shared|exit code",
    ),
}


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_mistake_is_found(tmp_path, bug):
    kind, width, edit, words = BUGS[bug]
    runner = emulator.build(kind, [*emulator.only(width), edit])
    with pytest.raises((AssertionError, emulator.Failed), match=words):
        check_all(runner, tmp_path, odd_cases(width))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch", ["80", "90"])
def test_every_kernel_compiles_without_spills_onto_tensor_cores(tmp_path, arch):
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "--keep"]
    command += ["--keep-dir", tmp_path, "-c", emulator.KERNELS / "attention.cu"]
    command += ["-o", tmp_path / "attention.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    used = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    # Two dtypes, five widths, three passes; the keys' pass is two kernels at width 128.
    assert len(used) == 2 * (5 * 3 + 1)
    for kernel, spilled, registers in used:
        assert int(spilled) == 0, kernel
        assert int(registers) <= 255, kernel
    [ptx] = Path(tmp_path).glob("*.ptx")
    bodies = re.split(r"\.visible \.entry ", ptx.read_text())[1:]
    assert len(bodies) == len(used)
    for body in bodies:
        for instruction in ("mma.sync.aligned.m16n8k16", "ldmatrix", "cp.async"):
            assert instruction in body, body[:80]


@pytest.mark.parametrize("width", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("step", tiles.PASSES)
def test_every_plan_fits_its_gpu(step, width):
    for length in (1, 5, 16, 50, 77, 197, 257, 577, 1000, 4096):
        for keys in (1, length, 577):
            for batch in (1, 7, 1000):
                plan = tiles.plan(
                    step,
                    batch=batch,
                    heads=12,
                    width=width,
                    longest=length,
                    typical=-(-length // 2),
                    other_longest=keys,
                )
                bytes_of_block = plan.heads * plan.tiles * tiles.tile_bytes(step, width)
                assert 0 < bytes_of_block <= tiles.SHARED_BYTES
                assert 1 <= plan.warps <= tiles.MOST_WARPS
                assert plan.heads >= 1
                assert plan.strips >= 1
