"""Speed, memory and error of the kernels beside others, on CUDA:
`python -m kernels.bench [--quick] [--json FILE]`.

Needs torch and triton, and nothing else of nanoMERCI; measures liger-kernel and cut-cross-entropy
where they are installed. Rates are also given as per cent of two ceilings measured in the same run:
a large bf16 matrix product and a large copy. `--toy` needs no GPU: the plain-torch twins against
log_softmax and the network itself, at the size of the toy tasks and of SmolLM2's head.

Axes: N tokens or states, V vocabulary, D hidden width, H units per network, C coins.
"""

import argparse
import json
import platform
import sys
import time
from functools import partial
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path

import torch
from torch import nn

from nanomerci.kernels import triton
from nanomerci.kernels.cfn_score import cfn_score, cfn_score_reference
from nanomerci.kernels.draw import draw
from nanomerci.kernels.logprob import linear_logprob_entropy, logprob_entropy

HEADS = {
    "SmolLM2-135M": (576, 49152),
    "Qwen2.5-0.5B": (896, 151936),
    "Qwen2.5-1.5B": (1536, 151936),
    "Qwen3-1.7B": (2048, 151936),
    "Qwen2.5-Math-7B": (3584, 152064),
    "Llama-3.1-8B": (4096, 128256),
    "4096 x 151936": (4096, 151936),
}
TARGET = "4096 x 151936"
TOKENS = (2048, 4096, 8192, 16384, 32768)
SCORES = [(8192, 896, 128), (65536, 896, 128), (65536, 3584, 256), (65536, 3584, 128)]  # N, D, H
MIB = 2**20
DEVICE = "cuda"


# ---- who is measured
def eager_logits(x_NV, ids_N):
    """What most trainers write: log_softmax in fp32, gather, entropy."""
    logp_NV = x_NV.float().log_softmax(-1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def eager_linear(hidden_ND, weight_VD, ids_N):
    return eager_logits(hidden_ND @ weight_VD.T, ids_N)


def liger_scaled(hidden_ND, weight_VD, ids_N):
    from liger_kernel.ops import fused_linear_scaled_cross_entropy as ops

    apply = ops.LigerFusedLinearScaledCrossEntropyFunction.apply
    nll_N, entropy_N = apply(hidden_ND, weight_VD, ids_N, 1.0, -100, 1, True)
    return -nll_N, entropy_N


def liger_linear(hidden_ND, weight_VD, ids_N):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    apply = LigerFusedLinearCrossEntropyFunction.apply
    return -apply(hidden_ND, weight_VD, ids_N, None, None, -100, 0.0, 0.0, "none")[0], None


def liger_logits(x_NV, ids_N):
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    x_NV = x_NV.clone() if x_NV.requires_grad else x_NV  # whose gradient overwrites it
    return -LigerCrossEntropyFunction.apply(x_NV, ids_N, None, -100, 0.0, 0.0, "none")[0], None


def cut_cross_entropy(hidden_ND, weight_VD, ids_N):
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden_ND, weight_VD, ids_N, reduction="none"), None


def trl_chunked(hidden_ND, weight_VD, ids_N):
    from trl.kernels import ChunkedLogProbFunction

    # its trainer's chunks of the vocabulary
    apply = ChunkedLogProbFunction.apply
    return apply(hidden_ND, weight_VD, None, ids_N, 1.0, 32768, None, 1.0, ("entropy",))[:2]


def trl_logits(x_NV, ids_N):
    from trl.kernels import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(x_NV, ids_N)


LINEAR_RIVALS = {
    "TRL chunked": ("trl", trl_chunked),
    "Liger scaled CE": ("liger_kernel", liger_scaled),
    "Liger FLCE (no entropy)": ("liger_kernel", liger_linear),
    "CCE (no entropy)": ("cut_cross_entropy", cut_cross_entropy),
}
LOGITS_RIVALS = {
    "TRL": ("trl", trl_logits),
    "Liger CE (no entropy)": ("liger_kernel", liger_logits),
}


def with_rivals(ours, eager, rivals):
    """name -> function returning (logp_N, entropy_N or None)."""
    methods = {
        "ours": ours,
        "ours, torch": partial(ours, backend="torch"),
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    return methods | {name: f for name, (package, f) in rivals.items() if find_spec(package)}


class Net(nn.Module):
    """A network of the shape of cfn.CoinFlipNet, which this file does not import."""

    def __init__(self, D, H, C):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, C))
        self.prior = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, C))
        self.register_buffer("mean_D", torch.randn(D))
        self.register_buffer("scale_D", torch.rand(D) + 0.5)
        self.register_buffer("prior_mean_C", torch.randn(C) / 10)
        self.register_buffer("prior_scale_C", torch.rand(C) + 0.5)

    def forward(self, hidden_ND):
        x_ND = (hidden_ND.to(self.mean_D.dtype) - self.mean_D) * self.scale_D
        return self.head(x_ND) + (self.prior(x_ND) - self.prior_mean_C) * self.prior_scale_C


def score_methods(net):
    def eager(hidden_ND):
        return net(hidden_ND).float().square().mean(-1)

    def half(hidden_ND):
        with torch.autocast(hidden_ND.device.type, hidden_ND.dtype):
            return eager(hidden_ND)

    return {
        "ours": partial(cfn_score, net=net),
        "ours, torch": partial(cfn_score_reference, net=net),
        "eager (fp32)": eager,
        "eager (autocast)": half,
        "torch.compile (autocast)": torch.compile(half, dynamic=False),
    }


# ---- measuring
def milliseconds(function, quick):
    warmup, repeat = (25, 100) if quick else (100, 400)
    return triton.testing.do_bench(function, warmup=warmup, rep=repeat, return_mode="median")


def peak_bytes(function):
    """The most memory allocated during one more call, over what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def ceilings(quick):
    """-> bf16 FLOP/s of the best of three large products, bytes/s that a 1 GiB copy moves."""
    rates = []
    for n in (4096, 8192, 16384):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        rates.append(2 * n**3 / milliseconds(partial(torch.mm, a, b), quick) * 1e3)
    source = torch.randn(2**28, device=DEVICE)
    copy = partial(torch.empty_like(source).copy_, source)
    return max(rates), 2 * source.nbytes / milliseconds(copy, quick) * 1e3


def learn(method, inputs, ids_N):
    """Gradients of sum(logp) (+ entropy / 100)."""
    logp_N, entropy_N = method(*inputs, ids_N)
    loss = logp_N.sum() if entropy_N is None else logp_N.sum() + 0.01 * entropy_N.sum()
    return torch.autograd.grad(loss, inputs)


def measure(name, method, inputs, ids_N, quick, work, ceiling):
    """ms and peak MiB of a method, forward alone (no gradient) and forward + backward (both);
    workspace: that less the gradients; and work / time, {part: FLOP or bytes}, in a unit and as per
    cent of a ceiling (unit, its size, the ceiling's name, the ceiling).
    """
    unit, scale, of, most = ceiling
    row = {"method": name}
    for part, amount in work.items():
        run = partial(learn, method, inputs)
        if part == "forward":
            run = partial(torch.no_grad()(method), *inputs)
        run = partial(run, ids_N)
        try:
            ms = milliseconds(run, quick)
            row |= {f"{part}_ms": ms, f"{part}_MiB": peak_bytes(run) / MIB}
            rate = amount / ms * 1e3
            row |= {f"{part}_{unit}": rate / scale, f"{part}_%{of}": 100 * rate / most}
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        except (ImportError, RuntimeError, TypeError, ValueError, triton.TritonError) as error:
            if name.startswith("ours"):  # one that does not run here is a line in the table
                raise
            row["note"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    if "both_MiB" in row:
        row["workspace_MiB"] = row["both_MiB"] - sum(x.nbytes for x in inputs) / MIB
    return row


def relative(got, want):
    """Relative RMS error."""
    got, want = got.detach().double(), want.detach()
    return float((got - want).norm() / want.norm())


@torch.no_grad()
def exact_linear(hidden_ND, weight_VD, ids_N, tile=4096):
    """fp64, two passes over tiles of the vocabulary: logp_N, dhidden_ND and 64 rows of dweight of
    sum(logp); which rows.
    """
    hidden_ND, V = hidden_ND.double(), len(weight_VD)
    rows = torch.cat([ids_N[:32], torch.arange(0, V, V // 32, device=ids_N.device)[:32]])
    tiles = [weight_VD[v : v + tile] for v in range(0, V, tile)]
    lse_TN = torch.stack([(hidden_ND @ w_vD.double().T).logsumexp(1) for w_vD in tiles])
    lse_N = lse_TN.logsumexp(0)
    logp_N = (hidden_ND * weight_VD[ids_N].double()).sum(1) - lse_N
    dhidden_ND = weight_VD[ids_N].double()
    for w_vD in tiles:
        dhidden_ND -= (hidden_ND @ w_vD.double().T - lse_N[:, None]).exp() @ w_vD.double()
    p_Nr = (hidden_ND @ weight_VD[rows].double().T - lse_N[:, None]).exp()
    return logp_N, dhidden_ND, ((ids_N[:, None] == rows).double() - p_Nr).T @ hidden_ND, rows


def errors(method, inputs, ids_N, exact, rows=slice(None)):
    """Of logp and of the gradients of sum(logp), of the last input these rows; exact: {name: what
    they should be}.
    """
    logp_N = method(*inputs, ids_N)[0]
    got = [logp_N, *torch.autograd.grad(logp_N.sum(), inputs)]
    got[-1] = got[-1][rows]
    pairs = zip(exact.items(), got, strict=True)
    return {f"error_{name}": relative(found, want) for (name, want), found in pairs}


# ---- the tables
def cell(value):
    return f"{value:15.4g}" if isinstance(value, float) else f"{value!s:>15}"


def show(title, rows):
    """Print a table for people; --json has every digit."""
    print(f"\n{title}\n")
    columns = list(dict.fromkeys(chain.from_iterable(rows)))
    columns.sort(key=("method", "note").__contains__)  # the wide ones last
    print(*map(cell, columns))
    for row in rows:
        print(*(cell(row.get(column, "")) for column in columns), flush=True)
    return rows


def linear_table(flops, quick):
    rows, methods = [], with_rivals(linear_logprob_entropy, eager_linear, LINEAR_RIVALS)
    for head, N in [(TARGET, 8192)] if quick else product(HEADS, TOKENS):
        D, V = HEADS[head]
        hidden_ND, weight_VD = (torch.randn(n, D, device=DEVICE).bfloat16() for n in (N, V))
        inputs = [x.mul_(D**-0.25).requires_grad_() for x in (hidden_ND, weight_VD)]
        ids_N = torch.randint(V, (N,), device=DEVICE)
        *exact, some = exact_linear(*inputs, ids_N) if N <= 8192 else [None]
        exact = dict(zip(("logp", "dhidden", "dweight"), exact, strict=False))
        flop = 2 * N * D * V
        work = {"forward": flop, "both": 4 * flop}  # both: the logits again, and two gradients
        for name, method in methods.items():
            ceiling = "TFLOPs", 1e12, "matmul", flops
            row = measure(name, method, inputs, ids_N, quick, work, ceiling)
            if exact and "both_ms" in row:
                row |= errors(method, inputs, ids_N, exact, some)
            rows.append({"head": head, "N": N} | row)
        torch.cuda.empty_cache()
    title = "linear_logprob_entropy, bf16. MiB: peak over inputs; workspace: less the gradients."
    return show(f"{title} TFLOPs of both: 8 N D V.", rows)


def logits_table(bandwidth, quick):
    rows, V = [], 151936
    methods = with_rivals(logprob_entropy, eager_logits, LOGITS_RIVALS)
    for N in (8192,) if quick else TOKENS:
        x_NV = torch.randn(N, V, device=DEVICE, dtype=torch.bfloat16).mul_(3).requires_grad_()
        ids_N = torch.randint(V, (N,), device=DEVICE)
        last_nV, ids_n = x_NV[-64:].detach().requires_grad_(), ids_N[-64:]
        exact_nV = last_nV.detach().double().requires_grad_()
        logp_n = exact_nV.log_softmax(1).gather(1, ids_n[:, None])[:, 0]
        exact = {"logp": logp_n, "dlogits": torch.autograd.grad(logp_n.sum(), exact_nV)[0]}
        work = {"forward": 2 * N * V, "both": 6 * N * V}  # both: read, then read and write
        for name, method in methods.items():
            ceiling = "GBs", 1e9, "copy", bandwidth
            row = measure(name, method, [x_NV], ids_N, quick, work, ceiling)
            if "both_ms" in row:
                row |= errors(method, [last_nV], ids_n, exact)
            rows.append({"N": N} | row)
        torch.cuda.empty_cache()
    return show(f"logprob_entropy, bf16, V = {V}. GB/s: 2 N V bytes forward, 6 N V both.", rows)


@torch.no_grad()
def score_table(flops, bandwidth, quick):
    rows, C = [], 20
    for N, D, H in SCORES[-1:] if quick else SCORES:
        net, exact_net = Net(D, H, C).to(DEVICE), Net(D, H, C).to(DEVICE).double()
        exact_net.load_state_dict(net.state_dict())
        hidden_ND = torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16)
        exact_n = exact_net(hidden_ND[:512]).square().mean(1)
        floor = max(hidden_ND.nbytes / bandwidth, 2 * N * D * 2 * H / flops) * 1e3
        for name, method in score_methods(net).items():
            call = partial(method, hidden_ND)
            row = {"N": N, "D": D, "H": H, "method": name, "ms": milliseconds(call, quick)}
            row |= {"floor_ms": floor, "%floor": 100 * floor / row["ms"]}
            row |= {"MiB": peak_bytes(call) / MIB, "error": relative(call()[:512], exact_n)}
            rows.append(row)
    title = "cfn_score, bf16 hidden states, C = 20."
    floor = "Floor: the larger of bytes / copy rate and FLOP / matmul rate."
    return show(f"{title} {floor}", rows)


@torch.no_grad()
def draw_table(bandwidth, quick):
    rows, V = [], 151936
    for S in (256,) if quick else (1, 32, 256, 1024):
        logits_SV = torch.randn(S, V, device=DEVICE, dtype=torch.bfloat16).mul_(3)
        uniform_S = torch.rand(S, device=DEVICE)
        methods = {
            "ours": partial(draw, logits_SV, uniform_S),
            "ours, torch": partial(draw, logits_SV, uniform_S, backend="torch"),
            "multinomial (no logp)": lambda x_SV=logits_SV: x_SV.float().softmax(1).multinomial(1),
        }
        for name, call in methods.items():
            ms = milliseconds(call, quick)
            row = {"S": S, "method": name, "ms": ms, "MiB": peak_bytes(call) / MIB}
            rows.append(row | {"%copy": 100 * logits_SV.nbytes / ms * 1e3 / bandwidth})
    return show(f"draw, bf16 logits, V = {V}. %copy: 2 S V bytes at the rate of a copy.", rows)


def resident(what="VmRSS"):
    """Bytes that this process holds now, or (VmHWM) held at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def forget_peak():
    """VmHWM is the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak(function):
    """The most memory of this process during a call, over what it held before, in bytes."""
    before = resident()
    forget_peak()
    function()
    return resident("VmHWM") - before


def in_turn(cases, rounds, clock, unit="s", scale=1):
    """{name: function} -> rows of the median and the least time, in seconds x scale; in turn, so
    that all are equally disturbed.
    """
    times = {name: [] for name in cases}
    for _, (name, function) in product(range(rounds), cases.items()):
        start = clock()
        function()
        times[name].append(scale * (clock() - start))
    columns = "method", f"median_{unit}", f"least_{unit}"
    rows = ((name, sorted(found)[rounds // 2], min(found)) for name, found in times.items())
    return [dict(zip(columns, row, strict=True)) for row in rows]


def head_table(rounds=7):
    """The torch twin at the head of SmolLM2-135M on a CPU, forward + backward, others in turn."""
    torch.manual_seed(0)
    D, V = HEADS["SmolLM2-135M"]
    inputs = [torch.randn(n, D).mul_(D**-0.25).requires_grad_() for n in (2048, V)]
    ids_N = torch.randint(V, (2048,))
    methods = {"ours, torch": linear_logprob_entropy, "eager": eager_linear}
    if find_spec("trl"):
        methods["TRL chunked"] = trl_chunked
    cases = {name: partial(learn, method, inputs, ids_N) for name, method in methods.items()}
    peaks = {name: resident_peak(function) for name, function in cases.items()}
    rows = in_turn(cases, rounds, time.perf_counter)
    rows = [row | {"MiB": peaks[row["method"]] / MIB} for row in rows]
    gradients = sum(x.nbytes for x in inputs) / MIB
    threads = torch.get_num_threads()
    title = f"The head of SmolLM2-135M, N = 2048, fp32, {threads} threads, forward + backward."
    return show(f"{title} MiB: peak over inputs; gradients are {gradients:.0f}.", rows)


def toy_table():
    """One CPU thread, fp32, N = 3000, V = 100, D = 96: the plain-torch twins must cost no more than
    what they replace.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = [torch.randn(n, 96, requires_grad=True) for n in (3000, 100)]
    ids_N, net = torch.randint(100, (3000,)), Net(96, 128, 20)
    scores = score_methods(net)
    cases = {
        "log_softmax": partial(learn, eager_linear, inputs, ids_N),
        "ours, torch": partial(learn, linear_logprob_entropy, inputs, ids_N),
        "network, no gradient": partial(torch.no_grad()(scores["eager (fp32)"]), inputs[0]),
        "cfn_score, torch": partial(scores["ours"], inputs[0].detach()),
    }
    title = "Toy size on one CPU thread, forward + backward (the network: forward)."
    return show(title, in_turn(cases, 100, time.thread_time, "ms", 1e3))


def cuda_tables(quick):
    torch.manual_seed(0)
    flops, bandwidth = ceilings(quick)
    found = {"matmul_TFLOPs": flops / 1e12, "copy_GBs": bandwidth / 1e9}
    print("ceilings of this run:", found)
    return found | {
        "linear": linear_table(flops, quick),
        "logits": logits_table(bandwidth, quick),
        "draw": draw_table(bandwidth, quick),
        "score": score_table(flops, bandwidth, quick),
    }


def main():
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=about)
    parser.add_argument("--quick", action="store_true", help="one shape per kernel, < 3 minutes")
    parser.add_argument("--toy", action="store_true", help="the torch twins on a CPU, no GPU")
    parser.add_argument("--json", metavar="FILE", help="write the record there as well")
    options = parser.parse_args()
    if not options.toy and (triton is None or not torch.cuda.is_available()):
        print(
            "no CUDA device with Triton; --toy measures the torch twins on a CPU", file=sys.stderr
        )
        return 2
    record = {
        "device": platform.machine() if options.toy else torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "triton": triton and triton.__version__,
    }
    print(record)
    if options.toy:
        record |= {"head": head_table(), "toy": toy_table()}
    else:
        record |= cuda_tables(options.quick)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
