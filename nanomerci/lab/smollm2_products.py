"""A pretrained model with a rare, better strategy: SmolLM2 after a short SFT on the demonstrations
of tasks/products.py.

    python -m nanomerci.lab.smollm2_products models/smollm2 models/smollm2_products

Writes the model, unless it is there, and prints for questions of the `tune` split how often it
works a product out and how often that is correct. It is then trained by
    python train.py smollm2_products --model models/smollm2_products
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from nanomerci import tasks
from nanomerci.lab import stats
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.model import load
from nanomerci.loop.warmstart import sft
from nanomerci.runtime import config
from nanomerci.runtime.checkpoint import writable
from nanomerci.runtime.config import run_command
from nanomerci.sample import Sampler
from nanomerci.tasks.graders.pool import Pool
from nanomerci.train import settle


def rates(records, task):
    """Records of evaluate() -> rows (strategy, its share of the responses, its accuracy)."""
    by_id, outcomes = {p.id: p for p in task.test}, {"common": [], "rare": []}
    for record in records:
        for text, outcome in zip(record["answers"], record["outcomes"], strict=True):
            strategy = "rare" if task.rare(by_id[record["id"]], text) else "common"
            outcomes[strategy].append(outcome == "right")
    total = sum(map(len, outcomes.values()))
    return [
        [strategy, f"{len(found) / total:.3f}", f"{sum(found) / max(1, len(found)):.3f}"]
        for strategy, found in outcomes.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Start:
    """SFT of a pretrained model on products, and what it then does"""

    model: tyro.conf.Positional[Path]
    """Hugging Face folder."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    rare_share: config.Share = 0.05
    """Of the demonstrations that do not ask for it, how many are worked out."""
    steps: config.Count = 160
    """Steps of SFT, in fp32."""
    batch: config.Count = 16
    """Demonstrations per step."""
    lr: config.Rate = 5e-4
    """Learning rate of SFT."""
    seed: config.Seed = 0
    """Seed of the demonstrations."""
    problems: config.Count = 60
    """Questions of the tune split, to measure on."""
    k: config.Count = 8
    """Responses to each."""


def main(o):
    config.check_ranges(o)
    share, seed = f"--rare_share={o.rare_share}", f"--seed={o.seed}"
    c = settle(
        config.parse(["smollm2_products", f"--model={o.model}", share, seed, "--eval_split=tune"])
    )
    torch.set_num_threads(c.threads)
    task = tasks.load(c)
    if not o.out.exists():
        writable(o.out, "OUT", "choose another")
        policy, tokenizer = load(o.model)
        sft(policy, tokenizer, task, o.seed, o.steps, o.batch, o.lr)
        policy.save_pretrained(o.out)
        tokenizer.save_pretrained(o.out)
    policy, tokenizer = load(o.out)
    sampler = Sampler(policy, tokenizer, c.max_new_tokens)
    with Pool(c.graders, c.grade_timeout) as pool:
        how = {"K": o.k, "greedy": False, "run_seed": o.seed}
        _, records = evaluate(sampler, task, task.test[: o.problems], pool, **how)
    print("\n".join(stats.table(["strategy", "share", "accuracy"], rates(records, task))))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Start, prog="python -m nanomerci.lab.smollm2_products")))
