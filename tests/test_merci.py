"""MERCI against its own theory (on trees small enough to sample the posterior) and its equations,
one by one.
"""

import math

import pytest
import torch

from nanomerci import merci

T = torch.tensor


class Tree:
    """A random tree of the given depth: every state has a reward with a posterior variance, a
    policy over its children.
    """

    def __init__(self, rng, depth, branching):
        self.var = torch.rand((), generator=rng, dtype=torch.float64) + 0.1
        self.children = [Tree(rng, depth - 1, branching) for _ in range(branching if depth else 0)]
        chance_A = torch.rand(len(self.children), generator=rng, dtype=torch.float64)
        self.policy_A = chance_A.softmax(0)

    def bound(self):
        """The recursion, with the library's one backup."""
        below = [child.bound() for child in self.children]
        return merci.backup(self.var, self.policy_A, torch.tensor(below, dtype=torch.float64))

    def sampled_q(self, noise):
        """Q of one draw of all rewards from the posterior; `noise()` gives the standard normal
        draws (n,) of a state.
        """
        q = self.var.sqrt() * noise()
        for weight, child in zip(self.policy_A, self.children, strict=True):
            q = q + weight * child.sampled_q(noise)
        return q


DRAWS = 40_000
TOLERANCE = 5 * math.sqrt(2 / DRAWS)  # relative sd of a sample variance of normals is sqrt(2 / n)


@pytest.mark.parametrize("seed", range(4))
def test_on_one_trajectory_the_recursion_is_the_posterior_variance(seed):
    rng = torch.Generator().manual_seed(seed)
    path = Tree(rng, depth=6, branching=1)
    q = path.sampled_q(lambda: torch.randn(DRAWS, generator=rng, dtype=torch.float64))
    assert abs(q.var() / path.bound() - 1) < TOLERANCE
    deviations, nodes = 0.0, [path]
    while nodes:
        deviations, nodes = deviations + nodes[0].var.sqrt(), nodes[0].children
    assert deviations**2 > 2 * q.var()  # adding standard deviations overshoots


@pytest.mark.parametrize("seed", range(4))
def test_under_a_stochastic_policy_it_bounds_the_posterior_variance(seed):
    rng = torch.Generator().manual_seed(seed)
    tree = Tree(rng, depth=4, branching=3)
    q = tree.sampled_q(lambda: torch.randn(DRAWS, generator=rng, dtype=torch.float64))
    # independent branches average out: strictly below (Jensen)
    assert q.var() < tree.bound() * (1 - TOLERANCE)


def test_it_is_met_when_the_branches_are_perfectly_correlated():
    rng = torch.Generator().manual_seed(0)
    tree = Tree(rng, depth=1, branching=3)
    for child in tree.children:
        child.var = T(0.7, dtype=torch.float64)
    own, shared = (torch.randn(DRAWS, generator=rng, dtype=torch.float64) for _ in range(2))
    draws = iter([own, shared, shared, shared])
    q = tree.sampled_q(lambda: next(draws))
    assert abs(q.var() / tree.bound() - 1) < TOLERANCE


def test_uncertainty_to_go_is_the_backup_along_the_response():
    torch.manual_seed(0)
    var_BT, mask_BT = torch.rand(3, 7), torch.zeros(3, 7)
    for row, (start, end) in enumerate(((0, 7), (2, 5), (3, 4))):
        mask_BT[row, start:end] = 1
    to_go_BT = merci.uncertainty_to_go(var_BT, mask_BT)
    for row in range(3):
        after = torch.zeros(())
        for t in reversed(range(7)):
            if mask_BT[row, t]:
                after = merci.backup(var_BT[row, t], torch.ones(1), after[None])
                assert to_go_BT[row, t] == pytest.approx(after.item(), rel=1e-5)
            else:
                assert to_go_BT[row, t] == 0


def test_figure_of_the_paper_h_equal_steps_give_root_h():
    """Variance 1 per step over H steps: root H, where adding deviations gives H (MERCI, section on
    aggregation).
    """
    H = 16
    ones = torch.ones(1, H)
    assert merci.bonus_of_sum(ones, ones.bool(), ones).item() == pytest.approx(math.sqrt(H))
    assert merci.bonus_of_deviations(ones, ones.bool(), ones).item() * H == pytest.approx(H)


def test_percentile_keeps_the_top_share_of_each_response():
    invn = T([[9.0, 1, 5, 2, 8, 3, 7, 4, 6, 0], [9, 9, 1, 1, 0, 0, 0, 0, 0, 0]])
    mask = T([[0.0] + [1] * 9, [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]])
    kept = merci.percentile(invn, mask, 0.3)
    # 3 of 9: 8, 7, 6; the 9 belongs to the prompt
    assert kept[0].nonzero()[:, 0].tolist() == [4, 6, 8]
    # .3 * 10 is 3, not 3.0000001
    assert merci.percentile(torch.arange(10.0)[None], torch.ones(1, 10), 0.3).sum() == 3
    assert merci.percentile(torch.arange(50.0)[None], torch.ones(1, 50), 0.3).sum() == 15
    assert kept[1].nonzero()[:, 0].tolist() == [2, 3]  # ceil(.3 * 4) = 2
    assert merci.percentile(invn, mask, 1.0).equal(mask.bool())
    assert merci.percentile(torch.ones(1, 4), torch.ones(1, 4), 0.25).all()  # ties are kept
    assert not merci.percentile(torch.ones(1, 4), torch.zeros(1, 4), 0.3).any()  # an empty response


def test_percentile_is_relative():
    torch.manual_seed(0)
    invn, mask = torch.rand(4, 20), torch.ones(4, 20)
    assert merci.percentile(invn, mask, 0.3).equal(merci.percentile(invn * 1e-4, mask, 0.3))


@pytest.mark.parametrize(
    "run, expected",
    [
        (1, "1101110010111101"),
        (2, "1101110000111100"),
        (3, "0001110000111100"),
        (4, "0000000000111100"),
        (5, "0" * 16),
        (20, "0" * 16),
    ],
)
def test_coherent_keeps_runs_only(run, expected):
    kept = T([[c == "1" for c in "1101110010111101"]])
    assert "".join(str(int(k)) for k in merci.coherent(kept, run)[0]) == expected


def test_suppress_removes_noise():
    left = merci.suppress(T([[True, True, False]]), T([[False, True, True]]))
    assert left.tolist() == [[True, False, False]]


def test_trajectory_bonus_by_hand():
    invn, kept = T([[0.5, 0.25, 0.25, 1.0]]), T([[True, True, False, False]])
    mask = T([[1.0, 1, 1, 0]])
    # l is the response's length
    assert merci.trajectory_bonus(invn, kept, mask).item() == pytest.approx(math.sqrt(0.75 / 3))
    assert merci.trajectory_bonus(invn, kept & False, mask).item() == 0
    assert merci.trajectory_bonus(invn, kept & False, mask * 0).item() == 0


def test_exploration_advantage_is_the_positive_part_of_the_z_score():
    bonus_PG = T([[0.1, 0.2, 0.3, 0.4]])
    z = (bonus_PG - 0.25) / T(0.0125).sqrt()  # population std
    assert torch.allclose(merci.exploration_advantage(bonus_PG), z.clamp(min=0), atol=1e-5)
    assert (merci.exploration_advantage(torch.zeros(2, 4)) == 0).all()


def test_a_group_that_differs_by_rounding_gets_nothing_to_speak_of():
    bonus_PG = T([[0.2, 0.2, 0.2, 0.2 * (1 + 1e-6)]])
    assert merci.exploration_advantage(bonus_PG).max() < 1e-3
    # what would happen without the floor
    assert merci.exploration_advantage(bonus_PG, floor=0.0).max() > 1


def paper_merge(a, e, gamma, alpha):
    return min(a + gamma * e, (1 + alpha) * a) if a >= 0 else min(a + gamma * e, (1 - alpha) * a)


def test_merge_is_the_papers_two_cases():
    rng = torch.Generator().manual_seed(0)
    adv, expl = torch.randn(500, generator=rng), torch.rand(500, generator=rng) * 3
    merged = merci.merge(adv, expl, 0.5, 0.4)
    for a, e, m in zip(adv.tolist(), expl.tolist(), merged.tolist(), strict=True):
        assert m == pytest.approx(paper_merge(a, e, 0.5, 0.4), abs=1e-6)
    # what it guarantees: never lower, never beyond the share alpha, never another sign, nothing
    # where nothing was
    assert (merged >= adv).all() and ((merged - adv) <= 0.4 * adv.abs() + 1e-6).all()
    assert (merged.sign() == adv.sign()).all()
    assert (merci.merge(torch.zeros(3), torch.ones(3), 0.5, 0.4) == 0).all()


def test_gamma_zero_gives_the_advantage_back_bit_for_bit():
    rng = torch.Generator().manual_seed(0)
    adv, expl = torch.randn(10_000, generator=rng), torch.rand(10_000, generator=rng) * 10
    assert torch.equal(merci.merge(adv, expl, 0.0, 0.5), adv)
    assert torch.equal(merci.merge(adv, expl * 0, 0.5, 0.5), adv)


def test_gamma_falls_by_half_a_cosine_to_a_tenth():
    assert merci.gamma_at(0, 0.5, 200) == pytest.approx(0.5)
    assert merci.gamma_at(100, 0.5, 200) == pytest.approx(0.275)  # half way between .5 and .05
    assert merci.gamma_at(200, 0.5, 200) == merci.gamma_at(500, 0.5, 200) == pytest.approx(0.05)
