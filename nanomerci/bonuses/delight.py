"""delight: a gate on the advantage, open for rare successes and shut for rare failures."""

from nanomerci.bonuses.base import Bonus, register


@register("delight")
class Delight(Bonus):
    """The Delightful Policy Gradient (2603.14608): no bonus and no merge, each token's advantage is
    gated.
    """

    def merge(self, batch, adv_PG, gamma, step):
        rollout = batch.rollout
        return delight(adv_PG.view(-1, 1), rollout.logp_BT, rollout.mask_BT)


def delight(adv_B1, logp_BT, mask_BT, eta=1.0):  # [Delight:gate]
    """A sigmoid(A * surprisal / eta) of each token, surprisal = -log p of the policy that sampled
    it; 0 where mask is 0. -> (B, T).
    """
    return adv_B1 * (-adv_B1 * logp_BT / eta).sigmoid() * mask_BT
