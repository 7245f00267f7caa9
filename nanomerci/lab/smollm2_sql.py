"""SmolLM2 after a short SFT on toy_sql's demonstrations: a pretrained model with a rare, better
strategy.

    python -m nanomerci.lab.smollm2_sql models/smollm2 models/smollm2_sql --rare_share 0.05

Writes the model, and prints for the questions of the `tune` split how often it uses each idiom and
how often that is correct. It is then trained by
    python train.py --task toy_sql --model models/smollm2_sql
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro

from nanomerci import tasks
from nanomerci.lab import stats
from nanomerci.loop.model import autocast, encode, load
from nanomerci.loop.warmstart import sft
from nanomerci.runtime import config
from nanomerci.runtime.config import run_command
from nanomerci.sample import Sampler
from nanomerci.tasks.graders.pool import Pool
from nanomerci.train import settle


def rates(c, sampler, task, problems, k):
    """Of k responses per problem -> rows (questions, idiom, its share, its accuracy)."""
    prompts = [encode(sampler.tokenizer, p.prompt) for p in problems]
    with autocast(c, sampler.model.device):
        rollout = sampler(prompts, k, seed=c.seed)
    texts = sampler.tokenizer.batch_decode(rollout.responses(), skip_special_tokens=True)
    asked = [p for p in problems for _ in range(k)]
    with Pool(c.graders, c.grade_timeout) as pool:
        jobs = [task.job(p, text) for p, text in zip(asked, texts, strict=True)]
        rewards = [grade.reward for grade in pool.grade(jobs)]
    rows = []
    for name, hard in (("easy", False), ("hard", True)):
        found = [
            (task.rare(p, text), reward)
            for p, text, reward in zip(asked, texts, rewards, strict=True)
            if p.hard == hard
        ]
        for idiom, rare in (("common", False), ("rare", True)):
            correct = [reward for is_rare, reward in found if is_rare == rare]
            accuracy = f"{sum(correct) / len(correct):.3f}" if correct else ""
            rows.append([name, idiom, f"{len(correct) / len(found):.3f}", accuracy])
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
    rows = rates(replace(c, model=str(out)), sampler, task, task.test[:problems], k)
    print("\n".join(stats.table(["questions", "idiom", "share", "accuracy"], rows)))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.smollm2_sql"))
