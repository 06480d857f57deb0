"""What every launch needs: tile counts, the device of the tensors, dtypes."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton.language as tl


def tiles(size: int, block: int) -> int:
    """Programs that cover ``size`` elements."""
    return -(-size // block)


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU current: Triton launches on the current one."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's dtype of the arithmetic on tensors of a dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32
