"""Speed, memory and error of the kernels beside their rivals: `python -m kernels.bench [--quick]
[--json FILE]`, on CUDA.

Needs torch and triton, and nothing else of nanoMERCI; measures liger-kernel and cut-cross-entropy
where they are installed. Rates are also given as per cent of two ceilings measured in the same run:
a large bf16 matrix product and a large copy. `--toy` needs no GPU: the plain-torch twins against
log_softmax and the network itself, at the size of the toy tasks.

Axes: N tokens or states, V vocabulary, D hidden width, H units a network, C coins.
"""

import argparse
import importlib.util
import json
import platform
import sys
import time

import torch
from torch import nn

from nanomerci.kernels import triton
from nanomerci.kernels.cfn_score import cfn_score, cfn_score_reference
from nanomerci.kernels.logprob import linear_logprob_entropy, logprob_entropy

HEADS = {
    "Qwen2.5-0.5B": (896, 151936),
    "Qwen2.5-1.5B": (1536, 151936),
    "Qwen3-1.7B": (2048, 151936),
    "Qwen2.5-Math-7B": (3584, 152064),
    "Llama-3.1-8B": (4096, 128256),
    "4096 x 151936": (4096, 151936),
}
TARGET = "4096 x 151936"
TOKENS = (2048, 4096, 8192, 16384, 32768)
SCORES = [
    (8192, 896, 128),
    (8192, 3584, 128),
    (65536, 896, 128),
    (65536, 1536, 128),
    (65536, 3584, 256),
    (65536, 3584, 128),
]
MEMORY = [(n, 151936) for n in TOKENS] + [
    (8192, v) for v in (16384, 32768, 65536, 131072, 262144)
]  # (N, V)
MIB = 2**20
DEVICE = "cuda"


# ---- Who is measured
# ----


def eager_logits(x_NV, ids_N):
    """What most trainers write: log_softmax in fp32, gather, entropy."""
    logp_NV = x_NV.float().log_softmax(-1)
    return logp_NV.gather(1, ids_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1)


def eager_linear(hidden_ND, weight_VD, ids_N):
    return eager_logits(hidden_ND @ weight_VD.T, ids_N)


def linear_methods():
    """name -> function of (hidden, weight, ids) returning (logp_N, entropy_N or None)."""
    methods = {
        "ours": linear_logprob_entropy,
        "ours, torch": lambda *a: linear_logprob_entropy(*a, backend="torch"),
        "eager": eager_linear,
        "torch.compile": torch.compile(eager_linear, dynamic=False),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction as Fused,
        )
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
            LigerFusedLinearScaledCrossEntropyFunction as Scaled,
        )

        def liger_scaled(hidden_ND, weight_VD, ids_N):
            nll_N, entropy_N = Scaled.apply(hidden_ND, weight_VD, ids_N, 1.0, -100, 1, True)
            return -nll_N, entropy_N

        methods["Liger scaled CE"] = liger_scaled
        methods["Liger FLCE (no entropy)"] = lambda h, w, i: (
            -Fused.apply(h, w, i, None, None, -100, 0.0, 0.0, "none")[0],
            None,
        )
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        methods["CCE (no entropy)"] = lambda h, w, i: (
            -linear_cross_entropy(h, w, i, reduction="none"),
            None,
        )
    return methods


def logits_methods():
    methods = {
        "ours": logprob_entropy,
        "ours, torch": lambda *a: logprob_entropy(*a, backend="torch"),
        "eager": eager_logits,
        "torch.compile": torch.compile(eager_logits, dynamic=False),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        def liger(
            x_NV, ids_N
        ):  # overwrites the logits with their gradient, hence the copy when a gradient is wanted
            x_NV = x_NV.clone() if x_NV.requires_grad else x_NV
            return -LigerCrossEntropyFunction.apply(x_NV, ids_N, None, -100, 0.0, 0.0, "none")[
                0
            ], None

        methods["Liger CE (no entropy)"] = liger
    return methods


class Net(nn.Module):
    """A network of the shape of cfn.CoinFlipNet, which this file does not import."""

    def __init__(self, D, H, C):
        super().__init__()
        self.head, self.prior = (
            nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, C)) for _ in range(2)
        )
        for name, value in (
            ("mean_D", torch.randn(D)),
            ("scale_D", torch.rand(D) + 0.5),
            ("prior_mean_C", torch.randn(C) / 10),
            ("prior_scale_C", torch.rand(C) + 0.5),
        ):
            self.register_buffer(name, value)

    def forward(self, hidden_ND):
        x_ND = (hidden_ND.to(self.mean_D.dtype) - self.mean_D) * self.scale_D
        return self.head(x_ND) + (self.prior(x_ND) - self.prior_mean_C) * self.prior_scale_C


def score_methods(net):
    def eager(hidden_ND):
        return net(hidden_ND).float().square().mean(-1)

    def half(hidden_ND):
        with torch.autocast(hidden_ND.device.type, hidden_ND.dtype):
            return net(hidden_ND).float().square().mean(-1)

    return {
        "ours": lambda x: cfn_score(x, net),
        "ours, torch": lambda x: cfn_score_reference(x, net),
        "eager (fp32)": eager,
        "eager (autocast)": half,
        "torch.compile (autocast)": torch.compile(half, dynamic=False),
    }


# ---- Measuring
# ----


def milliseconds(function, quick):
    return triton.testing.do_bench(
        function, warmup=25 if quick else 100, rep=100 if quick else 400, return_mode="median"
    )


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
    """(bf16 FLOP/s of the best of three large products, bytes/s read and written by a 1 GiB copy)."""
    rates = []
    for n in (4096, 8192, 16384):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        rates.append(2 * n**3 / milliseconds(lambda: a @ b, quick) * 1e3)  # noqa: B023
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    return max(rates), 2 * source.nbytes / milliseconds(lambda: target.copy_(source), quick) * 1e3


def both(name, method, inputs, ids_N, quick):
    """ms and peak MiB of a method: forward alone (no gradient), and forward + backward of sum(logp)
    (+ entropy / 100).
    """

    def forward():
        with torch.no_grad():
            return method(*inputs, ids_N)

    def forward_backward():
        logp_N, entropy_N = method(*inputs, ids_N)
        loss = logp_N.sum() if entropy_N is None else logp_N.sum() + 0.01 * entropy_N.sum()
        return torch.autograd.grad(loss, inputs)

    row = dict(method=name)
    for part, function in (("forward", forward), ("both", forward_backward)):
        row |= {f"{part}_ms": None, f"{part}_MiB": None}
        try:
            row |= {
                f"{part}_ms": milliseconds(function, quick),
                f"{part}_MiB": peak_bytes(function) / MIB,
            }
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        except (
            ImportError,
            RuntimeError,
            TypeError,
            ValueError,
            triton.errors.TritonError,
        ) as error:
            if name.startswith(
                "ours"
            ):  # a rival that does not run here is a line in the table, ours is a bug
                raise
            row["note"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return row


def relative(got, want):
    got, want = got.detach().double(), want.detach()
    return float((got - want).norm() / want.norm())


def linear_errors(method, inputs, ids_N, exact):
    """Relative RMS error of logp, dhidden and 64 rows of dweight of the loss sum(logp)."""
    logp_N, _ = method(*inputs, ids_N)
    dhidden_ND, dweight_VD = torch.autograd.grad(logp_N.sum(), inputs)
    return dict(
        zip(
            ("error_logp", "error_dhidden", "error_dweight"),
            (relative(a, b) for a, b in zip((logp_N, dhidden_ND, dweight_VD[exact[3]]), exact)),
        )
    )


@torch.no_grad()
def exact_linear(hidden_ND, weight_VD, ids_N, tile=4096):
    """fp64, two passes over tiles of the vocabulary: logp_N, dhidden_ND and 64 rows of dweight of
    sum(logp); which rows.
    """
    hidden_ND, V = hidden_ND.double(), len(weight_VD)
    rows = torch.cat([ids_N[:32], torch.arange(0, V, V // 32, device=ids_N.device)[:32]])
    lse_N = torch.stack(
        [(hidden_ND @ weight_VD[v : v + tile].double().T).logsumexp(1) for v in range(0, V, tile)]
    ).logsumexp(0)
    logp_N = (hidden_ND * weight_VD[ids_N].double()).sum(1) - lse_N
    dhidden_ND = weight_VD[ids_N].double()
    for v in range(0, V, tile):
        w_vD = weight_VD[v : v + tile].double()
        dhidden_ND -= (hidden_ND @ w_vD.T - lse_N[:, None]).exp() @ w_vD
    p_Nr = (hidden_ND @ weight_VD[rows].double().T - lse_N[:, None]).exp()
    return logp_N, dhidden_ND, ((ids_N[:, None] == rows).double() - p_Nr).T @ hidden_ND, rows


# ---- The tables
# ----


def show(title, rows):
    print(f"\n{title}\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = [columns] + [
        [
            "–"
            if row.get(c) is None
            else f"{row[c]:.3g}"
            if isinstance(row[c], float) and abs(row[c]) < 1000
            else f"{row[c]:.0f}"
            if isinstance(row[c], float)
            else str(row[c])
            for c in columns
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    text.insert(1, ["-" * w for w in widths])
    for line in text:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |", flush=True)
    return rows


def linear_table(flops, quick):
    rows, methods = [], linear_methods()
    for head in (TARGET,) if quick else HEADS:
        D, V = HEADS[head]
        for N in (8192,) if quick else TOKENS:
            inputs = [
                (torch.randn(n, D, device=DEVICE) * D**-0.25).bfloat16().requires_grad_()
                for n in (N, V)
            ]
            ids_N = torch.randint(V, (N,), device=DEVICE)
            exact = exact_linear(*inputs, ids_N) if N <= 8192 else None
            for name, method in methods.items():
                row = dict(head=head, N=N) | both(name, method, inputs, ids_N, quick)
                for part, matmuls in (
                    ("forward", 1),
                    ("both", 4),
                ):  # both: the logits again, and two gradients
                    ms = row[f"{part}_ms"]
                    row[f"{part}_TFLOPs"] = rate = ms and matmuls * 2 * N * D * V / ms / 1e9
                    row[f"{part}_%matmul"] = rate and 100 * rate * 1e12 / flops
                if exact and row["both_ms"]:
                    row |= linear_errors(method, inputs, ids_N, exact)
                rows.append(row)
            torch.cuda.empty_cache()
    return show(
        "linear_logprob_entropy, bf16. MiB: peak over inputs, gradients included. TFLOPs of "
        "both: 8 N D V.",
        rows,
    )


def logits_table(bandwidth, quick):
    rows, methods, V = [], logits_methods(), 151936
    for N in (8192,) if quick else TOKENS:
        x_NV = torch.randn(N, V, device=DEVICE, dtype=torch.bfloat16).mul_(3).requires_grad_()
        ids_N = torch.randint(V, (N,), device=DEVICE)
        last_nV = x_NV[-64:].detach().double().requires_grad_()
        exact_n = last_nV.log_softmax(1).gather(1, ids_N[-64:, None])[:, 0]
        (exact_nV,) = torch.autograd.grad(exact_n.sum(), last_nV)
        for name, method in methods.items():
            row = dict(N=N) | both(name, method, [x_NV], ids_N, quick)
            for part, passes in (("forward", 1), ("both", 3)):  # both: read, then read and write
                ms = row[f"{part}_ms"]
                row[f"{part}_GBs"] = rate = ms and passes * 2 * N * V / ms / 1e6
                row[f"{part}_%copy"] = rate and 100 * rate * 1e9 / bandwidth
            if row["both_ms"]:
                logp_n = method(x_NV[-64:], ids_N[-64:])[0]
                (gradient_nV,) = torch.autograd.grad(
                    method(last_nV.bfloat16(), ids_N[-64:])[0].sum(), last_nV
                )
                row |= dict(
                    error_logp=relative(logp_n, exact_n),
                    error_dlogits=relative(gradient_nV, exact_nV),
                )
            rows.append(row)
        torch.cuda.empty_cache()
    return show(f"logprob_entropy, bf16, V = {V}. GB/s: 2 N V bytes forward, 6 N V both.", rows)


@torch.no_grad()
def score_table(flops, bandwidth, quick):
    rows, C = [], 20
    for N, D, H in SCORES[-1:] if quick else SCORES:
        net = Net(D, H, C).to(DEVICE)
        hidden_ND = torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16)
        floor = max(hidden_ND.nbytes / bandwidth, 2 * N * D * 2 * H / flops) * 1e3
        exact_net = Net(D, H, C).to(DEVICE).double()
        exact_net.load_state_dict(net.state_dict())
        exact_n = exact_net(hidden_ND[:512]).square().mean(1)
        for name, method in score_methods(net).items():
            ms = milliseconds(lambda: method(hidden_ND), quick)  # noqa: B023
            rows.append(
                {
                    "N": N,
                    "D": D,
                    "H": H,
                    "C": C,
                    "method": name,
                    "ms": ms,
                    "floor_ms": floor,
                    "%floor": 100 * floor / ms,
                    "MiB": peak_bytes(lambda: method(hidden_ND)) / MIB,  # noqa: B023
                    "error": relative(method(hidden_ND)[:512], exact_n),
                }
            )
    return show(
        "cfn_score, bf16 hidden states. Floor: the larger of bytes / copy rate and FLOP / "
        "matmul rate.",
        rows,
    )


def memory_table():
    """Workspace = peak over inputs, less the gradients. Ours grows with N + V (dhidden in fp32),
    the logits with N V.
    """
    rows, D = [], 1024
    for N, V in MEMORY:
        inputs = [
            torch.randn(n, D, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for n in (N, V)
        ]
        ids_N = torch.randint(V, (N,), device=DEVICE)
        peak = peak_bytes(
            lambda: torch.autograd.grad(linear_logprob_entropy(*inputs, ids_N)[0].sum(), inputs)
        )  # noqa: B023
        rows.append(
            dict(
                N=N,
                V=V,
                D=D,
                workspace_MiB=(peak - sum(i.nbytes for i in inputs)) / MIB,
                logits_MiB=2 * N * V / MIB,
            )
        )
    return show(
        "Memory of linear_logprob_entropy, forward + backward, beside one bf16 copy of the logits.",
        rows,
    )


def toy_table():
    """One CPU thread, fp32, N = 3000, V = 100, D = 96: the plain-torch twins must cost no more than
    what they replace.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, ids_N = (
        [torch.randn(n, 96, requires_grad=True) for n in (3000, 100)],
        torch.randint(100, (3000,)),
    )
    net = Net(96, 128, 20)

    def step(method):
        logp_N, entropy_N = method(*inputs, ids_N)
        return torch.autograd.grad(logp_N.sum() + 0.01 * entropy_N.sum(), inputs)

    cases = {
        "log_softmax": lambda: step(eager_linear),
        "ours, torch": lambda: step(linear_logprob_entropy),
        "network, no gradient": torch.no_grad()(lambda: net(inputs[0]).square().mean(-1)),
        "cfn_score, torch": lambda: cfn_score(inputs[0].detach(), net),
    }
    times = {name: [] for name in cases}
    for _ in range(100):  # in turn, so that a busy machine is busy for all
        for name, function in cases.items():
            start = time.thread_time()
            function()
            times[name].append((time.thread_time() - start) * 1e3)
    rows = [
        dict(method=name, median_ms=sorted(ms)[50], least_ms=min(ms)) for name, ms in times.items()
    ]
    return show("Toy size on one CPU thread, forward + backward (the network: forward).", rows)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one shape a kernel, under 3 minutes")
    parser.add_argument(
        "--toy", action="store_true", help="the torch twins at toy size on a CPU; needs no GPU"
    )
    parser.add_argument("--json", metavar="FILE", help="write the record there as well")
    options = parser.parse_args()
    if not options.toy and (triton is None or not torch.cuda.is_available()):
        sys.stderr.write(
            "kernels.bench: no CUDA device; wanted one, with Triton. --toy measures the torch "
            "twins on a CPU\n"
        )
        return 2
    device = (
        platform.processor() or platform.machine() if options.toy else torch.cuda.get_device_name()
    )
    record = dict(
        device=device,
        date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__,
        python=platform.python_version(),
        triton=None if triton is None else triton.__version__,
    )
    print(record)
    if options.toy:
        record["toy"] = toy_table()
    else:
        torch.manual_seed(0)
        flops, bandwidth = ceilings(options.quick)
        record |= dict(matmul_TFLOPs=flops / 1e12, copy_GBs=bandwidth / 1e9)
        print(
            f"ceilings of this run: matmul {flops / 1e12:.0f} TFLOP/s bf16, copy "
            f"{bandwidth / 1e9:.0f} GB/s"
        )
        record |= dict(
            linear=linear_table(flops, options.quick),
            logits=logits_table(bandwidth, options.quick),
            score=score_table(flops, bandwidth, options.quick),
            memory=memory_table(),
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
