"""Runs of train.py on the task of once.py: their options, and what they leave in their folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

SHORT_RUN = {
    "steps": 4,
    "prompts": 4,
    "group": 4,
    "minibatches": 2,
    "max_new_tokens": 8,
    "run": 1,
    "cfn_hidden": 16,
    "eval_problems": 4,
    "eval_k": 4,
    "eval_every": 2,
    "save_every": 2,
    "keep_checkpoints": 9,
    "threads": 1,
    "dtype": "float32",
    "gamma_decay": 60,
    "alpha": 0.8,
    "report": False,
}
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
