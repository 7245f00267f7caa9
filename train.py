#!/usr/bin/env python
"""nanoMERCI: train a language model with verifiable rewards, and pay it a little for going where it
has rarely been.

    python train.py                                     the default recipe: a tiny model learns SQL in minutes on a CPU
    python train.py toy_sql --gamma 0                   the same without the bonus: plain GRPO, bit for bit
    python train.py smollm2_arithmetic --model DIR      a real pretrained model, the same code
    torchrun --nproc-per-node=8 train.py RECIPE         many GPUs
    python train.py --resume runs/toy_sql-seed0         go on where a run was stopped or killed
    python train.py --help                              every option; --list: recipes, tasks, bonuses

The loop in main() is the picture of the README: sample, grade, compare within the group; look how
new the visited states were, add the exploration advantage; update the policy; count the states. The
algorithms are in the files it calls.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""

import os
import sys
from functools import partial
from pathlib import Path

# A thread that waits for another spins, by default for so long that on busy cores a step takes 10 x
# (measured); sleep sooner.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

from nanomerci.runtime import config

if __name__ == "__main__":
    config.early(sys.argv[1:])  # --help and mistakes are answered before torch has loaded

import torch
from nanomerci.sample import generate

from nanomerci import dapo, grpo, merci, tasks
from nanomerci.address import address, seed
from nanomerci.bonuses import explore
from nanomerci.loop import cost, dryrun
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.model import encode, eos_ids, recompute, token_logp
from nanomerci.loop.rollout import Experience, Rollout, micro_batches, noise_mask
from nanomerci.loop.warmstart import cache_folder, load_models
from nanomerci.runtime import checkpoint, ranks
from nanomerci.runtime.log import Clock, Log, Stop, bar, say, tally
from nanomerci.tasks.graders.pool import Pool
from nanomerci.view import report

ADVANTAGE = {"grpo": grpo.advantage, "dapo": grpo.advantage, "dr_grpo": grpo.centred}


@ranks.reported
def main():
    c = config.parse(sys.argv[1:])
    if c.dry_run:
        return dryrun.show(c)
    device, run = ranks.start(c.device, c.rank_timeout), Path(c.out)
    torch.set_num_threads(c.threads or torch.get_num_threads())
    checkpoint.verify(run) if c.resume else checkpoint.claim(run)
    task = tasks.load(c, cache_folder())
    policy, trunk, tokenizer = load_models(c, run, task, device)
    policy, actor = ranks.shard(
        policy, c.shard, getattr(torch, c.dtype)
    )  # one learns, one samples; unsharded they are the same
    trunk = actor if trunk is policy else trunk
    if c.gradient_checkpointing:
        recompute(policy)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=c.lr, betas=(0.9, c.beta2), weight_decay=c.weight_decay
    )
    explorer = explore.Explorer(c, trunk, policy.config.hidden_size, device)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=c.dtype == "bfloat16")
    done, cursor, held = (
        -1,
        0,
        [],
    )  # step of the newest checkpoint; prompts sampled so far; groups that wait for the next step
    if c.resume:
        pick = partial(tasks.pick, task.train, seed=c.seed)
        done, cursor, held = checkpoint.resume(
            run, device, policy, actor, optimizer, explorer, pick
        )

    def sample(first, purpose):
        """G answers to this rank's share of the P prompts from position `first` of the stream of
        problems on. Row r of the whole run is drawn, and its visits' coins are tossed, under its
        own number.
        """
        number_P = first + torch.arange(c.prompts, device=device)[ranks.share(c.prompts)]
        row_B = (number_P[:, None] * c.group + torch.arange(c.group, device=device)).flatten()
        problem_P = tasks.pick(task.train, number_P.tolist(), c.seed)
        with precision():
            drawn = generate(
                actor,
                [encode(tokenizer, p.prompt) for p in problem_P],
                c.group,
                max_new_tokens=c.max_new_tokens,
                eos_id=eos_ids(actor, tokenizer),
                temperature=c.temperature,
                seed=seed(purpose, c.seed),
                rows=row_B,
                slots=c.max_num_seqs,
                states=explorer.reads,
            )
        roll, states_BRD = drawn if explorer.reads else (drawn, None)
        visit_BT = address(
            purpose, c.seed, row_B[:, None], torch.arange(roll.tokens_BT.shape[1], device=device)
        )
        return number_P, problem_P, roll, visit_BT, states_BRD

    def ask():
        """A round of the step: sample, grade, look how new the states are that it went through."""
        nonlocal cursor
        number_P, problem_P, roll, *visited = sample(cursor, "train")
        cursor += c.prompts
        text_B = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
        problem_B = [problem for problem in problem_P for _ in range(c.group)]
        clock("sample")
        grades = pool.start(
            [task.job(problem, text) for problem, text in zip(problem_B, text_B)]
        )  # other processes grade, meanwhile
        with precision():
            novelty_BT, logp_ref_BT = explorer.look(roll, *visited)
        top_BT = merci.percentile(novelty_BT, roll.mask_BT, c.top)
        kept_BT = run_BT = merci.coherent(top_BT, c.run)
        if c.noise_filter:
            kept_BT = merci.suppress(
                run_BT, noise_mask(tokenizer, roll, map(task.noise, problem_B, text_B))
            )
        bonus_B = explorer.bonus(
            [p.id for p in problem_B], map(task.answer, text_B), novelty_BT, kept_BT, roll.mask_BT
        )
        clock("score")
        grade_B = grades.result()
        reward_B = torch.tensor([g.reward for g in grade_B], device=device)
        if c.overlong_buffer:
            reward_B = reward_B + dapo.overlong_penalty(
                roll.length_B, c.max_new_tokens, c.overlong_buffer
            )
        clock("grade")
        return Experience(
            number_P,
            problem_P,
            roll,
            text_B,
            grade_B,
            reward_B,
            novelty_BT,
            torch.stack([top_BT, run_BT, kept_BT]).sum(0),
            bonus_B,
            logp_ref_BT,
        )

    def examine(step):
        """How good is the policy on held-out problems? -> metrics."""
        problems = task.test[: c.eval_problems]
        with (
            precision(),
            bar(
                len(problems) * (c.eval_k + 1) // ranks.world, f"evaluate, step {step}", "answer"
            ) as progress,
        ):
            metrics, records = evaluate(
                actor,
                tokenizer,
                task,
                problems,
                pool,
                K=c.eval_k,
                max_new_tokens=c.max_new_tokens,
                temperature=c.temperature,
                run_seed=c.seed,
                slots=c.max_num_seqs,
                progress=progress.update,
            )
        log.write("evals.jsonl", {"step": step, "records": records})
        return metrics

    def save(step):
        log.sync()
        checkpoint.store(c, run, step, policy, actor, tokenizer, optimizer, explorer, cursor, held)
        if ranks.rank == 0 and c.report:
            report.report(run)

    with Pool(c.graders, c.grade_timeout) as pool, Stop() as stop:
        log = Log(run, c, done)
        if done < 0:  # before the first step: how good is it, and what would it visit anyway
            clock, metrics = Clock(), {"step": 0} | examine(0)
            clock("eval")
            if explorer.counts:
                with precision():
                    for i in range(c.cfn_pretrain):
                        explorer.look(*sample(i * c.prompts, "pretrain")[2:])
                metrics |= explorer.pretrain()
            clock("pretrain")
            log.step(metrics | clock.times)
            save(0)

        stopping = ranks.any(stop.asked)
        for step in log.progress(max(done, 0) + 1, c.steps):
            if stopping:
                say(f"stopped after step {step - 1}; go on with: python train.py --resume {run}")
                break
            clock, first = Clock(), cursor
            # sample, grade, look: once, or (DAPO) until P groups carry signal; what is too many
            # waits for the next step
            held, asked = (
                dapo.fill(held, ask, c.prompts, c.max_gen_rounds, ranks.groups)
                if c.max_gen_rounds > 1
                else ([], [ask()])
            )
            ready = Experience.join(held or asked)
            place_P = ranks.place(ready.number_P)
            batch, held = ready.groups(place_P < c.prompts), [ready.groups(place_P >= c.prompts)]
            used = min(ranks.groups([ready]), c.prompts)
            # compare within the group, add the exploration advantage
            adv_PG = ADVANTAGE[c.algo](batch.reward_PG)
            gamma = merci.gamma_at(step - 1, c.gamma, c.gamma_decay)
            merged = explorer.merge(batch, adv_PG, gamma, step)
            clock("score")
            # update the policy, then count the states
            rate = (
                c.lr
                * min(1.0, step / max(c.warmup, 1))
                * (1 - (step - 1) / c.steps if c.lr_decay else 1.0)
            )
            learned = update(
                c, policy, actor, optimizer, rate, batch, first, merged, precision, f"step {step}"
            )
            clock("update")
            counted, calibration = explorer.learn(step)
            clock("count")
            # log, evaluate, save
            metrics = {
                "step": step,
                "prompts": cursor,
                "groups/asked": c.prompts * len(asked),
                "groups/used": used,
                "lr": rate,
                "merci/gamma": gamma,
                "grad_norm": learned.pop("grad_norm"),
                **counted,
            }
            metrics |= ranks.mean(tally(Experience.join(asked), batch, adv_PG, merged) | learned)
            metrics |= cost.utilisation(
                c, actor, [asking.roll for asking in asked], batch.roll, merged, clock.times
            )
            log.samples(step, batch, merged, tokenizer)
            if calibration:
                log.write("calibration.jsonl", {"step": step} | calibration)
            last = step == c.steps or 0 < c.budget <= cursor
            if last or c.eval_every and step % c.eval_every == 0:
                metrics |= examine(step)
                clock("eval")
            log.step(metrics | clock.metrics)
            stopping = ranks.any(stop.asked)
            if last or stopping or c.save_every and step % c.save_every == 0:
                save(step)
            if last:
                break
    log.summary()
    ranks.finish()


def update(c, policy, actor, optimizer, rate, batch, first, adv, precision, where):
    """The policy learns from the batch: one optimiser step a mini-batch. -> {metric: (sum, count)},
    and grad_norm.

    adv: (B,) or, with per-token credit, (B, T). first: groups from this position of the stream on
    are the policy's own; earlier ones an older policy sampled, so their pi_old is always the
    sampler's. Rows whose advantage is 0 all along add nothing to the gradient (unless the KL term
    is on) and are left out.
    """
    algo, roll = dapo if c.algo == "dapo" else grpo, batch.roll
    for group in optimizer.param_groups:
        group["lr"] = rate

    def forward(model, part):
        with precision():
            return ranks.call(
                model, token_logp, part.tokens_BT, part.mask_BT, c.temperature, c.backend
            )

    new_BT, old_BT = torch.zeros_like(roll.logp_BT), roll.logp_BT.clone()
    fresh_B = (batch.number_P >= first).repeat_interleave(c.group)
    learning_B = (
        torch.ones_like(fresh_B)
        if c.kl_coef
        else (adv != 0)
        if adv.dim() == 1
        else (adv != 0).any(1)
    )
    if c.minibatches > 1 and c.old_logp == "trainer":
        with torch.no_grad():
            for part in micro_batches(roll.end_B[fresh_B], c.micro_batch_tokens):
                rows = fresh_B.nonzero()[part, 0]
                logp_bT = forward(actor, roll.rows(rows))[0]
                old_BT[rows, : logp_bT.shape[1]] = logp_bT
    mini_B = ranks.mini_batch(batch.number_P, c.minibatches).repeat_interleave(c.group)
    norm = 0.0
    for m in range(c.minibatches):
        batch_B = mini_B == m
        mask_BT = roll.mask_BT * batch_B[:, None]
        total = ranks.sum_(algo.units(mask_BT))
        weight_BT = (
            grpo.weights_constant(mask_BT, total, c.max_new_tokens)
            if c.algo == "dr_grpo"
            else algo.weights(mask_BT, total)
        )
        learning = (learning_B & batch_B).nonzero()[:, 0]
        if not ranks.any(len(learning)):
            continue  # on no rank
        for part in ranks.even(policy, micro_batches(roll.end_B[learning], c.micro_batch_tokens)):
            if part is None:  # nothing left here, but other ranks need our slice of the weights
                (forward(policy, Rollout.blank(adv.device))[0] * 0).sum().backward()
                continue
            rows = learning[part]
            logp_bT, entropy_bT = forward(
                policy, roll.rows(rows)
            )  # only as wide as these rows need
            here = rows, slice(logp_bT.shape[1])
            new_BT[here] = logp_bT.detach()
            if c.minibatches == 1:  # the batch is used once: pi_old is pi, the ratio 1
                old_BT[here] = torch.where(fresh_B[rows, None], new_BT[here], old_BT[here])
            adv_b = adv[rows] if adv.dim() == 1 else adv[here]
            if c.bonus == "entropy":
                adv_b = explore.entropy_advantage(adv_b, entropy_bT.detach())
            loss_bT = algo.surrogate(logp_bT, old_BT[here], adv_b, c.clip_low, c.clip_high)
            if c.kl_coef:
                loss_bT = loss_bT + c.kl_coef * grpo.kl(logp_bT, batch.logp_ref_BT[here])
            (loss_bT * weight_BT[here]).sum().backward()
        norm = ranks.step(optimizer, c.max_grad_norm, where)
    ranks.refresh(actor)
    mask_BT = roll.mask_BT * learning_B[:, None]
    low_BT, high_BT = grpo.clipped(new_BT, old_BT, adv, c.clip_low, c.clip_high)
    values = {
        "clip/low": low_BT,
        "clip/high": high_BT,
        "kl": grpo.kl(new_BT, batch.logp_ref_BT) if c.kl_coef else mask_BT * 0,
    }
    sums = {name: ((x * mask_BT).sum(), mask_BT.sum()) for name, x in values.items()}
    mask_BT = (
        mask_BT * (fresh_B & (mini_B == 0))[:, None]
    )  # the first mini-batch's forward saw the policy that sampled
    gap_BT = (new_BT - roll.logp_BT).abs() * mask_BT
    return sums | {"sampler/logp_gap": (gap_BT.sum(), mask_BT.sum()), "grad_norm": norm}


if __name__ == "__main__":
    config.run_command(main)
