"""A pretrained model with a rare, better strategy: SmolLM2 after a short SFT on the demonstrations
of tasks/products.py.

    python -m nanomerci.lab.smollm2_products models/smollm2 models/smollm2_products

Writes the model, unless it is there, and prints for questions of the `tune` split how often it
works a product out and how often that is correct. It is then trained by
    python train.py smollm2_products --model models/smollm2_products
"""

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


def main(
    model: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    rare_share: float = 0.05,
    steps: int = 160,
    batch: int = 16,
    lr: float = 5e-4,
    seed: int = 0,
    problems: int = 60,
    k: int = 8,
):
    """SFT of a pretrained model on products, and what it then does.

    Args:
        model: Hugging Face folder
        out: folder to write
        rare_share: of the demonstrations that do not ask for it, how many are worked out
        steps: of SFT, in fp32
        batch: demonstrations per step
        lr: learning rate of SFT
        seed: of the demonstrations
        problems: of the tune split, to measure on
        k: responses to each
    """
    words = ["smollm2_products", f"--model={model}", f"--rare_share={rare_share}", f"--seed={seed}"]
    c = settle(config.parse([*words, "--eval_split=tune"]))
    torch.set_num_threads(c.threads)
    task = tasks.load(c)
    if not out.exists():
        writable(out, "OUT", "choose another")
        policy, tokenizer = load(model)
        sft(policy, tokenizer, task, seed, steps, batch, lr)
        policy.save_pretrained(out)
        tokenizer.save_pretrained(out)
    policy, tokenizer = load(out)
    sampler = Sampler(policy, tokenizer, c.max_new_tokens)
    with Pool(c.graders, c.grade_timeout) as pool:
        how = {"K": k, "greedy": False, "run_seed": seed}
        _, records = evaluate(sampler, task, task.test[:problems], pool, **how)
    print("\n".join(stats.table(["strategy", "share", "accuracy"], rates(records, task))))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.smollm2_products"))
