"""What a run of train.py left in its folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

TIMES = ("time/", "tokens_per_s")  # differ from run to run


def metrics(folder, drop=TIMES):
    """A dict per step, without the metrics whose names begin like this."""
    rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(drop)} for row in rows]


def weights(folder, step):
    """Of the policy in a checkpoint, by their names."""
    return load_file(Path(folder) / f"checkpoints/step_{step:06d}/model/model.safetensors")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
