"""Fused kernels, each beside its plain-torch twin; they import torch and triton and nothing of
nanoMERCI.

Two ways to run the same formula: "triton" (a CUDA device; or, to check values, any CPU under
TRITON_INTERPRET=1) and "torch".
"""

try:
    import triton
except ImportError:  # Triton has no wheels outside Linux: the torch twins serve there
    triton = None


def choose(backend, x, kernel):
    """Which of "triton" and "torch" to run on tensor x. backend: None = triton on CUDA where it is
    installed, else torch.
    """
    if backend not in (None, "torch", "triton"):
        raise ValueError(f"got backend {backend!r}; wanted None, 'torch' or 'triton'")
    if backend is None:
        return "triton" if x.is_cuda and triton is not None else "torch"
    if backend == "triton" and triton is None:
        raise RuntimeError(
            "backend 'triton' asked for, but Triton is not installed: pip install triton, or "
            "backend='torch'"
        )
    if backend == "triton" and not x.is_cuda and isinstance(kernel, triton.JITFunction):
        raise RuntimeError(
            f"backend 'triton' asked for on a {x.device.type} tensor: move it to a CUDA "
            "device, set "
            "TRITON_INTERPRET=1 before the start (slow; to check values), or take backend='torch'"
        )
    return backend
