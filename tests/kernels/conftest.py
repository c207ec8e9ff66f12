"""What the kernels' tests share."""

import pytest


@pytest.fixture
def simd_level():
    """A function that sets the CPU kernels' instruction set; the test's end sets it back."""
    extension = pytest.importorskip("clipfast_kernels._C", exc_type=ImportError)
    before = extension.simd_level()

    def choose(level):
        try:
            extension._set_simd_level(level)
        except ValueError:
            pytest.skip(f"this processor has no {level}")

    yield choose
    extension._set_simd_level(before)


@pytest.fixture(autouse=True)
def kernels_share_their_work_among_threads(all_threads):
    """Or no test would meet a race between them."""


@pytest.fixture(autouse=True)
def no_verdict_of_the_user(monkeypatch, tmp_path):
    """What the user verified or pinned does not decide what is tested."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
