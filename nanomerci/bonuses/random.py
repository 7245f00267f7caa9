"""random: control, a uniform random novelty."""

from nanomerci.address import address, uniform
from nanomerci.bonuses.base import Shaped, register


@register("random")
class Random(Shaped):
    """Uniform in [0, 1), fixed by the visit's address."""

    def novelty(self, visits):
        return uniform(address("noise", visits.address_BT)) * visits.rollout.mask_BT
