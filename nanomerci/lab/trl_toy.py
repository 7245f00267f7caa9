"""GRPO against GRPO + CFN, both through TRL's trainer, on toy_sql, after an equal number
of responses; registered in experiments/trl_toy.md.

    python -m nanomerci.lab.trl_toy --out runs/trl_toy.csv
    python -m nanomerci.lab.stats runs/trl_toy.csv          the tables

The same command resumes after an interruption. Settings: recipes/toy_sql_short.yaml.
"""

import platform
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
import tyro
from trl import GRPOTrainer

from nanomerci import tasks
from nanomerci.bench.step import trl_arguments
from nanomerci.integrations.trl import MerciConfig, MerciGRPOTrainer
from nanomerci.lab import stats
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.warmstart import tiny_policy
from nanomerci.runtime import config
from nanomerci.runtime.config import run_command
from nanomerci.sample import Sampler
from nanomerci.tasks.graders.pool import Pool

ARMS = ("grpo", "grpo+cfn")


def trainer(arm, c, model, tokenizer, task, scratch):
    """TRL's, with the options of c, a Config of ours."""
    by_id = {problem.id: problem for problem in task.train}

    def noise(row, response):
        return task.noise(by_id[row["id"]], response)

    how = {"seed": c.seed, "adam_beta2": c.beta2, "logging_strategy": "no"}
    how = trl_arguments(scratch, c, task, task.train, **how) | {"processing_class": tokenizer}
    if arm == "grpo":
        return GRPOTrainer(model, **how)
    merci = MerciConfig(
        seed=c.seed,
        gamma=c.gamma,
        gamma_decay=c.gamma_decay * c.minibatches,
        alpha=c.alpha,
        top=c.top,
        run=c.run,
        cfn_hidden=c.cfn_hidden,
        noise=noise,
    )
    return MerciGRPOTrainer(model, merci=merci, **how)


def measure(model, tokenizer, task, pool, c):
    """On the held-out problems. -> {metric: value}"""
    problems = task.test[: c.eval_problems]
    sampler = Sampler(model.eval(), tokenizer, c.max_new_tokens)
    row, records = evaluate(sampler, task, problems, pool, K=c.eval_k, run_seed=c.seed)
    return stats.held_out(row, records, c.eval_k, task)


def run(arm, c, task, pool):
    """-> a row of the table."""
    model, tokenizer = tiny_policy(task, c.sft_seed)
    before = measure(model, tokenizer, task, pool, c)
    with tempfile.TemporaryDirectory() as scratch:
        made = trainer(arm, c, model, tokenizer, task, scratch)
        start = time.perf_counter()
        made.train()
        seconds = time.perf_counter() - start
    row = dict.fromkeys(stats.RUN)
    row |= {"experiment": "trl_toy", "arm": arm, "warm_start": c.sft_seed, "seed": c.seed}
    row |= {"processor": platform.processor() or platform.machine(), "dtype": "float32"}
    row |= {"task": c.task, "split": c.eval_split, "problems": c.eval_problems}
    row |= measure(model, tokenizer, task, pool, c)
    row |= {"answers": c.steps * c.prompts * c.group, "steps": c.steps, "seconds": seconds}
    return row | {f"before {name}": value for name, value in before.items()}


def main(out: Path, warm_starts: int = 2, seeds: int = 4, also: str = ""):
    """Train and evaluate every arm of every pair.

    Args:
        out: CSV, a row per run
        warm_starts: tiny policies, --sft_seed 0, 1, ...
        seeds: per warm start
        also: options of train.py for both arms, --also='--eval_split tune'
    """
    torch.set_num_threads(1)
    rows = pd.read_csv(out, comment="#").to_dict("records") if out.exists() else []
    done = {(row["seed"], row["warm_start"], row["arm"]) for row in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m nanomerci.lab.trl_toy {' '.join(sys.argv[1:])}"
    with Pool(1) as pool:
        for seed, warm, arm in product(range(seeds), range(warm_starts), ARMS):
            if (seed, warm, arm) not in done:
                words = ["toy_sql_short", f"--sft_seed={warm}", f"--seed={seed}", *also.split()]
                c = config.parse(words)
                rows.append(run(arm, c, tasks.load(c), pool))
                out.write_text(f"# {command}\n{pd.DataFrame(rows).to_csv(index=False)}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.trl_toy"))
