"""The ladder's yardsticks on made-up visits where the right answer is known."""

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
    return counters.Visits(
        Rollout(tokens_BT, mask_BT, mask_BT * 0), layer_LND, key_N, address(stage, place_N), rare_PG
    )


def made_up():
    stages = [visits(i) for i in range(counters.FIRST + 3)]
    return stages, {"same": visits(100), "new": visits(101, P=6)}


def test_exact_counts_score_one_everywhere_and_find_the_rare_answers():
    rho, slope, same, new, _ = counters.climb(
        lambda s: (counters.Table(0), lambda v: v.key_N), made_up(), 0
    )
    assert abs(rho - 1) < 1e-6 and abs(slope - 1) < 1e-6
    assert same == 1.0  # what was said a hundred times beside what was said now and then
    assert new > 0.8  # two of the six questions are new, and there all answers look alike


def test_the_table_of_coins_is_the_ideal_estimator():
    rho, slope, *_ = counters.climb(
        lambda s: (counters.Table(512), lambda v: v.key_N), made_up(), 0
    )
    assert rho > 0.95 and abs(slope - 1) < 0.05


def test_auc_by_hand():
    v = visits(7)
    flat = torch.ones(len(v.key_N))
    assert counters.auc(v, flat) == 0.5
    rows_N = (v.roll.mask_BT > 0).nonzero()[:, 0]
    assert counters.auc(v, flat + v.rare_PG.flatten()[rows_N]) == 1.0
    assert counters.auc(v, flat - 0.5 * v.rare_PG.flatten()[rows_N]) == 0.0


def test_every_rung_can_be_climbed():
    data = made_up()
    for name, make in counters.rungs(data):
        if "1024" not in name:
            assert len(counters.climb(make, data, 0)) == 5, name


def test_prioritised_replay_rehearses_what_is_new():
    torch.manual_seed(0)
    hidden_ND = torch.randn(2, 8).repeat_interleave(torch.tensor([400, 20]), 0)
    counter = counters.Prioritised(8, hidden=32, lr=3e-3, batch=64)
    counter.pretrain(hidden_ND, address("visit", torch.arange(420)), passes=40)
    seen = []
    learn, cfn.learn = (
        cfn.learn,
        lambda net, optimizer, hidden_ND, address_N, **_: seen.append(hidden_ND),
    )
    try:
        counter.visit(hidden_ND[:1], address("new", torch.arange(1)), 40, stamp=1)
    finally:
        cfn.learn = learn
    rare = ((seen[0][1:] - hidden_ND[-1]).abs() < 0.01).all(1).float().mean()  # the memory is fp16
    assert rare > 0.2  # a twentieth of the memory, seldom visited: rehearsed out of proportion
