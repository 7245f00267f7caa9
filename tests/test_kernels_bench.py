"""The benchmark's own arithmetic: its fp64 oracle, and a dry run of every table on a CPU with the
clock replaced.
"""

import json
import sys

import pytest
import torch

from nanomerci.kernels import bench


def test_exact_linear_is_the_definition():
    torch.manual_seed(0)
    hidden_ND, weight_VD = (torch.randn(n, 16).requires_grad_() for n in (40, 300))
    ids_N = torch.randint(300, (40,))
    logp_N, dhidden_ND, dweight_rD, rows = bench.exact_linear(hidden_ND, weight_VD, ids_N, tile=70)
    want_N, _ = bench.eager_linear(hidden_ND, weight_VD, ids_N)
    want = torch.autograd.grad(want_N.sum(), (hidden_ND, weight_VD))
    for got, expected in ((logp_N, want_N), (dhidden_ND, want[0]), (dweight_rD, want[1][rows])):
        torch.testing.assert_close(got.float(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_dry_run(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "HEADS", {bench.TARGET: (32, 500)})
    monkeypatch.setattr(
        bench, "milliseconds", lambda function, quick: calls.append(function()) or 1.0
    )
    monkeypatch.setattr(bench, "peak_bytes", lambda function: 2**20)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(bench, "TOKENS", (64,))
    rows = bench.linear_table(1e12, quick=False)
    # what is installed of the others may need a GPU, and then says so in its row
    ran = [row for row in rows if "error_logp" in row]
    # one product of 64 x 32 x 500 in 1 ms; four for both; of a ceiling of 1 TFLOP/s
    assert rows[0]["forward_TFLOPs"] == pytest.approx(2 * 64 * 32 * 500 / 1e-3 / 1e12)
    assert rows[0]["both_%matmul"] == pytest.approx(4 * 2 * 64 * 32 * 500 / 1e-3 / 1e12 * 100)
    # a peak of 1 MiB, less the gradients of hidden states and weights in bf16
    assert rows[0]["workspace_MiB"] == pytest.approx(1 - 2 * (64 + 500) * 32 / 2**20)
    assert all(row["error_logp"] < 0.02 and row["error_dweight"] < 0.02 for row in ran)
    # ours keeps the logits in fp32, eager rounds them to bf16
    assert rows[0]["error_logp"] <= 1e-5 < rows[2]["error_logp"]
    logits = [row for row in bench.logits_table(1e12, quick=False) if "error_dlogits" in row]
    assert len(logits) >= 4 and all(row["error_dlogits"] < 0.02 for row in logits)
    monkeypatch.setattr(bench, "SCORES", [(600, 32, 16)])
    score = bench.score_table(1e12, 1e12, quick=True)
    assert score[0]["floor_ms"] == pytest.approx(2 * 600 * 32 * 32 / 1e12 * 1e3) and all(
        row["error"] < 0.02 for row in score
    )
    drawn = bench.draw_table(1e12, quick=True)
    assert drawn[0]["%copy"] == pytest.approx(100 * 2 * 256 * 151936 / 1e-3 / 1e12)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len([words for words in lines if name in words]) for name in ("ours", "eager")] == [
        4,
        4,
    ]
    assert len(calls) == 2 * len(ran) + 2 * len(logits) + len(score) + len(drawn)


@pytest.mark.skipif(bench.triton is None, reason="Triton is not installed")
def test_a_rival_that_fails_is_a_line_in_the_table_and_our_failure_is_raised(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(bench, "milliseconds", lambda function, quick: function())
    rest = broken, [], None, True, {"forward": 1, "both": 1}, ("GBs", 1e9, "copy", 1e12)
    assert bench.measure("rival", *rest) == {
        "method": "rival",
        "note": "RuntimeError: no kernel image",
    }
    with pytest.raises(RuntimeError):
        bench.measure("ours", *rest)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_head_on_a_cpu(monkeypatch):
    """Eager holds all logits and their gradients at once, ours a tile at a time."""
    monkeypatch.setattr(bench, "HEADS", {"SmolLM2-135M": (64, 20000)})
    ours, eager, *_ = bench.head_table(rounds=1)
    logits = 2048 * 20000 * 4 / 2**20
    assert eager["MiB"] > max(2 * logits, ours["MiB"]) and ours["MiB"] > 0
    assert ours["median_s"] == ours["least_s"] > 0


def test_record_is_json(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "head_table", list)
    monkeypatch.setattr(bench, "toy_table", lambda: [{"method": "ours", "median_ms": 1.0}])
    monkeypatch.setattr(sys, "argv", ["bench", "--toy", "--json", str(tmp_path / "record.json")])
    assert bench.main() == 0
    assert json.loads((tmp_path / "record.json").read_text())["toy"] == [
        {"method": "ours", "median_ms": 1.0}
    ]
