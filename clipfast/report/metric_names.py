"""The names of metrics, open_clip's and CLIP_benchmark's, as a person reads them."""

from __future__ import annotations

_FEW_SHOT = "lp_acc1@"
_WORDS = (
    ("image_to_text_", "image → text "),
    ("text_to_image_", "text → image "),
    ("text_retrieval_recall", "image → text R"),
    ("image_retrieval_recall", "text → image R"),
    ("imagenet-zeroshot-val-", "ImageNet "),
    ("imagenetv2-zeroshot-val-", "ImageNet-V2 "),
    ("zeroshot-val-", "zero-shot "),
    ("clip_val_loss", "validation loss"),
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("lp_", ""),
    ("acc1", "top-1"),
    ("acc5", "top-5"),
    ("mean_per_class_recall", "mean per class"),
)


def metric_title(name: str) -> str:
    """For the head of a column or the title of a figure."""
    if name.startswith(_FEW_SHOT):
        return f"{name.removeprefix(_FEW_SHOT)}-shot top-1"
    for short, long in _WORDS:
        name = name.replace(short, long)
    return name.replace("_", " ")
