"""Small models of open_clip and transformers, a batch for them, and what one step gives."""

import open_clip
import torch
import transformers
from clipfast_kernels import contrastive_loss
from open_clip.model import CLIP, CustomTextCLIP

CAPTIONS = ["a dog", "two cats on a mat in the sun", "", "a b c d e"]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VIT = {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32}
# Each with what it tries: activation, every way to pool text, class token or mean, layer scale.
OPEN_CLIP = {
    "vit": (CLIP, VIT, TEXT, {}),
    "vit-quickgelu": (CLIP, VIT, TEXT, {"quick_gelu": True}),
    "resnet": (CLIP, RESNET, TEXT, {}),
    "layer scale": (CLIP, VIT | {"ls_init_value": 0.1}, TEXT | {"ls_init_value": 0.1}, {}),
    "average pool": (CLIP, VIT | {"pool_type": "avg"}, TEXT, {}),
    "norm after pool": (CLIP, VIT | {"final_ln_after_pool": True, "no_ln_pre": True}, TEXT, {}),
    "attention pool": (CLIP, VIT | {"attentional_pool": True, "attn_pooler_heads": 2}, TEXT, {}),
    "custom text": (CustomTextCLIP, VIT, TEXT, {"init_logit_bias": -10.0}),
    "text pooled at eos": (CLIP, VIT, TEXT | {"pool_type": "eos", "eos_id": 49407}, {}),
    "text pooled last": (CustomTextCLIP, VIT, TEXT | {"pool_type": "last"}, {}),
    "text pooled first": (CustomTextCLIP, VIT, TEXT | {"pool_type": "first"}, {}),
    # As SigLIP's text tower.
    "both ways": (
        CustomTextCLIP,
        VIT,
        TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        {"init_logit_bias": -10.0},
    ),
    "both ways, end pooled": (CustomTextCLIP, VIT, TEXT | {"no_causal_mask": True}, {}),
    "custom blocks": (CLIP, VIT | {"qk_norm": True}, TEXT, {}),
    "class token": (CustomTextCLIP, VIT, TEXT | {"embed_cls": True, "pad_id": 0}, {}),
}


def make_open_clip(kind):
    cls, vision, text, options = OPEN_CLIP[kind]
    model = cls(embed_dim=64, vision_cfg=dict(vision), text_cfg=dict(text), **options)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones hide what is forgotten
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def make_clip_model(hidden_act="quick_gelu", eos_token_id=49407):
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "hidden_act": hidden_act,
    }
    ids = {"eos_token_id": eos_token_id, "bos_token_id": 49406, "pad_token_id": 49407}
    config = transformers.CLIPConfig(
        text_config=tower | ids | {"vocab_size": 49408},
        vision_config=tower | {"image_size": 64, "patch_size": 16},
        projection_dim=64,
    )
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def images():
    return torch.randn(len(CAPTIONS), 3, 64, 64, generator=torch.Generator().manual_seed(1))


def token_ids():
    return open_clip.get_tokenizer("ViT-B-32")(CAPTIONS)


def step(model, text=None, dtype=torch.float64):
    """Features, loss and every gradient of one step of an open_clip model."""
    model.zero_grad()
    image, caption, scale = model(images().to(dtype), token_ids() if text is None else text)[:3]
    return finished(model, image, caption, scale)


def clip_model_step(model, text=None, dtype=torch.float64, **options):
    """The same of a CLIPModel; padding is its end token, masked."""
    if text is None:
        ids = token_ids()
        options.setdefault("attention_mask", (ids != 0).long())
        text = ids.where(ids != 0, 49407)
    model.zero_grad()
    out = model(input_ids=text, pixel_values=images().to(dtype), return_loss=True, **options)
    found = finished(model, out.image_embeds, out.text_embeds, model.logit_scale.exp())
    return found | {"logits": out.logits_per_image.detach(), "their loss": out.loss.detach()}


def finished(model, image, caption, scale):
    loss = contrastive_loss(image, caption, scale, backend="reference")
    loss.backward()
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    found = {"image": image, "text": caption, "loss": loss, **gradients}
    return {n: t.detach().clone() for n, t in found.items() if t is not None}


def assert_same(actual, expected, allowed=1e-10):
    """To rounding; a gradient that is 0 in exact arithmetic is measured against the largest."""
    assert actual.keys() == expected.keys()
    largest = max(t.abs().max().item() for n, t in expected.items() if n.startswith("gradient"))
    for name, tensor in expected.items():
        error = (actual[name] - tensor).abs().max().item()
        limit = allowed * (tensor.abs().max().item() + 1e-2 * largest)
        assert error <= limit, f"{name}: error {error:.1e}, allowed {limit:.1e}"
