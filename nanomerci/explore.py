"""Which exploration bonus, by name: `--bonus cfn` is MERCI, the others are rivals and controls (nanomerci/rivals.py).

A bonus says how new a state is (look), learns where the policy has been (a counter), and how novelty enters the advantage
(merge). For MERCI that is: 1/n by the Coin Flipping Network, the coins of the visits, min(A + gamma A_expl, A + alpha |A|).

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""
from functools import partial

import cfn
from kernels.cfn_score import cfn_score
from nanomerci import dist, merci, rivals
from nanomerci.model import look_at

COUNTERS = {"cfn": cfn.Counter}
OWN = ("replay",)  # what of a counter's state each rank has for itself; the rest is the same on all


def learns(c):
    """Whether the bonus has a counter that is taught the visited states."""
    return c.bonus in COUNTERS


def counter(c, width, device):
    """The counter of --bonus over hidden states of this width; one that stays empty where the bonus needs none."""
    if c.bonus not in COUNTERS:
        return Nothing()
    options = dict(seed=c.seed, device=device, all_sum=dist.sum_)
    if c.bonus != "elliptical":
        options |= dict(hidden=c.cfn_hidden, lr=c.cfn_lr, capacity=c.cfn_replay, batch=c.cfn_batch)
    if c.bonus == "cfn":
        options |= dict(coins=c.coins, prior=c.cfn_prior)
    return COUNTERS[c.bonus](width, **options)


class Nothing:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def look(c, counter, trunk, roll, visit_BT):
    """How new is every state of the rollout? -> novelty_BT, logp_ref_BT (for the KL term, else 0), the visits to learn."""
    if not learns(c) and not c.kl:
        novelty_BT, logp_ref_BT, visits = roll.mask_BT * 0, roll.mask_BT * 0, None
    else:
        score = partial(cfn_score, net=counter.net, backend=c.backend) if c.bonus == "cfn" else getattr(counter, "score", None)
        novelty_BT, logp_ref_BT, visits = look_at(trunk, roll, visit_BT, score=score, kl=c.kl > 0, temperature=c.temperature,
                                                  budget=c.micro_tokens, backend=c.backend)  # fmt: skip
    if c.bonus == "surprisal":
        novelty_BT = rivals.surprisal(roll.logp_BT, roll.mask_BT)
    elif c.bonus == "random":
        novelty_BT = rivals.noise(visit_BT, roll.mask_BT)
    return novelty_BT, logp_ref_BT, visits


def merge(c, batch, adv_PG, gamma, step):
    """The advantage with the bonus in it -> (B,), or (B, T) with per-token credit."""
    if c.bonus in ("none", "entropy"):  # entropy is added a token at a time, where the entropies are known: in train.update
        return adv_PG.flatten()
    bonus_PG = batch.bonus_B.view_as(adv_PG)
    if c.bonus == "rnd":
        return rivals.error_conditioned(adv_PG, bonus_PG, batch.reward_PG >= 1, step).flatten()
    rule = merci.merge_dead if c.dead_groups else merci.merge
    if c.credit == "response":
        return rule(adv_PG, merci.exploration_advantage(bonus_PG), gamma, c.alpha).flatten()
    mask_BT = batch.roll.mask_BT
    bonus_BT = merci.bonus_to_go(batch.novelty_BT, batch.kept_BT, mask_BT)
    return rule(adv_PG.view(-1, 1), merci.per_token_advantage(bonus_BT, mask_BT, c.group), gamma, c.alpha) * mask_BT
