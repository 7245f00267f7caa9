"""Checkpoints that survive kill -9, and resuming from them exactly.

A checkpoint is a folder checkpoints/step_000040/ with `model/`, an ordinary Hugging Face folder, and `state.pt`, the rest:
optimiser, counter, replay, position in the data. It is written aside, synced and renamed, so a folder under its final name is
complete. There is no random state to save: random numbers are functions of their address (nanomerci/address.py).
"""
import json
import os
import shutil
from pathlib import Path

import torch

from nanomerci.config import UserError


def claim(run):
    """A new run never overwrites what is there."""
    if any(run.glob("checkpoints/step_*")):
        raise UserError(f"--out {run}: already holds a run; go on with --resume {run}, or choose another --out")
    if (run / "config.yaml").exists() or run.exists() and not run.is_dir():
        raise UserError(f"--out {run}: holds a run without a checkpoint, or is a file; remove it, or choose another --out")


def newest(run):
    """The newest complete checkpoint of a run folder."""
    found = sorted((Path(run) / "checkpoints").glob("step_??????"))
    if not found:
        raise UserError(f"{run}: no checkpoint there to go on from")
    return found[-1]


def save(run, step, model, tokenizer, state, keep):
    """Write checkpoint `step`; then forget all but the newest `keep` (and step 0, the run's frozen trunk)."""
    folder = Path(run) / "checkpoints"
    final, scratch = folder / f"step_{step:06d}", folder / f".step_{step:06d}.partial"
    if final.exists():
        return final
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model.save_pretrained(scratch / "model")
    tokenizer.save_pretrained(scratch / "model")
    torch.save(state, scratch / "state.pt")
    for path in [*scratch.rglob("*"), scratch]:
        sync(path)
    os.rename(scratch, final)
    sync(folder)
    for old in sorted(folder.glob("step_??????"))[:-keep]:
        if old.name != "step_000000":
            os.rename(old, old.with_name(f".{old.name}.old"))  # never a half-deleted folder under a final name
    for waste in folder.glob(".step_*"):
        shutil.rmtree(waste, ignore_errors=True)
    return final


def load(checkpoint, device):
    path = Path(checkpoint) / "state.pt"
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises what the bytes happen to provoke
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); delete {checkpoint} to resume from the one before") from error


def sync(path):
    """Make sure it is on the disk, not only in the kernel's cache."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def truncate(path, step):
    """Drop the lines a killed run wrote after the checkpoint it resumes from (and a half-written last line)."""
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
