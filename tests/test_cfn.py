"""The counter against what is known about coins: the average of n fair coins has variance 1/n."""

import math

import pytest
import torch

from nanomerci import cfn
from nanomerci.address import address, uniform


@pytest.mark.parametrize("n", [1, 4, 16, 64])
def test_the_average_of_n_coins_estimates_one_over_n(n):
    coins = 4096
    flips_1C = cfn.draw_coins(address("test", torch.arange(n)), coins).mean(0, keepdim=True)
    # four standard deviations of the ideal estimator
    tolerance = 4 * math.sqrt(2 * (n - 1) / (n * coins)) + 1e-6
    assert abs(cfn.inverse_count(flips_1C).item() * n - 1) <= tolerance


def test_coins_are_fair_independent_and_fixed_by_their_address():
    address_N = address("test", torch.arange(5000))
    coins_NC = cfn.draw_coins(address_N, 20)
    assert coins_NC.abs().eq(1).all()
    assert coins_NC.mean(0).abs().max() < 5 / math.sqrt(5000)
    correlation = (coins_NC.T @ coins_NC / 5000 - torch.eye(20)).abs().max()
    assert correlation < 5 / math.sqrt(5000)
    shuffled = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cfn.draw_coins(address_N[shuffled], 20), coins_NC[shuffled])


def converge(net, hidden_SD, state_N, coins_NC):
    optimizer = torch.optim.LBFGS(
        net.head.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = cfn.coin_loss(net(hidden_SD[state_N]), coins_NC).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)


def test_a_table_reads_one_over_n_and_near_one_where_it_never_was():
    visits, coins = [1, 2, 4, 8, 16, 32, 64, 128, 256], 2048
    states = len(visits) + 8  # the last eight are never visited
    state_N = torch.tensor([s for s, n in enumerate(visits) for _ in range(n)])
    net = cfn.CoinFlipNet(states, coins=coins, hidden=0)
    net.calibrate(torch.eye(states), features=False)
    before_S = cfn.inverse_count(net(torch.eye(states)))
    assert (before_S.mean() - 1).abs() < 0.25  # optimism before any training
    coins_NC = cfn.draw_coins(address("table", torch.arange(len(state_N))), coins)
    converge(net, torch.eye(states), state_N, coins_NC)
    read_S = cfn.inverse_count(net(torch.eye(states)))
    for n, read in zip(visits, read_S[: len(visits)].tolist(), strict=True):
        assert abs(read * n - 1) <= 4 * math.sqrt(2 * (n - 1) / (n * coins)) + 2e-3, (n, read)
    assert ((read_S[len(visits) :] - 1).abs() < 0.25).all()


def test_without_a_prior_an_unseen_state_reads_infinitely_often_visited():
    net = cfn.CoinFlipNet(6, coins=64, hidden=0, prior=False)
    net.calibrate(torch.eye(6), features=False)
    assert cfn.inverse_count(net(torch.eye(6))).max() == 0


def test_hidden_layer_learns_repeated_states_and_leaves_a_far_one_new():
    torch.manual_seed(0)
    hidden_SD = torch.randn(12, 32)
    state_N = torch.arange(10).repeat_interleave(50)
    counter = cfn.Counter(32, coins=64, hidden=64, lr=3e-3, capacity=10_000, batch=128)
    counter.pretrain(hidden_SD[state_N], address("visit", torch.arange(500)), epochs=100)
    read_S = cfn.inverse_count(counter.net(hidden_SD))
    assert read_S[:10].max() < 0.1 and read_S[10:].min() > 0.2


def test_calibration_gives_features_and_prior_mean_zero_variance_one():
    torch.manual_seed(0)
    hidden_ND = torch.randn(4000, 16) * torch.linspace(0.1, 30, 16) + 5
    net = cfn.CoinFlipNet(16, coins=20, hidden=32)
    net.calibrate(hidden_ND)
    x_ND, flips_NC = net.normalise(hidden_ND), net(hidden_ND)
    for z in (x_ND, flips_NC):  # an untrained head is 0, so the flips are the normalised prior
        assert z.mean(0).abs().max() < 1e-3 and (z.var(0, correction=0) - 1).abs().max() < 1e-3


def test_calibration_sums_over_ranks():
    torch.manual_seed(0)
    hidden_ND = torch.randn(100, 8)
    whole = cfn.CoinFlipNet(8)
    whole.calibrate(hidden_ND)
    # two ranks with the same states: every sum is twice that of one
    half = cfn.CoinFlipNet(8)
    half.calibrate(hidden_ND, all_sum=lambda x: x * 2)
    assert torch.allclose(half.mean_D, whole.mean_D)
    assert torch.allclose(half.prior_scale_C, whole.prior_scale_C)


def test_replay_is_a_fair_sample_whatever_the_order():
    address_N = address("visit", torch.arange(20_000))
    hidden_ND = torch.arange(20_000.0)[:, None]
    one, many = (cfn.ReplayBuffer(1000, 1, dtype=torch.float32) for _ in range(2))
    one.add(hidden_ND, address_N, 20_000)
    for i in range(0, 20_000, 500):
        many.add(hidden_ND[i : i + 500], address_N[i : i + 500], i + 500)
    assert torch.equal(one.address_N, many.address_N)
    assert abs(len(one.address_N) - 1000) < 5 * math.sqrt(1000)
    # as many from the first half as from the last
    assert abs(one.hidden_ND.mean() - 10_000) < 5 * 5774 / math.sqrt(1000)
    drawn, _ = one.draw(100, stamp=3)
    assert abs(len(drawn) - 100) < 5 * math.sqrt(100)
    assert not torch.equal(drawn, one.draw(100, stamp=4)[0])


def test_learning_does_not_depend_on_the_order_of_visits():
    torch.manual_seed(0)
    hidden_ND, address_N = torch.randn(300, 8), address("visit", torch.arange(300))
    reads = []
    for order in (torch.arange(300), torch.randperm(300)):
        counter = cfn.Counter(8, hidden=16, batch=50)
        counter.pretrain(hidden_ND[order], address_N[order], epochs=2)
        reads.append(cfn.inverse_count(counter.net(hidden_ND)))
    assert torch.allclose(*reads, atol=1e-4)


def test_uniform_numbers_are_uniform_and_below_one():
    u_N = uniform(address("uniform", torch.arange(200_000)))
    assert u_N.min() >= 0 and u_N.max() < 1
    observed = torch.histc(u_N, 100, 0, 1)
    chi_square = ((observed - 2000).square() / 2000).sum()  # 99 degrees of freedom
    assert chi_square < 99 + 5 * math.sqrt(2 * 99)
    assert torch.corrcoef(torch.stack([u_N[:-1], u_N[1:]]))[0, 1].abs() < 5 / math.sqrt(200_000)


def test_addresses_match_the_published_splitmix64():
    """Vigna's splitmix64 from seed 1234567 yields these first outputs (reference values of the
    Java/C implementations).
    """
    from nanomerci.address import GOLDEN, mix

    state, out = 1234567, []
    for _ in range(3):
        state += GOLDEN
        state = (state + (1 << 63)) % (1 << 64) - (1 << 63)
        out.append(int(mix(torch.tensor(state))) % (1 << 64))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def ridge_heads(visits_ND, look_MD, ridge, coins, prior_var=0.0):
    """A linear CFN solved by least squares with decay towards a random prior, coin by coin. ->
    inverse counts of look_MD.
    """
    rng = torch.Generator().manual_seed(5)
    coins_NC = cfn.draw_coins(address("ridge", torch.arange(len(visits_ND))), coins).double()
    prior_DC = math.sqrt(prior_var) * torch.randn(
        visits_ND.shape[1], coins, generator=rng, dtype=torch.float64
    )
    A_DD = visits_ND.T @ visits_ND + ridge * torch.eye(visits_ND.shape[1], dtype=torch.float64)
    weight_DC = torch.linalg.solve(A_DD, visits_ND.T @ coins_NC + ridge * prior_DC)
    return (look_MD @ weight_DC).square().mean(1)


@pytest.mark.parametrize("prior_var", [0.0, 1 / 3])
def test_a_linear_head_is_in_expectation_over_coins_the_ridge_estimator(prior_var):
    torch.manual_seed(0)
    visits_ND, look_MD, coins = torch.randn(200, 8).double(), torch.randn(30, 8).double(), 40_000
    want_M = cfn.expected_inverse_count(look_MD, visits_ND.T @ visits_ND, 3.0, prior_var)
    got_M = ridge_heads(visits_ND, look_MD, 3.0, coins, prior_var)
    # a mean of squares of nearly normal numbers
    assert (got_M / want_M - 1).abs().max() < 5 * math.sqrt(2 / coins)
    if prior_var:
        A_DD = visits_ND.T @ visits_ND + 3 * torch.eye(8).double()
        elliptical_M = (look_MD * torch.linalg.solve(A_DD, look_MD.T).T).sum(1)
        torch.testing.assert_close(want_M, elliptical_M)


def test_the_network_with_many_coins_comes_to_the_closed_form():
    """cfn.py's own net, head and loss, trained to the end by LBFGS, beside the formula: the linear
    head has no decay, so ridge = 0.
    """
    torch.manual_seed(0)
    visits_ND, coins = torch.randn(120, 6), 8192
    net = cfn.CoinFlipNet(6, coins=coins, hidden=0, prior=False)
    coins_NC = cfn.draw_coins(address("ridge", torch.arange(120)), coins)
    converge(net, visits_ND, torch.arange(120), coins_NC)
    gram_DD = (visits_ND.T @ visits_ND).double()
    want_N = cfn.expected_inverse_count(visits_ND.double(), gram_DD, 0.0)
    assert (cfn.inverse_count(net(visits_ND)) / want_N - 1).abs().max() < 5 * math.sqrt(2 / coins)


def test_a_linear_counter_hands_out_no_more_novelty_than_it_has_features():
    torch.manual_seed(0)
    # 500 different states, each visited twice: the true 1/n add up to 500
    states_SD = torch.randn(500, 24).double()
    visits_ND = states_SD.repeat(2, 1)
    read_N = cfn.expected_inverse_count(visits_ND, visits_ND.T @ visits_ND, 0.0)
    assert abs(read_N.sum() - 24) < 1e-6
    one_hot_ND = torch.eye(500).double().repeat(2, 1)
    read_N = cfn.expected_inverse_count(one_hot_ND, one_hot_ND.T @ one_hot_ND, 0.0)
    assert abs(read_N.sum() - 500) < 1e-6
