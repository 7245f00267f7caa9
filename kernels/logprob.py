"""Log-probability and entropy of tokens, from logits or straight from hidden states, without ever
building all logits.

    x          = logits, or hidden @ weight.T a tile at a time; fp32 always
    d_nj       = (x_nj - max_j x_nj) / T_n
    S_n, U_n   = sum_j exp(d_nj),  sum_j exp(d_nj) d_nj    p_nj = exp(d_nj) / S_n
    logp_n     = d_n,id(n) - log S_n                       <= 0, since d <= 0 and S >= 1
    entropy_n  = log S_n - U_n / S_n      = -sum_j p_nj log p_nj, a sum of two numbers >= 0
    dx_nj      = ((onehot_nj - p_nj) dlogp_n - p_nj (log p_nj + entropy_n) dentropy_n) / T_n

S and U are carried over tiles of the vocabulary ("online softmax"): where a tile raises the maximum
by r units of T, S -> S e^-r and U -> e^-r (U - r S). The backward pass computes a tile of logits
again, turns it into dx, and multiplies.

Axes: N tokens, V vocabulary (v: a tile of it), D hidden width.
"""

from functools import partial

import torch

from nanomerci.kernels import choose, triton

TILE_BYTES = 88 * 2**20  # the fp32 logits alive at any time: one tile of this size ...
TILE_COLUMNS = 2048  # ... or this wide, if that is more: a narrower one only adds to dhidden
LOWEST = -1e30  # the maximum of nothing: finite, so that a tile of nothing but -inf makes no NaN


# ---- One tile of logits, in plain torch


def place(local_N, width):
    """Ids counted from the tile's first column -> whether the tile holds them, a column anyway."""
    return (local_N >= 0) & (local_N < width), local_N.clamp(0, width - 1)[:, None]


@torch.autocast("cuda", enabled=False)  # it would round the products of vecdot to bf16
@torch.autocast("cpu", enabled=False)
def scan_torch(x_Nv, ids_N, first, inverse_t_N, state, last):
    """Take one more tile into each row's (max, S, U, target logit); after the last: (max, log S,
    entropy, logp).

    first: the tile's first column in the vocabulary. state: None before the first tile. An id that
    no tile held: NaN, all.
    """
    x_Nv = x_Nv.float()
    inside_N, column_N1 = place(ids_N - first, x_Nv.shape[1])
    max_N = x_Nv.amax(1).clamp_(min=LOWEST)
    # not -inf: 0 * -inf below
    d_Nv = (x_Nv - max_N[:, None]).mul_(inverse_t_N[:, None]).clamp_(min=LOWEST)
    e_Nv = d_Nv.exp()
    s_N, u_N = e_Nv.sum(1), torch.linalg.vecdot(e_Nv, d_Nv)
    before = torch.nan if state is None else state[3]
    target_N = x_Nv.gather(1, column_N1)[:, 0].where(inside_N, before)
    if state is not None:
        top_N = torch.maximum(state[0], max_N)
        old_N, new_N = (state[0] - top_N) * inverse_t_N, (max_N - top_N) * inverse_t_N
        u_N = old_N.exp() * (state[2] + old_N * state[1]) + new_N.exp() * (u_N + new_N * s_N)
        s_N = old_N.exp() * state[1] + new_N.exp() * s_N
        max_N = top_N
    if not last:
        return max_N, s_N, u_N, target_N
    log_s_N = s_N.log().where(~target_N.isnan(), torch.nan)
    return max_N, log_s_N, log_s_N - u_N / s_N, (target_N - max_N) * inverse_t_N - log_s_N


def gradient_torch(x_Nv, ids_N, first, rows, dtype, reuse=False):
    """One tile of logits -> the same tile of dx, in fp32 until it is rounded to dtype at the very
    end (the 1 - p as well).
    """
    inverse_t_N, max_N, log_s_N, entropy_N, dlogp_N, dentropy_N = rows
    inside_N, column_N1 = place(ids_N - first, x_Nv.shape[1])
    dlogp_N = dlogp_N * inverse_t_N
    d_Nv = (x_Nv.float() - max_N[:, None]).clamp_(min=LOWEST)
    logp_Nv = torch.addcmul(-log_s_N[:, None], d_Nv, inverse_t_N[:, None], out=d_Nv)
    p_Nv = logp_Nv.exp()
    if dentropy_N is None:
        dx_Nv = p_Nv.mul_(-dlogp_N[:, None])
    else:
        scale_N = -dentropy_N * inverse_t_N
        rest_N = entropy_N * scale_N - dlogp_N
        factor_Nv = torch.addcmul(rest_N[:, None], logp_Nv, scale_N[:, None], out=logp_Nv)
        dx_Nv = p_Nv.mul_(factor_Nv)
    return dx_Nv.scatter_add_(1, column_N1, dlogp_N.where(inside_N, 0.0)[:, None]).to(dtype)


# ---- One tile of logits, in Triton

if triton is None:
    scan_kernel = gradient_kernel = None
else:
    tl = triton.language

    @triton.jit
    def scan_kernel(
        x,
        x_stride,
        ids,
        first,
        inverse_t,
        max_,
        s_,
        u_,
        target_,
        N,
        width,
        R: tl.constexpr,
        B: tl.constexpr,
        FIRST: tl.constexpr,
        LAST: tl.constexpr,
    ):
        """scan_torch for R rows, B columns at a time. S and U are carried a lane each and summed
        over the lanes at the end.
        """
        n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # 64 bits: N x V passes 2^31
        live, n = n < N, tl.minimum(n, N - 1)  # beyond the last: computed again, not stored
        inverse_t = tl.load(inverse_t + n)
        lane = tl.arange(0, B)[None, :]
        if FIRST:
            top, target = tl.full([R], -1e30, tl.float32), tl.full([R], float("nan"), tl.float32)
            s, u = tl.zeros([R, B], tl.float32), tl.zeros([R, B], tl.float32)
        else:
            top, target = tl.load(max_ + n), tl.load(target_ + n)
            s = tl.where(lane == 0, tl.load(s_ + n)[:, None], 0.0)
            u = tl.where(lane == 0, tl.load(u_ + n)[:, None], 0.0)
        row = x + n[:, None] * x_stride
        for v in range(0, width, B):
            tile = tl.load(row + (v + lane), v + lane < width, float("-inf")).to(tl.float32)
            new = tl.maximum(top, tl.max(tile, 1))
            rise = ((top - new) * inverse_t)[:, None]
            d = (tile - new[:, None]) * inverse_t[:, None]
            e, old = tl.exp(d), tl.exp(rise)
            u = old * (u + rise * s) + e * tl.where(d == float("-inf"), 0.0, d)
            s = old * s + e
            top = new
        local = tl.load(ids + n) - first
        held = (local >= 0) & (local < width)
        target = tl.where(held, tl.load(x + n * x_stride + local, held, 0.0).to(tl.float32), target)
        s, u = tl.sum(s, 1), tl.sum(u, 1)
        if LAST:
            log_s = tl.where(target != target, target, tl.log(s))
            target, s, u = (target - top) * inverse_t - log_s, log_s, log_s - u / s
        tl.store(max_ + n, top, live)
        tl.store(s_ + n, s, live)
        tl.store(u_ + n, u, live)
        tl.store(target_ + n, target, live)

    @triton.jit
    def gradient_kernel(
        x,
        x_stride,
        out,
        out_stride,
        ids,
        first,
        inverse_t,
        max_,
        log_s,
        entropy,
        dlogp,
        dentropy,
        N,
        width,
        R: tl.constexpr,
        B: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """gradient_torch for R rows, B columns at a time, left to right.

        OVERLAP: out is the memory of x itself with elements half as wide. Columns v.. are written
        at half their offset, where all has been read but for the block in hand: hence the barrier.
        """
        n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
        live, n = n[:, None] < N, tl.minimum(n, N - 1)
        lane = tl.arange(0, B)[None, :]
        inverse_t, local = tl.load(inverse_t + n)[:, None], tl.load(ids + n)[:, None] - first
        top, log_s = tl.load(max_ + n)[:, None], tl.load(log_s + n)[:, None]
        entropy = tl.load(entropy + n)[:, None]
        dlogp = tl.load(dlogp + n)[:, None] * inverse_t
        dentropy = tl.load(dentropy + n)[:, None] * inverse_t
        row = x + n[:, None] * x_stride
        for v in range(0, width, B):
            inside = v + lane < width
            tile = tl.load(row + (v + lane), inside, 0.0).to(tl.float32)
            logp = (tile - top) * inverse_t - log_s
            p = tl.exp(logp)
            dx = dlogp * (tl.where(v + lane == local, 1.0, 0.0) - p)
            dx -= dentropy * p * tl.where(logp == float("-inf"), 0.0, logp + entropy)
            if OVERLAP:
                tl.debug_barrier()
            there = out + n[:, None] * out_stride + (v + lane)
            tl.store(there, dx.to(out.dtype.element_ty), inside & live)


OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def launch_shape(width):
    """(R rows, B columns) of a program: 2048 elements at a time, 16 a thread. The interpreter pays
    by the program: 2^16.
    """
    B = min(triton.next_power_of_2(width), 2048)
    return (2048 if isinstance(scan_kernel, triton.JITFunction) else 2**16) // B, B


def scan_triton(x_Nv, ids_N, first, inverse_t_N, state, last):
    (N, width), (R, B) = x_Nv.shape, launch_shape(x_Nv.shape[1])
    out = state or tuple(torch.empty_like(inverse_t_N) for _ in range(4))
    options = {"R": R, "B": B, "FIRST": state is None, "LAST": last} | OPTIONS
    if N:
        tile = x_Nv, x_Nv.stride(0), ids_N, first
        scan_kernel[-(-N // R),](*tile, inverse_t_N, *out, N, width, **options)
    return out


def gradient_triton(x_Nv, ids_N, first, rows, dtype, reuse=False):
    """reuse: the tile may be overwritten; dx then takes (the first half of each row of) its
    memory.
    """
    (N, width), (R, B) = x_Nv.shape, launch_shape(x_Nv.shape[1])
    if reuse:
        dx_Nv = x_Nv.view(dtype)[:, :width]
    else:
        dx_Nv = torch.empty(N, width, dtype=dtype, device=x_Nv.device)
    *rows, dlogp_N, dentropy_N = rows
    dentropy_N = torch.zeros_like(dlogp_N) if dentropy_N is None else dentropy_N
    rows += [dlogp_N.contiguous(), dentropy_N.contiguous()]
    options = {"R": R, "B": B, "OVERLAP": reuse and dtype != x_Nv.dtype} | OPTIONS
    if N:
        tiles = x_Nv, x_Nv.stride(0), dx_Nv, dx_Nv.stride(0)
        gradient_kernel[-(-N // R),](*tiles, ids_N, first, *rows, N, width, **options)
    return dx_Nv


PASSES = {"torch": (scan_torch, gradient_torch), "triton": (scan_triton, gradient_triton)}


# ---- Tiles


def tile_width(N, V):
    """Columns of a tile of N rows: what TILE_BYTES allows or TILE_COLUMNS; V split evenly and
    rounded up to 128.
    """
    most = max(TILE_BYTES // (4 * max(N, 1)) // 128 * 128, TILE_COLUMNS)
    pieces = -(-V // most)
    return min(V, -(-V // pieces // 128) * 128)


def matmul_(out, a, b, accumulate=False):
    """out (+)= a @ b: summed in fp32 whatever the inputs are, and rounded once, to out's dtype.
    Autocast leaves it alone.
    """
    multiply = torch.mm
    if accumulate:
        multiply = partial(torch.addmm, out)
    if a.dtype == out.dtype:
        return multiply(a, b, out=out)
    if out.device.type != "cuda":  # torch on a CPU has no half @ half -> fp32
        return multiply(a.float(), b.float(), out=out)
    # with an fp32 addend to half products: torch 2.10 and later
    return multiply(a, b, out_dtype=torch.float32, out=out)


class _Linear(torch.autograd.Function):
    """Forward: tile by tile of the vocabulary, one matrix product and one scan. Backward: split
    over the vocabulary with all tokens kept, so each slice of dweight is one product, written once;
    only dhidden accumulates, in fp32.
    """

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, ids_N, inverse_t_N, scan, gradient):
        N, V = len(hidden_ND), len(weight_VD)
        width, state = tile_width(N, V), None
        buffer = hidden_ND.new_empty(N * width, dtype=torch.float32)
        for v in range(0, V, width):
            w_vD = weight_VD[v : v + width]
            x_Nv = matmul_(buffer[: N * len(w_vD)].view(N, len(w_vD)), hidden_ND, w_vD.T)
            state = scan(x_Nv, ids_N, v, inverse_t_N, state, v + width >= V)
        max_N, log_s_N, entropy_N, logp_N = state
        kept_Nv = x_Nv if width == V else None  # where all logits are one tile
        rows = inverse_t_N, max_N, log_s_N, entropy_N
        ctx.save_for_backward(hidden_ND, weight_VD, ids_N, *rows, kept_Nv)
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dlogp_N, dentropy_N):
        hidden_ND, weight_VD, ids_N, *rows, kept_Nv = ctx.saved_tensors
        N, V = len(hidden_ND), len(weight_VD)
        rows += [torch.zeros_like(rows[0]) if dlogp_N is None else dlogp_N, dentropy_N]
        dhidden_ND, dweight_VD = None, None
        if ctx.needs_input_grad[0]:
            dhidden_ND = torch.empty_like(hidden_ND, dtype=torch.float32)
        if ctx.needs_input_grad[1]:
            dweight_VD = torch.empty_like(weight_VD)
        width = tile_width(N, V)
        buffer = hidden_ND.new_empty(N * width, dtype=torch.float32) if kept_Nv is None else None
        for v in range(0, V, width):
            w_vD, x_Nv = weight_VD[v : v + width], kept_Nv
            if x_Nv is None:
                x_Nv = matmul_(buffer[: N * len(w_vD)].view(N, len(w_vD)), hidden_ND, w_vD.T)
            dx_Nv = ctx.gradient(x_Nv, ids_N, v, rows, weight_VD.dtype, reuse=kept_Nv is None)
            if dweight_VD is not None:
                matmul_(dweight_VD[v : v + width], dx_Nv.T, hidden_ND)
            if dhidden_ND is not None:
                matmul_(dhidden_ND, dx_Nv, w_vD, accumulate=v > 0)
        if dhidden_ND is not None:
            dhidden_ND = dhidden_ND.to(hidden_ND.dtype)
        return dhidden_ND, dweight_VD, None, None, None, None


class _Logits(torch.autograd.Function):
    """The same on logits that exist, `block` rows at a time; the one large tensor made is their
    gradient.
    """

    @staticmethod
    def forward(ctx, logits_NV, ids_N, inverse_t_N, block, scan, gradient):
        cut = [a.split(block) for a in (logits_NV, ids_N, inverse_t_N)]
        parts = [
            scan(x_nV, ids_n, 0, inverse_t_n, None, True)
            for x_nV, ids_n, inverse_t_n in zip(*cut, strict=True)
        ]
        state = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        max_N, log_s_N, entropy_N, logp_N = state
        ctx.save_for_backward(logits_NV, ids_N, inverse_t_N, max_N, log_s_N, entropy_N)
        ctx.gradient, ctx.block = gradient, block
        ctx.set_materialize_grads(False)
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dlogp_N, dentropy_N):
        logits_NV, ids_N, *rows = ctx.saved_tensors
        rows += [torch.zeros_like(rows[0]) if dlogp_N is None else dlogp_N, dentropy_N]
        dtype, width = logits_NV.dtype, logits_NV.shape[1]
        if len(logits_NV) <= ctx.block:
            return ctx.gradient(logits_NV, ids_N, 0, rows, dtype), None, None, None, None, None
        dx_NV = torch.empty(len(logits_NV), width, dtype=dtype, device=logits_NV.device)
        for i in range(0, len(logits_NV), ctx.block):
            n = slice(i, i + ctx.block)
            mine = [r if r is None else r[n] for r in rows]
            dx_NV[n] = ctx.gradient(logits_NV[n], ids_N[n], 0, mine, dtype)
        return dx_NV, None, None, None, None, None


# ---- What others call


def linear_logprob_entropy(hidden_ND, weight_VD, ids_N, temperature=1.0, backend=None):
    """log p(id | hidden) and the entropy of p = softmax(hidden @ weight.T / temperature): logp_N <=
    0, entropy_N >= 0, in nats.

    hidden_ND and weight_VD: fp32, bf16 or fp16, both the same; ids_N int64. temperature > 0: a
    number, or fp32 (N,). Returns fp32, differentiable with respect to hidden and weight. Pass only
    the rows that count: no mask enters. backend: None = "triton" on a CUDA tensor where Triton is
    installed, otherwise "torch"; either can be asked for. Memory beside inputs and gradients: one
    tile of logits, and in the backward pass 4 N D bytes (dhidden in fp32). Raises ValueError or
    TypeError on shapes, dtypes and a sharded weight; an id outside 0..V-1 is an IndexError on a CPU
    and NaN on a GPU, where looking would stall it.
    """
    if hasattr(weight_VD, "full_tensor"):
        raise TypeError(
            "weight_VD is a sharded DTensor; expected a whole one: call inside the sharded "
            "module's forward, or "
            "pass weight.full_tensor(grad_placements=[Partial()]), which sums its gradient "
            "over the ranks"
        )
    if hidden_ND.dim() != 2 or weight_VD.dim() != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"got hidden {tuple(hidden_ND.shape)}, weight {tuple(weight_VD.shape)}; expected (N, "
            "D) and (V, D)"
        )
    if hidden_ND.dtype != weight_VD.dtype:
        raise TypeError(
            f"got hidden {hidden_ND.dtype}, weight {weight_VD.dtype}; expected the same: cast "
            "one of them"
        )
    inverse_t_N = _check(hidden_ND, len(weight_VD), ids_N, temperature)
    passes = PASSES[choose(backend, hidden_ND, scan_kernel)]
    return _Linear.apply(hidden_ND, weight_VD, ids_N.contiguous(), inverse_t_N, *passes)


def logprob_entropy(logits_NV, ids_N, temperature=1.0, backend=None):
    """The same from logits_NV (fp32, bf16 or fp16, any -inf columns): logp_N, entropy_N, fp32,
    differentiable.
    """
    if logits_NV.dim() != 2:
        raise ValueError(f"got logits {tuple(logits_NV.shape)}; expected (N, V)")
    inverse_t_N = _check(logits_NV, logits_NV.shape[1], ids_N, temperature)
    backend = choose(backend, logits_NV, scan_kernel)
    block = max(1, TILE_BYTES // (4 * logits_NV.shape[1]))  # rows whose fp32 copies fill a tile
    if backend == "triton":
        block = max(1, len(logits_NV))
        logits_NV = logits_NV if logits_NV.stride(1) == 1 else logits_NV.contiguous()
    return _Logits.apply(logits_NV, ids_N.contiguous(), inverse_t_N, block, *PASSES[backend])


def _check(x, V, ids_N, temperature):
    """Raises on what does not fit; returns 1 / temperature as fp32 (N,)."""
    N = len(x)
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"got {x.dtype}; expected float32, bfloat16 or float16")
    if ids_N.shape != (N,) or ids_N.dtype != torch.int64 or V < 1:
        raise ValueError(
            f"got ids {tuple(ids_N.shape)} {ids_N.dtype}, vocabulary {V}; expected ({N},) int64, "
            "at least 1"
        )
    if N and x.device.type == "cpu":
        low, high = (int(i) for i in ids_N.aminmax())
        if low < 0 or high >= V:
            raise IndexError(
                f"got ids in {low}..{high}; expected 0..{V - 1}: leave masked tokens out"
            )
    if not isinstance(temperature, torch.Tensor):
        if not temperature > 0:
            raise ValueError(f"got temperature {temperature}; expected > 0")
        return torch.full((N,), 1 / temperature, device=x.device)
    if temperature.shape not in ((), (N,)) or temperature.requires_grad:
        raise ValueError(
            f"got temperature {tuple(temperature.shape)}; expected a number or ({N},), without "
            "gradient"
        )
    return temperature.to(x.device, torch.float32).reciprocal().expand(N).contiguous()
