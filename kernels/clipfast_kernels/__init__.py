"""clipfast_kernels: the operations of CLIP training that general libraries make slow or large.

Depends on torch alone; a GPU, a compiler or Triton that is missing is a backend that `backends()`
explains, never an import error.
"""

from clipfast_kernels.dispatch import Backends, backends
from clipfast_kernels.distributed import GatheredFeatures, start_gather
from clipfast_kernels.ops.attention.api import attention, attention_kv, attention_qkv
from clipfast_kernels.ops.batch_norm.api import batch_norm
from clipfast_kernels.ops.contrastive.api import (
    LossWithMetrics,
    contrastive_loss,
    contrastive_loss_with_metrics,
)
from clipfast_kernels.ops.quick_gelu.api import quick_gelu
from clipfast_kernels.ops.sigmoid.api import sigmoid_loss
from clipfast_kernels.ops.similarity.api import Similarity, gathered_similarity
from clipfast_kernels.verdicts import Verdict
from clipfast_kernels.verification import pin_backend, verify

__all__ = [
    "Backends",
    "GatheredFeatures",
    "LossWithMetrics",
    "Similarity",
    "Verdict",
    "attention",
    "attention_kv",
    "attention_qkv",
    "backends",
    "batch_norm",
    "contrastive_loss",
    "contrastive_loss_with_metrics",
    "gathered_similarity",
    "pin_backend",
    "quick_gelu",
    "sigmoid_loss",
    "start_gather",
    "verify",
]
