"""surprisal: -log p of each sampled token."""

from nanomerci.bonuses.base import Shaped, register


@register("surprisal")
class Surprisal(Shaped):
    """-log p of the sampled token (the actor's bonus of CDE, 2509.09675).

    Unlike a count it never falls where the policy is random on purpose: a name, an order, a matter
    of style.
    """

    def novelty(self, visits):  # [CDE:surprisal]
        return -visits.rollout.logp_BT * visits.rollout.mask_BT
