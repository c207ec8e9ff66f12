"""Small pairs and classes to evaluate on, and an evaluation of them on one of several ranks."""

import io
from random import Random

import torch
import torch.distributed as dist
from PIL import Image

from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.models.factory import create_model
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.evaluation import make_evaluator
from clipfast.train.model import make_model


def telling_weights(model_name, folder, seed):
    """The path of a model's weights, scaled so that its features tell images and captions apart."""
    torch.manual_seed(seed)
    model = create_model(model_name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    torch.save(model.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")


def picture(number):
    """Blotches, other for each number, of which every decoder makes the same pixels."""
    random = Random(number)
    image = Image.frombytes("RGB", (4, 3), random.randbytes(36)).resize((32, 32))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pairs(folder, count, bad=()):
    """The path of a shard of pairs; the images of those in `bad` are none."""
    with ShardWriter(folder, f"pairs-{count}-{len(bad)}", samples_per_shard=1000) as writer:
        for number in range(count):
            image = b"\x89PNG\r\n\x1a\n no image" if number in bad else picture(number)
            writer.write(image, f"picture {number} of {Random(number).choice('abc')}")
    return str(writer.shards[0])


def classes(folder, images):
    """Args:
    images: a class's folder to the numbers of its pictures.
    """
    for name, numbers in images.items():
        (folder / name).mkdir(parents=True)
        for number in numbers:
            (folder / name / f"{number}.png").write_bytes(picture(number))
    return str(folder)


def evaluated(flags, weights, *, world=World(), epochs_done=0):  # noqa: B008  it is immutable
    """Metrics of a model with these weights, by the flags of a trainer's command line."""
    args = parse_args([*flags, "--pretrained", weights])
    return make_evaluator(args, world)(make_model(args, world.device), epochs_done)


def evaluated_on_a_rank(command_lines, weights):
    """The metrics of each command line, or the error, on this rank of the group."""
    group = dist.group.WORLD
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), group=group, control=group)
    results = []
    for flags in command_lines:
        try:
            results.append(evaluated(flags, weights, world=world))
        except ValueError as error:
            results.append(str(error))
    return results
