"""Exact counts of prefixes against counting by hand, and the two numbers that compare an estimate
with them.
"""

from collections import Counter

import torch

from nanomerci.bonuses import Visits
from nanomerci.counts import PrefixCounts, agreement, calibration, prefixes, rank_of
from nanomerci.loop.rollout import Rollout


def batch(seed, B=40, T=9, words=2):
    rng = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(words, (B, T), generator=rng)
    length_B1 = torch.randint(3, T + 1, (B, 1), generator=rng)
    column_T = torch.arange(T)
    mask_BT = ((column_T >= 2) & (column_T < length_B1)).float()  # two tokens of prompt
    return Rollout(tokens_BT, mask_BT, mask_BT * 0)


def by_hand(roll):
    """Every prefix that ends in a response token but the last, row by row."""
    found, inside = [], roll.mask_BT.nonzero().tolist()
    for row, column in inside:
        if [row, column + 1] in inside:
            found.append(tuple(roll.tokens_BT[row, : column + 1].tolist()))
    return found


def visit(roll, novelty_BT):
    return Visits(roll, None, [], [], novelty_BT=novelty_BT)


def test_every_prefix_is_counted_exactly_and_looked_at_before():
    counts, true = PrefixCounts(), Counter()
    for seed in range(4):
        roll = batch(seed)
        here, inside_BT = by_hand(roll), roll.visited_BT
        n_N = counts.times(prefixes(roll.tokens_BT))[inside_BT]
        assert n_N.tolist() == [true[prefix] for prefix in here]
        exact_BT = counts.inverse(roll)
        exact_N = torch.tensor([1 / max(true[prefix], 1) for prefix in here])
        torch.testing.assert_close(exact_BT[inside_BT], exact_N)
        assert (exact_BT[~inside_BT] == 0).all()
        n_N, invn_N = counts.look(roll, exact_BT)
        assert sorted(n_N.tolist()) == sorted(true[prefix] for prefix in set(here))
        torch.testing.assert_close(invn_N, 1 / n_N.clamp(min=1).double(), rtol=1e-6, atol=0)
        metrics, record = counts.compare([visit(roll, exact_BT)])
        new = {bin["n"]: bin["prefixes"] for bin in record["bins"]}.get(0, 0)
        assert new == len({prefix for prefix in here if not true[prefix]})
        counts.add([roll])
        true.update(here)
    assert abs(metrics["oracle/spearman"] - 1) < 1e-6 and abs(metrics["oracle/slope"] - 1) < 1e-6
    assert len(counts.key_N) == len(true) and counts.times_N.sum() == sum(true.values())


def test_the_prompt_belongs_to_the_prefix_and_what_follows_does_not():
    key_BT = prefixes(torch.tensor([[1, 2, 3], [4, 2, 3], [1, 2, 0], [2, 1, 3]]))
    assert torch.equal(key_BT[0, :2], key_BT[2, :2]) and len(key_BT.unique()) == 12 - 2
    assert len(prefixes(torch.arange(2**17).view(-1, 2)).unique()) == 2**17


def test_two_ranks_count_as_one_and_a_checkpoint_goes_on(tmp_path):
    roll = batch(0)
    here, there = roll.rows(torch.arange(20)), roll.rows(torch.arange(20, 40))
    others = prefixes(there.tokens_BT)[there.visited_BT].tolist()
    one, two = PrefixCounts(), PrefixCounts(gather=lambda keys: keys + others)
    one.add([roll])
    two.add([here])
    torch.save(two.state_dict(), tmp_path / "counts.pt")
    three = PrefixCounts()
    three.load_state_dict(torch.load(tmp_path / "counts.pt"))
    for counts in (one, three):
        counts.add([batch(1), batch(2)])
    assert torch.equal(one.key_N, three.key_N) and torch.equal(one.times_N, three.times_N)


def test_spearman_and_slope_against_their_definitions():
    assert rank_of(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    n_N = torch.arange(1, 151).repeat_interleave(2)
    perfect = agreement(n_N, 1 / n_N.double())
    assert abs(perfect["oracle/spearman"] - 1) < 1e-12 and abs(perfect["oracle/slope"] - 1) < 1e-12
    flat = agreement(n_N, n_N.double() ** -0.25)
    assert abs(flat["oracle/spearman"] - 1) < 1e-12 and abs(flat["oracle/slope"] - 0.25) < 1e-12
    assert abs(agreement(n_N, n_N.double())["oracle/spearman"] + 1) < 1e-12
    rng = torch.Generator().manual_seed(0)
    noisy_N = (1 / n_N.double()) * torch.rand(300, generator=rng, dtype=torch.float64)
    # prefixes seen more often than 100 times do not enter
    changed_N = torch.where(n_N > 100, 7.0, noisy_N)
    assert agreement(n_N, noisy_N) == agreement(n_N, changed_N)
    x_N, y_N = (rank_of(z[:200]) for z in (1 / n_N.double(), noisy_N))
    covariance = ((x_N - x_N.mean()) * (y_N - y_N.mean())).mean()
    rho = covariance / x_N.std(correction=0) / y_N.std(correction=0)
    assert abs(agreement(n_N, noisy_N)["oracle/spearman"] - rho) < 1e-9
    once_N = torch.ones(500, dtype=torch.int64)
    assert agreement(once_N * 0, torch.rand(500)) == {}  # nothing was seen before
    assert agreement(once_N, torch.rand(500)) == {}  # all 1/n alike


def test_calibration_bins_hold_every_prefix_once():
    n_N = torch.tensor([0, 0, 1, 1, 2, 3, 4, 700])
    record = calibration(n_N, 1 / n_N.clamp(min=1).double(), points=4)
    bins = [(b["n"], b["prefixes"]) for b in record["bins"]]
    assert bins == [(0, 2), (1, 2), (2, 2), (4, 1), (512, 1)]
    assert record["bins"][2]["mean"] == round((1 / 2 + 1 / 3) / 2, 5)
    assert record["bins"][1]["quartiles"] == [1.0, 1.0, 1.0]
    assert record["points"] == [[0, 1.0], [1, 1.0], [2, 0.5], [4, 0.25]]
