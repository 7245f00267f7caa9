"""outcome: counts of final answers instead of states."""

import torch

from nanomerci.bonuses.base import Shaped, register


@register("outcome")
class Outcome(Shaped):
    """How often was this answer given to this problem? (Outcome-based exploration, 2509.06941.)

    The bonus is the paper's UCB term, 1 / sqrt(N). It enters the advantage as MERCI's does, so that
    the two differ in what is counted and in nothing else; the group's mean is then the paper's
    baseline. N includes the group at hand: at the first visit already, what one response of eight
    says is rarer than what seven say.
    """

    counts_answers = True

    def value(self, visits, novelty_BT, kept_BT):  # [Outcome:bonus]
        n_B = self.answers.including(visits.problem_B, visits.answer_B)
        return torch.tensor([n**-0.5 for n in n_B], device=novelty_BT.device)

    def update(self, visits, step):
        for v in visits:
            self.answers.add(v.problem_B, v.answer_B)
        return {}
