"""Several processes, one run. The only file that imports torch.distributed; with one process every
function is the identity.

`torchrun --nproc-per-node=N train.py ...` sets RANK and WORLD_SIZE; nothing else of the project
knows about ranks. A rank samples, scores and differentiates its own share of the prompts; sums make
it one batch again. `--shard none`: every rank holds all of the policy and gradients are summed.
`--shard fsdp`: a rank holds its slice of weights, gradients and moments, by torch's fully_shard:
see shard() and frozen().
"""

import copy
import ctypes
import datetime
import os
from bisect import bisect
from contextlib import suppress
from functools import wraps
from types import MethodType

import torch
import torch.distributed as td
from torch.distributed import checkpoint, fsdp
from torch.distributed.checkpoint import state_dict as slices

from nanomerci.runtime.config import UserError

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
updates = 0  # how often step() has changed the weights


def start(device, rank_timeout=1800.0):
    """Join the other ranks. -> this rank's torch device ("auto": a GPU if there is one).

    rank_timeout: seconds a rank waits for the others before it takes them for dead.
    """
    usable = torch.cuda.is_available()
    if device == "cuda" and not usable:
        raise UserError("--device cuda: torch finds no GPU on this machine; try --device cpu")
    if device == "auto":
        device = "cuda" if usable else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # NaN gradients under masks: pytorch#196678
    if world > 1:
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        timeout = datetime.timedelta(seconds=rank_timeout)
        store, *_ = next(td.rendezvous("env://", timeout=timeout))
        # a store per attempt, or a restarted rank finds its dead predecessor's peers there
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = td.PrefixStore(f"attempt {attempt}", store)
        td.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    return torch.device(device)


def keep_freed_memory():
    """For a run on a CPU, once its models are loaded. Not for a sharded one: gathering weights of
    all sizes would leave holes, more than twice the memory in all.

    glibc returns a large block to the system when it is freed, and the next is filled with zeros
    page by page. Kept as small ones are (M_MMAP_MAX, M_TRIM_THRESHOLD), a step of SmolLM2 in
    bf16 takes 6 to 14 % less time (docs/performance.md). Other C libraries have no mallopt.
    """
    with suppress(OSError, AttributeError):
        for parameter, value in ((-4, 0), (-1, -1)):
            ctypes.CDLL(None).mallopt(parameter, value)


def finish():
    if world > 1 and td.is_initialized():
        td.destroy_process_group()


# ---- one batch out of the shares of all ranks


def sum_(x):
    """Add a tensor up over ranks, in place. -> the same tensor."""
    if world > 1:
        td.all_reduce(x)
    return x


def max_(x):
    """Elementwise largest of the ranks' tensors, in place. -> the same tensor."""
    if world > 1:
        td.all_reduce(x, td.ReduceOp.MAX)
    return x


def max_over_ranks(n):
    """The largest of the ranks' numbers n."""
    return int(max_(torch.tensor(n)))


def barrier():
    max_over_ranks(0)


def lost(error):
    """Whether gloo, NCCL or the store raise it when a peer is gone, or silent for too long."""
    return isinstance(error, td.DistError) or "gloo" in str(error)


def reported(main):
    """Decorates a main(): that other ranks are gone is one line, wherever it was noticed."""

    @wraps(main)
    def call(*arguments):
        try:
            return main(*arguments)
        except RuntimeError as error:
            if world == 1 or not lost(error):
                raise
            why = str(error).strip().splitlines()[0][:150]
            raise UserError(
                f"rank {rank}: lost connection to the other ranks ({why}); the run is as it was "
                "last saved: continue with --resume, or let torchrun --max-restarts do it"
            ) from error

    return call


def any_rank(flag):
    """Whether the flag is set on any rank."""
    return bool(sum_(torch.tensor(float(bool(flag)))))


def local_slice(prompts):
    """This rank's share of a round's prompts, as a slice: every world-th one."""
    if prompts % world:
        near = world * -(-prompts // world)
        raise UserError(f"--prompts {prompts}: must be a multiple of the {world} ranks; try {near}")
    return slice(rank, None, world)


def count(items):
    """How many items the ranks' lists hold together."""
    return int(sum_(torch.tensor(len(items))))


def global_order(number_P):
    """Each group's place, int64, among those of all ranks, by its position in the stream."""
    order = sorted(gather(number_P.tolist()))
    place_P = [bisect(order, n) - 1 for n in number_P.tolist()]
    return torch.tensor(place_P, dtype=torch.int64, device=number_P.device)


def mini_batch(number_P, parts):
    """Which of `parts` equal mini-batches each group belongs to, whichever rank holds it."""
    return global_order(number_P) * parts // max(1, count(number_P))


def gather(items):
    """A list of picklable things -> the lists of all ranks, joined in rank order."""
    if world == 1:
        return items
    parts = [None] * world
    td.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def mean(sums):
    """{name: (sum, count)} of this rank -> {name: mean over all ranks} with one exchange; 0 where
    nothing was counted.
    """
    flat = sum_(torch.tensor([[float(s), float(n)] for s, n in sums.values()], dtype=torch.float64))
    return {name: (s / n if n else 0.0) for name, (s, n) in zip(sums, flat.tolist(), strict=False)}


# ---- one model over all ranks


def shard(model, how, dtype, device):
    """-> the model to train, the model to sample from, on `device`: under "none", or on one rank,
    one and the same.

    Under "fsdp" the first keeps on this rank a slice of every fp32 weight, gathered layer by layer
    to compute in `dtype`; the second is a whole copy in `dtype`. It refuses to compute with weights
    the first has moved on from: refresh() it.
    """
    if how == "none" or world == 1:
        return model.to(device), model
    actor = cast_copy(model, dtype, device)
    policy = fsdp.MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in _shard(model, device, mp_policy=policy):
        # gradients are summed, not averaged: loss weights are 1 over all ranks
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    actor.shards = list(model.parameters())
    actor.base_model.register_forward_pre_hook(lambda *_: _fresh(actor))
    refresh(actor)
    return model, actor


def frozen(model, how, dtype, device):
    """-> a copy of the model that never learns, in `dtype` on `device`; under "fsdp" each rank
    keeps a slice of it, and gathers the layer that computes.
    """
    if how == "none" or world == 1:
        return cast_copy(model, dtype, device).eval()
    model = cast_copy(model, dtype, torch.device("cpu")).eval()
    _shard(model, device, reshard_after_forward=True)
    return model


def _shard(model, device, **options):
    """Keep on this rank its slice of every weight. -> the modules that gather theirs to compute."""
    mesh = td.init_device_mesh(device.type, (world,))
    modules = [*model.base_model.layers, model]  # the last holds embedding, norm and head
    for module in modules:
        fsdp.fully_shard(module, mesh=mesh, **options)
    model.call = MethodType(lambda self, function, *arguments: function(self, *arguments), model)
    fsdp.register_fsdp_forward_method(model, "call")
    return modules


def is_sharded(model):
    return hasattr(model, "call")


def cast_copy(model, dtype, device):
    """A copy that does not learn, its parameters cast as they are copied. Buffers keep their dtype:
    rotary frequencies rounded to bf16 would turn long texts wrong.
    """
    cast = {}
    for p in model.parameters():
        value = p.detach().to(device, dtype, copy=True)
        cast[id(p)] = torch.nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, cast).to(device)


def call(model, function, *arguments):
    """function(model, *arguments), a sharded model's weights gathered as around its forward."""
    if is_sharded(model):
        return model.call(function, *arguments)
    return function(model, *arguments)


@torch.no_grad()
def refresh(actor):
    """Fill the whole copy from the slices of all ranks, and stamp it with the last update."""
    if hasattr(actor, "shards"):
        for whole, part in zip(actor.parameters(), actor.shards, strict=True):
            whole.copy_(part.to(whole.dtype).full_tensor())
        actor.stamp = updates


def _fresh(actor):
    if actor.stamp != updates:
        raise RuntimeError("the copy to sample from is older than the policy: refresh() it")


def pad_micro_batches(model, batches):
    """This rank's micro-batches; of a sharded model, then None until every rank has had as many, as
    all compute together.
    """
    missing = max_over_ranks(len(batches)) - len(batches) if is_sharded(model) else 0
    return batches + [None] * missing


def step(optimizer, max_norm, where):
    """Add gradients up over ranks, clip their norm, update. -> the norm before, if it is finite."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    sharded, grads = hasattr(parameters[0], "to_local"), []
    for p in parameters:
        if p.grad is None:  # a rank whose share taught nothing still takes part
            p.grad = torch.zeros_like(p)
        grads.append(p.grad.to_local() if sharded else p.grad)
    if world > 1 and not sharded:  # FSDP has summed them in the backward pass
        total = sum_(torch.nn.utils.parameters_to_vector(grads))
        torch.nn.utils.vector_to_parameters(total, grads)
    norm = torch.nn.utils.get_total_norm(grads)
    if sharded:
        norm = sum_(norm.square()).sqrt()
    if not torch.isfinite(norm):
        raise UserError(
            f"{where}: the gradient's norm is {norm.item()}; it was not applied. Try a lower "
            "--lr, or --dtype float32"
        )
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    optimizer.zero_grad()
    global updates
    updates += 1
    return norm.item()


# ---- checkpoints of a sharded run: each rank its slice; any number of ranks reads them back


def save_shards(folder, model, optimizer):
    _plainly(checkpoint.save, _slices(model, optimizer, bool(optimizer.state)), folder)


def load_shards(folder, model, optimizer):
    saved = checkpoint.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    mine = _slices(model, optimizer, any(name.startswith("optimizer.") for name in saved))
    _plainly(checkpoint.load, mine, folder)
    slices.set_model_state_dict(model, mine["policy"])
    if "optimizer" in mine:
        slices.set_optimizer_state_dict(model, optimizer, mine["optimizer"])


def _slices(model, optimizer, moments):
    """moments: False before the first step: asked for them, torch would make the optimiser step."""
    mine = {"policy": slices.get_model_state_dict(model)}
    if moments:
        mine["optimizer"] = slices.get_optimizer_state_dict(model, optimizer)
    return mine


def _plainly(function, mine, folder):
    """torch.distributed.checkpoint wraps the ranks' errors in a BaseException of its own."""
    try:
        function(mine, checkpoint_id=str(folder), no_dist=world == 1)
    except checkpoint.CheckpointException as error:
        where, (first, _) = min(error.failures.items())
        raise RuntimeError(f"rank {where}: {first}") from error
