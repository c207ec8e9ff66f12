import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipfast.demo.dataset import DigitShards

for helpers in ("kernels", "models", "adapters", "data", "ranks", "train"):
    sys.path.insert(0, str(Path(__file__).parent / helpers))

TINY_MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="session")
def digit_shards(tmp_path_factory) -> DigitShards:
    """96 training pairs and the test pairs, as real JPEGs in real tars."""
    return DigitShards(tmp_path_factory.mktemp("digits"), pairs=96, image_size=32).make()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Path of a model configuration that trains in milliseconds."""
    path = tmp_path_factory.mktemp("models") / "tiny-vit.json"
    path.write_text(json.dumps(TINY_MODEL))
    return str(path)


@pytest.fixture
def all_threads() -> Iterator[None]:
    """As many threads as a run on its own has, and more than one: `make test` gives its processes
    one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, len(os.sched_getaffinity(0))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
