"""The rivals against numbers done by hand and against what each is known to do."""

import math

import pytest
import torch

from nanomerci import cfn
from nanomerci.address import address
from nanomerci.bonuses import rivals


def visits(seed, N=400, D=16):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=rng), address("visit", seed, torch.arange(N))


def test_elliptical_on_one_hot_states_is_one_over_n_plus_ridge():
    counter = rivals.Elliptical(4, ridge=0.5)  # not calibrated: one-hot states stay as they are
    assert torch.equal(counter.score(torch.eye(4)), torch.full((4,), 2.0))
    for n in ([1, 0, 3, 10], [0, 0, 1, 90]):
        state_N = torch.arange(4).repeat_interleave(torch.tensor(n))
        counter.visit(torch.eye(4)[state_N], state_N, 0, 0)
    torch.testing.assert_close(
        counter.score(torch.eye(4)), 1 / (torch.tensor([1.0, 0.0, 4.0, 100.0]) + 0.5)
    )


def test_elliptical_is_the_expected_cfn_with_coins_and_prior_integrated_out():
    (hidden_ND, address_N), ridge = visits(0), 2.0
    counter = rivals.Elliptical(16, ridge=ridge)
    counter.pretrain(hidden_ND, address_N, 3)
    new_ND = visits(1)[0]
    want_N = cfn.expected_inverse_count(
        counter.net.normalise(new_ND).double(), counter.gram_DD, ridge, prior_var=1 / ridge
    )
    torch.testing.assert_close(counter.score(new_ND), want_N.float())


def test_elliptical_does_not_care_about_order_batches_or_ranks():
    hidden_ND, address_N = visits(0)
    reads = []
    for parts in ([400], [100, 300], [7, 393]):
        counter = rivals.Elliptical(16)
        counter.net.calibrate(hidden_ND)
        for part_ND, part_N in zip(hidden_ND.flip(0).split(parts), address_N.split(parts)):
            counter.visit(part_ND, part_N, 0, 0)
        reads.append(counter.score(hidden_ND))
    halves = rivals.Elliptical(16, all_sum=lambda x: x * 2)  # two ranks that saw the same half
    halves.pretrain(hidden_ND[:200], address_N[:200], 1)
    twice = rivals.Elliptical(16)
    twice.pretrain(hidden_ND[:200].repeat(2, 1), address_N.repeat(2), 1)
    for read_N in reads[1:]:
        torch.testing.assert_close(read_N, reads[0])
    torch.testing.assert_close(halves.score(hidden_ND), twice.score(hidden_ND))


def test_rnd_forgets_to_be_surprised_where_it_was_trained_however_rarely_and_stays_surprised_elsewhere():
    hidden_SD = visits(0, N=20, D=32)[0]
    times_S = torch.tensor([200] * 5 + [10] * 5)
    state_N = torch.arange(10).repeat_interleave(times_S)
    reads = {}
    for kind in (rivals.RND, cfn.Counter):
        counter = kind(32, hidden=64, lr=3e-3, batch=128)
        counter.pretrain(
            hidden_SD[state_N], address("visit", torch.arange(len(state_N))), passes=60
        )
        reads[kind] = counter.score(hidden_SD)
    rnd_S, cfn_S = reads.values()
    assert rnd_S[:10].max() < 0.02 and rnd_S[10:].median() > 0.3
    assert cfn_S[5:10].mean() > 3 * cfn_S[:5].mean()  # coins: 1/10 beside 1/200. Without: both gone
    assert rnd_S[5:10].mean() < 0.02


@pytest.mark.parametrize("kind", [rivals.RND, rivals.Elliptical, cfn.Counter])
def test_a_counter_goes_on_after_a_checkpoint_as_if_nothing_had_been(kind, tmp_path):
    (first_ND, first_N), (second_ND, second_N) = visits(0), visits(1)
    one, other = kind(16, seed=1), kind(16, seed=2)
    one.pretrain(first_ND, first_N, 2)
    torch.save(one.state_dict(), tmp_path / "counter.pt")
    other.load_state_dict(torch.load(tmp_path / "counter.pt"))
    losses = [counter.visit(second_ND, second_N, 100, 7) for counter in (one, other)]
    assert losses[0] == losses[1] and torch.equal(one.score(second_ND), other.score(second_ND))
    assert (
        one.score(second_ND).shape == (400,)
        and not one.score(second_ND).requires_grad
        and one.score(second_ND[:0]).shape == (0,)
    )


def test_surprisal_and_noise_stay_inside_the_response():
    mask_BT = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert torch.equal(
        rivals.surprisal(torch.tensor([[0.0, -0.5, -2.0, 0.0]]), mask_BT),
        torch.tensor([[0.0, 0.5, 2.0, 0.0]]),
    )
    visit_BT = address("train", torch.arange(4000).view(1000, 4))
    noise_BT = rivals.noise(visit_BT, mask_BT.expand(1000, 4))
    assert noise_BT[:, [0, 3]].abs().max() == 0
    assert abs(noise_BT[:, 1:3].mean() - 0.5) < 5 * math.sqrt(1 / 12 / 2000)
    assert torch.equal(noise_BT.flip(0), rivals.noise(visit_BT.flip(0), mask_BT.expand(1000, 4)))


def test_entropy_advantage_by_hand():
    adv_B, entropy_BT = (
        torch.tensor([1.0, -1.0, 0.0]),
        torch.tensor([[0.5, 2.0]] * 3, requires_grad=True),
    )
    got_BT = rivals.entropy_advantage(adv_B, entropy_BT)
    want_BT = torch.tensor(
        [[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]]
    )  # min(.4 H, |A| / 2) = .2 and, capped, .5
    torch.testing.assert_close(got_BT, want_BT)
    assert not got_BT.requires_grad
    torch.testing.assert_close(
        rivals.entropy_advantage(adv_B[:, None].expand(3, 2), entropy_BT), want_BT
    )


def test_error_conditioned_by_hand():
    adv_PG, error_PG = (
        torch.tensor([[1.0, -1.0], [-0.5, 0.0]]),
        torch.tensor([[9.0, 3.0], [1.0, 5.0]]),
    )
    right_PG = torch.tensor([[True, False], [False, False]])
    got_PG = rivals.error_conditioned(adv_PG, error_PG, right_PG, step=0)
    torch.testing.assert_close(
        got_PG, torch.tensor([[1.0, -1.0 + 0.125], [-0.5, 0.25]])
    )  # minmax: 2/8, 0, 4/8; times 1/2
    later_PG = rivals.error_conditioned(adv_PG, error_PG, right_PG, step=40)
    torch.testing.assert_close(later_PG - adv_PG, (got_PG - adv_PG) / 2)
    assert torch.equal(
        rivals.error_conditioned(adv_PG, torch.full((2, 2), 0.3), right_PG, 0), adv_PG
    )
    wider_PG = rivals.error_conditioned(
        adv_PG,
        error_PG,
        right_PG,
        0,
        all_max=lambda x: torch.maximum(x, torch.tensor([17.0, -1.0])),
    )
    torch.testing.assert_close(
        wider_PG, torch.tensor([[1.0, -1.0 + 0.0625], [-0.5, 0.125]])
    )  # another rank had an error of 17


def test_outcome_counts_by_hand_over_ranks_and_checkpoints():
    counts = rivals.OutcomeCounts()
    problem_B, answer_B = ["p"] * 4 + ["q"], ["3", "3", "3", None, "3"]
    assert counts.bonus(problem_B, answer_B) == [3**-0.5] * 3 + [
        1.0,
        1.0,
    ]  # rarer within the group, at the first visit
    assert counts.bonus(problem_B, answer_B) == [3**-0.5] * 3 + [
        1.0,
        1.0,
    ]  # looking is not counting
    counts.visit(problem_B, answer_B)
    assert counts.bonus(["p", "q", "q"], ["3", "3", "4"]) == [0.5, 2**-0.5, 1.0]
    again = rivals.OutcomeCounts(gather=lambda keys: keys + keys)  # another rank saw the same
    again.load_state_dict(counts.state_dict())
    again.visit(["p"], ["3"])
    assert again.bonus(["p"], ["3"]) == [6**-0.5]
    assert counts.bonus(["p"], ["3\ud800"]) == [1.0]  # an answer no encoder takes
