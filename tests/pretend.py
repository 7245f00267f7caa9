"""A GPU that is not there. Its tensors say "cuda:0" and lie in the CPU's memory. What CUDA refuses
is refused: operands on the CPU beside them, and, while a graph is captured, to wait for the device
or to copy to it. What is launched, waited for, copied and captured is counted.

    def test(gpu):                      # the fixture, see conftest.py
        model.to("cuda"); ...           # the project's own code
        assert gpu.waits.total() < 9    # {(operation, file:line): times}

Not pretended: Triton kernels (their torch twins run), streams, memory, the choice of an attention
kernel. Autocast is that of a CPU, whose list of operations is a little different.
"""

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.amp.autocast_mode import autocast
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT, CUDA = Path(__file__).parent.parent, torch.device("cuda", 0)
MEMORY = 80 * 10**9
WAITS = "nonzero masked_select _unique2 unique_dim unique_consecutive equal bincount".split()
WAITS += ["_local_scalar_dense", "linalg_cholesky_ex", "cholesky"]
FREE = "empty empty_strided empty_like new_empty lift_fresh _unsafe_view detach alias".split()
INDEXING = "index index_put index_put_ _index_put_impl_ _unsafe_index".split()
NO_SCALARS = "cat stack mm addmm bmm index_copy_ index_select gather scatter searchsorted".split()
plain_to, plain_load, plain_module_to = torch.Tensor.to, torch.load, Module.to
plain_is_autocast, plain_autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
plain_autocast = autocast.__init__


class GPU:
    """What happened on it."""

    def __init__(self):
        self.launches, self.waits, self.copies = Counter(), Counter(), Counter()
        self.captures, self.record = [], None

    def note(self, counter, what):
        """Waiting for the device, or a copy to it."""
        if self.record is not None:
            raise RuntimeError(f"{what} at {here()}: not permitted when stream is capturing")
        counter[what, here()] += 1


gpu = GPU()


def here():
    """file:line of the project's innermost frame."""
    frame = sys._getframe(1)
    while frame:
        path = Path(frame.f_code.co_filename)
        ours = ROOT in path.parents and "site-packages" not in path.parts  # as in ROOT/.venv
        if ours and path.parent != ROOT / "tests":
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def on_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


class Pretended(torch.Tensor):
    """Shares its memory with .cpu_, with which its operations are computed."""

    @staticmethod
    def of(cpu, requires_grad=False):
        cpu = cpu.detach() if cpu.requires_grad else cpu
        made = torch.Tensor._make_subclass(Pretended, cpu, requires_grad)
        made.cpu_ = cpu
        return made

    @staticmethod
    def parameter(cpu, requires_grad):
        made = Pretended.of(cpu, requires_grad)
        made._is_param = True
        return made

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            make = Pretended.parameter if hasattr(self, "_is_param") else Pretended.of
            memo[id(self)] = make(self.cpu_.clone(), self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.cpu_.__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"Pretended({self.cpu_!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if args and isinstance(args[0], Pretended):
            if func in PROPERTIES:
                return PROPERTIES[func]
            if name == "backward":  # outside of the guard below, so that hooks see this class
                return torch.autograd.backward(args[0], kwargs["gradient"])
            if name in ("to", "cpu", "cuda"):
                device, dtype, copy = {
                    "cpu": ("cpu", None, False),
                    "cuda": (CUDA, None, False),
                }.get(name) or destination(*args[1:], **kwargs)
                return move(args[0], device, dtype, copy)
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if name == "tolist":
                gpu.note(gpu.waits, "tolist")
                return args[0].cpu_.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


PROPERTIES = {
    torch.Tensor.device.__get__: CUDA,
    torch.Tensor.is_cuda.__get__: True,
    torch.Tensor.is_cpu.__get__: False,
}


def destination(*args, copy=False, other=None, **kwargs):
    """Arguments of Tensor.to -> device, dtype, whether a copy is asked for."""
    other = args[0] if args and isinstance(args[0], torch.Tensor) else other
    if other is not None:
        return other.device, other.dtype, copy
    return *torch._C._nn._parse_to(*args, **kwargs)[:2], copy


def move(x, device, dtype, copy):
    """Tensor.to of a Pretended."""
    if device is not None and not on_gpu(device):
        gpu.note(gpu.waits, "to the CPU")
        return plain_to(x.cpu_.detach(), dtype or x.dtype, copy=True)
    with torch._C.DisableTorchFunctionSubclass():
        if not copy and dtype in (None, x.dtype):
            return x
        return torch.ops.aten._to_copy.default(x, dtype=dtype or x.dtype)


def to(self, *args, **kwargs):
    """Tensor.to of any other tensor."""
    device, dtype, _ = destination(*args, **kwargs)
    if isinstance(self, Pretended) or not on_gpu(device):
        return plain_to(self, *args, **kwargs)
    gpu.note(gpu.copies, "to the GPU")
    return Pretended.of(plain_to(self.detach(), dtype or self.dtype, copy=True), self.requires_grad)


def module_to(self, *args, **kwargs):
    """Module.to: parameters and buffers one by one, ties kept."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if not on_gpu(device):
        return plain_module_to(self, *args, **kwargs)
    made = {}
    for module in self.modules():
        for store, make in ((module._parameters, Pretended.parameter), (module._buffers, of)):
            for key, value in store.items():
                if value is not None and not isinstance(value, Pretended):
                    if id(value) not in made:
                        made[id(value)] = make(value.detach().clone(), value.requires_grad), value
                    store[key] = made[id(value)][0]
    return plain_module_to(self, dtype) if dtype else self


def of(cpu, _):
    return Pretended.of(cpu)


def load(*args, map_location=None, **kwargs):
    """torch.load."""
    if not on_gpu(map_location):
        return plain_load(*args, map_location=map_location, **kwargs)
    found = plain_load(*args, map_location="cpu", **kwargs)
    return tree_map(lambda x: Pretended.of(x) if isinstance(x, torch.Tensor) else x, found)


# ---- one operation


def run(func, args, kwargs):
    name, leaves = func._schema.name.removeprefix("aten::"), tree_leaves((args, kwargs))
    mine = [x for x in leaves if isinstance(x, Pretended)]
    device = kwargs.get("device")
    if mine and device is not None:  # autograd's formulas name the device that torch believes in
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    result_here = bool(mine) or on_gpu(device)
    if not result_here:
        return func(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with EveryOperation():  # its parts come by one by one
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if name == "copy_":
        result_here = isinstance(args[0], Pretended)
    plain = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Pretended)]
    refuse_or_note(name, args, kwargs, plain)

    views = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    view = any(not alias.is_write for alias in views)
    if result_here and not view and name not in FREE:
        gpu.launches[name] += 1
    args_, kwargs_ = tree_map(lambda x: x.cpu_ if isinstance(x, Pretended) else x, (args, kwargs))
    if "device" in kwargs_:
        kwargs_ = kwargs_ | {"device": "cpu"}
    if gpu.record is None:
        result = compute(func, name, args_, kwargs_)
    else:
        result = recorded(func, name, args_, kwargs_, view)
    known = {id(x.cpu_): x for x in mine}

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or not result_here:
            return x
        return known[id(x)] if id(x) in known else Pretended.of(x)

    return tree_map(wrapped, result)


def refuse_or_note(name, args, kwargs, plain):
    """What CUDA refuses is refused, what it waits for or copies is noted."""
    if name in INDEXING:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                gpu.note(gpu.waits, "indexing by bool")
            if isinstance(index, torch.Tensor) and not isinstance(index, Pretended):
                gpu.note(gpu.copies, "indices")
        values = [x for x in args[2:3] if isinstance(x, torch.Tensor) and x.dim()]
        if all(isinstance(x, Pretended) for x in (args[0], *values)):
            return
    elif name in ("copy_", "_to_copy"):
        source = args[1] if name == "copy_" else args[0]
        if not isinstance(source, Pretended):
            gpu.note(gpu.copies, name)
        elif not isinstance(args[0], Pretended):
            gpu.note(gpu.waits, name)
        return
    elif name in WAITS or name == "repeat_interleave" and kwargs.get("output_size") is None:
        gpu.note(gpu.waits, name)
    if any(x.dim() or name in NO_SCALARS for x in plain):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name} at {here()})"
        )


def compute(func, name, args, kwargs):
    if name not in ("mm", "addmm") or "dtype" not in func._overloadname:
        return func(*args, **kwargs)
    *factors, dtype = args if "out_dtype" not in kwargs else (*args, kwargs["out_dtype"])
    assert dtype == torch.float32 and factors[-1].dtype == factors[-2].dtype != torch.float32
    product = getattr(torch, name)(*(x.float() for x in factors))
    return kwargs["out"].copy_(product) if "out" in kwargs else product


# ---- CUDA graphs


def recorded(func, name, args, kwargs, view):
    """While a graph is captured: what writes in place is not run, what is new gets memory."""
    written = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    if not written:
        result = compute(func, name, args, kwargs)
        if not view and name not in FREE:
            gpu.record.append((func, name, args, kwargs, result))
        return result
    gpu.record.append((func, name, args, kwargs, None))
    place = {a.name: i for i, a in enumerate(func._schema.arguments)}
    found = [kwargs[a.name] if a.name in kwargs else args[place[a.name]] for a in written]
    return found[0] if len(found) == 1 else tuple(found)


class Graph:
    def __init__(self):
        self.record = []

    def pool(self):
        return "pool"

    def replay(self):
        gpu.launches["replay"] += 1
        for func, name, args, kwargs, result in self.record:
            again = compute(func, name, args, kwargs)
            if result is not None:
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    old.copy_(new)


@contextmanager
def capture(graph, pool=None, stream=None):
    gpu.record, launched = graph.record, Counter(gpu.launches)
    try:
        yield
    finally:
        gpu.record = None
    for *_, result in graph.record:
        for x in tree_leaves(result):
            if x is not None and x.is_floating_point():
                x.fill_(torch.nan)  # nothing has been computed yet
    gpu.launches = launched
    gpu.captures.append(here())


# ---- the device as a whole


class EveryOperation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class TensorOfData(TorchFunctionMode):
    """torch.tensor(data, device="cuda"), which makes its tensor where no dispatch sees it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and on_gpu(kwargs.get("device")):
            gpu.note(gpu.copies, "torch.tensor")
            return Pretended.of(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def of_a_cpu(device="cpu"):
    return "cpu" if on_gpu(device) else device


def autocast_init(self, device_type, *args, **kwargs):
    plain_autocast(self, of_a_cpu(device_type), *args, **kwargs)


class Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, other):
        pass

    def is_capturing(self):
        return gpu.record is not None


def patches():
    """(owner, name, value)"""
    values = {
        "is_available": True,
        "_lazy_init": None,
        "set_device": None,
        "current_device": 0,
        "device_count": 1,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "empty_cache": None,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
    }
    for name, value in values.items():
        yield torch.cuda, name, lambda *_, value=value, **__: value
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
    }.items():
        yield torch.cuda, name, value
    yield torch.accelerator, "current_stream", Stream  # AdamW's, which asks a build with CUDA
    fields = checkpoint._allowed_determinism_checks_to_fns["default"]
    without_device = {"default": lambda x: {k: v for k, v in fields(x).items() if k != "device"}}
    known = checkpoint._allowed_determinism_checks_to_fns | without_device
    yield checkpoint, "_allowed_determinism_checks_to_fns", known
    yield torch, "load", load
    yield torch.Tensor, "to", to
    yield torch.Tensor, "cuda", lambda self: to(self, CUDA)
    yield Module, "to", module_to
    yield autocast, "__init__", autocast_init
    yield torch, "is_autocast_enabled", lambda kind="cpu": plain_is_autocast(of_a_cpu(kind))
    yield torch, "get_autocast_dtype", lambda kind: plain_autocast_dtype(of_a_cpu(kind))


@contextmanager
def pretended(monkeypatch):
    """-> GPU. Everything that names the device "cuda" in here is pretence."""
    global gpu
    from nanomerci import kernels

    gpu = GPU()
    for owner, name, value in patches():
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(kernels, "triton", None)
    optimizer = sys.modules["torch.optim.optimizer"]
    kinds = [*optimizer._foreach_supported_types, Pretended]
    monkeypatch.setattr(optimizer, "_foreach_supported_types", kinds)
    with TensorOfData(), EveryOperation():
        yield gpu
