"""cfn: MERCI, 1/n of hidden states by a Coin Flipping Network (cfn.py)."""

from nanomerci import cfn
from nanomerci.bonuses.base import StateCounter, register
from nanomerci.kernels.cfn_score import cfn_score


@register("cfn")
class CFN(StateCounter):
    """MERCI (2510.16614): the root of the mean 1/n over the tokens that the filters keep."""

    kind = cfn.Counter

    def make_counter(self, width, device):
        o = self.options
        return self.kind(
            width,
            coins=o.coins,
            hidden=o.cfn_hidden,
            prior=o.cfn_prior,
            lr=o.cfn_lr,
            capacity=o.cfn_replay,
            batch=o.cfn_batch,
            seed=o.seed,
            device=device,
            all_sum=self.ranks.sum_,
        )

    def score(self, hidden_ND):
        return cfn_score(hidden_ND, net=self.counter.net, backend=self.options.backend)
