"""How rarely was each state visited: 1/n of hidden states under a Coin Flipping Network (cfn.py),
in one pass over them.

The network is  flips = head(x) + (prior(x) - mean_C) s_C  with  x = (hidden - mean_D) scale_D; head
and prior are D -> H -> C. All but its two ReLUs is linear, so the whole of it folds into one
network D -> 2H -> C:

    z_nh   = sum_d hidden_nd first_hd + bias_h
    f_nc   = sum_h relu(z_nh) second_ch + shift_c
    with   first = [head W1; prior W1] scale_D,   bias = b1 - first mean_D,
           second = [head W2, prior W2 s],        shift = b2 + (prior b2 - mean) s
    invn_n = mean_c f_nc^2                            "the average of n fair coins has variance 1/n"

Folding costs O(H D), once a call; the kernel then reads hidden once and writes N numbers. For bf16
and fp16 hidden states the products take half operands and sum in fp32. `first` is rounded *before*
bias is made of it, so that the rounding error is one of (hidden - mean) first, however far a
dimension's mean lies from 0 (a language model has such dimensions).

Axes: N states, D hidden width, H units of head and prior together, C coins.
"""

import torch

from nanomerci.kernels import choose, triton

# states at a time in the torch twin, so that nothing of size N x H, nor an fp32 copy of N x D, is
# ever made
ROWS = 4096


@torch.no_grad()
def cfn_score_reference(hidden_ND, net):
    """The plain-torch twin: net itself, ROWS states at a time. (N, D) any float -> (N,) fp32."""
    blocks = [net(hidden_nD).float().square().mean(-1) for hidden_nD in hidden_ND.split(ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@torch.no_grad()
@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def fold(net, dtype, multiple_D, multiple_H, multiple_C):
    """net -> first (H, D) and second (C, H) in dtype, bias_H and shift_C in fp32, each axis padded
    with zeros to a multiple.

    A net without hidden layer is first (C, D), shift_C; second and bias are then None.
    """

    def pad(a, *multiples):
        sizes = [n + -n % m for n, m in zip(a.shape, multiples, strict=True)]
        padded = a.new_zeros(sizes)
        padded[tuple(map(slice, a.shape))] = a
        return padded

    def bias(linear):
        return 0.0 if linear.bias is None else linear.bias.float()

    # in fp32 the kernel takes the mean off
    mean_D = torch.zeros_like(net.mean_D) if dtype == torch.float32 else net.mean_D
    s_C, head, prior = net.prior_scale_C.float(), net.head, net.prior
    last_CH = [head[-1].weight.float(), prior[-1].weight.float() * s_C[:, None]]
    shift_C = bias(head[-1]) + (bias(prior[-1]) - net.prior_mean_C) * s_C
    if len(head) == 1:
        first_CD = pad(((last_CH[0] + last_CH[1]) * net.scale_D).to(dtype), multiple_C, multiple_D)
        mean_C = first_CD[:, : len(mean_D)].float() @ mean_D
        return first_CD, None, None, pad(shift_C, multiple_C) - mean_C
    first_HD = (torch.cat([head[0].weight, prior[0].weight]).float() * net.scale_D).to(dtype)
    bias_H = torch.cat([bias(head[0]), bias(prior[0])]) - first_HD.float() @ mean_D
    second_CH = torch.cat(last_CH, 1).to(dtype)
    return (
        pad(first_HD, multiple_H, multiple_D),
        pad(bias_H, multiple_H),
        pad(second_CH, multiple_C, multiple_H),
        pad(shift_C, multiple_C),
    )


if triton is None:
    score_kernel = None
else:
    tl = triton.language

    @triton.jit
    def score_kernel(
        hidden,
        stride,
        mean,
        first,
        bias,
        second,
        shift,
        invn,
        N,
        D,
        D_padded,
        coins,
        H: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
        BH: tl.constexpr,
        BC: tl.constexpr,
        LAYERS: tl.constexpr,
        CENTRE: tl.constexpr,
        UPCAST: tl.constexpr,
    ):
        """BN states: z in registers, BH units at a time, over D in steps of BD; then relu, the
        second product, the square.

        CENTRE: fp32, where the mean is taken off here, before it can swamp the rest; three tf32
        products make one of fp32. UPCAST: for Triton's interpreter, whose dot of two bf16 operands
        is wrong.
        """
        PRECISION: tl.constexpr = "tf32x3" if CENTRE else "ieee"
        n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
        live, n = n < N, tl.minimum(n, N - 1)  # beyond the last: computed again, not stored
        h, c, d = tl.arange(0, BH), tl.arange(0, BC), tl.arange(0, BD)
        f = tl.zeros([BN, BC], tl.float32)
        for h0 in range(0, H, BH):
            z = tl.zeros([BN, BH], tl.float32)
            x_at = hidden + n[:, None] * stride + d[None, :]
            w_at = first + (h0 + h)[None, :] * D_padded + d[:, None]
            for d0 in range(0, D_padded, BD):
                x = tl.load(x_at + d0, (d0 + d < D)[None, :], 0.0)
                w = tl.load(w_at + d0)
                if CENTRE:
                    x -= tl.load(mean + d0 + d, d0 + d < D, 0.0)[None, :]
                if UPCAST:
                    x, w = x.to(tl.float32), w.to(tl.float32)
                z = tl.dot(x, w, z, input_precision=PRECISION)
            if LAYERS == 1:
                f += z
            else:
                z += tl.load(bias + h0 + h)[None, :]
                # unlike maximum(z, 0), keeps a NaN
                z = tl.where(z < 0, 0.0, z).to(first.dtype.element_ty)
                w2 = tl.load(second + c[None, :] * H + (h0 + h)[:, None])
                if UPCAST:
                    z, w2 = z.to(tl.float32), w2.to(tl.float32)
                f = tl.dot(z, w2, f, input_precision=PRECISION)
        f += tl.load(shift + c)[None, :]
        tl.store(invn + n, tl.sum(f * f, 1) / coins, live)  # the coins of the padding are 0


def launch_shape(dtype, H, C):
    """Tile sizes (BN, BD, BH, BC) and compile options for H units (0: no hidden layer) and C
    coins.
    """
    BC = max(32, triton.next_power_of_2(C))
    if BC > 128:
        raise ValueError(f"got {C} coins; the Triton kernel takes up to 128: use backend='torch'")
    if dtype == torch.float32:
        BN, BD, BH, warps = 32, 32, 64, 8 if BC == 128 else 4
    else:
        BN, BD, BH = 128 if BC == 32 else 64, 64, 128 if H <= 128 else 256
        warps = 8 if H and BN * BH >= 128 * 128 else 4
    options = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
    return (BN, BD, BH if H else BC, BC), options


@torch.no_grad()
def cfn_score_triton(hidden_ND, net):
    hidden_ND = hidden_ND if hidden_ND.stride(1) == 1 else hidden_ND.contiguous()
    (N, D), C, two = hidden_ND.shape, net.head[-1].out_features, len(net.head) > 1
    H = 2 * net.head[0].out_features if two else 0
    (BN, BD, BH, BC), options = launch_shape(hidden_ND.dtype, H, C)
    first, *rest = fold(net, hidden_ND.dtype, BD, BH, BC)
    invn_N = torch.empty(N, device=hidden_ND.device)
    if N:
        states = hidden_ND, hidden_ND.stride(0), net.mean_D
        score_kernel[-(-N // BN),](
            *(*states, first, *rest, invn_N, N, D, first.shape[1], C),
            H=len(first),
            BN=BN,
            BD=BD,
            BH=BH,
            BC=BC,
            LAYERS=1 + two,
            CENTRE=hidden_ND.dtype == torch.float32,
            UPCAST=not hidden_ND.is_cuda,
            **options,
        )
    return invn_N


def cfn_score(hidden_ND, net, backend=None):
    """1/n of each hidden state under net, a cfn.CoinFlipNet. (N, D) fp32, bf16 or fp16 -> invn_N
    fp32, without gradient.

    backend: None = "triton" on a CUDA tensor where Triton is installed, otherwise "torch"; either
    can be asked for. Raises ValueError on a shape or a number of coins (Triton: above 128) that
    does not fit, TypeError on a dtype.
    """
    if hidden_ND.dim() != 2 or hidden_ND.shape[1] != len(net.mean_D):
        raise ValueError(
            f"got hidden {tuple(hidden_ND.shape)}; expected (N, {len(net.mean_D)}), the "
            "network's width"
        )
    if hidden_ND.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"got {hidden_ND.dtype}; expected float32, bfloat16 or float16")
    if choose(backend, hidden_ND, score_kernel) == "triton":
        return cfn_score_triton(hidden_ND, net)
    return cfn_score_reference(hidden_ND, net)
