"""DAPO (arXiv 2503.14476): four changes to GRPO for long reasoning.

Here: clip-higher (the surrogate is grpo's, with clip_high > clip_low), token-level weights, dynamic
sampling, the soft overlong penalty. Not here: the KL term (DAPO has none). Run alone: `python
dapo.py` prints the overlong penalty against length and both reductions on two responses.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""

import torch
from nanomerci.grpo import surrogate  # noqa: F401  the same one, called with clip_low 0.2 and clip_high 0.28 ("clip-higher")

from nanomerci import grpo


def units(mask_BT):
    """What the loss is an average over: here tokens. The sum over all ranks is the `total` of
    weights().
    """
    return mask_BT.sum()


def weights(mask_BT, total):  # [DAPO:reduction]
    """Weight of each token's loss, (B, T): every token of the batch counts 1 / total, so long
    answers count for more.
    """
    return mask_BT / total


def mixed(grade_PG):  # [DAPO:dynamic-sampling]
    """Which groups carry signal: not all grades equal; of right and wrong ones, 0 < right < G. (P,
    G) -> bool (P,).
    """
    return (grade_PG != grade_PG[:, :1]).any(1)


def fill(held, ask, wanted, rounds, count):  # [DAPO:refill]
    """Sample until `wanted` groups carry signal: rounds of ask() -> groups, of which the mixed ones
    are kept. -> batches, rounds.

    held: groups that an earlier step had too many of; they come first. count(batches): how many
    groups they hold, over all ranks. After `rounds` rounds it makes do with what there is. A round
    has .grade_PG (no length penalty in it: that one answer of eight is too long makes no group
    worth learning) and .groups(chosen_P).
    """
    asked = []
    while count(held) < wanted and len(asked) < rounds:
        asked.append(ask())
        held = [*held, asked[-1].groups(mixed(asked[-1].grade_PG))]
    return held, asked


def overlong_penalty(length_B, limit, buffer, factor=1.0):  # [DAPO:overlong]
    """Added to the reward: 0 up to limit - buffer tokens, then linearly to -factor at limit (DAPO,
    eq. 13). (B,) -> (B,).
    """
    return -((length_B - (limit - buffer)) / buffer).clamp(0, 1) * factor


if __name__ == "__main__":
    length_B = torch.tensor([10.0, 16, 17, 18, 19, 20])
    print("length ", [int(n) for n in length_B])
    print(
        "penalty", overlong_penalty(length_B, limit=20, buffer=4).tolist(), " (limit 20, buffer 4)"
    )
    mask_BT = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    print("GRPO weights", grpo.weights(mask_BT, grpo.units(mask_BT)).tolist(), " each response 1/2")
    print(
        "DAPO weights",
        (weights(mask_BT, units(mask_BT)) * 1.0).numpy().round(3).tolist(),
        " each token 1/5",
    )
