"""What RL starts from: a pretrained policy, or a tiny one and its schooling on answers the task
makes up, so that it can talk.

The schooled one is cached between runs under a hash of what makes it: the demonstrations, the
numbers of its training, the seed.
"""

import hashlib
import math
import os
import random
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from nanomerci import tasks
from nanomerci.bonuses.explore import own_trunk
from nanomerci.loop.model import context, encode, eos_ids, frozen_copy, load, tiny, token_logp
from nanomerci.loop.rollout import pad
from nanomerci.runtime.checkpoint import newest, reason, writable
from nanomerci.runtime.config import UserError
from nanomerci.runtime.log import say

STEPS, BATCH, LR = 500, 64, 3e-3


def cache_folder():
    return Path(os.environ.get("NANOMERCI_CACHE") or Path.home() / ".cache" / "nanomerci")


def load_models(c, run, task, device):
    """-> policy (of the newest checkpoint when resuming), trunk (the initial policy, frozen),
    tokenizer.
    """
    if c.kernels == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "--kernels triton: wants a GPU (or, to check values, TRITON_INTERPRET=1); on a CPU "
            "use --kernels torch"
        )
    first = run / "checkpoints/step_000000/model"
    if c.model == "tiny" and not first.exists():
        if not hasattr(task, "demonstration"):
            raise UserError(
                f"--model tiny: --task {c.task} has no demonstrations to warm it up with; give "
                "a pretrained --model"
            )
        initial, tokenizer = tiny_policy(task, c.sft_seed)
    else:
        initial, tokenizer = load(first if first.exists() else c.model, device)
    policy = load(newest(run) / "model", device)[0] if c.resume else initial
    if c.max_seq_len:
        policy.config.max_position_embeddings = c.max_seq_len
    longest, left = tasks.fit(
        task, lambda p: len(encode(tokenizer, p.prompt)), c.max_prompt_tokens, c.eval_problems
    )
    if left:
        say(
            f"--max_prompt_tokens {c.max_prompt_tokens}: {left} problems have longer prompts and are left out"
        )
    if longest + c.max_new_tokens > context(policy):
        raise UserError(
            f"--max_new_tokens {c.max_new_tokens}: with the longest prompt ({longest} tokens) "
            "that exceeds the "
            f"model's context of {context(policy)}"
        )
    return (
        policy.to(device),
        frozen_copy(initial, device, getattr(torch, c.dtype)) if own_trunk(c) else policy,
        tokenizer,
    )


def tiny_policy(task, seed=0):
    """-> model, tokenizer: a tiny model that answers the task's questions the way its
    demonstrations do.
    """
    rng, model, tokenizer = random.Random(seed), *tiny(task.words, seed=seed)
    shown = [
        task.demonstration(rng) for _ in range(16 * BATCH)
    ]  # the first of those it will learn; a changed task changes them
    made_of = (
        STEPS,
        BATCH,
        LR,
        seed,
        len(task.train),
        model.config.to_json_string(),
        tokenizer.get_vocab(),
        shown,
    )
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    folder = cache_folder() / f"warmstart-{type(task).__name__}-{key}"
    if not folder.exists():
        writable(
            folder.parent,
            "the cache",
            "set NANOMERCI_CACHE to a folder with room that you may write to",
        )
        school(model, tokenizer, task, seed)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                model.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
                if not folder.exists():  # another process may have been faster
                    os.rename(scratch, folder)
                    os.mkdir(scratch)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the cache {folder.parent}: cannot be written ({reason(error)}); make room, "
                "or set NANOMERCI_CACHE"
            ) from error
    return load(folder)


def school(model, tokenizer, task, seed):
    """AdamW on the negative log-prob of demonstrated answers, learning rate by warm-up and cosine."""
    rng, eos = random.Random(seed), eos_ids(model, tokenizer)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    bar = tqdm(range(STEPS), desc="warm start (once, then cached)", unit="step", dynamic_ncols=True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(
                (step + 1) / 50, 0.05 + 0.475 * (1 + math.cos(math.pi * step / STEPS))
            )
        pairs = [task.demonstration(rng) for _ in range(BATCH)]
        prompts = [encode(tokenizer, question) for question, _ in pairs]
        answers = [
            tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] for _, text in pairs
        ]
        tokens_BT = pad([p + a for p, a in zip(prompts, answers)])
        column_T = torch.arange(tokens_BT.shape[1])
        start_B1, length_B1 = (torch.tensor(list(map(len, x)))[:, None] for x in (prompts, answers))
        mask_BT = ((column_T >= start_B1) & (column_T < start_B1 + length_B1)).float()
        logp_BT, _ = token_logp(model, tokens_BT, mask_BT)
        loss = -logp_BT.sum() / mask_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == STEPS - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")
