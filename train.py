#!/usr/bin/env python
"""nanoMERCI: train a language model with verifiable rewards, and pay it a little for going where it has rarely been.

    python train.py                                     the default recipe: a tiny model learns SQL in minutes on a CPU
    python train.py toy_sql --gamma 0                   the same without the bonus: plain GRPO, bit for bit
    python train.py smollm2_arithmetic --model DIR      a real pretrained model, the same code
    torchrun --nproc-per-node=8 train.py RECIPE         many GPUs
    python train.py --resume runs/toy_sql-seed0         go on where a run was stopped or killed
    python train.py --help                              every option; --list: recipes, tasks, bonuses

The loop in main() is the picture of the README: sample, grade, compare within the group; look how new the visited states were,
add the exploration advantage; update the policy; count the states. The algorithms are in the files it calls.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""
import os
import sys
from functools import partial
from pathlib import Path

# A thread that waits for another spins, by default for so long that on busy cores a step takes 10 x (measured); sleep sooner.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

from nanomerci import config

if __name__ == "__main__":
    config.early(sys.argv[1:])  # --help and mistakes are answered before torch has loaded

import torch

import cfn
import dapo
import grpo
from nanomerci import dist, dryrun, merci, plots, state, tasks
from nanomerci.address import address, seed
from nanomerci.evaluate import evaluate
from nanomerci.grading import Pool
from nanomerci.log import Clock, Log, Stop, bar, say, tally
from nanomerci.model import context, encode, eos_ids, frozen_copy, load, look_at, token_logp
from nanomerci.rollout import micro_batches, noise_mask
from nanomerci.warmstart import cache_folder, tiny_policy
from sample import generate

ADVANTAGE = {"grpo": grpo.advantage, "dapo": grpo.advantage, "dr_grpo": grpo.centred}
BONUS = {"variance": merci.trajectory_bonus, "deviation": merci.bonus_of_deviations, "sum": merci.bonus_of_sum}


def main():
    c = config.parse(sys.argv[1:])
    if c.dry_run:
        return dryrun.show(c)
    if c.shard != "none":
        raise config.UserError(f"--shard {c.shard}: sharded training is not there yet; --shard none trains whole replicas")
    device, run = dist.start(c.device), Path(c.out)
    torch.set_num_threads(c.threads or torch.get_num_threads())
    if not c.resume and any(run.glob("checkpoints/step_*")):
        raise config.UserError(f"--out {run}: already holds a run; go on with --resume {run}, or choose another --out")
    if not c.resume and ((run / "config.yaml").exists() or run.exists() and not run.is_dir()):
        raise config.UserError(f"--out {run}: holds a run without a checkpoint, or is a file; remove it, or choose another --out")
    task = tasks.load(c, cache_folder())
    policy, trunk, tokenizer = load_models(c, run, task, device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay)
    counter = cfn.Counter(policy.config.hidden_size, coins=c.coins, hidden=c.cfn_hidden, prior=c.cfn_prior, lr=c.cfn_lr,
                          capacity=c.cfn_replay, batch=c.cfn_batch, seed=c.seed, device=device, all_sum=dist.sum_)  # fmt: skip
    done = -1  # the step of the newest checkpoint
    if c.resume:
        saved = state.load(state.newest(run), device)
        optimizer.load_state_dict(saved["optimizer"])
        counter.load_state_dict(saved["counter"])
        done = saved["step"]
    log = Log(run, c, done)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=c.dtype == "bfloat16")
    counting, share = c.bonus == "cfn", dist.share(c.prompts, c.minibatches)
    look = partial(look_at, trunk, net=counter.net if counting else None, kl=c.kl > 0, temperature=c.temperature,
                   budget=c.micro_tokens, backend=c.backend)  # fmt: skip

    def sample(cursor, purpose="train"):
        """G answers to each of P prompts from position `cursor` of the data on (this rank's share). Row r of the whole run is
        drawn, and its visits' coins are tossed, under its own number."""
        problems = list(tasks.pick(task.train, cursor, c.prompts, c.seed))[share]
        prompt_P = cursor + torch.arange(c.prompts, device=device)[share]
        row_B = (prompt_P[:, None] * c.group + torch.arange(c.group, device=device)).flatten()
        with precision():
            roll = generate(policy, [encode(tokenizer, p.prompt) for p in problems], c.group, max_new_tokens=c.max_new_tokens,
                            eos_id=eos_ids(policy, tokenizer), temperature=c.temperature, seed=seed(purpose, c.seed),
                            rows=row_B, slots=c.slots)  # fmt: skip
        visit_BT = address(purpose, c.seed, row_B[:, None], torch.arange(roll.tokens_BT.shape[1], device=device))
        return [p for p in problems for _ in range(c.group)], roll, visit_BT

    def examine(step):
        """How good is the policy on held-out problems? -> metrics."""
        problems = task.test[: c.eval_problems]
        with precision(), bar(len(problems) * (c.eval_k + 1) // dist.world, f"evaluate, step {step}", "answer") as progress:
            metrics, records = evaluate(policy, tokenizer, task, problems, pool, K=c.eval_k, max_new_tokens=c.max_new_tokens,
                                        temperature=c.temperature, run_seed=c.seed, slots=c.slots,
                                        progress=progress.update)  # fmt: skip
        log.write("evals.jsonl", {"step": step, "records": records})
        return metrics

    def save(step):
        log.sync()
        extra = {"step": step, "optimizer": optimizer.state_dict(), "counter": counter.state_dict()}
        if dist.rank == 0:
            state.save(run, step, policy, tokenizer, extra, c.keep)
            plots.report(run)
        dist.barrier()

    with Pool(c.graders, c.deadline) as pool, Stop() as stop:
        if done < 0:  # before the first step: how good is it, and what would it visit anyway
            metrics = {"step": 0} | examine(0)
            if counting:
                rolls = [sample(i * c.prompts, "pretrain") for i in range(c.cfn_pretrain)]
                with precision():
                    visits = [look(roll, visit_BT)[2] for _, roll, visit_BT in rolls]
                metrics["cfn/loss"] = counter.pretrain(*map(torch.cat, zip(*visits)), c.cfn_passes)
            log.step(metrics)
            save(0)

        for step in log.progress(max(done, 0) + 1, c.steps):
            clock = Clock()
            # sample, grade, compare within the group
            problem_B, roll, visit_BT = sample((step - 1) * c.prompts)
            text_B = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
            clock("sample")
            grade_B = pool.grade([task.job(problem, text) for problem, text in zip(problem_B, text_B)])
            reward_B = torch.tensor([g.reward for g in grade_B], device=device)
            if c.overlong_buffer:
                reward_B = reward_B + dapo.overlong_penalty(roll.length_B, c.max_new_tokens, c.overlong_buffer)
            adv_PG = ADVANTAGE[c.algo](reward_B.view(-1, c.group))
            clock("grade")
            # look: how new are the states it went through; add the exploration advantage
            with precision():
                invn_BT, logp_ref_BT, visits = look(roll, visit_BT) if counting or c.kl else (roll.mask_BT * 0, None, None)
            kept_BT = merci.coherent(merci.percentile(invn_BT, roll.mask_BT, c.top), c.run)
            if c.noise_filter:
                kept_BT = merci.suppress(kept_BT, noise_mask(tokenizer, roll, map(task.noise, problem_B, text_B)))
            bonus_PG = BONUS[c.bonus_form](invn_BT, kept_BT, roll.mask_BT).view(-1, c.group)
            gamma = merci.gamma_at(step - 1, c.gamma, c.gamma_decay)
            merged_PG = merci.merge(adv_PG, merci.exploration_advantage(bonus_PG), gamma, c.alpha)
            clock("score")
            # update the policy, then count the states
            rate = c.lr * min(1.0, step / max(c.warmup, 1)) * (1 - (step - 1) / c.steps if c.lr_decay else 1.0)
            learned = update(c, policy, optimizer, rate, roll, merged_PG.flatten(), logp_ref_BT, precision, f"step {step}")
            clock("update")
            cfn_loss = counter.visit(*visits, c.cfn_rehearse, step) if counting else 0.0
            clock("count")
            # log, evaluate, save
            metrics = {"step": step, "lr": rate, "merci/gamma": gamma, "cfn/loss": cfn_loss, "grad_norm": learned.pop("grad_norm")}
            metrics |= dist.mean(tally(roll, grade_B, reward_B.view(-1, c.group), adv_PG, merged_PG, bonus_PG, invn_BT, kept_BT) | learned)
            log.samples(step, c.group, problem_B, text_B, grade_B, merged_PG, bonus_PG, roll, tokenizer, invn_BT)
            last = step == c.steps
            if last or c.eval_every and step % c.eval_every == 0:
                metrics |= examine(step)
                clock("eval")
            log.step(metrics | clock.metrics)
            asked = dist.sum_(torch.tensor(float(bool(stop.asked)), device=device)) > 0  # on any rank
            if last or asked or c.save_every and step % c.save_every == 0:
                save(step)
            if asked and not last:
                say(f"stopped after step {step}; go on with: python train.py --resume {run}")
                break
    log.summary()
    dist.finish()


def load_models(c, run, task, device):
    """-> policy (of the newest checkpoint when resuming), trunk (the initial policy, frozen), tokenizer."""
    first = run / "checkpoints/step_000000/model"
    if c.model == "tiny" and not first.exists():
        if not hasattr(task, "demonstration"):
            raise config.UserError(f"--model tiny: --task {c.task} has no demonstrations to warm it up with; give a pretrained --model")
        initial, tokenizer = tiny_policy(task)
    else:
        initial, tokenizer = load(first if first.exists() else c.model, device)
    policy = load(state.newest(run) / "model", device)[0] if c.resume else initial
    if c.context:
        policy.config.max_position_embeddings = c.context
    longest, left = tasks.fit(task, lambda p: len(encode(tokenizer, p.prompt)), c.max_prompt, c.eval_problems)
    if left:
        say(f"--max_prompt {c.max_prompt}: {left} problems have longer prompts and are left out")
    if longest + c.max_new_tokens > context(policy):
        raise config.UserError(f"--max_new_tokens {c.max_new_tokens}: with the longest prompt ({longest} tokens) that exceeds the "
                               f"model's context of {context(policy)}")  # fmt: skip
    frozen = c.cfn_trunk == "frozen" and c.bonus == "cfn" or c.kl > 0
    return policy.to(device), frozen_copy(initial, device, getattr(torch, c.dtype)) if frozen else policy, tokenizer


def update(c, policy, optimizer, rate, roll, adv_B, logp_ref_BT, precision, where):
    """The policy learns from the batch: one optimiser step a mini-batch. -> {metric: (sum, count)}, and grad_norm.

    Rows whose advantage is exactly 0 add nothing to the gradient (unless the KL term is on) and are left out.
    """
    algo = dapo if c.algo == "dapo" else grpo
    for group in optimizer.param_groups:
        group["lr"] = rate

    def forward(rows):
        with precision():
            part = roll.rows(rows)  # only as wide as these rows need
            return token_logp(policy, part.tokens_BT, part.mask_BT, c.temperature, c.backend)[0]

    new_BT, old_BT = torch.zeros_like(roll.logp_BT), roll.logp_BT.clone()
    learning_B = torch.ones_like(adv_B, dtype=torch.bool) if c.kl else adv_B != 0
    if c.minibatches > 1 and c.old_logp == "trainer":
        with torch.no_grad():
            for rows in micro_batches(roll.end_B, c.micro_tokens):
                logp_bT = forward(rows)
                old_BT[rows, : logp_bT.shape[1]] = logp_bT
    norm = 0.0
    for batch in torch.arange(len(adv_B), device=adv_B.device).chunk(c.minibatches):
        mask_bT = roll.mask_BT[batch]
        total = dist.sum_(algo.units(mask_bT))
        weight_BT = torch.zeros_like(roll.mask_BT)
        weight_BT[batch] = grpo.weights_constant(mask_bT, total, c.max_new_tokens) if c.algo == "dr_grpo" else algo.weights(mask_bT, total)
        learning = batch[learning_B[batch]]
        if dist.sum_(torch.tensor(len(learning), device=adv_B.device)) == 0:
            continue  # on no rank
        for part in micro_batches(roll.end_B[learning], c.micro_tokens):
            rows = learning[part]
            logp_bT = forward(rows)
            here = rows, slice(logp_bT.shape[1])
            new_BT[here] = logp_bT.detach()
            if c.minibatches == 1:
                old_BT[here] = new_BT[here]  # the batch is used once: pi_old is pi, the ratio 1
            loss_bT = algo.surrogate(logp_bT, old_BT[here], adv_B[rows], c.clip_low, c.clip_high)
            if c.kl:
                loss_bT = loss_bT + c.kl * grpo.kl(logp_bT, logp_ref_BT[here])
            (loss_bT * weight_BT[here]).sum().backward()
        norm = dist.step(optimizer, c.max_norm, where)
    mask_BT = roll.mask_BT * learning_B[:, None]
    low_BT, high_BT = grpo.clipped(new_BT, old_BT, adv_B, c.clip_low, c.clip_high)
    values = {"clip/low": low_BT, "clip/high": high_BT, "kl": grpo.kl(new_BT, logp_ref_BT) if c.kl else mask_BT * 0}
    sums = {name: ((x * mask_BT).sum(), mask_BT.sum()) for name, x in values.items()}
    fresh = slice(len(adv_B) // c.minibatches)  # the first mini-batch's forward saw the policy that sampled
    gap_BT = (new_BT - roll.logp_BT).abs() * mask_BT
    return sums | {"sampler/logp_gap": (gap_BT[fresh].sum(), mask_BT[fresh].sum()), "grad_norm": norm}


if __name__ == "__main__":
    config.run_command(main)
