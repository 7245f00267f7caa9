#!/usr/bin/env python
"""nanoMERCI: train a language model with GRPO/DAPO and verifiable rewards, with MERCI's count-based
exploration bonus.

    python train.py                                  default: a tiny model learns SQL on a CPU
    python train.py toy_sql --gamma 0                without the bonus: plain GRPO, bit for bit
    python train.py smollm2_arithmetic --model DIR   a real pretrained model, the same code
    torchrun --nproc-per-node=8 train.py RECIPE      many GPUs
    python train.py --resume runs/toy_sql-seed0      resume a run that was stopped or killed
    python train.py --help                           all options; --list: tasks, bonuses, objectives

The loop in main() follows the diagram of the README: sample responses, grade them, score how novel
their states are; compute advantages within each group, add the exploration advantage; update the
policy; count the states. The formulas are in grpo.py, dapo.py, cfn.py and nanomerci/merci.py.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions; b rows of a micro-batch.
"""

import sys
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from nanomerci.runtime import config

if __name__ == "__main__":
    settings = config.early(sys.argv[1:])  # --help and mistakes, before torch has loaded

import torch

from nanomerci import bonuses, grpo, merci, objectives, tasks
from nanomerci.loop import cost
from nanomerci.loop.collect import Collector, needs_reference
from nanomerci.loop.decode import bf16_arithmetic
from nanomerci.loop.evaluate import evaluate
from nanomerci.loop.metrics import sample_record, step_metrics
from nanomerci.loop.model import (
    StateReader,
    attend_in_fp32,
    autocast,
    distinct_rows,
    enable_gradient_checkpointing,
    token_logp,
)
from nanomerci.loop.rollout import Batch, Rollout, SampleOptions
from nanomerci.loop.warmstart import load_models
from nanomerci.runtime import checkpoint, ranks
from nanomerci.runtime.config import UserError
from nanomerci.runtime.log import GracefulShutdown, Log, StepTimer, log0, progress_bar
from nanomerci.sample import Sampler, check_model
from nanomerci.tasks.graders.pool import Pool
from nanomerci.view.report import LiveReport, report


@ranks.reported
def main(c):
    """Train. c: a Config. -> the metrics of the last step."""
    c = settle(c)
    if c.dry_run:
        return cost.show(c)
    with Run(c) as run, GracefulShutdown() as shutdown:
        models, bonus, collector = run.models, run.bonus, run.collector
        metrics = run.begin()
        stopping = ranks.any_rank(shutdown.requested)
        for step in run.log.progress(run.done + 1, c.steps):
            if stopping:
                log0(f"stopped after step {step - 1}; to resume: python train.py --resume {c.out}")
                break
            timer, fresh = StepTimer(), collector.prompts_sampled
            groups, rounds = collector.collect(timer)  # roll out, grade, score the novelty
            batch = Batch.of(groups, c.group, run.device)
            adv_PG = compare(c, batch)  # within each group
            gamma = merci.gamma_at(step - 1, c.gamma, c.gamma_decay)
            shaped_adv = bonus.merge(batch, adv_PG, gamma, step)  # add the exploration advantage
            timer("score")
            learned = update(c, models, run.optimizer, bonus, batch, shaped_adv, fresh, step)
            timer("update")
            counted, calibration = bonus.after_step(collector.take_visits(), step)
            timer("count")

            seen = Batch.of(list(chain.from_iterable(rounds)), c.group, run.device)
            metrics = {
                "step": step,
                "prompts": collector.prompts_sampled,
                "groups/asked": c.prompts * len(rounds),
                "groups/used": ranks.count(groups),
                "lr": learning_rate(c, step),
                "merci/gamma": gamma,
                "grad_norm": learned.pop("grad_norm"),
                **counted,
                **ranks.mean(step_metrics(seen, batch, adv_PG, shaped_adv) | learned),
                **cost.utilisation(c, models.actor, rounds, batch, shaped_adv, timer.times),
            }
            if groups:
                record = sample_record(step, batch, shaped_adv, models.tokenizer)
                run.log.write("samples.jsonl", record)
            if calibration:
                run.log.write("calibration.jsonl", {"step": step} | calibration)
            last = step == c.steps or 0 < c.budget <= collector.prompts_sampled
            if last or c.eval_every and step % c.eval_every == 0:
                metrics |= run.evaluate(step)
                timer("eval")
            run.log.step(metrics | timer.metrics)
            stopping = ranks.any_rank(shutdown.requested)
            if last or stopping or c.save_every and step % c.save_every == 0:
                run.save(step)
            if last:
                break
        run.log.summary()
    ranks.finish()
    return metrics


def settle(c):
    """Names are checked here, where all are known, and what depends on them is filled in. ->
    Config.
    """
    objective = objectives.find(c.algo)
    bonuses.find(c.bonus)
    if objective.max_gen_rounds == 1 and c.max_gen_rounds > 1:
        raise UserError(
            f"--max_gen_rounds {c.max_gen_rounds}: --algo {c.algo} does no dynamic sampling; "
            "expected 1, or --algo dapo"
        )
    if c.clip_high < 0:
        c = replace(c, clip_high=objective.clip_high)
    if c.max_gen_rounds == 0:
        c = replace(c, max_gen_rounds=objective.max_gen_rounds)
    if c.dtype == "auto":
        c = replace(c, dtype=precision(c))
    return config.check(config.resolved(c))


def precision(c):
    """--dtype auto: bfloat16 for a pretrained model where the device multiplies it in hardware."""
    fast = torch.cuda.is_available() if c.device in ("auto", "cuda") else False
    return "bfloat16" if c.model != "tiny" and (fast or bf16_arithmetic()) else "float32"


@dataclass(frozen=True)
class Models:
    """policy learns, actor samples (unsharded they are the same); features: whose hidden states are
    counted and whose log-probs are the KL reference, frozen unless it is the actor.
    """

    policy: torch.nn.Module
    actor: torch.nn.Module
    features: torch.nn.Module
    tokenizer: object

    @classmethod
    def load(cls, c, folder, task, device):
        policy, initial, tokenizer = load_models(c, folder, task, device)
        if device.type == "cpu" and c.dtype == "bfloat16":
            for model in (policy, initial):
                attend_in_fp32(model)
        check_model(policy, c.model)
        dtype = getattr(torch, c.dtype)
        features = None
        if needs_reference(c):
            features = ranks.frozen(initial, c.shard, dtype, device)
        policy, actor = ranks.shard(policy, c.shard, dtype, device)
        if c.gradient_checkpointing:
            enable_gradient_checkpointing(policy)
        return cls(policy, actor, features or actor, tokenizer)


class Run:
    """Everything a run is made of, and what surrounds its steps: evaluation and checkpoints."""

    def __init__(self, c):
        self.c, self.folder = c, Path(c.out)
        self.device = ranks.start(c.device, c.rank_timeout)
        torch.set_num_threads(c.threads)
        # same seed, same bits; on a GPU atomic additions are left as they are
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False
        if c.resume:
            checkpoint.verify(self.folder)
        else:
            checkpoint.claim(self.folder)
        self.task = tasks.load(c)
        models = Models.load(c, self.folder, self.task, self.device)
        self.models = models
        if self.device.type == "cpu" and not ranks.is_sharded(models.policy):
            ranks.keep_freed_memory()
        self.optimizer = torch.optim.AdamW(
            models.policy.parameters(),
            lr=c.lr,
            betas=(0.9, c.beta2),
            weight_decay=c.weight_decay,
            # one pass over memory in place of a dozen; None: what torch takes on a GPU
            fused=self.device.type == "cpu" or None,
        )
        self.bonus = bonuses.find(c.bonus)(c, models.policy.config.hidden_size, self.device, ranks)
        self.sampler = Sampler(
            models.actor, models.tokenizer, c.max_new_tokens, c.temperature, backend=c.backend
        )
        reader = None
        if self.bonus.counts_states or c.kl_coef:
            reader = StateReader(
                models.features,
                self.bonus.score if self.bonus.counts_states else None,
                c.kl_coef > 0,
                c.temperature,
                budget=c.micro_batch_tokens,
                backend=c.backend,
            )
        self.pool = Pool(c.graders, c.grade_timeout)
        self.collector = Collector(c, self.task, self.sampler, reader, self.bonus, self.pool)
        self.parts = {
            "optimizer": self.optimizer,
            "bonus": self.bonus,
            "collector": self.collector,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.close()

    def begin(self):
        """Before the first step: the newest checkpoint, or how good the initial policy is and what
        it would visit anyway. -> metrics of step 0.
        """
        c, bonus, metrics = self.c, self.bonus, {}
        resumed = -1
        if c.resume:
            resumed = checkpoint.restore(self.folder, self.device, self.models, self.parts)
        self.done = max(resumed, 0)
        self.log = Log(self.folder, c, resumed, [LiveReport(self.folder)] if c.report else [])
        if resumed < 0:
            timer, metrics = StepTimer(), {"step": 0} | self.evaluate(0)
            timer("eval")
            if bonus.pretrains:
                self.collector.visit_before_training()
                metrics |= bonus.before_training(self.collector.take_visits())
            timer("pretrain")
            self.log.step(metrics | timer.times)
            self.save(0)
        return metrics

    def evaluate(self, step):
        """How good is the policy on held-out problems? -> metrics."""
        c, problems = self.c, self.task.test[: self.c.eval_problems]
        total = len(problems) * (c.eval_k + 1) // ranks.world
        with progress_bar(total, f"evaluate, step {step}", "response") as progress:
            options = SampleOptions(slots=c.max_num_seqs, progress=progress.update)
            with autocast(c, self.device):
                metrics, records = evaluate(
                    self.sampler,
                    self.task,
                    problems,
                    self.pool,
                    K=c.eval_k,
                    run_seed=c.seed,
                    options=options,
                )
        self.log.write("evals.jsonl", {"step": step, "records": records})
        return metrics

    def save(self, step):
        self.log.sync()
        checkpoint.save(self.folder, step, self.models, self.parts, self.c.keep_checkpoints)
        if ranks.rank == 0 and self.c.report:
            report(self.folder)


def compare(c, batch):
    """The objective's advantage of each response over its group. -> adv_PG."""
    objective = objectives.find(c.algo)
    options = {name: getattr(c, name) for name in objective.options}
    if not objective.reads_outcomes:
        return objective.advantage(batch.reward_PG, **options)
    number = {answer: i for i, answer in enumerate(dict.fromkeys(batch.answer_B))}
    outcomes = [number[answer] for answer in batch.answer_B]
    outcome_B = torch.tensor(outcomes, device=batch.reward_PG.device)
    outcome_PG = outcome_B.view_as(batch.reward_PG)
    return objective.advantage(batch.reward_PG, outcome_PG, **options)


def learning_rate(c, step):
    """Linear warm-up, then constant or linear to 0."""
    rising = min(1.0, step / max(c.warmup, 1))
    falling = 1 - (step - 1) / c.steps if c.lr_decay else 1.0
    return c.lr * rising * falling


def update(c, models, optimizer, bonus, batch, adv, fresh, step):
    """The policy learns from the batch: one optimiser step per mini-batch. -> {metric: (sum,
    count)}, and grad_norm.

    adv: (B,) or, with per-token credit, (B, T). fresh: groups at or after this position of the
    stream were generated by the current policy; earlier ones were carried over, so their old
    log-probs are the sampler's. Rows whose advantage is 0 all along add nothing to the gradient
    (unless the KL term is on) and are left out.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(c, step)
    objective, rollout = objectives.find(c.algo), batch.rollout
    on_policy_B = (batch.number_P >= fresh).repeat_interleave(c.group)
    learning_B = torch.ones_like(on_policy_B) if c.kl_coef else (grpo.per_token(adv) != 0).any(1)
    logp = LogProbs(c, rollout, on_policy_B)
    if c.minibatches > 1 and c.old_logp == "trainer":
        logp.recompute_old(models.actor)
    mini_B = ranks.mini_batch(batch.number_P, c.minibatches).repeat_interleave(c.group)
    norm = 0.0
    for m in range(c.minibatches):
        batch_B = mini_B == m
        mask_BT = rollout.mask_BT * batch_B[:, None]
        total = ranks.sum_(objective.units(mask_BT))
        weight_BT = objective.weigh(mask_BT, total, c.max_new_tokens)
        rows = (learning_B & batch_B).nonzero()[:, 0]
        if not ranks.any_rank(len(rows)):
            continue  # on no rank is there anything to learn from
        for part in distinct_rows(models.policy, rollout, rows, c.micro_batch_tokens):
            if part is None:  # nothing left here, but other ranks need our slice of the weights
                blank = Rollout.blank(adv.device)
                (logp.forward(models.policy, blank)[0] * 0).sum().backward()
                continue
            here, logp_bT, entropy_bT = logp.current(models.policy, *part)
            adv_b = adv[here] if adv.dim() == 2 else adv[here[0]]
            adv_b = bonus.at_tokens(adv_b, entropy_bT.detach())
            old_bT = logp.old_BT[here]
            loss_bT = objective.surrogate(logp_bT, old_bT, adv_b, c.clip_low, c.clip_high)
            if c.kl_coef:
                loss_bT = loss_bT + c.kl_coef * grpo.kl(logp_bT, batch.logp_ref_BT[here])
            (loss_bT * weight_BT[here]).sum().backward()
        norm = ranks.step(optimizer, c.max_grad_norm, f"step {step}")
    ranks.refresh(models.actor)
    unmoved_B = on_policy_B & (mini_B == 0)  # whose forward saw the policy that sampled
    return update_metrics(c, batch, logp, adv, learning_B, unmoved_B) | {"grad_norm": norm}


class LogProbs:
    """Log-probs of the batch's tokens: the current policy's (new_BT, as far as computed) and those
    that the ratio is taken to (old_BT).
    """

    def __init__(self, c, rollout, on_policy_B):
        self.c, self.rollout, self.on_policy_B = c, rollout, on_policy_B
        self.new_BT, self.old_BT = torch.zeros_like(rollout.logp_BT), rollout.logp_BT.clone()

    def forward(self, model, part):
        c = self.c
        with autocast(c, part.tokens_BT.device):
            return ranks.call(
                model, token_logp, part.tokens_BT, part.mask_BT, c.temperature, c.backend
            )

    @torch.no_grad()
    def recompute_old(self, model):
        """The policy's own before the update, in place of the sampler's, of rows it generated."""
        own = self.on_policy_B.nonzero()[:, 0]
        for part in distinct_rows(model, self.rollout, own, self.c.micro_batch_tokens):
            once_u, rows, place_b = part
            logp_bT = self.forward(model, self.rollout.rows(once_u))[0][place_b]
            self.old_BT[rows, : logp_bT.shape[1]] = logp_bT

    def current(self, policy, once_u, rows, place_b):
        """A micro-batch of distinct_rows() -> the place of these rows (only as wide as they need),
        logp_bT and entropy_bT there.
        """
        both_uT = self.forward(policy, self.rollout.rows(once_u))
        logp_bT, entropy_bT = (x_uT[place_b] for x_uT in both_uT)
        here = rows, slice(logp_bT.shape[1])
        self.new_BT[here] = logp_bT.detach()
        if self.c.minibatches == 1:  # the batch is used once: pi_old is pi, the ratio 1
            own_b1 = self.on_policy_B[rows, None]
            self.old_BT[here] = torch.where(own_b1, self.new_BT[here], self.old_BT[here])
        return here, logp_bT, entropy_bT


def update_metrics(c, batch, logp, adv, learning_B, unmoved_B):
    """{metric: (sum, count)}"""
    mask_BT = batch.rollout.mask_BT * learning_B[:, None]
    low_BT, high_BT = grpo.clipped(logp.new_BT, logp.old_BT, adv, c.clip_low, c.clip_high)
    kl_BT = grpo.kl(logp.new_BT, batch.logp_ref_BT) if c.kl_coef else mask_BT * 0
    values = {"clip/low": low_BT, "clip/high": high_BT, "kl": kl_BT}
    sums = {name: ((x_BT * mask_BT).sum(), mask_BT.sum()) for name, x_BT in values.items()}
    mask_BT = mask_BT * unmoved_B[:, None]
    gap_BT = (logp.new_BT - batch.rollout.logp_BT).abs() * mask_BT
    return sums | {"sampler/logp_gap": (gap_BT.sum(), mask_BT.sum())}


if __name__ == "__main__":
    config.run_command(main, settings)
