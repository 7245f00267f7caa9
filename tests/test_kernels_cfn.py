"""1/n of hidden states: the folded kernel against cfn.py itself in fp64, and against eager torch in
the same dtype.

As in test_kernels_logprob.py, without a GPU the last test runs this file again in Triton's
interpreter. Axes: N states, D hidden width, H units, C coins.
"""

import copy

import pytest
import torch
from backends import INTERPRET, OLD_INTERPRETER, run_in_the_interpreter

from nanomerci.cfn import CoinFlipNet, inverse_count
from nanomerci.kernels import cfn_score as module
from nanomerci.kernels.cfn_score import cfn_score, fold

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def trained(N, D, H, C, dtype, prior=True):
    """A network that has learnt something, and states as language models have them: a few
    dimensions far from 0.
    """
    torch.manual_seed(N + D)
    hidden_ND = (torch.randn(N, D) * (0.1 + torch.rand(D)) + 50 * (torch.rand(D) < 0.05)).to(dtype)
    net = CoinFlipNet(D, coins=C, hidden=H, prior=prior, seed=1)
    net.calibrate(hidden_ND)
    for parameter in net.head.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return hidden_ND, net


def half_eager(hidden_ND, net):
    """The network as eager torch would run it in half precision: features normalised in fp32,
    layers in hidden's dtype.
    """
    half = copy.deepcopy(net).to(hidden_ND.dtype)
    x_ND = net.normalise(hidden_ND).to(hidden_ND.dtype)
    return inverse_count(
        half.head(x_ND).float() + (half.prior(x_ND).float() - net.prior_mean_C) * net.prior_scale_C
    )


def error(got_N, want_N):
    return float((got_N.double().cpu() - want_N).norm() / want_N.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(300, 96, 128, 20), (129, 100, 16, 1), (65, 40, 200, 33), (70, 130, 0, 20), (1, 7, 3, 100)],
    ids=str,
)
def test_no_worse_than_eager(backend, dtype, shape):
    hidden_ND, net = trained(*shape, dtype)
    exact_net = copy.deepcopy(net).double()
    x_ND = (hidden_ND.double() - exact_net.mean_D) * exact_net.scale_D
    flips_NC = (
        exact_net.head(x_ND)
        + (exact_net.prior(x_ND) - exact_net.prior_mean_C) * exact_net.prior_scale_C
    )
    exact_N = flips_NC.square().mean(1).detach()
    eager_N = (
        inverse_count(net(hidden_ND)) if dtype == torch.float32 else half_eager(hidden_ND, net)
    ).detach()
    invn_N = cfn_score(hidden_ND.to(backend[1]), net.to(backend[1]), backend[0])
    assert (
        invn_N.dtype == torch.float32 and invn_N.shape == (shape[0],) and not invn_N.requires_grad
    )
    bound = 1.05 * error(eager_N, exact_N) + 5e-7
    if INTERPRET and dtype == torch.bfloat16:
        bound = max(bound, 2.0**-6)  # the interpreter truncates fp32 to bf16, where a GPU rounds
    if shape[0] == 1:
        bound = 10 * bound  # one number: chance
    assert error(invn_N, exact_N) <= bound


def test_before_training_a_state_reads_what_the_network_says(backend):
    """The equality that training relies on: sampling (kernel) and learning (net) see the same 1/n,
    near 1 for the unseen.
    """
    hidden_ND = torch.randn(400, 64)
    net = CoinFlipNet(64, coins=64)
    net.calibrate(hidden_ND)
    unseen_ND = torch.randn(400, 64)
    invn_N = cfn_score(unseen_ND.to(backend[1]), net.to(backend[1]), backend[0]).cpu()
    torch.testing.assert_close(
        invn_N, inverse_count(net.cpu()(unseen_ND)).detach(), rtol=1e-4, atol=1e-6
    )
    assert 0.7 < invn_N.mean() < 1.3


def test_without_prior_strided_and_empty(backend):
    hidden_ND, net = trained(50, 24, 32, 8, torch.float32, prior=False)
    want_N = inverse_count(net(hidden_ND)).detach().to(backend[1])
    net = net.to(backend[1])
    wide = torch.full((50, 48), torch.nan, device=backend[1])
    wide[:, ::2] = hidden_ND.to(backend[1])
    for strided_ND in (wide[:, ::2], hidden_ND.to(backend[1]).T.contiguous().T):
        torch.testing.assert_close(
            cfn_score(strided_ND, net, backend[0]), want_N, rtol=1e-5, atol=1e-6
        )
    assert cfn_score(wide[:0, ::2], net, backend[0]).shape == (0,)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_broken_state_reads_nan_and_spoils_no_other(backend, hidden):
    hidden_ND, net = trained(40, 24, hidden, 8, torch.float32)
    hidden_ND[3, 5] = torch.nan
    invn_N = cfn_score(hidden_ND.to(backend[1]), net.to(backend[1]), backend[0])
    assert invn_N.isnan().nonzero().flatten().tolist() == [3]


def test_folding_keeps_the_network_and_pads_with_zeros():
    hidden_ND, net = trained(30, 20, 12, 5, torch.float32)
    first_HD, bias_H, second_CH, shift_C = fold(net, torch.float32, 32, 64, 32)
    assert (first_HD.shape, bias_H.shape, second_CH.shape, shift_C.shape) == (
        (64, 32),
        (64,),
        (32, 64),
        (32,),
    )
    z_NH = (hidden_ND - net.mean_D) @ first_HD[:, :20].T + bias_H
    flips_NC = z_NH.relu() @ second_CH.T + shift_C
    torch.testing.assert_close(flips_NC[:, :5], net(hidden_ND).detach(), rtol=1e-4, atol=1e-5)
    assert (flips_NC[:, 5:] == 0).all()


def test_autocast_does_not_round_the_folded_network():
    _, net = trained(30, 20, 12, 5, torch.float32)
    want = fold(net, torch.bfloat16, 32, 64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(
            torch.equal(a, b)
            for a, b in zip(fold(net, torch.bfloat16, 32, 64, 32), want, strict=True)
        )


def test_refusals(backend):
    net = CoinFlipNet(8, coins=129).to(backend[1])
    with pytest.raises(ValueError, match=r"expected \(N, 8\)"):
        cfn_score(torch.zeros(2, 9, device=backend[1]), net, backend[0])
    with pytest.raises(TypeError, match="expected float32, bfloat16 or float16"):
        cfn_score(torch.zeros(2, 8, device=backend[1]).double(), net, backend[0])
    with pytest.raises(ValueError, match="expected None, 'torch' or 'triton'"):
        cfn_score(torch.zeros(2, 8, device=backend[1]), net, "cpu")
    if backend[0] == "triton":
        with pytest.raises(ValueError, match="129 coins"):
            cfn_score(torch.zeros(2, 8, device=backend[1]), net, "triton")


@pytest.mark.skipif(INTERPRET, reason="this is that run")
@pytest.mark.skipif(module.triton is None, reason="Triton is not installed")
@pytest.mark.skipif(
    OLD_INTERPRETER,
    reason="the interpreter of this Triton takes no run-time loop bounds from a recent numpy",
)
def test_again_in_the_interpreter():
    run_in_the_interpreter(__file__)
