"""The terminal's table of a run: nothing is cut off, on a narrow one either."""

import io

import pytest
from clipfast_bench.harness.table import case_name, floor_share, seconds_words, show
from rich.console import Console

RIGHT = {"error": 1e-7, "allowed": 1e-6, "right": True, "of": "out"}
RECORD = {
    "machine_info": {"rates": {"matmul_flops": 1e11, "copy_bytes": 1e10}},
    "benchmarks": [
        {
            "name": "test_contrastive_loss[cpu-float32-N=1024]",
            "group": "ops",
            "stats": {"median": 0.05, "data": [0.05]},
            "extra_info": {
                "op": "contrastive_loss",
                "answers": {
                    "ours": RIGHT,
                    "open_clip": RIGHT,
                    "fast": {"error": None, "allowed": 1e-6, "right": False, "of": "d_text"},
                },
                "peer_over_ours": {"open_clip": 1.684},
                "spread": {"open_clip": [1.6, 1.79]},
                "memory_mib": {"ours": 21.4, "open_clip": 1066.2},
                "absent": {"memeff": "memeff is not installed"},
                "flops": 4e9,
                "bytes": 1e6,
            },
        },
        {
            "name": "test_loader[short side 256]",
            "group": "feeding",
            "stats": {"median": 0.0009, "data": [0.0009]},
            "extra_info": {"peer_over_ours": {"open_clip, webdataset": 3.4}},
        },
    ],
    "not_timed": [
        {
            "name": "test_trainer[tiny]",
            "op": "trainer",
            "group": "training",
            "reason": "it needs about 60 s, and its part of the budget is 1.0 s",
        },
        {"name": "test_loader[x]", "op": "loader", "group": "feeding", "reason": "wrong: ours e"},
    ],
}


@pytest.mark.parametrize("width", [80, 132])
def test_everything_is_said_within_the_width(width):
    file = io.StringIO()
    show(RECORD, Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(file.getvalue().split())
    for part in (
        *("50 ms", "1.68", "1.60 – 1.79", "80%", "21 / 1,066", "900 µs", "3.40"),
        "wrong: fast in contrastive loss N=1024: error not a number, allowed 1.0e-06 (d_text)",
        "absent: memeff (contrastive loss): memeff is not installed",
        "with the time that each needs: trainer tiny: 60 s",
        "loader x: wrong: ours e",
    ):
        assert part in words, part


def test_a_case_is_named_as_a_person_would():
    assert case_name("test_quick_gelu[cpu-float32-1600x3072]") == "quick gelu 1600x3072"
    assert case_name("test_quick_gelu[cuda-bfloat16-1600x3072]") == "quick gelu bf16 1600x3072"
    assert case_name("test_sine[cpu-float32]") == "sine"
    assert case_name("test_contrastive_loss[256-512]") == "contrastive loss 256-512"


def test_seconds_have_their_unit():
    assert seconds_words(1.234) == "1.23 s"
    assert seconds_words(0.0123) == "12.3 ms"
    assert seconds_words(4.5e-6) == "4.5 µs"


def test_the_floor_is_the_slower_of_arithmetic_and_bytes():
    row = RECORD["benchmarks"][0]
    assert floor_share(row, RECORD["machine_info"]["rates"]) == pytest.approx(0.8)
    assert floor_share(row, {}) is None
