"""Advantages of three objectives that otherwise are GRPO: MaxRL, Pass@k training, IPS-GRPO.

Axes: P prompts, G responses per prompt.
"""

from math import comb

import torch

from nanomerci import grpo


def over_mean(reward_PG):  # [MaxRL:advantage]
    """(r - mean) / mean within each group: the gradient of log p(correct), its expansion in the
    failure rate cut off after G - 1 terms, where GRPO takes that of p (MaxRL, 2602.02710).

    A group without a correct response has no gradient, nor has one whose mean is below 0.
    """
    mean_P1 = reward_PG.mean(1, keepdim=True)
    return torch.where(mean_P1 > 0, grpo.centred(reward_PG) / mean_P1.clamp(min=1e-6), 0)


def pass_at_k(reward_PG, pass_k, eps=1e-6):  # [PassK:advantage]
    """The advantage of a response when groups of k drawn from the G earn the best of their rewards
    (Pass@k training, 2508.10751, equations 14 and 15), for binary rewards: above 1/2 is correct.

    With c of G correct, a draw of k fails with probability f = C(G - c, k) / C(G, k), and one that
    holds a given incorrect response with g = C(G - c - 1, k - 1) / C(G - 1, k - 1). Of the draws'
    standard deviation s = sqrt(f (1 - f)) a correct response is worth f / s, an incorrect one
    (f - g) / s.
    """
    G = reward_PG.shape[1]
    correct_PG = reward_PG > 0.5
    values = []
    for c in range(G + 1):
        fails = comb(G - c, pass_k) / comb(G, pass_k)
        with_it = comb(max(G - c - 1, 0), pass_k - 1) / comb(G - 1, pass_k - 1)
        std = (fails * (1 - fails)) ** 0.5 + eps
        values.append(((fails - with_it) / std, fails / std))
    value_C2 = torch.tensor(values, dtype=reward_PG.dtype, device=reward_PG.device)
    return value_C2[correct_PG.sum(1, keepdim=True), correct_PG.long()]


def over_frequency(reward_PG, outcome_PG):  # [IPS:advantage]
    """GRPO's advantage of the rewards divided by their outcome's share of the group: an answer that
    many responses give earns no more in all than one that a single response gives (IPS-GRPO,
    2601.21669).
    """
    same_PGG = outcome_PG[:, :, None] == outcome_PG[:, None, :]
    return grpo.advantage(reward_PG / same_PGG.to(reward_PG.dtype).mean(2))
