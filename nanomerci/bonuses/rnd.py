"""rnd: random network distillation, combined by i-MENTOR's rule."""

import torch

from nanomerci import cfn
from nanomerci.bonuses.base import StateCounter, register
from nanomerci.bonuses.cfn import CFN


class Counter(cfn.Counter):
    """Random network distillation (Burda et al. 2018): how badly does a network predict a fixed
    random function of the state?

    The CFN's network, with its random prior as the function to predict and its head as the
    predictor, and 0 for every coin: then flips^2 is the squared error, near 1 at first, small where
    the head was trained. It falls with every pass over a state, not with its visits, and what is
    hard to predict stays novel. i-MENTOR (2505.17621) distils whole token sequences; these are the
    counter's own states, so that only the target differs.
    """

    def __init__(self, width, **options):
        super().__init__(width, **options | {"prior": True})  # what is to be predicted

    @staticmethod
    def targets(address_N, coins):  # [RND:target]
        """No coins: the head is to cancel the prior. (N,) -> zeros (N, C)."""
        return torch.zeros(len(address_N), coins, device=address_N.device)


def error_conditioned(
    adv_PG, error_PG, correct_PG, step, weight=0.5, half=40.0, all_max=lambda x: x
):  # [IMentor:advantage]
    """A + weight minmax(e) half / (half + step) on incorrect responses only, after normalisation
    (i-MENTOR, 2505.17621).

    minmax: (e - min) / (max - min) over the whole batch; all_max takes a tensor's maximum over
    ranks. A batch of equal errors gets nothing. It is not capped: the advantage of an incorrect
    response may turn positive, and A = 0 does not stay 0.
    """
    both_2N = torch.stack([error_PG.flatten(), -error_PG.flatten()])
    nothing_21 = both_2N.new_full((2, 1), -torch.inf)  # of a rank that has no groups
    extremes = all_max(torch.cat([both_2N, nothing_21], 1).amax(1))
    share_PG = (error_PG + extremes[1]) / (extremes[0] + extremes[1]).clamp(min=1e-12)
    return adv_PG + weight * half / (half + step) * share_PG * ~correct_PG


@register("rnd")
class RND(CFN):
    """Prediction error of hidden states (Burda et al. 2018), merged by i-MENTOR's rule
    (2505.17621).
    """

    kind = Counter
    score = StateCounter.score

    def merge(self, batch, adv_PG, gamma, step):
        shaped_PG = error_conditioned(
            adv_PG, batch.bonus_PG, batch.correct_PG, step, all_max=self.ranks.max_
        )
        return shaped_PG.flatten()
