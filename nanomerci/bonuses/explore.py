"""Which exploration bonus, by name: `--bonus cfn` is MERCI, the others are rivals and controls
(nanomerci/bonuses/rivals.py).

A bonus says how new a state is (look), what that is worth to a response (bonus), how it enters the
advantage (merge), and learns where the policy has been (learn). For MERCI that is: 1/n by the Coin
Flipping Network, the root of its mean over the kept tokens, min(A + gamma A_expl, A + alpha |A|),
the coins of the visits.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""

from functools import partial

import torch

from nanomerci import cfn, merci
from nanomerci.bonuses import rivals
from nanomerci.bonuses.rivals import entropy_advantage  # noqa: F401  the one bonus that is added in train.update, where entropies are known
from nanomerci.counts import Oracle
from nanomerci.kernels.cfn_score import cfn_score
from nanomerci.loop.model import look_at
from nanomerci.runtime import ranks

COUNTERS = {"cfn": cfn.Counter, "elliptical": rivals.Elliptical, "rnd": rivals.RND}
BONUS = {
    "variance": merci.trajectory_bonus,
    "deviation": merci.bonus_of_deviations,
    "sum": merci.bonus_of_sum,
}


def own_trunk(c):
    """Whether there is a frozen copy of the initial policy, which reads every sample once: to count
    its states, or for the KL term.
    """
    return c.bonus in COUNTERS and c.cfn_features == "frozen" or c.kl_coef > 0


def reads(c):
    """Whether the policy's own states are counted, which the sampler is to hand over."""
    return c.bonus in COUNTERS and c.cfn_features == "policy"


class Explorer:
    """The bonus of a run. Look first, count later: what was looked at is learned by the next
    pretrain() or learn().
    """

    def __init__(self, c, trunk, width, device):
        """trunk: whose hidden states, of this width, are counted; its log-probs are the KL
        reference.
        """
        self.c, self.trunk, self.counter = c, trunk, None
        if c.bonus in COUNTERS:
            options = dict(seed=c.seed, device=device, all_sum=ranks.sum_)
            if c.bonus != "elliptical":
                options |= dict(
                    coins=c.coins, hidden=c.cfn_hidden, prior=c.cfn_prior or c.bonus == "rnd"
                )  # its target is the prior
                options |= dict(lr=c.cfn_lr, capacity=c.cfn_replay, batch=c.cfn_batch)
            self.counter = COUNTERS[c.bonus](width, **options)
        self.counts = c.bonus in (
            *COUNTERS,
            "exact",
        )  # whether there is something to learn before the first step
        self.reads = reads(c)
        self.answers, self.oracle = rivals.OutcomeCounts(ranks.gather), Oracle(ranks.gather)
        self._forget()

    def _forget(self):
        self.visits, self.looks, self.given = [], [], []

    def look(self, roll, visit_BT, states_BRD=None):
        """How new is every state of the rollout? -> novelty_BT, logp_ref_BT (for the KL term, else
        0).
        """
        c, novelty_BT, logp_ref_BT = self.c, roll.mask_BT * 0, roll.mask_BT * 0
        if self.counter or c.kl_coef:
            score = self.counter and self.counter.score
            if c.bonus == "cfn":
                score = partial(cfn_score, net=self.counter.net, backend=c.backend)
            novelty_BT, logp_ref_BT, visits = look_at(
                self.trunk,
                roll,
                visit_BT,
                states_BRD,
                score=score,
                kl=c.kl_coef > 0,
                temperature=c.temperature,
                budget=c.micro_batch_tokens,
                backend=c.backend,
            )
            self.visits.append(visits)
        if c.bonus == "surprisal":
            novelty_BT = rivals.surprisal(roll.logp_BT, roll.mask_BT)
        elif c.bonus == "random":
            novelty_BT = rivals.noise(visit_BT, roll.mask_BT)
        elif c.bonus == "exact":
            novelty_BT = self.oracle.inverse(roll)
        if c.oracle_counts or c.bonus == "exact":
            self.looks.append((roll, novelty_BT))
        return novelty_BT, logp_ref_BT

    def bonus(self, id_B, answer_B, novelty_BT, kept_BT, mask_BT):
        """What its novelty is worth to each response -> bonus_B. id_B, answer_B: of the problem,
        and the final answer given.
        """
        if self.c.bonus != "outcome":
            return BONUS[self.c.bonus_form](novelty_BT, kept_BT, mask_BT)
        self.given.append((id_B, answer_B))
        return torch.tensor(self.answers.bonus(id_B, answer_B), device=mask_BT.device)

    def merge(self, batch, adv_PG, gamma, step):
        """The advantage with the bonus in it -> (B,), or (B, T) with per-token credit."""
        c = self.c
        if c.bonus in ("none", "entropy"):
            return adv_PG.flatten()
        bonus_PG = batch.bonus_B.view_as(adv_PG)
        if c.bonus == "rnd":
            return rivals.error_conditioned(
                adv_PG, bonus_PG, batch.right_B.view_as(adv_PG), step, all_max=ranks.max_
            ).flatten()
        rule = merci.merge_dead if c.bonus_on_zero_variance else merci.merge
        if c.credit == "response":
            return rule(adv_PG, merci.exploration_advantage(bonus_PG), gamma, c.alpha).flatten()
        mask_BT = batch.roll.mask_BT
        bonus_BT = merci.bonus_to_go(batch.novelty_BT, batch.kept_BT, mask_BT)
        return (
            rule(
                adv_PG.view(-1, 1),
                merci.per_token_advantage(bonus_BT, mask_BT, c.group),
                gamma,
                c.alpha,
            )
            * mask_BT
        )

    def pretrain(self):
        """Learn what the initial policy visits. -> metrics."""
        metrics = (
            {"cfn/loss": self.counter.pretrain(*self._visited(), self.c.cfn_pretrain_epochs)}
            if self.counter
            else {}
        )
        if self.looks:
            self.oracle.count([roll for roll, _ in self.looks])
        self._forget()
        return metrics

    def learn(self, step):
        """Count the states looked at in this step. -> metrics, and the truth beside the estimate
        where the oracle is kept.
        """
        metrics = {
            "cfn/loss": self.counter.visit(*self._visited(), self.c.cfn_rehearse, step)
            if self.counter
            else 0.0
        }
        for pair in self.given:
            self.answers.visit(*pair)
        truth, calibration = self.oracle.step(self.looks) if self.looks else ({}, None)
        self._forget()
        return metrics | truth, calibration

    def _visited(self):
        return map(torch.cat, zip(*self.visits))

    def state_dict(self):
        counter = self.counter.state_dict() if self.counter else {}
        return counter | {"answers": self.answers.state_dict(), "oracle": self.oracle.state_dict()}

    def load_state_dict(self, state):
        if self.counter:
            self.counter.load_state_dict(state)
        self.answers.load_state_dict(state["answers"])
        self.oracle.load_state_dict(state["oracle"])
