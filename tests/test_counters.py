"""The yardsticks of counters on made-up visits where the right answer is known."""

import torch

from nanomerci import cfn
from nanomerci.address import address
from nanomerci.counts import prefixes
from nanomerci.lab import counters
from nanomerci.loop.rollout import Rollout


def visits(stage, rare=0.3, P=4, G=12, T=6):
    """Answers that say 1 all along, but for the rare ones, which say 2 to 4: a prefix's states are
    random, the same each time.
    """
    rng = torch.Generator().manual_seed(stage)
    rare_PG = torch.rand(P, G, generator=rng) < rare
    tokens_BT = torch.where(rare_PG.view(-1, 1), torch.randint(2, 5, (P * G, T), generator=rng), 1)
    tokens_BT[:, 0] = torch.arange(P).repeat_interleave(G)
    mask_BT = torch.ones(P * G, T)
    mask_BT[:, 0] = 0
    key_N = prefixes(tokens_BT)[mask_BT > 0]
    states = (address(key_N[:, None], torch.arange(8)).double() / 2**63).float()
    place_N = torch.arange(P * G * T).view(P * G, T)[mask_BT > 0]
    layer_LND = torch.stack([states, states * 2])
    logp_BT = -0.01 * (1 + rare_PG.view(-1, 1).float()) * mask_BT  # rare responses are surprising
    roll = Rollout(tokens_BT, mask_BT, logp_BT)
    return counters.Visits(roll, layer_LND, address(stage, place_N), rare_PG)


def made_up():
    stages = [visits(i) for i in range(counters.FIRST + 3)]
    return stages, (visits(100), visits(101, P=6))


def test_exact_counts_score_one_everywhere_and_find_the_rare_responses():
    rho, slope, same, new = counters.evaluate(
        lambda s: (counters.Exact(), lambda v: v.key_N), made_up(), 0
    )
    assert abs(rho - 1) < 1e-6 and abs(slope - 1) < 1e-6
    assert same == 1.0  # what was said a hundred times beside what was said now and then
    assert new > 0.8  # two of the six prompts are new, and there all responses look alike


def test_the_table_of_coins_is_the_ideal_estimator():
    rho, slope, *_ = counters.evaluate(
        lambda s: (counters.Exact(512), lambda v: v.key_N), made_up(), 0
    )
    assert rho > 0.95 and abs(slope - 1) < 0.05


def test_the_table_of_coins_by_hand():
    """The mean of a key's coins, squared; 1 for a key that was never visited."""
    table, key_N = counters.Exact(20), torch.tensor([7, 7, -3, 7])
    address_N = address("visit", torch.arange(4))
    table.update(key_N[:2], address_N[:2], 0, 0)
    table.update(key_N[2:], address_N[2:], 0, 1)
    mean_C = cfn.draw_coins(address_N, 20)[key_N == 7].mean(0)
    expected = torch.tensor([mean_C.square().mean(), 1.0, 1.0])  # one visit: all coins are +-1
    torch.testing.assert_close(table.score(torch.tensor([7, -3, 8])), expected)


def test_auc_by_hand():
    v = visits(7)
    flat = torch.ones(len(v.key_N))
    assert counters.auc(v, flat) == 0.5
    rows_N = (v.roll.mask_BT > 0).nonzero()[:, 0]
    assert counters.auc(v, flat + v.rare_PG.flatten()[rows_N]) == 1.0
    assert counters.auc(v, flat - 0.5 * v.rare_PG.flatten()[rows_N]) == 0.0


def test_every_counter_can_be_evaluated():
    data = made_up()
    assert len(counters.variants(data[0])) == 12 + 1
    for name, make in counters.variants(data[0]).items():
        if "1024" not in name:
            assert len(counters.evaluate(make, data, 0)) == 4, name


def test_surprisal_prefers_what_the_policy_finds_unlikely():
    make = counters.variants(made_up()[0])["surprisal (remembers nothing)"]
    *_, same, other = counters.evaluate(make, made_up(), 0)
    assert same == other == 1.0
