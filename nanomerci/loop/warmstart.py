"""What RL starts from: a pretrained model, or a tiny one after SFT on synthetic demonstrations.

The tiny one is cached between runs under a hash of what makes it: the demonstrations, the numbers
of its training, the seed.
"""

import hashlib
import math
import os
import random
import tempfile

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from nanomerci import tasks
from nanomerci.loop.model import context, encode, eos_ids, load, tiny, token_logp
from nanomerci.loop.rollout import pad
from nanomerci.runtime.checkpoint import newest, reason, writable
from nanomerci.runtime.config import UserError
from nanomerci.runtime.log import log0

STEPS, BATCH, LR = 500, 64, 3e-3


def load_models(c, run, task, device):
    """-> policy (of the newest checkpoint when resuming), the initial policy, both in the CPU's
    memory, tokenizer; and the task loses prompts longer than --max_prompt_tokens.
    """
    if c.kernels == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "--kernels triton: expected a GPU (or, to check values, TRITON_INTERPRET=1); on a CPU "
            "use --kernels torch"
        )
    first = run / "checkpoints/step_000000/model"
    if c.model == "tiny" and not first.exists():
        if not hasattr(task, "demonstration"):
            raise UserError(
                f"--model tiny: --task {c.task} provides no SFT demonstrations for it; pass a "
                "pretrained --model"
            )
        initial, tokenizer = tiny_policy(task, c.sft_seed)
    else:
        initial, tokenizer = load(first if first.exists() else c.model)
    policy = load(newest(run) / "model")[0] if c.resume else initial
    if c.max_seq_len:
        policy.config.max_position_embeddings = c.max_seq_len
    check_lengths(c, task, tokenizer, context(policy))
    return policy, initial, tokenizer


def check_lengths(c, task, tokenizer, limit):
    """Leave out what is longer than --max_prompt_tokens; the rest must fit into the context."""

    def length(problem):
        return len(encode(tokenizer, problem.prompt))

    longest, left = tasks.fit(task, length, c.max_prompt_tokens, c.eval_problems)
    if left:
        log0(
            f"--max_prompt_tokens {c.max_prompt_tokens}: {left} problems have longer prompts and "
            "are left out"
        )
    if longest + c.max_new_tokens > limit:
        raise UserError(
            f"--max_new_tokens {c.max_new_tokens}: with the longest prompt ({longest} tokens) that "
            f"exceeds the model's context of {limit}"
        )


def tiny_policy(task, seed=0):
    """-> model, tokenizer: a tiny model that answers prompts as the task's demonstrations do."""
    model, tokenizer = tiny(task.words, seed=seed)
    rng = random.Random(seed)
    shown = [task.demonstration(rng) for _ in range(16 * BATCH)]  # the first of those it will learn
    numbers = STEPS, BATCH, LR, seed, torch.get_num_threads()
    vocabulary = sorted(tokenizer.get_vocab().items())  # a dict in another order each time
    made_of = len(task.train), model.config.to_json_string(), vocabulary, shown
    key = repr((*numbers, *made_of))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = tasks.cache_folder() / f"warmstart-{type(task).__name__}-{digest}"
    if not folder.exists():
        remedy = "set NANOMERCI_CACHE to a folder with room that you may write to"
        writable(folder.parent, "the cache", remedy)
        sft(model, tokenizer, task, seed, STEPS, BATCH, LR)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                model.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
                if not folder.exists():  # another process may have been faster
                    os.rename(scratch, folder)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the cache {folder.parent}: cannot be written ({reason(error)}); make room, or "
                "set NANOMERCI_CACHE"
            ) from error
    return load(folder)


def sft(model, tokenizer, task, seed, steps, batch, lr):
    """AdamW on the negative log-prob of demonstrations, learning rate by warm-up and cosine."""
    rng, eos = random.Random(seed), eos_ids(model, tokenizer)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    bar = tqdm(range(steps), desc="warm start (once, then cached)", unit="step", dynamic_ncols=True)
    for step in bar:
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(10 * (step + 1) / steps, cosine)
        tokens_BT, mask_BT = demonstrations(task, tokenizer, rng, eos, batch)
        logp_BT, _ = token_logp(model, tokens_BT, mask_BT)
        loss = -logp_BT.sum() / mask_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def demonstrations(task, tokenizer, rng, eos, batch):
    """-> tokens_BT, mask_BT of so many demonstrations."""
    rows, masks = [], []
    for _ in range(batch):
        prompt, response = task.demonstration(rng)
        asked = encode(tokenizer, prompt)
        written = [*tokenizer(response, add_special_tokens=False)["input_ids"], eos]
        rows.append(asked + written)
        masks.append([0] * len(asked) + [1] * len(written))
    return pad(rows), pad(masks).float()
