"""Log-probability and entropy against fp64 and against eager torch in the same dtype: plain torch,
Triton, values, gradients.

Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is
imported: the last test runs this file again in a process of its own with TRITON_INTERPRET=1, where
every test takes the Triton backend. Axes: N tokens, V vocabulary, D hidden width.
"""

import pytest
import torch
from backends import INTERPRET, OLD_INTERPRETER, run_in_the_interpreter
from torch.utils._python_dispatch import TorchDispatchMode

from nanomerci.kernels import logprob
from nanomerci.kernels.logprob import linear_logprob_entropy, logprob_entropy

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(logprob, "TILE_BYTES", 1)
    monkeypatch.setattr(logprob, "TILE_COLUMNS", 128)


def leaves(dtype, device, *tensors):
    return [t.detach().to(device, dtype, copy=True).requires_grad_() for t in tensors]


def definition(x_NV, ids_N, temperature=1.0):
    """The textbook, in the dtype of x."""
    t = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
    logp_NV = (x_NV / t).log_softmax(-1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], torch.special.entr(logp_NV.exp()).sum(-1)


def run(function, inputs, *arguments, weights_2N):
    """-> logp, entropy and the gradient of weights_2N . (logp, entropy) with respect to each input,
    all fp64 on the CPU.
    """
    outputs = function(*inputs, *arguments)
    (
        outputs[0] * weights_2N[0].to(outputs[0]) + outputs[1] * weights_2N[1].to(outputs[0])
    ).sum().backward()
    return [t.detach().double().cpu() for t in (*outputs, *(i.grad for i in inputs))]


def error(got, want):
    """Relative error in RMS; of 0 and NaN there is none to be had."""
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def no_worse_than_eager(ours, eager, exact, dtype):
    names = ("logp", "entropy", "gradient", "gradient of weight")[: len(exact)]
    for name, a, b, c in zip(names, ours, eager, exact, strict=True):
        bound = 1.05 * error(b, c) + 3e-7
        if INTERPRET and dtype == torch.bfloat16 and "gradient" in name:
            bound = max(
                bound, 2.0**-7
            )  # the interpreter truncates fp32 to bf16, where a GPU rounds
        assert error(a, c) <= bound, f"{name}: error {error(a, c):.2e}, eager has {error(b, c):.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(61, 3, 50), (33, 517, 40), (70, 128, 96)], ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_linear_no_worse_than_eager(backend, dtype, shape, per_row, small_tiles):
    name, device = backend
    torch.manual_seed(0)
    N, V, D = shape
    hidden_ND, weight_VD = (
        torch.randn(N, D).to(dtype).double(),
        (torch.randn(V, D) / 3).to(dtype).double(),
    )
    ids_N, weights_2N, t = (
        torch.randint(V, (N,)),
        torch.randn(2, N),
        torch.rand(N) + 0.5 if per_row else 0.7,
    )

    def eager(hidden_ND, weight_VD, ids_N, t):
        return definition(
            (hidden_ND @ weight_VD.T).to(torch.promote_types(hidden_ND.dtype, torch.float32)),
            ids_N,
            t,
        )

    exact = run(
        eager, leaves(torch.float64, "cpu", hidden_ND, weight_VD), ids_N, t, weights_2N=weights_2N
    )
    same = run(eager, leaves(dtype, "cpu", hidden_ND, weight_VD), ids_N, t, weights_2N=weights_2N)
    ours = run(
        linear_logprob_entropy,
        leaves(dtype, device, hidden_ND, weight_VD),
        ids_N.to(device),
        t.to(device) if per_row else t,
        name,
        weights_2N=weights_2N,
    )
    no_worse_than_eager(ours, same, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 130), (4, 5000)], ids=str)
def test_logits_no_worse_than_eager_with_masked_columns(backend, dtype, shape, monkeypatch):
    name, device = backend
    monkeypatch.setattr(logprob, "TILE_BYTES", 4 * shape[1] * 2)  # two rows at a time
    torch.manual_seed(1)
    (N, V), x_NV = shape, (8 * torch.randn(shape)).to(dtype).double()
    masked_V = torch.rand(V) < 0.3
    masked_V[: 2500 if V > 2500 else 0], masked_V[-1] = (
        True,
        False,
    )  # more than a block of the kernel, and from the start
    ids_N, weights_2N = (
        (~masked_V).nonzero()[:, 0][torch.randint(int((~masked_V).sum()), (N,))],
        torch.randn(2, N),
    )
    kept_ids_N = (~masked_V).cumsum(0)[
        ids_N
    ] - 1  # the exact answer knows nothing of the masked columns
    exact = run(
        definition,
        leaves(torch.float64, "cpu", x_NV[:, ~masked_V]),
        kept_ids_N,
        1.3,
        weights_2N=weights_2N,
    )
    same = run(
        lambda x, i, t: definition(x.float(), i, t),
        leaves(dtype, "cpu", x_NV[:, ~masked_V]),
        kept_ids_N,
        1.3,
        weights_2N=weights_2N,
    )
    ours = run(
        logprob_entropy,
        leaves(dtype, device, x_NV.masked_fill(masked_V, -torch.inf)),
        ids_N.to(device),
        1.3,
        name,
        weights_2N=weights_2N,
    )
    assert (ours[2][:, masked_V] == 0).all()
    ours[2] = ours[2][:, ~masked_V]
    no_worse_than_eager(ours, same, exact, dtype)


def test_a_masked_token_has_logp_minus_infinity(backend):
    x_NV = torch.tensor([[0.0, -torch.inf, 1.0]], device=backend[1], requires_grad=True)
    logp_N, entropy_N = logprob_entropy(
        x_NV, torch.tensor([1], device=backend[1]), backend=backend[0]
    )
    entropy_N.sum().backward()
    assert logp_N.item() == -torch.inf and x_NV.grad.isfinite().all()
    assert entropy_N.item() == pytest.approx(
        0.58220311
    )  # p = 1 / (1 + e): -p ln p - (1 - p) ln(1 - p), by hand


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sure_tokens(backend, dtype):
    """p near 1, where eager's bf16 gradient of the token taken is all error: dx = 1 - p must be
    right to dtype's rounding.
    """
    margin_N = torch.arange(1, 13, device=backend[1])
    x_NV = torch.zeros(12, 40, device=backend[1], dtype=dtype)
    x_NV[:, 7] = margin_N.to(dtype)
    x_NV.requires_grad_()
    logp_N, _ = logprob_entropy(x_NV, torch.full((12,), 7, device=backend[1]), backend=backend[0])
    logp_N.sum().backward()
    q_N = 39 * torch.exp(-margin_N.double())  # odds against
    rounding = {
        torch.float32: 1e-7,
        torch.bfloat16: 2.0**-7 if INTERPRET else 2.0**-8,
        torch.float16: 2.0**-11,
    }[dtype]
    assert (
        (x_NV.grad[:, 7].double() / (q_N / (1 + q_N)) - 1).abs() <= rounding + 5e-7 / q_N
    ).all()  # fp32: S = 1 + q, rounded
    torch.testing.assert_close(logp_N.double(), -torch.log1p(q_N), rtol=1e-5, atol=5e-7)


def test_logp_never_positive_and_entropy_never_negative(backend):
    torch.manual_seed(2)
    x_NV = 100 * torch.randn(200, 50, device=backend[1])
    t_N = torch.rand(200, device=backend[1]) + 0.01
    logp_N, entropy_N = logprob_entropy(x_NV, x_NV.argmax(1), t_N, backend=backend[0])
    assert (logp_N <= 0).all() and (entropy_N >= 0).all() and (logp_N > -1e-3).any()


def test_more_rows_than_a_grid_axis_and_no_rows(backend):
    torch.manual_seed(3)
    for N in (70_000, 0):
        hidden_ND, weight_VD = leaves(
            torch.float32, backend[1], torch.randn(N, 2), torch.randn(3, 2)
        )
        ids_N = torch.randint(3, (N,), device=backend[1])
        logp_N, entropy_N = linear_logprob_entropy(hidden_ND, weight_VD, ids_N, backend=backend[0])
        (logp_N.sum() + entropy_N.sum()).backward()
        want = definition(hidden_ND.detach().double() @ weight_VD.detach().double().T, ids_N, 1.0)
        torch.testing.assert_close(
            (logp_N.double(), entropy_N.double()), want, rtol=1e-5, atol=1e-5
        )
        assert hidden_ND.grad.shape == (N, 2) and (weight_VD.grad.abs().sum() > 0) == (N > 0)
        assert all(
            a.shape == (N,)
            for a in logprob_entropy(
                torch.zeros(N, 3, device=backend[1]), ids_N, backend=backend[0]
            )
        )


def test_tied_frozen_and_strided(backend, small_tiles):
    """A weight that is also the embedding gets both gradients; a frozen input gets none; strides
    are only strides.
    """
    name, device = backend
    torch.manual_seed(4)
    (table_VD,) = leaves(torch.float32, device, torch.randn(200, 16) / 4)
    ids_N, weights_2N = torch.randint(200, (30,), device=device), torch.randn(2, 30)
    tied = run(
        lambda w, i: linear_logprob_entropy(w[i.flip(0)].tanh(), w, i, backend=name),
        [table_VD],
        ids_N,
        weights_2N=weights_2N,
    )
    want = run(
        lambda w, i: definition(w[i.flip(0)].tanh() @ w.T, i),
        leaves(torch.float64, device, table_VD),
        ids_N,
        weights_2N=weights_2N,
    )
    assert max(error(a, b) for a, b in zip(tied, want, strict=True)) < 1e-6
    hidden_ND, weight_VD = table_VD.detach()[ids_N], table_VD.detach()
    strided = [hidden_ND.T.contiguous().T, torch.stack([weight_VD, weight_VD], 2)[..., 0]]
    for frozen in range(2):
        plain, odd = (
            leaves(torch.float32, device, hidden_ND, weight_VD),
            [t.detach() for t in strided],
        )
        odd[1 - frozen].requires_grad_()
        logp_N, entropy_N = linear_logprob_entropy(*odd, ids_N, backend=name)
        (logp_N + entropy_N).sum().backward()
        sum(linear_logprob_entropy(*plain, ids_N, backend=name)).sum().backward()
        assert odd[frozen].grad is None
        torch.testing.assert_close(odd[1 - frozen].grad, plain[1 - frozen].grad)
    x_NV = torch.randn(200, 30, device=device).T.requires_grad_()
    sum(logprob_entropy(x_NV, ids_N, backend=name)).sum().backward()
    assert (
        error(
            x_NV.grad.double(),
            run(
                definition, leaves(torch.float64, device, x_NV), ids_N, weights_2N=torch.ones(2, 30)
            )[2].to(device),
        )
        < 1e-6
    )


@pytest.mark.parametrize("which", [0, 1])
def test_one_output_alone_and_backward_twice(backend, which):
    torch.manual_seed(5)
    inputs = leaves(torch.float32, backend[1], torch.randn(20, 8), torch.randn(60, 8))
    ids_N, weights_2N = torch.randint(60, (20,), device=backend[1]), torch.zeros(2, 20)
    weights_2N[which] = 1
    want = run(
        lambda h, w, i: definition(h @ w.T, i),
        leaves(torch.float64, backend[1], *inputs),
        ids_N,
        weights_2N=weights_2N,
    )
    output = linear_logprob_entropy(*inputs, ids_N, backend=backend[0])[which].sum()
    for _ in range(2):
        grads = torch.autograd.grad(output, inputs, retain_graph=True)
        assert max(error(a.double().cpu(), b) for a, b in zip(grads, want[2:], strict=True)) < 1e-6


@pytest.mark.filterwarnings(
    "ignore:All-NaN slice:RuntimeWarning"
)  # numpy's remark, in the interpreter
def test_a_broken_row_is_nan_and_spoils_no_other(backend, small_tiles):
    hidden_ND, weight_VD = leaves(torch.float32, backend[1], torch.randn(4, 8), torch.randn(300, 8))
    with torch.no_grad():
        hidden_ND[2, 1] = torch.nan
    ids_N = torch.tensor([0, 1, 2, 299], device=backend[1])
    for x_N in linear_logprob_entropy(hidden_ND, weight_VD, ids_N, backend=backend[0]):
        assert x_N.isnan().tolist() == [False, False, True, False]


def test_workspace_at_the_target_size():
    """N = 8192, D = 4096, V = 151936: tile and fp32 dhidden, with cuBLAS's own 32 MiB on Hopper,
    within 256 MiB.
    """
    N, D, V = 8192, 4096, 151936
    assert 4 * N * logprob.tile_width(N, V) + 4 * N * D + 32 * 2**20 <= 256 * 2**20
    for N in (1, 100, 3000, 8192, 32768, 100_000):  # every column once, no tile above both limits
        width = logprob.tile_width(N, V)
        assert 0 < width <= V and 4 * N * width <= max(
            logprob.TILE_BYTES, 4 * N * logprob.TILE_COLUMNS
        )


def test_autocast_changes_nothing(backend, small_tiles):
    torch.manual_seed(8)
    inputs, weights_2N = (
        leaves(torch.float32, backend[1], torch.randn(9, 8), torch.randn(300, 8)),
        torch.randn(2, 9),
    )
    ids_N, again = (
        torch.randint(300, (9,), device=backend[1]),
        leaves(torch.float32, backend[1], *inputs),
    )
    want = run(linear_logprob_entropy, inputs, ids_N, 1.0, backend[0], weights_2N=weights_2N)
    with torch.autocast(backend[1], torch.bfloat16):
        got = run(linear_logprob_entropy, again, ids_N, 1.0, backend[0], weights_2N=weights_2N)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


class Largest(TorchDispatchMode):
    """Watches every tensor that torch makes; keeps the largest number of bytes."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.nbytes = max(self.nbytes, t.nbytes)
        return out


def test_never_more_than_a_tile(backend, monkeypatch):
    N, V, D = 64, 2000, 8
    monkeypatch.setattr(logprob, "TILE_BYTES", 4 * N * 256)
    monkeypatch.setattr(logprob, "TILE_COLUMNS", 128)
    torch.manual_seed(6)
    inputs = leaves(torch.float32, backend[1], torch.randn(N, D), torch.randn(V, D))
    ids_N = torch.randint(V, (N,), device=backend[1])
    with Largest() as largest:
        sum(linear_logprob_entropy(*inputs, ids_N, backend=backend[0])).sum().backward()
    assert largest.nbytes == 4 * max(N * 256, V * D) == 4 * N * 256 < 4 * N * V


def test_refusals():
    hidden_ND, weight_VD, ids_N = (
        torch.zeros(4, 8),
        torch.zeros(10, 8),
        torch.zeros(4, dtype=torch.int64),
    )
    for exception, message, arguments in (
        (
            IndexError,
            r"got ids in 0..10; expected 0..9",
            (hidden_ND, weight_VD, torch.tensor([0, 0, 0, 10])),
        ),
        (IndexError, r"got ids in -100..0", (hidden_ND, weight_VD, torch.tensor([0, 0, 0, -100]))),
        (ValueError, r"expected \(N, D\) and \(V, D\)", (hidden_ND, weight_VD.T, ids_N)),
        (ValueError, r"expected \(4,\) int64", (hidden_ND, weight_VD, ids_N[:3])),
        (ValueError, r"expected > 0", (hidden_ND, weight_VD, ids_N, 0.0)),
        (
            ValueError,
            r"without gradient",
            (hidden_ND, weight_VD, ids_N, torch.ones(4, requires_grad=True)),
        ),
        (
            ValueError,
            r"expected None, 'torch' or 'triton'",
            (hidden_ND, weight_VD, ids_N, 1.0, "cuda"),
        ),
        (TypeError, r"cast one", (hidden_ND, weight_VD.bfloat16(), ids_N)),
        (
            TypeError,
            r"expected float32, bfloat16 or float16",
            (hidden_ND.double(), weight_VD.double(), ids_N),
        ),
    ):
        with pytest.raises(exception, match=message):
            linear_logprob_entropy(*arguments)
    if not INTERPRET:
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1|Triton is not installed"):
            linear_logprob_entropy(hidden_ND, weight_VD, ids_N, backend="triton")


def test_a_sharded_weight_is_refused():
    class Sharded(torch.Tensor):  # as torch.distributed.tensor.DTensor has it
        def full_tensor(self, grad_placements=None):
            raise NotImplementedError

    with pytest.raises(TypeError, match="full_tensor"):
        linear_logprob_entropy(
            torch.zeros(1, 2),
            torch.zeros(3, 2).as_subclass(Sharded),
            torch.zeros(1, dtype=torch.int64),
        )


@pytest.mark.skipif(not INTERPRET, reason="run by test_again_in_the_interpreter")
def test_triton_equals_torch_on_the_toy():
    torch.manual_seed(7)
    N, V, D = 300, 120, 96
    inputs, ids_N, weights_2N = (
        (torch.randn(N, D), torch.randn(V, D) / 5),
        torch.randint(V, (N,)),
        torch.randn(2, N) / N,
    )
    torch_, triton_ = (
        run(
            linear_logprob_entropy,
            leaves(torch.float32, "cpu", *inputs),
            ids_N,
            1.0,
            backend,
            weights_2N=weights_2N,
        )
        for backend in ("torch", "triton")
    )
    assert max(float((a - b).abs().max()) for a, b in zip(torch_, triton_, strict=True)) < 3e-6


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or INTERPRET, reason="needs a CUDA device with 20 GB free"
)
def test_offsets_beyond_32_bits():
    N, V = 20_000, 151_936  # 3.0e9 elements
    x_NV = torch.randn(N, V, device="cuda", dtype=torch.bfloat16).requires_grad_()
    ids_N = torch.randint(V, (N,), device="cuda")
    logp_N, entropy_N = logprob_entropy(x_NV, ids_N)
    (logp_N[-4:].sum() + entropy_N[-4:].sum()).backward()
    (last,) = leaves(torch.float64, "cuda", x_NV[-4:])
    want = definition(last, ids_N[-4:], 1.0)
    sum(want).sum().backward()
    torch.testing.assert_close(
        (logp_N[-4:].double(), entropy_N[-4:].double()), want, rtol=1e-4, atol=1e-4
    )
    assert error(x_NV.grad[-4:].double(), last.grad) < 4e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRET, reason="needs a CUDA device")
def test_an_id_out_of_range_is_nan_on_a_gpu():
    hidden_ND, weight_VD = leaves(torch.float32, "cuda", torch.randn(3, 8), torch.randn(10, 8))
    logp_N, entropy_N = linear_logprob_entropy(
        hidden_ND, weight_VD, torch.tensor([0, 10, -100], device="cuda")
    )
    logp_N.sum().backward()
    for x_N in (logp_N, entropy_N, hidden_ND.grad[:, 0]):
        assert x_N.isnan().tolist() == [False, True, True]


@pytest.mark.skipif(INTERPRET, reason="this is that run")
@pytest.mark.skipif(logprob.triton is None, reason="Triton is not installed")
@pytest.mark.skipif(
    OLD_INTERPRETER,
    reason="the interpreter of this Triton takes no run-time loop bounds from a recent numpy",
)
def test_again_in_the_interpreter():
    run_in_the_interpreter(__file__)
