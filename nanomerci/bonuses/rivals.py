"""Other ways to pay for exploration, so that counting can be compared with them: a class or a
function each.

Counters, to be used like cfn.Counter (score before, visit after): RND, Elliptical. A novelty
without memory: surprisal, and noise as the control that knows nothing. Rules that are not MERCI's
merge: entropy_advantage, error_conditioned. Counts of final answers instead of states:
OutcomeCounts.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions; N visits, D hidden width, C
outputs.
"""

import hashlib
from collections import Counter

import torch

from nanomerci import cfn
from nanomerci.address import address, uniform


class RND(cfn.Counter):
    """Random network distillation (Burda et al. 2018): how badly does a network predict a fixed
    random function of the state?

    The CFN's network, with its random prior as the function to predict and its head as the
    predictor, and 0 for every coin: then flips^2 is the squared error, near 1 at first, small where
    the head was trained. It falls with every pass over a state, not with its visits, and what is
    hard to predict stays novel. i-MENTOR (2505.17621) distils whole token sequences; these are the
    counter's own states, so that only the target differs.
    """

    @staticmethod
    def targets(address_N, coins):  # [RND:target]
        """No coins: the head is to cancel the prior. (N,) -> zeros (N, C)."""
        return torch.zeros(len(address_N), coins, device=address_N.device)


class Elliptical:
    """x' (sum x x' + ridge)^-1 x of standardised hidden states, as in linear bandits and RepExp
    (2510.11686); exact, float64.

    On one-hot states 1 / (n + ridge): the CFN with a linear head and a prior, all coins and priors
    averaged (cfn.expected_inverse_count). D features tell at most D states apart.
    """

    def __init__(self, width, *, ridge=1.0, seed=0, device=None, all_sum=lambda x: x):
        self.ridge, self.all_sum = ridge, all_sum
        self.net = cfn.CoinFlipNet(width, coins=1, hidden=0, prior=False).to(
            device
        )  # for the standardisation alone
        self.gram_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.inverse_DD = torch.eye(width, dtype=torch.float64, device=device) / ridge

    @torch.no_grad()
    def score(self, hidden_ND):
        """Novelty of each state, 1/ridge per dimension before any visit. (N, D) -> (N,)."""
        return torch.cat(
            [
                elliptical(self.net.normalise(part_ND).double(), self.inverse_DD)
                for part_ND in hidden_ND.split(cfn.ROWS)
            ]
        )

    def pretrain(self, hidden_ND, address_N, passes):
        """Fix the standardisation on these visits, then count them, once. -> their mean novelty
        before that.
        """
        self.net.calibrate(hidden_ND, all_sum=self.all_sum)
        return self.visit(hidden_ND, address_N, 0, 0)

    @torch.no_grad()
    def visit(self, hidden_ND, address_N, rehearse, stamp):
        """Add the visits to the sum of x x'. -> their mean novelty before that. Nothing is
        forgotten, so nothing is rehearsed.
        """
        novelty_N = self.score(hidden_ND)
        sums = self.all_sum(torch.stack([novelty_N.sum(), torch.ones_like(novelty_N).sum()]))
        here_DD = torch.zeros_like(self.gram_DD)
        for part_ND in hidden_ND.split(cfn.ROWS):
            x_ND = self.net.normalise(part_ND).double()
            here_DD += x_ND.T @ x_ND
        self.gram_DD = self.gram_DD + self.all_sum(here_DD)
        identity_DD = torch.eye(len(here_DD), dtype=torch.float64, device=here_DD.device)
        self.inverse_DD = torch.cholesky_inverse(
            torch.linalg.cholesky(self.gram_DD + self.ridge * identity_DD)
        )
        return float(sums[0] / sums[1].clamp(min=1))

    def state_dict(self):
        return {
            "net": self.net.state_dict(),
            "gram_DD": self.gram_DD,
            "inverse_DD": self.inverse_DD,
        }

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.gram_DD, self.inverse_DD = state["gram_DD"], state["inverse_DD"]


def elliptical(x_ND, inverse_DD):  # [RepExp:elliptical]
    """x' A^-1 x. (N, D), (D, D) -> (N,) float32."""
    return ((x_ND @ inverse_DD) * x_ND).sum(1).float()


def surprisal(logp_BT, mask_BT):  # [CDE:surprisal]
    """-log p of each sampled token: what the policy itself holds to be unlikely (the actor's bonus
    of CDE, 2509.09675).

    Unlike a count it never wears off where the policy is random on purpose: a name, an order, a
    matter of style. -> (B, T).
    """
    return -logp_BT * mask_BT


def noise(visit_BT, mask_BT):
    """The control: uniform in [0, 1), fixed by the visit's address, about nothing. -> (B, T)."""
    return uniform(address("noise", visit_BT)) * mask_BT


def entropy_advantage(adv, entropy_BT, alpha=0.4, kappa=2.0):  # [EntropyAdv:advantage]
    """A_t + min(alpha H_t, |A_t| / kappa), H_t the policy's entropy at token t, without gradient
    (Cheng et al., 2506.14758).

    adv: (B,) or (B, T). -> (B, T). Never falls, keeps its sign for kappa > 1; A = 0 stays 0.
    """
    adv_BT = adv if adv.dim() == 2 else adv[:, None].expand_as(entropy_BT)
    return adv_BT + torch.minimum(alpha * entropy_BT.detach(), adv_BT.abs() / kappa)


def error_conditioned(
    adv_PG, error_PG, right_PG, step, weight=0.5, half=40.0, all_max=lambda x: x
):  # [IMentor:advantage]
    """A + weight minmax(e) half / (half + step) on wrong answers only, after normalisation
    (i-MENTOR, 2505.17621).

    minmax: (e - min) / (max - min) over the whole batch; all_max takes a tensor's maximum over
    ranks. A batch of equal errors gets nothing. It is not capped: a wrong answer's advantage may
    turn positive, and A = 0 does not stay 0.
    """
    extremes = all_max(torch.stack([error_PG.max(), -error_PG.min()]))
    share_PG = (error_PG + extremes[1]) / (extremes[0] + extremes[1]).clamp(min=1e-12)
    return adv_PG + weight * half / (half + step) * share_PG * ~right_PG


class OutcomeCounts:
    """How often was this very answer given to this problem, in the whole run? (Outcome-based
    exploration, 2509.06941.)

    The bonus is the paper's UCB term, 1 / sqrt(N). It enters the advantage as MERCI's does, through
    the group's z-scores and the merge, so that the arms differ in what is counted and in nothing
    else; the group's mean is then the paper's baseline. N includes the group at hand: at the first
    visit already, what one of eight says is rarer than what seven say.
    """

    def __init__(self, gather=lambda items: items):
        """gather: joins a list over ranks, so that all ranks know what any of them has seen."""
        self.times, self.gather = Counter(), gather

    @staticmethod
    def keys(problem_B, answer_B):
        """Ids of problems and final answers, both strings, None for no answer -> 64 bits each, as
        text.
        """
        return [
            hashlib.blake2b(
                f"{problem}\n{answer}".encode("utf-8", "replace"), digest_size=8
            ).hexdigest()
            for problem, answer in zip(problem_B, answer_B)
        ]

    def bonus(self, problem_B, answer_B):  # [Outcome:bonus]
        """1 / sqrt(N), N the times seen before plus those among these rows. -> list of floats."""
        keys = self.keys(problem_B, answer_B)
        here = Counter(keys)
        return [(self.times[key] + here[key]) ** -0.5 for key in keys]

    def visit(self, problem_B, answer_B):
        self.times.update(self.gather(self.keys(problem_B, answer_B)))

    def state_dict(self):
        return dict(self.times)

    def load_state_dict(self, state):
        self.times = Counter(state)
