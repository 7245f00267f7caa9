"""Several processes, one run. The only file that imports torch.distributed; with one process every function is the identity.

`torchrun --nproc-per-node=N train.py ...` sets RANK and WORLD_SIZE; nothing else of the project knows about ranks. A rank samples,
scores and differentiates its own share of the prompts; sums make it one batch again.
"""
import datetime
import os
from bisect import bisect

import torch
import torch.distributed as td

from nanomerci.config import UserError

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start(device):
    """Join the other ranks; -> this rank's torch device ("auto": a GPU if there is one)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: wanted cpu, cuda or auto")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has no GPU that torch can use; try --device cpu")
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if world > 1:
        td.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=datetime.timedelta(minutes=30))
    return torch.device(device)


def finish():
    if world > 1 and td.is_initialized():
        td.destroy_process_group()


def sum_(x):
    """Add a tensor up over ranks, in place. -> the same tensor."""
    if world > 1:
        td.all_reduce(x)
    return x


def barrier():
    if world > 1:
        td.barrier()


def any(flag):
    """Whether the flag is set on any rank."""
    return bool(sum_(torch.tensor(float(bool(flag)))))


def share(prompts):
    """This rank's share of a round's prompts, as a slice: every world-th one."""
    if prompts % world:
        raise UserError(f"--prompts {prompts}: must be a multiple of the {world} ranks; try {world * -(-prompts // world)}")
    return slice(rank, None, world)


def groups(batches):
    """How many groups these batches hold, over all ranks."""
    return int(sum_(torch.tensor(sum(len(batch.number_P) for batch in batches))))


def place(number_P):
    """Each group's place in the order of the groups of all ranks. Numbers are positions in the stream of problems -> int64."""
    order = sorted(gather(number_P.tolist()))
    return torch.tensor([bisect(order, n) - 1 for n in number_P.tolist()], dtype=torch.int64, device=number_P.device)


def mini_batch(number_P, count):
    """Which of `count` equal mini-batches each group belongs to: the same whichever ranks hold them."""
    return place(number_P) * count // max(1, int(sum_(torch.tensor(len(number_P)))))


def gather(items):
    """A list of picklable things -> the lists of all ranks, joined in rank order."""
    if world == 1:
        return items
    parts = [None] * world
    td.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def mean(sums):
    """{name: (sum, count)} of this rank -> {name: mean over all ranks} with one exchange; 0 where nothing was counted."""
    flat = sum_(torch.tensor([[float(s), float(n)] for s, n in sums.values()], dtype=torch.float64))
    return {name: (s / n if n else 0.0) for name, (s, n) in zip(sums, flat.tolist())}


def step(optimizer, max_norm, where):
    """Add gradients up over ranks, clip their norm, update. -> the norm before clipping. Stops before a non-finite update."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # a rank whose share taught nothing still takes part
        sum_(p.grad)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if not torch.isfinite(norm):
        raise UserError(f"{where}: the gradient's norm is {norm.item()}; it was not applied. Try a lower --lr, or --dtype float32")
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()
