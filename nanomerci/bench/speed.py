"""The sampler and the whole step beside what one would pick instead (python -m nanomerci.bench
sampler | step).

Axes: P prompts, G samples a prompt, B = P*G rows.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from nanomerci.runtime.config import UserError

# random weights in the shapes of known models: speed does not ask what a model has learnt
SHAPES = {
    "tiny": (
        "llama",
        dict(
            vocab_size=128,
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
    ),
    "smollm2-135m": (
        "llama",
        dict(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        ),
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        dict(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        ),
    ),
    "qwen2.5-1.5b": (
        "qwen2",
        dict(
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
        ),
    ),
}
TURNS = 3  # processes of each peer
PROMPT = 16  # tokens of the longest prompt; the shortest has half as many


def build(shape, dtype, device):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    family, sizes = SHAPES[shape]
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family](
        **sizes,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    return (
        AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
        .to(device)
        .eval()
    )


def work(model, rows, group, length):
    """Prompts of unequal lengths, and as many end tokens as make answers of length/2 tokens on
    average (random weights: p = share).
    """
    rng, V = random.Random(0), model.config.vocab_size
    ends = list(range(1, 1 + max(1, round(2 * V / length))))
    inner = lambda: rng.randrange(len(ends) + 1, V)
    return [
        [inner() for _ in range(rng.randint(PROMPT // 2, PROMPT))]
        for _ in range(max(1, rows // group))
    ], ends


def ours(model, prompts, group, length, ends):
    from nanomerci import sample

    return sample.generate(
        model, prompts, group, max_new_tokens=length, eos_id=ends
    ).length_B.tolist()


def generate(model, prompts, group, length, ends):
    import torch

    width = max(map(len, prompts))
    rows = [p for p in prompts for _ in range(group)]
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=model.device)
    with torch.no_grad():
        full = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=ends,
            pad_token_id=0,
        )
    return (full[:, width:] != 0).sum(1).tolist()


def continuous_batching(model, prompts, group, length, ends):
    from transformers import ContinuousBatchingConfig, GenerationConfig

    how = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=0,
    )
    rows = (
        len(prompts) * group
        # by its own choice it fills the memory, which takes minutes on a CPU; this is what the work
        # needs
    )
    size = ContinuousBatchingConfig(
        num_blocks=rows * (1 + (PROMPT + length) // 32), max_batch_tokens=max(256, rows)
    )
    found = model.generate_batch(
        [p for p in prompts for _ in range(group)],
        generation_config=how,
        continuous_batching_config=size,
    )
    model.set_attn_implementation("sdpa")
    if len(found) < len(prompts) * group:
        raise RuntimeError(f"{len(found)} answers to {len(prompts) * group} requests")
    return [len(output.generated_tokens) for output in found.values()]


def timed(model, function, *arguments):
    """-> seconds, tokens generated."""
    import torch

    sync = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    sync()
    start = time.perf_counter()
    lengths = function(model, *arguments)
    sync()
    return time.perf_counter() - start, int(sum(lengths))


def sampler(o):
    """Sampled tokens a second, beside transformers' generate and continuous batching; how they
    grow.
    """
    import torch

    from nanomerci.sample import working

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, o.dtype)
    model = build(o.shape, dtype, device)
    prompts, ends = work(model, o.rows, o.group, o.length)
    given = prompts, o.group, o.length, ends
    print(
        f"sampler: {o.shape}, {o.dtype}, {device.type}, {torch.get_num_threads()} threads; "
        f"{o.rows} rows in groups of {o.group}, "
        f"at most {o.length} new tokens\n{'peer':28s} {'tokens/s':>10s} {'tokens':>8s} "
        f"{'seconds':>8s} {'ours is':>8s}"
    )
    peers, seen = (
        {"nanomerci": ours}
        | {f"transformers {f.__name__}": f for f in (generate, continuous_batching)},
        {},
    )
    for name, function in list(peers.items()):
        try:
            timed(model, function, *given)  # the first call of each sets things up: not counted
        except (RuntimeError, ValueError, AttributeError, ImportError, TypeError) as error:
            if function is ours:
                raise
            print(
                f"{name:28s} does not run here: "
                f"{(str(error).strip().splitlines() or [type(error).__name__])[0][:90]}"
            )
            del peers[name]
    for _ in range(o.rounds):
        for name, function in peers.items():  # in turn, so that a busy machine slows all alike
            seen.setdefault(name, []).append(timed(model, function, *given))
    speed = {
        name: median(tokens / seconds for seconds, tokens in runs) for name, runs in seen.items()
    }
    for name, runs in seen.items():
        seconds, tokens = runs[0]
        times = "" if name == "nanomerci" else f"{speed['nanomerci'] / speed[name]:6.2f} x"
        print(
            f"{name:28s} {speed[name]:10,.0f} {tokens:8,d} {tokens / speed[name]:8.2f} {times:>8s}"
        )
    print(
        "equal: weights, prompts, dtype, process, temperature 1, end tokens; median of "
        f"{o.rounds} rounds in turn. Not equal: the\n"
        "random numbers, so answers differ a little in length: tokens are those generated, end "
        "tokens included, pads not."
    )
    if device.type == "cpu" and working(model) is not model:
        print(
            "Nor the arithmetic: this processor has none in bf16, and ours widens the weights "
            "to fp32 for the round."
        )
    if o.growth:
        print(f"\n{'tokens/s of nanomerci':28s} {'rows':>6s} {'length':>7s} {'parameters':>11s}")
        for shape, rows, length in (
            [(o.shape, r, o.length) for r in (o.rows // 4, o.rows, o.rows * 4)]
            + [(o.shape, o.rows, n) for n in (o.length // 2, o.length * 2)]
            + [
                (s, o.rows // 4, o.length // 2)
                for s in SHAPES
                if s != o.shape and device.type == "cuda" or s == "smollm2-135m"
            ]
        ):
            one = model if shape == o.shape else build(shape, dtype, device)
            prompts, ends = work(one, rows, o.group, length)
            timed(one, ours, prompts, o.group, min(length, 8), ends)
            seconds, tokens = timed(one, ours, prompts, o.group, length, ends)
            print(
                f"{tokens / seconds:28,.0f} {rows:6d} {length:7d} "
                f"{sum(p.numel() for p in one.parameters()):11,d}"
            )


# ---- the step


def child(command, **environment):
    """Run a command -> its peak memory in MiB, which is that of its process alone."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=errors, stderr=errors, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait again
        if process.returncode:
            errors.seek(0)
            raise UserError(
                f"{' '.join(command[:4])} failed: "
                f"{(errors.read().strip().splitlines() or ['no word'])[-1][:200]}"
            )
    return usage.ru_maxrss / 1024


def our_step(o, folder, group):
    """train.py itself, the default recipe with every stage of it -> seconds of each step, tokens of
    an answer, peak memory, and the seconds of each phase.
    """
    run = folder / "ours"
    shutil.rmtree(run, ignore_errors=True)
    root = Path(__file__).parent.parent.parent
    memory = child(
        [
            sys.executable,
            str(root / "train.py"),
            "toy_sql",
            "--prompts",
            str(o.rows // group),
            "--group",
            str(group),
            "--minibatches",
            "1",
            "--steps",
            str(o.steps + 2),
            "--eval_every",
            "0",
            "--eval_problems",
            "2",
            "--eval_k",
            "1",
            "--save_every",
            "0",
            "--report",
            "False",
            "--max_new_tokens",
            str(o.length),
            "--bonus",
            o.bonus,
            "--cfn_features",
            o.cfn_features,
            "--out",
            str(run),
        ]
    )
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [m for m in steps if m["step"] > 2]
    phases = {
        name: median(m[f"time/{name}"] for m in steps)
        for name in ("sample", "score", "grade", "update", "count")
    }
    return (
        [m["time/step"] - m.get("time/eval", 0.0) for m in steps],
        [m["length/mean"] for m in steps],
        memory,
        phases,
    )


def trl_step(o, folder, group):
    """TRL's GRPOTrainer from the same policy on the same prompts with the same grader -> seconds of
    each step, tokens of an answer, peak memory.
    """
    out, policy = folder / "trl.json", folder / "ours/checkpoints/step_000000/model"
    memory = child(
        [
            sys.executable,
            "-m",
            "nanomerci.bench.speed",
            str(policy),
            str(out),
            str(o.rows // group),
            str(group),
            str(o.length),
            str(o.steps + 2),
        ],
        PYTHONPATH=str(Path(__file__).parent.parent.parent),
        HF_HUB_OFFLINE="1",
    )
    found = json.loads(out.read_text())
    return found["seconds"][2:], found["lengths"][2:], memory, None


def trl(policy, out, prompts, group, length, steps):
    """In a process of its own: GRPO as train.py's default recipe has it, without a bonus."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from nanomerci import tasks
    from nanomerci.loop.warmstart import cache_folder
    from nanomerci.runtime import config

    task = tasks.load(config.parse(["toy_sql"]), cache_folder())
    problems = tasks.pick(task.train, list(range(prompts * steps)), 0)
    by_prompt, seconds, lengths = {p.prompt: p for p in problems}, [], []

    def reward(prompts, completions, **_):
        jobs = [
            task.job(by_prompt[p[-1]["content"]], c[-1]["content"])
            for p, c in zip(prompts, completions)
        ]
        return [function(*arguments).reward for function, *arguments in jobs]

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, args, state, control, logs=None, **_):
            if "completions/mean_length" in (logs or {}):
                lengths.append(logs["completions/mean_length"])

    with tempfile.TemporaryDirectory() as scratch:
        arguments = GRPOConfig(
            scratch,
            per_device_train_batch_size=prompts * group,
            num_generations=group,
            max_completion_length=length,
            max_steps=steps,
            learning_rate=4e-4,
            beta=0.0,
            temperature=1.0,
            top_k=0,
            loss_type="grpo",
            bf16=False,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            shuffle_dataset=False,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
            reward,
            arguments,
            train_dataset=Dataset.from_list(
                [{"prompt": [{"role": "user", "content": p.prompt}]} for p in problems]
            ),
            processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
            callbacks=[Watch()],
        )
        trainer.train()
    Path(out).write_text(json.dumps({"seconds": seconds, "lengths": lengths}))


def step(o):
    """Seconds and peak memory of a GRPO step of the default recipe, beside TRL's GRPOTrainer; how
    it grows with the group.
    """
    if find_spec("trl") is None:
        raise UserError("bench step: TRL is not installed; pip install -e '.[bench]'")
    print(
        f"step: toy_sql on the CPU, {o.rows} rows, at most {o.length} new tokens, one update, "
        f"bonus {o.bonus}, trunk {o.cfn_features}\n"
        f"{'peer':16s} {'group':>6s} {'seconds':>8s} {'tokens':>7s} {'peak MiB':>9s} "
        f"{'ours is':>8s}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for group in [o.group] + ([o.group // 2, o.group * 2] if o.growth else []):
            found = {}
            for _ in range(TURNS):  # in turn, so that a busy machine slows both alike
                for name, run in (("nanomerci", our_step), ("TRL GRPOTrainer", trl_step)):
                    found.setdefault(name, []).append(run(o, Path(scratch), group))
            ours = median(second for seconds, *_ in found["nanomerci"] for second in seconds)
            for name, runs in found.items():
                seconds, lengths, memories, phases = zip(*runs)
                typical = median(sum(seconds, []))
                times = "" if name == "nanomerci" else f"{typical / ours:6.2f} x"
                print(
                    f"{name:16s} {group:6d} {typical:8.3f} {median(sum(lengths, [])):7.1f} "
                    f"{max(memories):9.0f} {times:>8s}"
                )
                if name == "nanomerci":
                    print(
                        "    of which "
                        + ", ".join(
                            f"{what} {median(p[what] for p in phases):.3f}" for what in phases[0]
                        )
                    )
    print(
        "equal: the policy's weights at the start, prompts, group, longest answer, fp32, "
        "learning rate, no KL, grader; median of\n"
        f"{TURNS} x {o.steps} steps, two before them not counted, processes in turn. Not "
        "equal: AdamW's second moment and decay; ours\n"
        "logs, and with --bonus cfn scores and counts states. The graders' processes are not "
        "in the peak. tokens: of an answer."
    )


if __name__ == "__main__":
    policy, out, *numbers = sys.argv[1:]
    trl(policy, out, *map(int, numbers))
