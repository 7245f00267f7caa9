"""Tokens drawn against the distribution function in fp64.

As in test_kernels_logprob.py, without a GPU the last test runs this file again in Triton's
interpreter. Axes: S rows, V vocabulary.
"""

import pytest
import torch
from backends import INTERPRET, run_in_the_interpreter

from nanomerci.kernels import draw as module
from nanomerci.kernels.draw import TILE, draw

ALMOST_1 = 1 - 2.0**-24  # address.uniform returns less: 1 - 2^-23 at most


def drawn(backend, logits_SV, uniform_S, temperature=1.0):
    kind, device = backend
    found = draw(logits_SV.to(device), uniform_S.to(device), temperature, backend=kind)
    return [x_S.cpu() for x_S in found]


@pytest.mark.parametrize("V", [1, 7, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_a_token_is_the_first_whose_distribution_function_passes_the_mark(
    backend, V, dtype, temperature
):
    """Each of a sum's V numbers may err by a rounding (2^-24) per addition, and by those of its
    exponent, the size of x / T; a few more are of exp and of the product with the mark.
    """
    torch.manual_seed(V)
    S = 9
    logits_SV = (4 * torch.randn(S, V)).to(dtype)
    uniform_S = torch.cat([torch.tensor([0.0, ALMOST_1]), torch.rand(S - 2)])
    ids_S, logp_S = drawn(backend, logits_SV, uniform_S, temperature)
    x_SV = logits_SV.double() / temperature
    logp_SV = x_SV.log_softmax(-1)
    cdf_SV = logp_SV.exp().cumsum(-1)
    bound = (V + 4 * x_SV.abs().max() + 16) * 2.0**-24
    column_S1 = ids_S[:, None]
    here_S = cdf_SV.gather(1, column_S1)[:, 0]
    before_S = here_S - logp_SV.exp().gather(1, column_S1)[:, 0]
    assert ids_S.dtype == torch.int64 and logp_S.dtype == torch.float32
    assert (before_S - bound <= uniform_S).all() and (uniform_S <= here_S + bound).all()
    assert ((logp_S - logp_SV.gather(1, column_S1)[:, 0]).abs() <= bound).all()


def test_the_impossible_is_never_drawn(backend):
    """Whole tiles of it, before, between and after what is possible."""
    V = 4 * TILE + 3
    logits_1V = torch.full((1, V), -torch.inf)
    possible = [TILE + 2, TILE + 3, 3 * TILE]
    logits_1V[0, possible] = torch.tensor([0.25, 0.5, 0.25]).log()
    marks = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, ALMOST_1]
    ids_S, logp_S = drawn(backend, logits_1V.expand(6, V), torch.tensor(marks))
    assert ids_S.tolist() == [possible[i] for i in (0, 0, 1, 1, 2, 2)]
    expected_S = torch.tensor([0.25, 0.25, 0.5, 0.5, 0.25, 0.25]).log()
    assert torch.allclose(logp_S, expected_S, atol=1e-6)


def test_among_many_impossible_tokens_only_possible_ones_are_drawn(backend):
    """As after top_k: a sum over tokens without mass may move by rounding."""
    torch.manual_seed(2)
    S, V = 300, 2 * TILE + 9
    logits_SV = torch.randn(S, V).masked_fill(torch.rand(S, V) > 0.05, -torch.inf)
    uniform_S = torch.rand(2 * S)[::2]  # not contiguous
    ids_S, logp_S = drawn(backend, logits_SV, uniform_S)
    logp_SV = logits_SV.double().log_softmax(-1)
    assert logp_S.isfinite().all() and (logits_SV.gather(1, ids_S[:, None]) > -torch.inf).all()
    before_S = torch.stack([logp_SV[s, : ids_S[s]].exp().sum() for s in range(S)])
    here_S = before_S + logp_SV.gather(1, ids_S[:, None])[:, 0].exp()
    bound = (0.05 * V + 40) * 2.0**-23
    assert (before_S - bound <= uniform_S).all() and (uniform_S <= here_S + bound).all()


def test_a_row_of_even_tiles_is_cut_where_they_meet(backend):
    """Marks at whole quarters of 4 tiles: exact in fp32, so each is the next tile's first token."""
    ids_S, _ = drawn(backend, torch.zeros(4, 4 * TILE), torch.arange(4) / 4)
    assert ids_S.tolist() == [0, TILE, 2 * TILE, 3 * TILE]


@pytest.mark.parametrize("place", [0, TILE - 1, TILE, 2 * TILE + 1])
def test_temperature_0_takes_the_likeliest(backend, place):
    torch.manual_seed(0)
    logits_2V = torch.randn(2, 2 * TILE + 2)
    logits_2V[:, place] = 9.0
    ids_S, logp_S = drawn(backend, logits_2V, torch.tensor([0.0, ALMOST_1]), 0.0)
    assert ids_S.tolist() == [place] * 2
    assert torch.allclose(logp_S, logits_2V.double().log_softmax(-1)[:, place].float(), atol=1e-4)


def test_logits_that_are_not_contiguous_and_no_rows(backend):
    torch.manual_seed(1)
    logits_VS, uniform_S = torch.randn(50, 3), torch.rand(3)
    ids_S, logp_S = drawn(backend, logits_VS.t(), uniform_S)
    again_S, logp_again_S = drawn(backend, logits_VS.t().contiguous(), uniform_S)
    assert ids_S.equal(again_S) and logp_S.equal(logp_again_S)
    assert not len(drawn(backend, torch.zeros(0, 50), torch.zeros(0))[0])


@pytest.mark.skipif(
    INTERPRET or module.triton is None or torch.cuda.is_available(),
    reason="in the interpreter already, or Triton runs for real, or is not installed",
)
def test_again_in_the_interpreter():
    run_in_the_interpreter(__file__)
