"""mistakes: counts of incorrect final answers, so that a repeated mistake is punished most."""

from dataclasses import replace

import torch

from nanomerci.bonuses.base import register
from nanomerci.bonuses.outcome import Outcome


@register("mistakes")
class Mistakes(Outcome):
    """A cheap form of MEDS (2604.11297), which subtracts from the reward of an incorrect response a
    penalty that grows with how often the mistake was made, by clusters of hidden states.

    Here mistakes are counted by their final answer. MERCI's merge only adds, so the order is kept
    by making rare mistakes cheaper: 1 / sqrt(N), compared among the group's incorrect responses. A
    correct response keeps its advantage.
    """

    def merge(self, batch, adv_PG, gamma, step):
        among_PG = among_incorrect(batch.bonus_PG, batch.correct_PG)
        merged_B = super().merge(replace(batch, bonus_PG=among_PG), adv_PG, gamma, step)
        return torch.where(batch.correct_PG.flatten(), adv_PG.flatten(), merged_B)


def among_incorrect(bonus_PG, correct_PG):
    """The bonus of correct responses becomes the mean of the incorrect ones of their group, so that
    they stand at 0 deviations.
    """
    wrong_PG = (~correct_PG).to(bonus_PG.dtype)
    mean_P1 = (bonus_PG * wrong_PG).sum(1, keepdim=True) / wrong_PG.sum(1, keepdim=True).clamp(1)
    return torch.where(correct_PG, mean_P1, bonus_PG)
