"""GRPO's and DAPO's pieces against published definitions and invariances."""

import math

import pytest
import torch

from nanomerci import dapo, grpo
from nanomerci.objectives import OBJECTIVES


def test_advantage_is_the_z_score_of_the_group():
    reward_PG = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.1, 0.9, 0.3]])
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    expected = centred_PG / (reward_PG.std(1, keepdim=True) + 1e-6)  # verl, TRL: n - 1
    assert torch.allclose(grpo.advantage(reward_PG), expected)
    assert grpo.advantage(reward_PG)[0, 0].item() == pytest.approx(1.5, abs=1e-4)  # .75 / .5


@pytest.mark.parametrize("correction", [0, 1])
def test_advantage_sums_to_zero_and_ignores_a_constant(correction):
    torch.manual_seed(0)
    reward_PG = torch.rand(5, 8)
    adv_PG = grpo.advantage(reward_PG, correction)
    assert adv_PG.sum(1).abs().max() < 1e-5
    assert torch.allclose(grpo.advantage(reward_PG + 3, correction), adv_PG, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e6 / 7])
def test_a_group_of_equal_rewards_gets_exactly_nothing(value):
    reward_PG = torch.full((3, 7), value)
    assert (grpo.advantage(reward_PG) == 0).all() and (grpo.centred(reward_PG) == 0).all()
    assert not dapo.mixed(reward_PG).any()


def test_surrogate_is_ppos_by_cases():
    """Schulman et al. 2017, figure 1: for A > 0 the gain stops at 1 + eps, for A < 0 at 1 - eps,
    and never on the other side.
    """
    rho = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.5]])
    zero = torch.zeros_like(rho)
    up = -grpo.surrogate(rho.log(), zero, torch.tensor([2.0]), 0.2, 0.28)
    down = -grpo.surrogate(rho.log(), zero, torch.tensor([-2.0]), 0.2, 0.28)
    assert torch.allclose(up, 2 * torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.28]]))
    assert torch.allclose(down, -2 * torch.tensor([[0.8, 0.9, 1.0, 1.1, 1.5]]))
    low, high = grpo.clipped(rho.log(), zero, torch.tensor([2.0]), 0.2, 0.28)
    assert high.tolist() == [[False, False, False, False, True]] and not low.any()


def test_per_token_advantages_are_taken_as_they_are():
    logp, adv_BT = torch.zeros(2, 3), torch.arange(6.0).view(2, 3)
    assert torch.equal(grpo.surrogate(logp, logp, adv_BT), -adv_BT)


def test_kl_is_schulmans_k3():
    p, q = torch.tensor([[0.2, 0.5]]), torch.tensor([[0.3, 0.5]])
    assert torch.allclose(grpo.kl(p.log(), q.log()), q / p - 1 - (q / p).log())
    # unbiased: under pi = Bernoulli(.2), E[k3] is the exact KL
    pi, ref = torch.tensor([0.2, 0.8]), torch.tensor([0.4, 0.6])
    assert (pi * grpo.kl(pi.log(), ref.log())).sum().item() == pytest.approx(
        (pi * (pi / ref).log()).sum().item(), abs=1e-6
    )


def ragged():
    mask_BT = torch.zeros(4, 6)
    for row, (start, length) in enumerate(((1, 5), (2, 1), (1, 3), (0, 0))):
        mask_BT[row, start : start + length] = 1
    return mask_BT


def test_weights_sum_to_one_and_say_what_is_averaged():
    mask_BT = ragged()
    w_grpo = grpo.weights(mask_BT, grpo.units(mask_BT))
    w_dapo = dapo.weights(mask_BT, dapo.units(mask_BT))
    for w in (w_grpo, w_dapo):
        assert w.sum().item() == pytest.approx(1) and (w[mask_BT == 0] == 0).all()
    # each non-empty response the same
    assert torch.allclose(w_grpo.sum(1), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert w_dapo.unique().tolist() == [0, pytest.approx(1 / 9)]  # each token the same
    assert torch.equal(grpo.weights_constant(mask_BT, 3, 6).unique(), torch.tensor([0, 1 / 18]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_do_not_depend_on_how_the_batch_is_cut(name):
    mask_BT, objective = ragged(), OBJECTIVES[name]
    total = objective.units(mask_BT)
    parts = torch.cat([objective.weigh(part, total, 6) for part in mask_BT.split(1)])
    assert torch.equal(parts, objective.weigh(mask_BT, total, 6))


def test_mixed_groups():
    reward_PG = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 1], [0.2, 0.2, 0.3]])
    assert dapo.mixed(reward_PG).tolist() == [False, False, True, True]


def test_overlong_penalty_is_the_papers_eq_13():
    """Lengths in DAPO: limit 20480, buffer 4096. Below 16384 nothing, then linear, -1 at the limit
    and beyond.
    """
    length = torch.tensor([100.0, 16384, 18432, 20480, 30000])
    assert dapo.overlong_penalty(length, 20480, 4096).tolist() == [0, 0, -0.5, -1, -1]
    assert dapo.overlong_penalty(length, 20480, 4096, factor=0.5).tolist()[2] == -0.25


def test_an_absurd_log_ratio_stays_finite():
    logp = torch.tensor([[0.0, -1000.0]], requires_grad=True)
    loss = grpo.surrogate(logp, torch.tensor([[-1000.0, 0.0]]), torch.tensor([-1.0])).sum()
    loss.backward()
    assert math.isfinite(loss.item()) and torch.isfinite(logp.grad).all()


def test_losses_are_verls_and_trls_definitions_on_shared_numbers():
    """The reductions by the names their documentation gives them (verl loss_agg_mode, TRL
    loss_type), each written out here, on fp64 numbers; the surrogate and the group advantage from
    the same definitions.
    """
    rng = torch.Generator().manual_seed(3)
    mask_BT = ragged()[:3]
    B, L = mask_BT.shape
    logp_BT, old_BT = (torch.randn(B, L, generator=rng, dtype=torch.float64) for _ in range(2))
    reward_PG = torch.tensor([[1.0, 0.0, 0.25]], dtype=torch.float64)
    # verl compute_grpo_outcome_advantage, TRL scale_rewards="group"
    A = (reward_PG - reward_PG.mean()) / (reward_PG.std() + 1e-6)
    rho = (logp_BT - old_BT).exp()
    # verl compute_policy_loss; TRL epsilon, epsilon_high
    loss_BT = torch.max(-A.T * rho, -A.T * rho.clamp(1 - 0.2, 1 + 0.28))
    per_row = (loss_BT * mask_BT).sum(1)
    wanted = {
        "grpo": (per_row / mask_BT.sum(1)).mean(),  # verl seq-mean-token-mean
        "dapo": per_row.sum() / mask_BT.sum(),  # verl token-mean, TRL dapo and bnpo
        # verl seq-mean-token-sum-norm; 7: its loss_scale_factor, TRL's max_completion_length
        "dr_grpo": per_row.sum() / (B * 7),
    }
    adv_B = grpo.advantage(reward_PG)[0]
    for name, loss in wanted.items():
        objective = OBJECTIVES[name]
        ours_BT = objective.surrogate(logp_BT, old_BT, adv_B, 0.2, 0.28)
        weight_BT = objective.weigh(mask_BT, objective.units(mask_BT), 7)
        assert (ours_BT * weight_BT).sum().item() == pytest.approx(loss.item(), rel=1e-7), name
