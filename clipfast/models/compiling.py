"""Whether `--torchcompile` has the compiler that it needs."""

from __future__ import annotations

import torch

from clipfast.errors import UserError


def check_compiler(device: torch.device) -> None:
    """`torch.compile` would find out in the middle of the first step.

    Raises:
        UserError: there is none for this device.
    """
    if device.type != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "--torchcompile: expected Triton, which writes kernels for the GPU; got none: "
                "pip install triton"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "--torchcompile: expected a C++ compiler, such as g++, or the CXX variable to name "
            "one; got none"
        ) from None
