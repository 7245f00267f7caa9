"""MERCI (Count Counts, arXiv 2510.16614): what it adds to GRPO or DAPO.

A language model's transitions are known (state = prefix, action = next token), so of the
Uncertainty Bellman Equation (O'Donoghue et al. 2018) only the uncertainty of the rewards is left:
local variances add up along a trajectory, and one root is taken at the end. The local variance of a
state visited n times is proportional to 1/n, and cfn.py estimates 1/n. Here: filter tokens,
aggregate to one bonus per response, normalise within the group, add a capped term to the
advantage.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions, A actions.
invn_BT[:, t] ~ 1/n of the prefix that ends in token t; kept_BT and noise_BT are bool.
"""

import math

import torch


def backup(var, policy_A, uncertainty_A):  # [UBE:backup]
    """U(s) = Var[r(s)] + sum_a pi(a|s) U(s'): variances add up along the way, weighted by the
    policy (MERCI, prop. 1).

    Transitions are known, so there is no term for them. Upper bound on the posterior variance of Q;
    exact on one trajectory.
    """
    return var + (policy_A * uncertainty_A).sum(-1)


def uncertainty_to_go(var_BT, mask_BT):  # [UBE:accumulate]
    """The same along one sampled trajectory: U_t = var_t + U_{t+1} within the response. (B, T) ->
    (B, T).
    """
    return (var_BT * mask_BT).flip(1).cumsum(1).flip(1) * mask_BT


def percentile(invn_BT, mask_BT, top):  # [MERCI:percentile]
    """First filter: per response the `top` share (0..1] of its tokens with the largest 1/n, ties
    kept. -> kept_BT.
    """
    # .3 of 10 is 3 also in floating point
    kept_B = (top * mask_BT.sum(1).double() - 1e-6).ceil().long().clamp(min=1)
    novelty_BT = invn_BT.masked_fill(mask_BT == 0, -torch.inf)
    threshold_B = novelty_BT.sort(1, descending=True).values.gather(1, kept_B[:, None] - 1)
    return (novelty_BT >= threshold_B) & (mask_BT > 0)


def coherent(kept_BT, run):  # [MERCI:coherence]
    """Second filter: kept tokens in a run of at least `run` adjacent kept ones; isolated
    spikes are dropped. -> kept_BT.
    """
    covered_BT = torch.zeros_like(kept_BT)
    if kept_BT.shape[1] < run:
        return covered_BT
    starts = kept_BT.unfold(1, run, 1).all(-1)  # (B, T - run + 1): a full run starts here
    for offset in range(run):
        covered_BT[:, offset : offset + starts.shape[1]] |= starts
    return covered_BT


def suppress(kept_BT, noise_BT):  # [MERCI:noise]
    """Third filter: drop tokens that the task marks as noise. -> kept_BT."""
    return kept_BT & ~noise_BT


def trajectory_bonus(invn_BT, kept_BT, mask_BT):  # [MERCI:bonus]
    """B = sqrt((1/l) sum_kept 1/n) with l the response's length: variances are averaged, then one
    root. -> bonus_B.
    """
    return ((invn_BT * kept_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).sqrt()


def bonus_of_deviations(invn_BT, kept_BT, mask_BT):  # [MERCI:sum-of-deviations]
    """Ablation (MERCI, table 8): (1/l) sum_kept sqrt(1/n). Adding deviations over-counts long
    uncertain paths. -> bonus_B.
    """
    return (invn_BT.clamp(min=0).sqrt() * kept_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def bonus_of_sum(invn_BT, kept_BT, mask_BT):  # [MERCI:root-of-sum]
    """Ablation: sqrt(sum_kept 1/n), proposition 1 to the letter, without the division by length. ->
    bonus_B.
    """
    return (invn_BT * kept_BT).sum(1).sqrt()


def bonus_to_go(novelty_BT, kept_BT, mask_BT):  # [UBE:per-token]
    """Per-token credit (not in the paper): the same root of a mean, over what still lies ahead of
    each token. -> bonus_BT.

    The uncertainty from token t on, by the UBE's recursion, over the tokens from t on; the first
    column is trajectory_bonus.
    """
    tokens_BT = uncertainty_to_go(mask_BT, mask_BT).clamp(min=1)
    return (uncertainty_to_go(novelty_BT * kept_BT, mask_BT) / tokens_BT).sqrt()


def exploration_advantage(bonus_PG, floor=0.01):  # [MERCI:exploration-advantage]
    """max(0, (B - mean) / std) within each group, population std. A bonus below the group's mean
    is not punished.

    floor: of the std, as a fraction of the group's mean bonus, so that differences at rounding
    level are not amplified; as a fraction it follows the decay of 1/n.
    """
    mean_P1 = bonus_PG.mean(1, keepdim=True)
    var_P1 = (bonus_PG - mean_P1).square().mean(1, keepdim=True)
    std_P1 = torch.maximum(var_P1.sqrt(), floor * mean_P1).clamp(min=1e-12)
    return ((bonus_PG - mean_P1) / std_P1).clamp(min=0)


def per_token_advantage(bonus_BT, mask_BT, group, floor=0.01):
    """max(0, (B_t - mean) / std) with mean and std over all tokens of the group. -> (B, T), 0 where
    mask is 0.
    """
    bonus_PN, mask_PN = (x.reshape(-1, group * x.shape[1]) for x in (bonus_BT, mask_BT))
    tokens_P1 = mask_PN.sum(1, keepdim=True).clamp(min=1)
    mean_P1 = (bonus_PN * mask_PN).sum(1, keepdim=True) / tokens_P1
    var_P1 = ((bonus_PN - mean_P1).square() * mask_PN).sum(1, keepdim=True) / tokens_P1
    std_P1 = torch.maximum(var_P1.sqrt(), floor * mean_P1).clamp(min=1e-12)
    return (((bonus_PN - mean_P1) / std_P1).clamp(min=0) * mask_PN).view_as(bonus_BT)


def merge_dead(adv, adv_expl, gamma, alpha):
    """Opt-in (not in the paper): where A = 0, as in groups of zero reward variance, min(gamma
    A_expl, alpha) instead of nothing.
    """
    instead = (gamma * adv_expl).clamp(max=alpha)
    return torch.where(adv == 0, instead, merge(adv, adv_expl, gamma, alpha))


def merge(adv, adv_expl, gamma, alpha):  # [MERCI:merge]
    """min(A + gamma A_expl, A + alpha |A|): the bonus adds to A, by at most the share alpha of |A|.
    Any shape.

    In the paper (1 + alpha) A for A >= 0 and (1 - alpha) A below, which is A + alpha |A|. So A
    never falls, never changes sign for alpha < 1, and stays exactly 0 where it was 0 (groups of
    zero reward variance); gamma = 0 gives A back bit for bit.
    """
    return torch.minimum(adv + gamma * adv_expl, adv + alpha * adv.abs())


def gamma_at(step, gamma, decay_steps, floor=0.1):  # [MERCI:gamma-decay]
    """Half a cosine from gamma at step 0 to floor * gamma at decay_steps, and constant from
    there.
    """
    share = min(step / decay_steps, 1.0) if decay_steps else 1.0
    return gamma * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
