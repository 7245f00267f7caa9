"""The truth beside the counter: exactly how often was every prefix visited, and how near does the
estimate of 1/n come?

A prefix (prompt included) is a 64-bit hash chained over its tokens, so a table of hashes and counts
is all there is to keep. On the toy tasks a run's table has some 10^5 rows; for long answers of a
large model nearly every prefix is new and there is nothing to compare. Look before counting, as
with the counter itself.

Axes: B rows, T token positions, N prefixes.
"""

import torch

from nanomerci.address import GOLDEN, mix

FEW = 20  # fewer prefixes than this make no correlation


def prefixes(tokens_BT):
    """Hash of every prefix, tokens 0..t of its row: equal prefixes, equal hashes. (B, T) int64 ->
    (B, T) int64.
    """
    state_B, columns = torch.zeros_like(tokens_BT[:, 0]), []
    for token_B in tokens_BT.T:
        state_B = mix(state_B + token_B + GOLDEN)
        columns.append(state_B)
    return torch.stack(columns, 1)


class Oracle:
    """The table. gather joins a list over ranks, so that every rank counts the visits of all."""

    def __init__(self, gather=lambda items: items):
        self.key_N, self.times_N, self.gather = (
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            gather,
        )

    def times(self, key):
        """How often was each prefix visited? int64 hashes of any shape -> int64 counts, 0 for
        never.
        """
        if not len(self.key_N):
            return torch.zeros_like(key)
        at = torch.searchsorted(self.key_N, key.contiguous()).clamp(max=len(self.key_N) - 1)
        return torch.where(self.key_N[at] == key, self.times_N[at], 0)

    def count(self, rolls):
        """Every response prefix of these rollouts was visited once more."""
        new_N = torch.cat(
            [prefixes(roll.tokens_BT.cpu())[roll.mask_BT.cpu() > 0] for roll in rolls]
        )
        new_N = torch.tensor(self.gather(new_N.tolist()), dtype=torch.int64)
        times_N = torch.cat([self.times_N, torch.ones_like(new_N)])
        self.key_N, inverse_N = torch.cat([self.key_N, new_N]).unique(return_inverse=True)
        self.times_N = torch.zeros_like(self.key_N).index_add_(0, inverse_N, times_N)

    def inverse(self, roll):
        """The exact 1/n of every response prefix, 1 where it was never visited, as a bonus could
        use it. -> (B, T).
        """
        return roll.mask_BT / self.times(prefixes(roll.tokens_BT.cpu())).clamp(min=1).to(
            roll.mask_BT.device
        )

    def look(self, roll, invn_BT):
        """The distinct prefixes of a rollout. -> n_N, how often each was visited before, and
        invn_N, the estimate, float64.
        """
        inside_BT = roll.mask_BT.cpu() > 0
        key_N, inverse_N = prefixes(roll.tokens_BT.cpu())[inside_BT].unique(return_inverse=True)
        invn_N = torch.zeros(len(key_N), dtype=torch.float64)
        invn_N[inverse_N] = invn_BT.cpu()[
            inside_BT
        ].double()  # equal prefixes have equal estimates, but for rounding
        return self.times(key_N), invn_N

    def step(self, looks):
        """Look at a step's rollouts and estimates [(roll, invn_BT)], then count them. -> metrics,
        calibration record.
        """
        n_N, invn_N = map(torch.cat, zip(*(self.look(*pair) for pair in looks)))
        self.count([roll for roll, _ in looks])
        return agreement(n_N, invn_N), calibration(n_N, invn_N)

    def state_dict(self):
        return {"key_N": self.key_N, "times_N": self.times_N}

    def load_state_dict(self, state):
        self.key_N, self.times_N = state["key_N"].cpu(), state["times_N"].cpu()


def ranks(x_N):
    """Ranks from 1 on, ties share their mean rank. -> float64."""
    _, inverse_N, times = x_N.unique(return_inverse=True, return_counts=True)
    return (times.cumsum(0).double() - (times.double() - 1) / 2)[inverse_N]


def agreement(n_N, invn_N, most=100):
    """Over prefixes seen 1 to `most` times: Spearman's rank correlation of the estimate with 1/n,
    and the slope of log estimate on log 1/n (1 and 1 for a perfect counter). -> {"oracle/spearman",
    "oracle/slope"}, empty where there is nothing to compare.
    """
    seen_N = (n_N >= 1) & (n_N <= most)
    true_N, invn_N = 1 / n_N[seen_N].double(), invn_N[seen_N].double()
    if len(true_N) < FEW or (true_N == true_N[0]).all() or (invn_N == invn_N[0]).all():
        return {}
    spearman = torch.corrcoef(torch.stack([ranks(true_N), ranks(invn_N)]))[0, 1]
    x_N, y_N = (z_N.clamp(min=1e-12).log() for z_N in (true_N, invn_N))
    slope = ((x_N - x_N.mean()) * y_N).sum() / (x_N - x_N.mean()).square().sum()
    return {"oracle/spearman": float(spearman), "oracle/slope": float(slope)}


def calibration(n_N, invn_N, points=300):
    """What a figure needs: by powers of two of n (and for n = 0) how many prefixes, the mean and
    the quartiles of the estimate; and at most `points` single prefixes [n, estimate], evenly spread
    over the hashes, so a fair sample.
    """
    bins = []
    for power in range(-1, int(n_N.max()).bit_length() if len(n_N) else 0):
        low, high = (0, 1) if power < 0 else (2**power, 2 ** (power + 1))
        here_N = invn_N[(n_N >= low) & (n_N < high)]
        if len(here_N):
            quartiles = [
                round(q, 5)
                for q in here_N.quantile(
                    torch.tensor([0.25, 0.5, 0.75], dtype=here_N.dtype)
                ).tolist()
            ]
            bins.append(
                {
                    "n": low,
                    "prefixes": len(here_N),
                    "mean": round(float(here_N.mean()), 5),
                    "quartiles": quartiles,
                }
            )
    every = max(1, -(-len(n_N) // points))
    return {
        "bins": bins,
        "points": [
            [n, round(e, 5)] for n, e in zip(n_N[::every].tolist(), invn_N[::every].tolist())
        ],
    }
