"""DAPO (arXiv 2503.14476): four changes to GRPO for long reasoning.

Here: token-level weights, dynamic sampling, the soft overlong penalty. The fourth, clip-higher, is
grpo.surrogate with clip_low 0.2 and clip_high 0.28. Not here: the KL term (DAPO has none). Run
alone: `python dapo.py` prints the overlong penalty against length and both reductions on two
responses.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions.
"""

from itertools import compress

import torch

from nanomerci import grpo


def units(mask_BT):
    """Loss denominator: tokens. The sum over all ranks is the `total` of weights()."""
    return mask_BT.sum()


def weights(mask_BT, total):  # [DAPO:reduction]
    """Weight of each token's loss, (B, T): every token of the batch counts 1 / total, so long
    responses count for more.
    """
    return mask_BT / total


def mixed(grade_PG):  # [DAPO:dynamic-sampling]
    """Which groups carry signal: those whose rewards are not all equal. (P, G) -> bool (P,)."""
    return (grade_PG != grade_PG[:, :1]).any(1)


def fill(leftover, collect, prompts, rounds, count):  # [DAPO:refill]
    """Sample until `prompts` groups carry signal: rounds of collect() -> list of groups, of which
    the mixed ones are kept. -> groups, rounds.

    leftover: groups that an earlier step had too many of; they come first. count(groups): how many
    these are over all ranks. After `rounds` rounds it makes do with what there is. A group has
    .graded_G, without any length penalty: a difference in length alone makes no group informative.
    """
    groups, asked = list(leftover), []
    while count(groups) < prompts and len(asked) < rounds:
        asked.append(collect())
        mixed_P = mixed(torch.stack([group.graded_G for group in asked[-1]]))
        groups += compress(asked[-1], mixed_P.tolist())
    return groups, asked


def overlong_penalty(length_B, limit, buffer, factor=1.0):  # [DAPO:overlong]
    """Added to the reward: 0 up to limit - buffer tokens, then linearly to -factor at limit (DAPO,
    eq. 13). (B,) -> (B,).
    """
    return -((length_B - (limit - buffer)) / buffer).clamp(0, 1) * factor


if __name__ == "__main__":
    length_B = torch.tensor([10.0, 16, 17, 18, 19, 20])
    print("length ", [int(n) for n in length_B])
    penalty_B = overlong_penalty(length_B, limit=20, buffer=4)
    print("penalty", penalty_B.tolist(), " (limit 20, buffer 4)")
    mask_BT = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    print("GRPO weights", grpo.weights(mask_BT, grpo.units(mask_BT)).tolist(), " each response 1/2")
    weight_BT = weights(mask_BT, units(mask_BT))
    print("DAPO weights", weight_BT.numpy().round(3).tolist(), " each token 1/5")
