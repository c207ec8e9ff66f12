"""Small models of both kinds of towers, for what is measured in full."""

import json

import pytest

TEXT = {"context_length": 32, "width": 64, "heads": 2, "layers": 3}


def configuration(tmp_path_factory, name, vision):
    path = tmp_path_factory.mktemp("planned") / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": 48, "vision_cfg": vision, "text_cfg": TEXT}))
    return str(path)


@pytest.fixture(scope="session")
def small_vit(tmp_path_factory):
    vision = {"image_size": 64, "layers": 4, "width": 96, "head_width": 32, "patch_size": 16}
    return configuration(tmp_path_factory, "small-vit", vision)


@pytest.fixture(scope="session")
def small_resnet(tmp_path_factory):
    vision = {"image_size": 96, "layers": [1, 2, 2, 1], "width": 16, "head_width": 32}
    return configuration(tmp_path_factory, "small-resnet", vision)
