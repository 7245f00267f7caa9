"""One token per row by inverting the distribution function, from the head's logits, without ever
building probabilities.

    x      = logits / T, fp32 always
    F_j    = sum_{i <= j} exp(x_i) / sum_i exp(x_i)
    id     = the first j with F_j > u          u uniform in [0, 1)
    logp   = x_id - log sum_i exp(x_i)

In plain torch that is a log-softmax, its exp, their cumulative sum and a search: five tensors of
the vocabulary's width, in fp32. Here it takes two levels: the first kernel reads the logits once
and leaves a maximum and a sum per tile; the second finds the tile in which F passes u, and reads
that tile again. T = 0 is the most likely token, its log-prob that of T = 1.

Axes: S rows, V vocabulary; K tiles of TILE columns.
"""

import torch

from nanomerci.kernels import choose, triton

TILE = 4096
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


def draw_reference(logits_SV, uniform_S, temperature=1.0):
    """The plain-torch twin. (S, V) any float, (S,) -> ids_S int64, logp_S fp32."""
    logits_SV = logits_SV.float()
    scaled_SV = logits_SV if temperature in (0, 1) else logits_SV / temperature
    logp_SV = scaled_SV.log_softmax(-1)
    if temperature == 0:
        ids_S = logp_SV.argmax(-1)
    else:
        cdf_SV = logp_SV.exp().cumsum(-1)
        mark_S1 = uniform_S[:, None] * cdf_SV[:, -1:]
        # right=True: the first token whose cdf is *beyond* the mark, so a token of probability 0
        # is never drawn
        ids_S = torch.searchsorted(cdf_SV, mark_S1, right=True)[:, 0]
    return ids_S, logp_SV.gather(1, ids_S[:, None])[:, 0]


if triton is None:
    tile_kernel = pick_kernel = None
else:
    tl = triton.language

    @triton.jit
    def tile_kernel(x, stride, tops, sums, V, inverse_t, TILE: tl.constexpr):
        """Row and tile -> the largest x, and the sum of exp(x - largest)."""
        s, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
        column = k * TILE + tl.arange(0, TILE)
        value = tl.load(x + s * stride + column, column < V, -float("inf")).to(tl.float32)
        value *= inverse_t
        top = tl.max(value, 0)
        base = tl.where(top > -float("inf"), top, 0.0)  # of a tile of nothing but -inf
        at = s * tl.num_programs(1) + k
        tl.store(tops + at, top)
        tl.store(sums + at, tl.sum(tl.exp(value - base), 0))

    @triton.jit
    def pick_kernel(
        x,
        stride,
        tops,
        sums,
        uniform,
        ids,
        logp,
        V,
        K,
        inverse_t,
        TILE: tl.constexpr,
        TILES: tl.constexpr,
        GREEDY: tl.constexpr,
    ):
        """Row -> the tile in which the distribution function passes u, and there the token."""
        s, k = tl.program_id(0).to(tl.int64), tl.arange(0, TILES)
        top_K = tl.load(tops + s * K + k, k < K, -float("inf"))
        top = tl.max(top_K, 0)
        mass_K = tl.load(sums + s * K + k, k < K, 0.0) * tl.exp(top_K - top)
        total = tl.sum(mass_K, 0)
        below_K = tl.cumsum(mass_K, 0)
        mark = tl.load(uniform + s) * total
        # By rounding, sums may move where there is no mass, or end before the mark: the next tile
        # that has any is taken, or the last.
        passed = tl.sum((below_K <= mark).to(tl.int32), 0)
        held_K = top_K == top if GREEDY else mass_K > 0
        last = tl.max(tl.where(held_K, k, 0), 0)
        first = 0 if GREEDY else passed
        tile = tl.min(tl.where(held_K & (k >= first), k, last), 0)
        before = tl.sum(tl.where(k < tile, mass_K, 0.0), 0)

        i = tl.arange(0, TILE)
        column = tile * TILE + i
        value = tl.load(x + s * stride + column, column < V, -float("inf")).to(tl.float32)
        value *= inverse_t
        mass = tl.exp(value - top)
        passed = tl.sum((tl.cumsum(mass, 0) <= mark - before).to(tl.int32), 0)
        held = value == top if GREEDY else mass > 0
        last = tl.max(tl.where(held, i, 0), 0)
        first = 0 if GREEDY else passed
        place = tl.min(tl.where(held & (i >= first), i, last), 0)
        place = tl.minimum(place, V - 1 - tile * TILE)
        tl.store(ids + s, (tile * TILE + place).to(tl.int64))
        chosen = tl.sum(tl.where(i == place, value, 0.0), 0)
        tl.store(logp + s, chosen - top - tl.log(total))


def draw_triton(logits_SV, uniform_S, temperature=1.0):
    """As draw_reference; in both kernels sums are of fp32 numbers."""
    S, V = logits_SV.shape
    K = triton.cdiv(V, TILE)
    if logits_SV.stride(1) != 1:
        logits_SV = logits_SV.contiguous()
    uniform_S = uniform_S.contiguous()
    top_SK = torch.empty(S, K, device=logits_SV.device)
    sum_SK = torch.empty_like(top_SK)
    ids_S = torch.empty(S, dtype=torch.int64, device=logits_SV.device)
    logp_S = torch.empty(S, device=logits_SV.device)
    if not S:
        return ids_S, logp_S
    x, inverse_t = (logits_SV, logits_SV.stride(0)), 1 / (temperature or 1)
    tile_kernel[S, K](*x, top_SK, sum_SK, V, inverse_t, TILE, **OPTIONS)
    pick_kernel[S,](
        *(*x, top_SK, sum_SK, uniform_S, ids_S, logp_S, V, K, inverse_t),
        TILE=TILE,
        TILES=triton.next_power_of_2(K),
        GREEDY=temperature == 0,
        **OPTIONS,
    )
    return ids_S, logp_S


def draw(logits_SV, uniform_S, temperature=1.0, backend=None):
    """Draw a token per row at this temperature. logits_SV: (S, V) any float; uniform_S: (S,) fp32
    in [0, 1). -> ids_S int64, logp_S fp32 of the distribution drawn from.

    backend: see nanomerci.kernels.choose.
    """
    if choose(backend, logits_SV, tile_kernel) == "torch":
        return draw_reference(logits_SV, uniform_S, temperature)
    return draw_triton(logits_SV, uniform_S, temperature)
