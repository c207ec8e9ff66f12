"""Small random models of open_clip's and transformers' own classes, and their features."""

import copy
import json

import open_clip
import torch
from open_clip.model import convert_weights_to_fp16
from transformers import CLIPConfig, CLIPModel

from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.weights.loading import load_checkpoint

TOKENIZE = open_clip.SimpleTokenizer()  # takes a while to make
CONTEXT = 12
CAPTIONS = ["a dog", "a photo of a very small cat, sleeping on a mat in the sun", ""]
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4, "patch_size": None}
KINDS = {
    name + suffix: {"embed_dim": 48, "quick_gelu": bool(suffix), "vision_cfg": v, "text_cfg": TEXT}
    for name, v in (("tiny-ViT", VIT), ("tiny-RN", RESNET))
    for suffix in ("", "-quickgelu")
}
VITS = [kind for kind in KINDS if "ViT" in kind]
QUICK_GELU = [kind for kind in KINDS if "quickgelu" in kind]


def register(folder):
    """Makes the kinds known to open_clip by their names."""
    for kind, config in KINDS.items():
        (folder / f"{kind}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def open_clip_model(kind, pretrained=None, **options):
    """One of open_clip's; without weights random in every tensor, and in the range of float16."""
    model = open_clip.create_model(kind, pretrained=pretrained, **options).eval()
    if pretrained is None and not kind.startswith("local-dir:"):
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and name != "logit_scale":
                tensor.add_(torch.randn_like(tensor) / 16)
    return model


def huggingface_model(kind, activation=None):
    config = KINDS[kind]
    act = activation or ("quick_gelu" if config["quick_gelu"] else "gelu")
    vision, text = config["vision_cfg"], config["text_cfg"]
    torch.manual_seed(1)
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // 64,
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_act": act,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": CONTEXT,
                "hidden_act": act,
            },
        )
    ).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "logit_scale":
            tensor.add_(torch.randn_like(tensor) / 16)
    return model


def our_model(kind, path):
    model = build_model(parse_model_config(KINDS[kind])).eval()
    load_checkpoint(model, path)
    return model


def openai_module(model):
    """The model in OpenAI's form: matrices in float16, and three sizes among its buffers."""
    model = copy.deepcopy(model)
    sizes = {
        "input_resolution": model.visual.image_size,
        "context_length": CONTEXT,
        "vocab_size": model.vocab_size,
    }
    mask = model.attn_mask
    for name in ("context_length", "vocab_size", "attn_mask"):
        delattr(model, name)
    model.attn_mask = mask  # as OpenAI has it, no part of the state dict
    for name, size in sizes.items():
        model.register_buffer(name, torch.tensor(size[0] if isinstance(size, tuple) else size))
    convert_weights_to_fp16(model)
    return model


def scripted(model):
    return torch.jit.script(openai_module(model))


def traced(model):
    """As `scripted`, but all of it in float16."""
    module = openai_module(model).float()
    size = int(module.input_resolution)
    example = torch.zeros(1, 3, size, size), torch.zeros(1, CONTEXT, dtype=torch.long)
    return torch.jit.trace(module, example, check_trace=False).half()


@torch.no_grad()
def features(model):
    """Unit image and text features of fixed inputs, in float64."""
    model = copy.deepcopy(model).double()
    theirs = isinstance(model, CLIPModel)
    size = model.config.vision_config.image_size if theirs else model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    context = model.config.text_config.max_position_embeddings if theirs else model.context_length
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7)).double()
    text = TOKENIZE(CAPTIONS, int(context))
    if theirs:
        out = model(input_ids=text, pixel_values=image)
        return {"image": out.image_embeds, "text": out.text_embeds}
    return {
        "image": model.encode_image(image, normalize=True),
        "text": model.encode_text(text, normalize=True),
    }


def assert_same_features(actual, expected):
    torch.testing.assert_close(features(actual), features(expected), rtol=0, atol=1e-10)
