"""The objectives that change the advantage alone, against their definitions."""

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
import torch

from nanomerci import grpo, objectives
from nanomerci.advantages import over_frequency, over_mean, pass_at_k
from nanomerci.runtime import config
from nanomerci.runtime.config import UserError


def test_maxrl_by_hand():
    got_PG = over_mean(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    want_PG = [[3.0, -1, -1, -1], [1, 1, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(got_PG, torch.tensor(want_PG))
    assert torch.equal(over_mean(torch.tensor([[-1.0, 0.0]])), torch.zeros(1, 2))  # only penalties


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("G", [2, 3, 6])
def test_maxrl_is_maximum_likelihood_cut_off_in_the_failure_rate(p, G):
    """log p = -sum over k of (1 - p)^k / k, so its gradient is that of p times the sum of (1 -
    p)^(k - 1). The group's mean as baseline leaves the first G - 1 of these terms, exactly.

    A coin of logit z with p = sigmoid(z): d log pi / dz is 1 - p for a success, -p for a failure.
    """
    total = 0.0
    for group in product((1.0, 0.0), repeat=G):
        probability = np.prod([p if r else 1 - p for r in group])
        adv_G = over_mean(torch.tensor([group], dtype=torch.float64))[0].numpy()
        total += probability * (adv_G * [1 - p if r else -p for r in group]).mean()
    terms = sum((1 - p) ** (k - 1) for k in range(1, G))
    assert total == pytest.approx(p * (1 - p) * terms, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_pass_at_k_is_the_mean_over_all_draws_that_hold_the_response(k):
    """Every k of 6 responses form a draw, which earns its best reward; a response's advantage is
    the mean of its draws' standardised earnings (2508.10751, section 2.2: full sampling).
    """
    for c in range(7):
        rewards = [1.0] * c + [0.0] * (6 - c)
        draws = list(combinations(range(6), k))
        earned = np.array([max(rewards[i] for i in draw) for draw in draws])
        mean, std = earned.mean(), np.sqrt(earned.mean() * (1 - earned.mean()))
        want = []
        for i in range(6):
            mine = [e for e, draw in zip(earned, draws, strict=True) if i in draw]
            want.append((np.mean(mine) - mean) / (std + 1e-6))
        got_PG = pass_at_k(torch.tensor([rewards], dtype=torch.float64), k)
        assert np.allclose(got_PG[0].numpy(), want, atol=1e-9)


def test_pass_at_k_by_the_papers_formulas():
    """N = 8, two correct, k = 4: the mean is 1 - C(6, 4) / C(8, 4) = 55/70."""
    mean = 1 - comb(6, 4) / comb(8, 4)
    std = (mean * (1 - mean)) ** 0.5
    adv_G = pass_at_k(torch.tensor([[1.0, 1.0] + [0.0] * 6]), 4)[0]
    # eps = 1e-6 beside a std of .41, and float32
    torch.testing.assert_close(adv_G[0].item(), (1 - mean) / std, rtol=1e-5, atol=0)
    wrong = (1 - mean - comb(5, 3) / comb(7, 3)) / std
    torch.testing.assert_close(adv_G[2].item(), wrong, rtol=1e-5, atol=0)
    adv_PG = pass_at_k(torch.tensor([[1.0, 0.3], [0.8, -0.5]]), 1)  # partial credit, penalties
    torch.testing.assert_close(adv_PG, torch.tensor([[1.0, -1.0]] * 2), rtol=1e-5, atol=0)


def test_pass_k_is_refused_where_the_group_has_fewer():
    with pytest.raises(UserError, match="--pass_k 9: expected at most --group 8"):
        config.check(config.parse(["--algo", "passk", "--pass_k", "9"]))
    config.check(config.parse(["--pass_k", "9"]))  # of no consequence


def test_ips_divides_by_the_share_of_the_group():
    """Outcomes a a b c, the last incorrect: 1 / (1/2), 1 / (1/2), 1 / (1/4), 0."""
    reward_PG, outcome_PG = torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[7, 7, 0, 3]])
    want_PG = grpo.advantage(torch.tensor([[2.0, 2.0, 4.0, 0.0]]))
    torch.testing.assert_close(over_frequency(reward_PG, outcome_PG), want_PG)
    said_PG, got_PG = torch.tensor([[4, 4, 4, 5, 6, 6]]), torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    want_PG = grpo.advantage(torch.tensor([[2.0, 2, 2, 6, 0, 0]]))
    torch.testing.assert_close(over_frequency(got_PG, said_PG), want_PG)
    other_PG = torch.tensor([[1, 1, 2, 9]])  # what the numbers are makes no difference
    assert torch.equal(over_frequency(reward_PG, other_PG), over_frequency(reward_PG, outcome_PG))
    different_PG = torch.arange(4)[None]  # all say something else: GRPO, as std divides the G away
    got_PG = over_frequency(reward_PG, different_PG)
    # eps = 1e-6 beside a std of .5, divided by 4
    torch.testing.assert_close(got_PG, grpo.advantage(reward_PG), rtol=1e-5, atol=0)


def test_an_objective_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from nanomerci.objectives import Objective\nnone, mine = 3, Objective(abs)\n")
    assert objectives.find(f"{file}:mine").advantage is abs
    assert objectives.find("maxrl").advantage is over_mean
    for name, words in {
        "maxlr": "--algo maxlr: unknown; did you mean maxrl[?] Choose from grpo, .*, or FILE.py",
        f"{file}:none": "none: expected a nanomerci.objectives.Objective",
        f"{file}:other": "the file has no other",
    }.items():
        with pytest.raises(UserError, match=words):
            objectives.find(name)
