"""Exact counts in a table, of prefixes and of final answers; and how near an estimate of 1/n comes.

A prefix (prompt included) is a 64-bit hash chained over its tokens, so a table of hashes and counts
is all there is to keep. On the toy tasks a run's table has some 10^5 rows; for long responses of a
large model nearly every prefix is new and there is nothing to compare. Score before counting, as
with any counter.

Axes: B rows, T token positions, N keys.
"""

import hashlib
from collections import Counter

import torch

from nanomerci.address import GOLDEN, mix

FEW = 20  # fewer prefixes than this make no correlation


class Table:
    """int64 keys and how often each was counted. gather joins a list over ranks, so that every rank
    counts the visits of all.
    """

    def __init__(self, gather=lambda items: items):
        self.key_N = torch.zeros(0, dtype=torch.int64)
        self.times_N = torch.zeros(0, dtype=torch.int64)
        self.gather = gather

    def times(self, key):
        """How often each key was counted: int64 of any shape -> int64 of that shape, 0 for
        never.
        """
        if not len(self.key_N):
            return torch.zeros_like(key)
        at = torch.searchsorted(self.key_N, key.contiguous()).clamp(max=len(self.key_N) - 1)
        return torch.where(self.key_N[at] == key, self.times_N[at], 0)

    def add_keys(self, key_N):
        """Count each of these once more, on the CPU."""
        new_N = torch.tensor(self.gather(key_N.tolist()), dtype=torch.int64)
        times_N = torch.cat([self.times_N, torch.ones_like(new_N)])
        self.key_N, inverse_N = torch.cat([self.key_N, new_N]).unique(return_inverse=True)
        self.times_N = torch.zeros_like(self.key_N).index_add_(0, inverse_N, times_N)

    def state_dict(self):
        return {"key_N": self.key_N, "times_N": self.times_N}

    def load_state_dict(self, state):
        self.key_N, self.times_N = state["key_N"].cpu(), state["times_N"].cpu()


def prefixes(tokens_BT):
    """Hash of every prefix, tokens 0..t of its row: equal prefixes, equal hashes. (B, T) int64 ->
    (B, T) int64.
    """
    state_B, columns = torch.zeros_like(tokens_BT[:, 0]), []
    for token_B in tokens_BT.T:
        state_B = mix(state_B + token_B + GOLDEN)
        columns.append(state_B)
    return torch.stack(columns, 1)


class PrefixCounts(Table):
    """How often was every prefix of a response visited? The whole response, after which nothing
    comes, is not counted.
    """

    def add(self, rollouts):
        """Every response prefix of these rollouts was visited once more."""
        parts = [prefixes(r.tokens_BT.cpu())[r.visited_BT.cpu()] for r in rollouts]
        self.add_keys(torch.cat(parts))

    def inverse(self, rollout):
        """The exact 1/n of every response prefix, 1 where it was never visited. -> (B, T)."""
        n_BT = self.times(prefixes(rollout.tokens_BT.cpu())).clamp(min=1)
        return rollout.visited_BT / n_BT.to(rollout.mask_BT.device)

    def look(self, rollout, invn_BT):
        """The distinct prefixes of a rollout. -> n_N, how often each was visited before, and
        invn_N, the estimate, float64.
        """
        inside_BT = rollout.visited_BT.cpu()
        key_BT = prefixes(rollout.tokens_BT.cpu())
        key_N, inverse_N = key_BT[inside_BT].unique(return_inverse=True)
        invn_N = torch.zeros(len(key_N), dtype=torch.float64)
        # equal prefixes have equal estimates, but for rounding
        invn_N[inverse_N] = invn_BT.cpu()[inside_BT].double()
        return self.times(key_N), invn_N

    def compare(self, visits):
        """The estimates of these rounds (.rollout, .novelty_BT) with the counts before them. ->
        metrics, calibration record.
        """
        looks = [self.look(v.rollout, v.novelty_BT) for v in visits]
        n_N, invn_N = (torch.cat(parts) for parts in zip(*looks, strict=True))
        return agreement(n_N, invn_N), calibration(n_N, invn_N)


class AnswerCounts(Table):
    """How often was this final answer given to this problem?"""

    @staticmethod
    def keys(problem_B, answer_B):
        """Ids of problems and final answers, strings, None for no answer -> int64 hashes."""
        texts = [
            f"{p}\n{a}".encode("utf-8", "replace") for p, a in zip(problem_B, answer_B, strict=True)
        ]
        hashes = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
        return torch.tensor([int.from_bytes(h, signed=True) for h in hashes], dtype=torch.int64)

    def including(self, problem_B, answer_B):
        """How often it was given before, and among these rows. -> list of ints."""
        key_B = self.keys(problem_B, answer_B)
        here = Counter(key_B.tolist())
        before = self.times(key_B).tolist()
        return [n + here[key] for n, key in zip(before, key_B.tolist(), strict=True)]

    def add(self, problem_B, answer_B):
        """Each was given once more."""
        self.add_keys(self.keys(problem_B, answer_B))


def rank_of(x_N):
    """Ranks from 1 on, ties share their mean rank. -> float64."""
    _, inverse_N, times = x_N.unique(return_inverse=True, return_counts=True)
    return (times.cumsum(0).double() - (times.double() - 1) / 2)[inverse_N]


def agreement(n_N, invn_N, most=100):
    """Over prefixes seen 1 to `most` times: Spearman's rank correlation of the estimate with 1/n,
    and the slope of log estimate on log 1/n (1 and 1 for a perfect counter). ->
    {"oracle/spearman", "oracle/slope"}, empty where there is nothing to compare.
    """
    seen_N = (n_N >= 1) & (n_N <= most)
    true_N, invn_N = 1 / n_N[seen_N].double(), invn_N[seen_N].double()
    if len(true_N) < FEW or (true_N == true_N[0]).all() or (invn_N == invn_N[0]).all():
        return {}
    spearman = torch.corrcoef(torch.stack([rank_of(true_N), rank_of(invn_N)]))[0, 1]
    x_N, y_N = (z_N.clamp(min=1e-12).log() for z_N in (true_N, invn_N))
    x_N = x_N - x_N.mean()
    slope = (x_N * y_N).sum() / x_N.square().sum()
    return {"oracle/spearman": float(spearman), "oracle/slope": float(slope)}


def calibration(n_N, invn_N, points=300):
    """What a figure needs: by powers of two of n (and for n = 0) how many prefixes, the mean and
    the quartiles of the estimate; and at most `points` single prefixes [n, estimate], evenly spread
    over the hashes, so a fair sample.
    """
    bins = []
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=invn_N.dtype)
    for power in range(-1, int(n_N.max()).bit_length() if len(n_N) else 0):
        low, high = (0, 1) if power < 0 else (2**power, 2 ** (power + 1))
        here_N = invn_N[(n_N >= low) & (n_N < high)]
        if len(here_N):
            quartiles = [round(q, 5) for q in here_N.quantile(quarters).tolist()]
            mean = round(float(here_N.mean()), 5)
            bins.append({"n": low, "prefixes": len(here_N), "mean": mean, "quartiles": quartiles})
    every = max(1, -(-len(n_N) // points))
    pairs = zip(n_N[::every].tolist(), invn_N[::every].tolist(), strict=True)
    return {"bins": bins, "points": [[n, round(e, 5)] for n, e in pairs]}
