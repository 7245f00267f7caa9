"""Seconds and peak memory of a GRPO step of the default recipe, beside TRL's GRPOTrainer."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median

from nanomerci.runtime.config import UserError
from nanomerci.view.report import read_lines

ROOT = Path(__file__).parents[2]
TURNS = 3  # processes of each peer
SKIPPED = 2  # steps of each process that are not counted
PHASES = ("sample", "score", "grade", "update", "count")


def child(command, **environment):
    """Run a command -> its peak memory in MiB, which is that of its process alone."""
    with tempfile.TemporaryFile("w+") as errors:
        env = os.environ | environment
        process = subprocess.Popen(command, stdout=errors, stderr=errors, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait again
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no word"])[-1][:200]
            raise UserError(f"{' '.join(command[:4])} failed: {last}")
    return usage.ru_maxrss / 1024


def options(o):
    """The run that both make, in train.py's words."""
    words = f"--prompts {o.rows // o.group} --group {o.group} --steps {o.steps + SKIPPED}"
    words += f" --max_new_tokens {o.length} --bonus {o.bonus} --cfn_features {o.cfn_features}"
    words += " --minibatches 1 --eval_every 0 --eval_problems 2 --eval_k 1 --save_every 0"
    return ["toy_sql", *words.split()]


def our_step(o, folder):
    """train.py itself, the default recipe with every stage of it -> seconds per step, tokens per
    response, peak memory, seconds per phase.
    """
    run = folder / "ours"
    shutil.rmtree(run, ignore_errors=True)
    python = [sys.executable, str(ROOT / "train.py"), *options(o)]
    memory = child([*python, f"--out={run}", "--report=False"])
    steps = [m for m in read_lines(run / "metrics.jsonl") if m["step"] > SKIPPED]
    seconds = [m["time/step"] - m.get("time/eval", 0.0) for m in steps]
    phases = {name: median(m[f"time/{name}"] for m in steps) for name in PHASES}
    return seconds, [m["length/mean"] for m in steps], memory, phases


def trl_step(o, folder):
    """TRL's GRPOTrainer from the same policy on the same prompts with the same grader -> seconds
    per step, tokens per response, peak memory.
    """
    out, policy = folder / "trl.json", folder / "ours/checkpoints/step_000000/model"
    command = [sys.executable, "-m", "nanomerci.bench.step", str(policy), str(out), *options(o)]
    memory = child(command, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    found = json.loads(out.read_text())
    return found["seconds"][SKIPPED:], found["lengths"][SKIPPED:], memory, None


def trl_arguments(scratch, c, task, problems, **more):
    """What a GRPOTrainer of TRL takes to train on these problems as c, a Config of ours, says,
    without a bonus; more: of GRPOConfig.
    """
    from datasets import Dataset
    from trl import GRPOConfig

    by_id = {problem.id: problem for problem in problems}

    def reward(completions, id, **_):
        jobs = (task.job(by_id[i], m["content"]) for i, (m,) in zip(id, completions, strict=True))
        return [grade(*arguments).reward for grade, *arguments in jobs]

    args = GRPOConfig(
        scratch,
        per_device_train_batch_size=c.prompts * c.group // c.minibatches,
        steps_per_generation=c.minibatches,
        gradient_accumulation_steps=1,
        num_generations=c.group,
        max_completion_length=c.max_new_tokens,
        max_steps=c.steps * c.minibatches,
        learning_rate=c.lr,
        lr_scheduler_type="linear" if c.lr_decay else "constant",
        loss_type="grpo",
        beta=0.0,
        temperature=c.temperature,
        top_k=c.top_k,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )
    rows = [{"prompt": [{"role": "user", "content": p.prompt}], "id": p.id} for p in problems]
    return {"reward_funcs": reward, "args": args, "train_dataset": Dataset.from_list(rows)}


def trl(policy, out, words):
    """In a process of its own: train, and write what it took."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    from nanomerci import tasks
    from nanomerci.runtime import config

    c = config.parse(words)
    task = tasks.load(c)
    problems = tasks.pick(task.train, list(range(c.prompts * c.steps)), c.seed)
    seconds, lengths = [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, args, state, control, logs=None, **_):
            if "completions/mean_length" in (logs or {}):
                lengths.append(logs["completions/mean_length"])

    how = {"logging_steps": 1, "shuffle_dataset": False}
    with tempfile.TemporaryDirectory() as scratch:
        GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
            callbacks=[Watch()],
            **trl_arguments(scratch, c, task, problems, **how),
        ).train()
    Path(out).write_text(json.dumps({"seconds": seconds, "lengths": lengths}))


def run(o):
    if find_spec("trl") is None:
        raise UserError("bench step: TRL is not installed; pip install -e '.[bench]'")
    print(
        f"step: toy_sql on the CPU, {o.rows} rows in groups of {o.group}, at most {o.length} new "
        f"tokens, one update, bonus {o.bonus}, CFN features {o.cfn_features}\n"
        f"{'peer':16s} {'seconds':>8s} {'tokens':>7s} {'peak MiB':>9s} {'ours is':>8s}"
    )
    peers, ours = {"nanomerci": our_step, "TRL GRPOTrainer": trl_step}, None
    with tempfile.TemporaryDirectory() as scratch:
        # in turn, so that a busy machine slows both alike
        turns = [[step(o, Path(scratch)) for step in peers.values()] for _ in range(TURNS)]
    for name, runs in zip(peers, zip(*turns, strict=True), strict=True):
        seconds, lengths, memories, phases = zip(*runs, strict=True)
        typical, tokens = median(chain(*seconds)), median(chain(*lengths))
        ours = ours or typical
        print(
            f"{name:16s} {typical:8.3f} {tokens:7.1f} {max(memories):9.0f} {typical / ours:6.2f} x"
        )
        if phases[0]:
            middle = {what: median(p[what] for p in phases) for what in PHASES}
            print("    of which", ", ".join(f"{what} {s:.3f}" for what, s in middle.items()))
    print(
        "equal: the policy's weights at the start, prompts, group, longest response, fp32, "
        f"learning rate, no KL, grader; median of\n{TURNS} x {o.steps} steps, {SKIPPED} before "
        "them not counted, processes in turn. Not equal: AdamW's second moment and decay; ours\n"
        "logs, and with --bonus cfn scores and counts states. The graders' processes are not in "
        "the peak. tokens: per response."
    )


if __name__ == "__main__":
    trl(*sys.argv[1:3], sys.argv[3:])
