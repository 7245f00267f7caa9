"""elliptical: elliptical bonus of linear bandits on hidden states."""

import torch

from nanomerci import cfn
from nanomerci.bonuses.base import StateCounter, register


class Counter:
    """x' (sum x x' + ridge)^-1 x of standardised hidden states, as in linear bandits and RepExp
    (2510.11686); exact, float64.

    On one-hot states 1 / (n + ridge): the CFN with a linear head and a prior, all coins and priors
    averaged (cfn.expected_inverse_count). D features tell at most D states apart.
    """

    def __init__(self, width, *, ridge=1.0, seed=0, device=None, all_sum=lambda x: x):
        self.ridge, self.all_sum = ridge, all_sum
        # for the standardisation alone
        self.net = cfn.CoinFlipNet(width, coins=1, hidden=0, prior=False).to(device)
        self.gram_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.inverse_DD = torch.eye(width, dtype=torch.float64, device=device) / ridge

    @torch.no_grad()
    def score(self, hidden_ND):
        """Novelty of each state, 1/ridge per dimension before any visit. (N, D) -> (N,)."""
        parts = [self.net.normalise(part_ND).double() for part_ND in hidden_ND.split(cfn.ROWS)]
        return torch.cat([elliptical(x_ND, self.inverse_DD) for x_ND in parts])

    def pretrain(self, hidden_ND, address_N, epochs):
        """Fix the standardisation on these visits, then count them, once. -> their mean novelty
        before that.
        """
        self.net.calibrate(hidden_ND, all_sum=self.all_sum)
        return self.update(hidden_ND, address_N, 0, 0)

    @torch.no_grad()
    def update(self, hidden_ND, address_N, replayed, stamp):
        """Add the visits to the sum of x x'. -> their mean novelty before that. Nothing is
        forgotten, so nothing is replayed.
        """
        novelty_N = self.score(hidden_ND)
        sums = self.all_sum(torch.stack([novelty_N.sum(), torch.ones_like(novelty_N).sum()]))
        here_DD = torch.zeros_like(self.gram_DD)
        for part_ND in hidden_ND.split(cfn.ROWS):
            x_ND = self.net.normalise(part_ND).double()
            here_DD += x_ND.T @ x_ND
        self.gram_DD = self.gram_DD + self.all_sum(here_DD)
        ridge_DD = self.ridge * torch.eye(len(here_DD), dtype=here_DD.dtype, device=here_DD.device)
        factor_DD = torch.linalg.cholesky(self.gram_DD + ridge_DD)
        self.inverse_DD = torch.cholesky_inverse(factor_DD)
        return float(sums[0] / sums[1].clamp(min=1))

    def state_dict(self):
        matrices = {"gram_DD": self.gram_DD, "inverse_DD": self.inverse_DD}
        return {"net": self.net.state_dict()} | matrices

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.gram_DD = state["gram_DD"].to(self.gram_DD.device)
        self.inverse_DD = state["inverse_DD"].to(self.gram_DD.device)


def elliptical(x_ND, inverse_DD):  # [RepExp:elliptical]
    """x' A^-1 x. (N, D), (D, D) -> (N,) float32."""
    return ((x_ND @ inverse_DD) * x_ND).sum(1).float()


@register("elliptical")
class Elliptical(StateCounter):
    """x' A^-1 x with A the sum of x x' over all visits (RepExp, 2510.11686), in place of the
    CFN.
    """

    def make_counter(self, width, device):
        return Counter(width, device=device, all_sum=self.ranks.sum_)
