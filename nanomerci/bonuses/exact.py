"""exact: exact 1/n of every token prefix, from a table."""

from nanomerci.bonuses.base import Shaped, register


@register("exact")
class Exact(Shaped):
    """MERCI with exact counts of token prefixes; for tasks with short responses."""

    counts_prefixes = pretrains = True

    def novelty(self, visits):
        return self.prefixes.inverse(visits.rollout)
