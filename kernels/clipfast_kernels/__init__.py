"""clipfast_kernels: the operations of CLIP training that general libraries make slow or large.

Depends on torch alone; a GPU, a compiler or Triton that is missing is a backend that `backends()`
explains, never an import error.
"""

from clipfast_kernels.dispatch import Backends, backends
from clipfast_kernels.ops.contrastive.api import contrastive_loss

__all__ = ["Backends", "backends", "contrastive_loss"]
