"""Checkpoints that survive kill -9, and resuming from them exactly, on as many ranks as one likes.

A checkpoint is a folder checkpoints/step_000040/:
    model/             an ordinary Hugging Face folder (sharded runs: in the dtype they compute in)
    shards/            sharded runs: fp32 weights and the optimiser's moments, each rank its slice (torch.distributed.checkpoint)
    state.pt           what all ranks share: step, position in the data, counter, optimiser (of an unsharded run)
    rank_00000.pt      what that rank had: its part of the replay, groups that wait for the next step
    checksums.json     size and CRC-32 of every file above
It is written aside, synced and renamed, so a folder under its final name is complete. There is no random state to save: random
numbers are functions of their address (nanomerci/address.py).
"""

import json
import os
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from nanomerci.loop.rollout import Experience
from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError

OWN = ("replay",)  # what of the bonus's state each rank has for itself; the rest is the same on all


def store(c, run, step, policy, actor, tokenizer, optimizer, explorer, cursor, held):
    """Everything a run is, as checkpoint `step`. cursor: prompts sampled so far; held: groups that
    wait for the next step.
    """
    bonus, sharded = explorer.state_dict(), c.shard == "fsdp"
    own = {
        "bonus": {name: bonus.pop(name) for name in OWN if name in bonus},
        "held": held[0].state() if held else {},
    }
    shared = {
        "step": step,
        "cursor": cursor,
        "counter": bonus,
        "optimizer": {} if sharded else optimizer.state_dict(),
    }
    shards = partial(ranks.save_shards, model=policy, optimizer=optimizer) if sharded else None
    save(run, step, actor, tokenizer, shared, c.keep_checkpoints, own, shards)


def resume(run, device, policy, actor, optimizer, explorer, pick):
    """The newest checkpoint back into what is given. -> its step, cursor, held. pick: numbers ->
    problems of the stream.
    """
    checkpoint = newest(run)
    shared, own, share = load(checkpoint, device)
    if (checkpoint / "shards").exists():  # of a sharded run, on however few ranks
        with whole(checkpoint):
            ranks.load_shards(checkpoint / "shards", policy, optimizer)
        ranks.refresh(actor)
    else:
        optimizer.load_state_dict(shared["optimizer"])
    explorer.load_state_dict(shared["counter"] | join([part["bonus"] for part in own], share))
    held = [Experience.of_state(part["held"], pick) for part in own if part["held"]]
    if held:
        everything = Experience.join(held)
        held = [everything.groups(torch.arange(len(everything.number_P), device=device)[share])]
    return shared["step"], shared["cursor"], held


def writable(folder, what, remedy):
    """Refuse a folder in which (or in the nearest parent there is) no file can be made. Leaves
    nothing behind.
    """
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
        raise UserError(
            f"--out {run}: already holds a run; go on with --resume {run}, or choose another --out"
        )
    begun = run / "metrics.jsonl"
    if (run / "config.yaml").exists() and begun.exists() and begun.read_text().count("\n") > 1:
        raise UserError(
            f"--out {run}: holds a run without a checkpoint; remove it, or choose another --out"
        )
    ranks.barrier()  # all have looked, now one may write


def complete(run):
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("step_??????"))


def newest(run):
    found = complete(run)
    if not found:
        raise UserError(f"{run}: no checkpoint there to go on from")
    return found[-1]


def save(run, step, model, tokenizer, state, keep, own=None, shards=None):
    """Write checkpoint `step`, all ranks together; then forget all but the newest `keep` (and step
    0, the run's frozen trunk).

    state: what all ranks share; own: what this one has. shards: called with a folder, in which
    every rank writes its slice.
    """
    folder = Path(run) / "checkpoints"
    final, scratch = folder / f"step_{step:06d}", folder / f".step_{step:06d}.partial"
    if final.exists():
        return final

    def together(write):
        """All write; where one cannot, all stop."""
        problem = []
        try:
            write()
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # what a full disk provokes in the three libraries that write here
            if ranks.lost(error):
                raise
            problem = [reason(error)]
        if problem := ranks.gather(problem):
            if ranks.rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
            whole, free = complete(run), shutil.disk_usage(folder.parent).free
            raise UserError(
                f"{final}: could not be written ({problem[0]}; {free / 1e9:.1f} GB free). "
                + (
                    f"The checkpoint before it, {whole[-1].name}, is whole: make room, then go "
                    f"on with --resume {run}"
                    if whole
                    else "There is none before it: make room and start again"
                )
            )

    def begin():
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

    def write():
        if ranks.rank == 0:
            model.save_pretrained(scratch / "model")
            tokenizer.save_pretrained(scratch / "model")
            torch.save(state, scratch / "state.pt")
        torch.save(own or {}, scratch / f"rank_{ranks.rank:05d}.pt")

    def seal():
        if ranks.rank == 0:
            (scratch / "checksums.json").write_text(json.dumps(dict(sorted(sums)), indent=0))
            for path in [*scratch.rglob("*"), scratch]:
                sync(path)
            os.rename(scratch, final)
            sync(folder)

    together(begin)
    together(write)
    if shards:
        together(lambda: shards(scratch / "shards"))
    sums = ranks.gather(
        [(name, checksum(scratch / name)) for name in files(scratch)[ranks.rank :: ranks.world]]
    )
    together(seal)
    if ranks.rank == 0:
        for old in complete(run)[:-keep]:
            if old.name != "step_000000":
                os.rename(
                    old, old.with_name(f".{old.name}.old")
                )  # never a half-deleted folder under a final name
        for waste in folder.glob(".step_*"):
            shutil.rmtree(waste, ignore_errors=True)
    ranks.barrier()
    return final


def load(checkpoint, device):
    """-> what all ranks share; a list of what ranks had, and the slice of all that (joined) which
    is this rank's now.

    With as many ranks as before, each gets its own back; otherwise everything is dealt out anew.
    """

    def read(name):
        return torch.load(checkpoint / name, map_location=device, weights_only=True)

    checkpoint = Path(checkpoint)
    with whole(checkpoint):
        names = [name for name in files(checkpoint) if name.startswith("rank_")]
        if len(names) == ranks.world:
            return read("state.pt"), [read(names[ranks.rank])], slice(None)
        return (
            read("state.pt"),
            [read(name) for name in names],
            slice(ranks.rank, None, ranks.world),
        )


def join(parts, share):
    """What ranks had -> one of the same form: dicts by key, of tensors this rank's share of the
    first axis, and what is the same in all, such as numbers, as it is.
    """
    if isinstance(parts[0], dict):
        return {key: join([part[key] for part in parts], share) for key in parts[0]}
    return torch.cat(parts)[share] if isinstance(parts[0], torch.Tensor) else parts[0]


def verify(run):
    """Compare all files of the newest checkpoint and of the first, which holds the trunk, with
    their checksums; each rank some.
    """
    for checkpoint in {newest(run): 0, complete(run)[0]: 0}:
        with whole(checkpoint):
            sums = json.loads((checkpoint / "checksums.json").read_text())
            mine = sorted(sums)[ranks.rank :: ranks.world]
            wrong = [
                name
                for name in mine
                if not (checkpoint / name).exists() or checksum(checkpoint / name) != sums[name]
            ]
        if wrong := ranks.gather(wrong):
            raise UserError(corrupt(checkpoint, f"{wrong[0]} is not what was written"))


@contextmanager
def whole(checkpoint):
    """Whatever reading a checkpoint raises becomes one line that names it and offers the one
    before.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch raises what the bytes happen to provoke
        raise UserError(corrupt(checkpoint, reason(error))) from error


def corrupt(checkpoint, why):
    before = [
        found.name for found in complete(checkpoint.parent.parent) if found.name < checkpoint.name
    ]
    return f"{checkpoint}: the checkpoint is corrupt ({why}); " + (
        f"delete that folder to go on from {before[-1]}"
        if before
        else "there is none before it: start the run again"
    )


def reason(error):
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no more is known'])[0][:150]}"


def files(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != "checksums.json"
    )


def checksum(path):
    """[size, CRC-32]"""
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


def truncate(path, step):
    """Drop the lines a killed run wrote after the checkpoint it resumes from (and a half-written
    last line).
    """
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(kept))
        sync(scratch)
        os.replace(scratch, path)
