"""The bonuses against numbers done by hand and against what each is known to do."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nanomerci import cfn, grpo
from nanomerci.address import address
from nanomerci.bonuses import BONUSES, Visits, elliptical, rnd
from nanomerci.bonuses.delight import delight
from nanomerci.bonuses.entropy import entropy_advantage
from nanomerci.bonuses.mistakes import among_incorrect
from nanomerci.bonuses.rnd import error_conditioned
from nanomerci.counts import AnswerCounts
from nanomerci.loop.rollout import Batch, Rollout
from nanomerci.runtime import ranks
from nanomerci.runtime.config import Config
from nanomerci.tasks.graders.pool import Grade

COUNTERS = [cfn.Counter, rnd.Counter, elliptical.Counter]


def states(seed, N=400, D=16):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=rng), address("visit", seed, torch.arange(N))


def test_elliptical_on_one_hot_states_is_one_over_n_plus_ridge():
    counter = elliptical.Counter(4, ridge=0.5)  # not calibrated: one-hot states stay as they are
    assert torch.equal(counter.score(torch.eye(4)), torch.full((4,), 2.0))
    for n in ([1, 0, 3, 10], [0, 0, 1, 90]):
        state_N = torch.arange(4).repeat_interleave(torch.tensor(n))
        counter.update(torch.eye(4)[state_N], state_N, 0, 0)
    n_S = torch.tensor([1.0, 0.0, 4.0, 100.0])
    torch.testing.assert_close(counter.score(torch.eye(4)), 1 / (n_S + 0.5))


def test_elliptical_is_the_expected_cfn_with_coins_and_prior_integrated_out():
    (hidden_ND, address_N), ridge = states(0), 2.0
    counter = elliptical.Counter(16, ridge=ridge)
    counter.pretrain(hidden_ND, address_N, 3)
    new_ND = states(1)[0]
    x_ND = counter.net.normalise(new_ND).double()
    want_N = cfn.expected_inverse_count(x_ND, counter.gram_DD, ridge, prior_var=1 / ridge)
    torch.testing.assert_close(counter.score(new_ND), want_N.float())


def test_elliptical_does_not_care_about_order_batches_or_ranks():
    hidden_ND, address_N = states(0)
    reads = []
    for parts in ([400], [100, 300], [7, 393]):
        counter = elliptical.Counter(16)
        counter.net.calibrate(hidden_ND)
        batches = zip(hidden_ND.flip(0).split(parts), address_N.split(parts), strict=True)
        for part_ND, part_N in batches:
            counter.update(part_ND, part_N, 0, 0)
        reads.append(counter.score(hidden_ND))
    halves = elliptical.Counter(16, all_sum=lambda x: x * 2)  # two ranks that saw the same half
    halves.pretrain(hidden_ND[:200], address_N[:200], 1)
    twice = elliptical.Counter(16)
    twice.pretrain(hidden_ND[:200].repeat(2, 1), address_N.repeat(2), 1)
    for read_N in reads[1:]:
        torch.testing.assert_close(read_N, reads[0])
    torch.testing.assert_close(halves.score(hidden_ND), twice.score(hidden_ND))


def test_rnd_is_not_surprised_where_it_was_trained_however_rarely_and_stays_so_elsewhere():
    hidden_SD = states(0, N=20, D=32)[0]
    state_N = torch.arange(10).repeat_interleave(torch.tensor([200] * 5 + [10] * 5))
    address_N = address("visit", torch.arange(len(state_N)))

    def reads(kind):
        counter = kind(32, hidden=64, lr=3e-3, batch=128)
        counter.pretrain(hidden_SD[state_N], address_N, epochs=60)
        return counter.score(hidden_SD)

    rnd_S, cfn_S = reads(rnd.Counter), reads(cfn.Counter)
    assert rnd_S[:10].max() < 0.02 and rnd_S[10:].median() > 0.3
    assert cfn_S[5:10].mean() > 3 * cfn_S[:5].mean()  # coins: 1/10 beside 1/200. Without: both gone
    assert rnd_S[5:10].mean() < 0.02


@pytest.mark.parametrize("kind", COUNTERS)
def test_a_counter_goes_on_after_a_checkpoint_as_if_nothing_had_been(kind, tmp_path):
    (first_ND, first_N), (second_ND, second_N) = states(0), states(1)
    one, other = kind(16, seed=1), kind(16, seed=2)
    one.pretrain(first_ND, first_N, 2)
    torch.save(one.state_dict(), tmp_path / "counter.pt")
    other.load_state_dict(torch.load(tmp_path / "counter.pt"))
    losses = [counter.update(second_ND, second_N, 100, 7) for counter in (one, other)]
    assert losses[0] == losses[1] and torch.equal(one.score(second_ND), other.score(second_ND))
    assert one.score(second_ND).shape == (400,) and one.score(second_ND[:0]).shape == (0,)
    assert not one.score(second_ND).requires_grad


def make(name):
    return BONUSES[name](Config(), 8, torch.device("cpu"), ranks)


def visits(mask_BT, logp_BT=None, address_BT=None):
    logp_BT = mask_BT * 0 if logp_BT is None else logp_BT
    rollout = Rollout(mask_BT.long(), mask_BT, logp_BT)
    return Visits(rollout, address_BT, [], [])


def test_surprisal_and_noise_stay_inside_the_response():
    mask_BT = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    surprisal_BT = make("surprisal").novelty(
        visits(mask_BT, torch.tensor([[0.0, -0.5, -2.0, 0.0]]))
    )
    assert torch.equal(surprisal_BT, torch.tensor([[0.0, 0.5, 2.0, 0.0]]))
    visit_BT = address("train", torch.arange(4000).view(1000, 4))
    noise = visits(mask_BT.expand(1000, 4), address_BT=visit_BT)
    noise_BT = make("random").novelty(noise)
    assert noise_BT[:, [0, 3]].abs().max() == 0
    assert abs(noise_BT[:, 1:3].mean() - 0.5) < 5 * math.sqrt(1 / 12 / 2000)
    flipped = replace(noise, address_BT=visit_BT.flip(0))
    assert torch.equal(noise_BT.flip(0), make("random").novelty(flipped))


def test_entropy_advantage_by_hand():
    adv_B = torch.tensor([1.0, -1.0, 0.0])
    entropy_BT = torch.tensor([[0.5, 2.0]] * 3, requires_grad=True)
    # min(.4 H, |A| / 2) = .2 and, capped, .5
    want_BT = torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]])
    got_BT = entropy_advantage(adv_B, entropy_BT)
    torch.testing.assert_close(got_BT, want_BT)
    assert not got_BT.requires_grad
    torch.testing.assert_close(entropy_advantage(adv_B[:, None].expand(3, 2), entropy_BT), want_BT)
    assert torch.equal(make("entropy").at_tokens(adv_B, entropy_BT), got_BT)


ADV_PG = torch.tensor([[1.0, -1.0], [-0.5, 0.0]])
ERROR_PG = torch.tensor([[9.0, 3.0], [1.0, 5.0]])
CORRECT_PG = torch.tensor([[True, False], [False, False]])


def test_error_conditioned_by_hand():
    got_PG = error_conditioned(ADV_PG, ERROR_PG, CORRECT_PG, step=0)
    # minmax: 2/8, 0, 4/8; times 1/2
    torch.testing.assert_close(got_PG, torch.tensor([[1.0, -1.0 + 0.125], [-0.5, 0.25]]))
    later_PG = error_conditioned(ADV_PG, ERROR_PG, CORRECT_PG, step=40)
    torch.testing.assert_close(later_PG - ADV_PG, (got_PG - ADV_PG) / 2)
    equal_PG = torch.full((2, 2), 0.3)
    assert torch.equal(error_conditioned(ADV_PG, equal_PG, CORRECT_PG, 0), ADV_PG)


def wider(x):
    """Another rank had an error of 17."""
    return torch.maximum(x, torch.tensor([17.0, -1.0]))


def test_error_conditioned_over_ranks_of_which_one_has_no_group():
    got_PG = error_conditioned(ADV_PG, ERROR_PG, CORRECT_PG, 0, all_max=wider)
    torch.testing.assert_close(got_PG, torch.tensor([[1.0, -1.0 + 0.0625], [-0.5, 0.125]]))
    none_PG = torch.zeros(0, 2)
    got_PG = error_conditioned(none_PG, none_PG, none_PG.bool(), 0, all_max=wider)
    assert got_PG.shape == (0, 2)


def outcome_values(bonus, problem_B, answer_B):
    mask_BT = torch.ones(len(problem_B), 1)
    asked = replace(visits(mask_BT), problem_B=problem_B, answer_B=answer_B)
    return bonus.value(asked, mask_BT, mask_BT > 0)


def test_outcome_counts_by_hand_over_ranks_and_checkpoints():
    bonus, problem_B, answer_B = make("outcome"), ["p"] * 4 + ["q"], ["3", "3", "3", None, "3"]
    # rarer within the group, at the first visit; and looking is not counting
    for _ in range(2):
        value_B = outcome_values(bonus, problem_B, answer_B)
        torch.testing.assert_close(value_B, torch.tensor([3**-0.5] * 3 + [1.0, 1.0]))
    bonus.update([SimpleNamespace(problem_B=problem_B, answer_B=answer_B)], 1)
    value_B = outcome_values(bonus, ["p", "q", "q"], ["3", "3", "4"])
    torch.testing.assert_close(value_B, torch.tensor([0.5, 2**-0.5, 1.0]))
    assert outcome_values(bonus, ["p"], ["3\ud800"]).item() == 1  # an answer no encoder takes
    again = make("outcome")
    again.load_state_dict(bonus.state_dict())
    again.answers.gather = lambda keys: keys + keys  # another rank saw the same
    again.update([SimpleNamespace(problem_B=["p"], answer_B=["3"])], 2)
    assert outcome_values(again, ["p"], ["3"]).item() == pytest.approx(6**-0.5)


def test_mistakes_are_compared_with_mistakes():
    """Counts 3, 3, 3 and 1 among the incorrect: the rare one is sqrt(3) deviations above their
    mean. What a correct response says makes no difference, and its advantage stays.
    """
    correct_PG = torch.tensor([[True, False, False, False, False], [True] * 5])
    rare = 3**-0.5
    for said in (0.1, 0.9):
        bonus_PG = torch.tensor([[said, rare, rare, rare, 1.0], [said] * 5])
        among_PG = among_incorrect(bonus_PG, correct_PG)
        mean = (3 * rare + 1) / 4
        want_PG = [[mean, rare, rare, rare, 1.0], [0.0] * 5]
        torch.testing.assert_close(among_PG, torch.tensor(want_PG))
    adv_PG = grpo.advantage(correct_PG.float())
    batch = shaped_batch(bonus_PG, correct_PG)
    merged_PG = make("mistakes").merge(batch, adv_PG, 0.5, 1).view(2, 5)
    assert torch.equal(merged_PG[:, 0], adv_PG[:, 0]) and torch.equal(merged_PG[1], adv_PG[1])
    assert torch.equal(merged_PG[0, 1:4], adv_PG[0, 1:4])
    assert adv_PG[0, 4] < merged_PG[0, 4] < 0  # the new mistake is punished less


def shaped_batch(bonus_PG, correct_PG):
    """A batch as far as a merge looks at it."""
    empty_BT = torch.zeros(bonus_PG.numel(), 1)
    grades = [Grade(float(right), "right" if right else "wrong") for right in correct_PG.flatten()]
    P = len(bonus_PG)
    rollout, texts = Rollout(empty_BT.long(), empty_BT, empty_BT), [""] * bonus_PG.numel()
    columns = empty_BT, empty_BT.long(), empty_BT, correct_PG.float(), bonus_PG
    return Batch(torch.arange(P), ["p"] * P, rollout, *columns, grades, texts, texts)


def test_delight_by_hand():
    """A rare success keeps its advantage, a rare failure loses it, what is certain gets half."""
    logp_BT = torch.tensor([[-100.0, 0.0, -1.0]]).expand(3, 3)
    adv_B1, mask_BT = torch.tensor([[1.0], [-1.0], [0.0]]), torch.ones(3, 3)
    e = math.e
    want_BT = torch.tensor([[1.0, 0.5, e / (1 + e)], [0.0, -0.5, -1 / (1 + e)], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(delight(adv_B1, logp_BT, mask_BT), want_BT)
    assert delight(adv_B1, logp_BT, mask_BT * 0).abs().max() == 0


def test_answers_are_counted_exactly_including_those_at_hand():
    counts = AnswerCounts()
    assert counts.including(["p", "p", "q", "p"], ["3", "3", "3", None]) == [2, 2, 1, 1]
    counts.add(["p", "p", "q", "p"], ["3", "3", "3", None])
    assert counts.including(["p", "p", "q", "q"], ["3", None, "3", None]) == [3, 2, 2, 1]
