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
from pathlib import Path

import pandas as pd
import torch
import tyro
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from nanomerci import tasks
from nanomerci.integrations.trl import MerciConfig, MerciGRPOTrainer
from nanomerci.lab import stats
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.warmstart import tiny_policy
from nanomerci.runtime import config
from nanomerci.runtime.config import run_command
from nanomerci.sample import Sampler
from nanomerci.tasks.graders.pool import Pool

ARMS = ("grpo", "grpo+cfn")
UPDATES = 2  # per generation batch, on half of it each: the recipe's minibatches


def trainer(arm, c, model, tokenizer, task, scratch):
    """TRL's, with the options of c, a Config of ours."""
    by_id = {problem.id: problem for problem in task.train}

    def reward(completions, id, **_):
        jobs = (task.job(by_id[i], m["content"]) for i, (m,) in zip(id, completions, strict=True))
        return [grade(*arguments).reward for grade, *arguments in jobs]

    def noise(row, response):
        return task.noise(by_id[row["id"]], response)

    args = GRPOConfig(
        scratch,
        seed=c.seed,
        per_device_train_batch_size=c.prompts * c.group // UPDATES,
        steps_per_generation=UPDATES,
        gradient_accumulation_steps=1,
        num_generations=c.group,
        max_completion_length=c.max_new_tokens,
        max_steps=c.steps * UPDATES,
        learning_rate=c.lr,
        lr_scheduler_type="constant",
        adam_beta2=c.beta2,
        loss_type="grpo",
        beta=0.0,
        temperature=c.temperature,
        top_k=c.top_k,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"prompt": [{"role": "user", "content": p.prompt}], "id": p.id} for p in task.train]
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    if arm == "grpo":
        return GRPOTrainer(model, reward, args, **data)
    merci = MerciConfig(
        seed=c.seed,
        gamma=c.gamma,
        gamma_decay=c.gamma_decay * UPDATES,
        alpha=c.alpha,
        top=c.top,
        run=c.run,
        cfn_hidden=c.cfn_hidden,
        noise=noise,
    )
    return MerciGRPOTrainer(model, reward, args, merci=merci, **data)


def measure(model, tokenizer, task, pool, c):
    """On the held-out problems. -> {metric: value}"""
    problems = task.test[: c.eval_problems]
    sampler = Sampler(model.eval(), tokenizer, c.max_new_tokens)
    row, records = evaluate(sampler, task, problems, pool, K=c.eval_k, run_seed=c.seed)
    return stats.held_out(row, records, c.eval_k, task, {p.id: p for p in task.test})


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
    done = {(row["arm"], row["warm_start"], row["seed"]) for row in rows}
    with Pool(1) as pool:
        for seed in range(seeds):
            for warm in range(warm_starts):
                words = [f"--sft_seed={warm}", f"--seed={seed}", *also.split()]
                c = config.parse(["toy_sql_short", *words])
                for arm in ARMS:
                    if (arm, warm, seed) in done:
                        continue
                    rows.append(run(arm, c, tasks.load(c), pool))
                    out.parent.mkdir(parents=True, exist_ok=True)
                    command = f"python -m nanomerci.lab.trl_toy {' '.join(sys.argv[1:])}"
                    out.write_text(f"# {command}\n{pd.DataFrame(rows).to_csv(index=False)}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.trl_toy"))
