"""Fused kernels, each beside its plain-torch twin; they import torch and triton only.

Two ways to run the same formula: "triton" (a CUDA device; or, to check values, any CPU under
TRITON_INTERPRET=1) and "torch".

Hugging Face has a package of this name too, which transformers imports when it is installed. In a
checkout, where `kernels` is found here, its names and modules are forwarded.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

import nanomerci  # noqa: F401  which sees to it that these modules have one name

try:
    import triton
except ImportError:  # Triton has no wheels outside Linux: the torch twins serve there
    triton = None

_root = str(Path(__file__).parent.parent)
_elsewhere = [p for p in sys.path if str(Path(p or ".").resolve()) != _root]
_theirs = PathFinder.find_spec("kernels", _elsewhere)
if _theirs and _theirs.submodule_search_locations:
    __path__.extend(_theirs.submodule_search_locations)


def __getattr__(name):
    if name.startswith("__") or not _theirs:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "kernels" not in _forwarded:
        module = _forwarded["kernels"] = module_from_spec(_theirs)
        _theirs.loader.exec_module(module)
    return getattr(_forwarded["kernels"], name)


_forwarded = {}


def choose(backend, x, kernel):
    """Which of "triton" and "torch" to run on tensor x. backend: None = triton on CUDA where it is
    installed, else torch.
    """
    if backend not in (None, "torch", "triton"):
        raise ValueError(f"got backend {backend!r}; expected None, 'torch' or 'triton'")
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
