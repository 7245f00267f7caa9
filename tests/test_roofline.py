"""Counted by hand for a model small enough, and on a GPU that is only named."""

from types import SimpleNamespace

import pytest
import torch

from nanomerci.loop import cost
from nanomerci.loop.rollout import Rollout
from nanomerci.runtime.config import Config

CONFIG = SimpleNamespace(
    hidden_size=8, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
)  # heads of 2


def test_forward_is_weights_and_causal_attention():
    # scores and sums: 2 products x 2 operations x 8 wide x 3 layers for each of the T^2 / 2 pairs
    assert (
        cost.forward_flops(CONFIG, 100, torch.tensor([4, 10]))
        == 2 * 100 * 14 + 4 * 8 * 3 * (4**2 + 10**2) / 2
    )


def test_measured_by_the_flops_that_pytorch_counts(small):
    from torch.utils.flop_counter import FlopCounterMode

    model, T = small("llama"), 60
    model.set_attn_implementation("eager")  # all pairs, and as products that PyTorch counts
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, T, dtype=torch.int64))
    c = model.config
    embedding, norms = c.vocab_size * c.hidden_size, c.hidden_size * (2 * c.num_hidden_layers + 1)
    multiplied = model.num_parameters() - norms - embedding * (not c.tie_word_embeddings)
    weights = cost.forward_flops(c, multiplied, torch.tensor([T])) - cost.forward_flops(
        c, 0, torch.tensor([T])
    )
    assert counter.get_total_flops() == weights + 2 * cost.forward_flops(
        c, 0, torch.tensor([T])
    )  # the causal half is needed


def test_bytes_are_weights_at_every_step_and_the_cache_behind_every_token():
    start_B, end_B = torch.tensor([2, 2]), torch.tensor([4, 6])
    cell = 2 * 3 * 2 * 2 * 2  # key and value, layers, heads, head size, bytes
    behind = (
        (2 + 3) + (2 + 3 + 4 + 5) + 1 / 2 * (2 + 4)
    )  # a token's own key and value count half: read, or not
    assert cost.bytes_read(CONFIG, 1000, start_B, end_B, 8, 2) == 4 * 1000 + cell * behind
    assert (
        cost.bytes_read(CONFIG, 1000, start_B, end_B, 1, 2) == 6 * 1000 + cell * behind
    )  # one after the other


def test_only_where_the_peak_is_known(monkeypatch):
    mask_BT = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    roll = Rollout(torch.zeros(2, 3, dtype=torch.int64), mask_BT, mask_BT)
    policy = SimpleNamespace(device=torch.device("cpu"), config=CONFIG, num_parameters=lambda: 100)
    seconds = {"time/update": 2.0, "time/sample": 4.0}
    found = lambda dtype="bfloat16", kl=0.0: cost.utilisation(
        Config(dtype=dtype, kl_coef=kl), policy, [roll], roll, torch.tensor([1.0, 0.0]), seconds
    )
    assert found() == {}
    for name, (flops, bandwidth) in (
        ("NVIDIA H200", (989e12, 4.8e12)),
        ("NVIDIA H100 PCIe", (756e12, 2.0e12)),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        policy.device = torch.device("cuda")
        assert found("float32") == {}
        one, two = (
            3 * cost.forward_flops(CONFIG, 100, torch.tensor(lengths)) for lengths in ([3], [3, 2])
        )
        least = cost.bytes_read(CONFIG, 200, torch.tensor([1, 1]), torch.tensor([3, 2]), 2, 2)
        assert found() == pytest.approx(
            {"speed/mfu": one / flops / 2, "speed/bandwidth": least / bandwidth / 4}
        )
        assert found(kl=0.1)["speed/mfu"] == pytest.approx(two / flops / 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 5090")
    assert found() == {}
