"""exact: 1/n of every prefix from a table, the counter that a network can only approach."""

from nanomerci.bonuses.base import Shaped, register


@register("exact")
class Exact(Shaped):
    """MERCI with exact counts of token prefixes; for tasks with short responses."""

    counts_prefixes = pretrains = True

    def novelty(self, visits):
        return self.prefixes.inverse(visits.rollout)
