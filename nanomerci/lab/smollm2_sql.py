"""SmolLM2 after a short SFT on toy_sql's demonstrations: a pretrained model with a rare, better
strategy.

    python -m nanomerci.lab.smollm2_sql models/smollm2 models/smollm2_sql --rare_share 0.05

Writes the model, and prints for the questions of the `tune` split how often it uses each idiom and
how often that is correct. It is then trained by
    python train.py --task toy_sql --model models/smollm2_sql
"""

from itertools import product
from pathlib import Path

import torch
import tyro

from nanomerci import tasks
from nanomerci.lab import stats
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.model import autocast, load
from nanomerci.loop.warmstart import sft
from nanomerci.runtime import config
from nanomerci.runtime.config import run_command
from nanomerci.sample import Sampler
from nanomerci.tasks.graders.pool import Pool
from nanomerci.train import settle


def rates(records, task):
    """Records of evaluate() -> rows (questions, idiom, its share, its accuracy)."""
    by_id, rows = {p.id: p for p in task.test}, []
    for questions, idiom in product(("easy", "hard"), ("common", "rare")):
        responses, outcomes = 0, []
        for record in records:
            problem = by_id[record["id"]]
            if problem.hard == (questions == "hard"):
                responses += len(record["answers"])
                for text, outcome in zip(record["answers"], record["outcomes"], strict=True):
                    if task.rare(problem, text) == (idiom == "rare"):
                        outcomes.append(outcome == "right")
        accuracy = f"{sum(outcomes) / len(outcomes):.3f}" if outcomes else ""
        share = f"{len(outcomes) / responses:.3f}" if responses else ""
        rows.append([questions, idiom, share, accuracy])
    return rows


def main(
    model: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    rare_share: float = 0.05,
    steps: int = 80,
    batch: int = 16,
    lr: float = 1e-4,
    seed: int = 0,
    problems: int = 60,
    k: int = 8,
):
    """SFT of a pretrained model on toy_sql, and what it then does.

    Args:
        model: Hugging Face folder
        out: folder to write
        rare_share: of the demonstrations, how many use the rare idiom
        steps: of SFT
        batch: demonstrations per step
        lr: learning rate of SFT
        seed: of the demonstrations
        problems: of the tune split, to measure on
        k: responses to each
    """
    words = [f"--model={model}", "--task=toy_sql", f"--rare_share={rare_share}", f"--seed={seed}"]
    c = settle(config.parse([*words, "--eval_split=tune", "--max_new_tokens=96"]))
    torch.set_num_threads(c.threads)
    task = tasks.load(c)
    if not out.exists():
        policy, tokenizer = load(model)
        with autocast(c, policy.device):
            sft(policy, tokenizer, task, seed, steps, batch, lr)
        policy.save_pretrained(out)
        tokenizer.save_pretrained(out)
    policy, tokenizer = load(out)
    sampler = Sampler(policy, tokenizer, c.max_new_tokens)
    with Pool(c.graders, c.grade_timeout) as pool, autocast(c, policy.device):
        how = {"K": k, "greedy": False, "run_seed": seed}
        _, records = evaluate(sampler, task, task.test[:problems], pool, **how)
    head = ["questions", "idiom", "share", "accuracy"]
    print("\n".join(stats.table(head, rates(records, task))))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.smollm2_sql"))
