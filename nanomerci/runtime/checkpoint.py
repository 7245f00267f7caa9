"""Checkpoints that survive kill -9, and resuming from them exactly, on as many ranks as one likes.

A checkpoint is a folder checkpoints/step_000040/:
    model/          an ordinary Hugging Face folder (sharded runs: in the dtype they compute in)
    shards/         sharded runs: fp32 weights and the optimiser's moments, each rank its slice
                    (torch.distributed.checkpoint)
    state.pt        what all ranks share of each part: optimiser, bonus, collector; the step
    rank_00000.pt   what that rank has for itself: its replay buffer, groups for the next step
    checksums.json  size and CRC-32 of every file above
It is written aside, synced and renamed, so a folder under its final name is complete. There is no
random state to save: random numbers are functions of their address (nanomerci/address.py).

A part is anything with state_dict and load_state_dict; what it has under the key "own" is this
rank's alone.
"""

import json
import math
import os
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError


def writable(folder, what, remedy):
    """Refuse a folder in which, or in whose nearest parent, no file can be made."""
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=place):
            os.access(folder, os.F_OK)  # raises for a NUL in the name
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {folder}: cannot be written ({reason(error)}); {remedy}") from None


def claim(run):
    """A new run never overwrites what is there, unless that died before its first step."""
    writable(run, "--out", "choose another")
    if complete(run):
        remedy = f"continue with --resume {run}, or choose another --out"
        raise UserError(f"--out {run}: already holds a run; {remedy}")
    begun = run / "metrics.jsonl"
    if (run / "config.yaml").exists() and begun.exists() and begun.read_text().count("\n") > 1:
        remedy = "remove it, or choose another --out"
        raise UserError(f"--out {run}: holds a run without a checkpoint; {remedy}")
    ranks.barrier()  # all have looked, now one may write


def complete(run):
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("step_??????"))


def newest(run):
    if found := complete(run):
        return found[-1]
    raise UserError(f"{run}: no checkpoint found in this folder")


def save(run, step, models, parts, keep):
    """Write checkpoint `step`, all ranks together; then forget all but the newest `keep` (and step
    0, the run's initial policy).

    models: with policy, actor (a whole copy of it) and tokenizer. parts: {name: part}.
    """
    folder = Path(run) / "checkpoints"
    final, scratch = folder / f"step_{step:06d}", folder / f".step_{step:06d}.partial"
    if final.exists():
        return
    sharded = ranks.is_sharded(models.policy)
    shared = {name: part.state_dict() for name, part in unsharded(parts, sharded).items()}
    own = {name: state.pop("own") for name, state in shared.items() if "own" in state}
    with on_all_ranks(final, scratch):
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
    with on_all_ranks(final, scratch):
        if ranks.rank == 0:
            models.actor.save_pretrained(scratch / "model")
            models.tokenizer.save_pretrained(scratch / "model")
            torch.save(shared | {"step": step}, scratch / "state.pt")
        torch.save(own, scratch / f"rank_{ranks.rank:05d}.pt")
    if sharded:
        with on_all_ranks(final, scratch):
            ranks.save_shards(scratch / "shards", models.policy, parts["optimizer"])
    mine = files(scratch)[ranks.rank :: ranks.world]
    sums = ranks.gather([(name, checksum(scratch / name)) for name in mine])
    with on_all_ranks(final, scratch):
        if ranks.rank == 0:
            (scratch / "checksums.json").write_text(json.dumps(dict(sorted(sums)), indent=0))
            for path in [*scratch.rglob("*"), scratch]:
                sync(path)
            os.rename(scratch, final)
            sync(folder)
    if ranks.rank == 0:
        forget(run, keep)
    ranks.barrier()


def unsharded(parts, sharded):
    """The parts whose state is in state.pt; a sharded run has its optimiser's in the shards."""
    return {name: part for name, part in parts.items() if name != "optimizer" or not sharded}


@contextmanager
def on_all_ranks(final, scratch):
    """A block of a checkpoint's writing: where one rank cannot, all stop."""
    problem = []
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # what a full disk may provoke here
        if ranks.lost(error):
            raise
        problem = [reason(error)]
    problem = ranks.gather(problem)
    if not problem:
        return
    if ranks.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    run = final.parent.parent
    free = f"{shutil.disk_usage(run).free / 1e9:.1f} GB free"
    remedy = "There is no earlier one: make room and start again"
    if before := complete(run):
        whole = f"The checkpoint before it, {before[-1].name}, is whole"
        remedy = f"{whole}: make room, then continue with --resume {run}"
    raise UserError(f"{final}: could not be written ({problem[0]}; {free}). {remedy}")


def forget(run, keep):
    """Remove all but the newest checkpoints and the first."""
    for old in complete(run)[:-keep]:
        if old.name != "step_000000":
            # never a half-deleted folder under a final name
            os.rename(old, old.with_name(f".{old.name}.old"))
    for waste in (Path(run) / "checkpoints").glob(".step_*"):
        shutil.rmtree(waste, ignore_errors=True)


def restore(run, device, models, parts):
    """The newest checkpoint back into what is given. -> its step.

    With as many ranks as before, each gets its own back; otherwise everything is dealt out anew.
    The weights of an unsharded policy are read by whoever loads the model.
    """
    folder = newest(run)

    def read(name, place=device):
        return torch.load(folder / name, map_location=place, weights_only=True)

    with reading(folder):
        names, share = [name for name in files(folder) if name.startswith("rank_")], slice(None)
        if len(names) == ranks.world:
            names = [names[ranks.rank]]
        else:
            share = slice(ranks.rank, None, ranks.world)
        own, shared = list(map(read, names)), read("state.pt", "cpu")  # where AdamW's steps stay
        sharded = (folder / "shards").exists()  # resumed on however few ranks
        if sharded:
            ranks.load_shards(folder / "shards", models.policy, parts["optimizer"])
    ranks.refresh(models.actor)
    for name, part in unsharded(parts, sharded).items():
        mine = {"own": join([o[name] for o in own], share)} if name in own[0] else {}
        part.load_state_dict(shared[name] | mine)
    return shared["step"]


def join(parts, share):
    """What ranks had -> one of the same form: dicts by key, of tensors and lists this rank's share
    of all, and what is the same in all, such as numbers, as it is.
    """
    if isinstance(parts[0], dict):
        return {key: join([part[key] for part in parts], share) for key in parts[0]}
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)[share]
    if isinstance(parts[0], list):
        return [item for part in parts for item in part][share]
    return parts[0]


def verify(run):
    """Compare all files of the newest checkpoint and of the first, which holds the initial policy,
    with their checksums; each rank some.
    """
    for folder in dict.fromkeys([newest(run), complete(run)[0]]):
        with reading(folder):
            sums = json.loads((folder / "checksums.json").read_text())
            mine = sorted(sums)[ranks.rank :: ranks.world]
            wrong = [name for name in mine if checksum(folder / name) != sums[name]]
        if wrong := ranks.gather(wrong):
            raise UserError(corrupt(folder, f"{wrong[0]} is not what was written"))


@contextmanager
def reading(folder):
    """Whatever reading a checkpoint raises is one line that names it and offers the one before."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises what the bytes happen to provoke
        raise UserError(corrupt(folder, reason(error))) from error


def corrupt(folder, why):
    before = [found.name for found in complete(folder.parent.parent) if found.name < folder.name]
    remedy = "there is no earlier one: start the run again"
    if before:
        remedy = f"delete that folder to resume from {before[-1]}"
    return f"{folder}: the checkpoint is corrupt ({why}); {remedy}"


def reason(error):
    """The first line of an exception."""
    first = (str(error).strip().splitlines() or ["no more is known"])[0]
    return f"{type(error).__name__}: {first[:150]}"


def files(folder):
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if path.name != "checksums.json")


def checksum(path):
    """[size, CRC-32], or None if it is not there."""
    if not path.exists():
        return None
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def sync(path):
    """Make sure it is on the disk, not only in the kernel's cache."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def step_of(line):
    """The step of a line of a log; infinity of a half or damaged one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return math.inf


def truncate(path, step):
    """Drop the lines a killed run wrote after the checkpoint it resumes from, and damaged ones."""
    if path.exists():
        lines = path.read_text(errors="replace").splitlines()
        kept = [line + "\n" for line in lines if step_of(line) <= step]
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(kept))
        sync(scratch)
        os.replace(scratch, path)
