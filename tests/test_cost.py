"""Counted by hand for a model small enough, and on a GPU that is only named."""

import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import yaml

from nanomerci.loop import cost
from nanomerci.loop.rollout import Batch, Group
from nanomerci.runtime.config import Config, parse

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
    none_GT, zero_G = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2)
    tokens = none_GT, mask_BT, mask_BT, mask_BT, none_GT, mask_BT
    group = Group(0, None, *tokens, zero_G, zero_G, [None] * 2, [""] * 2, [None] * 2)
    batch = Batch.of([group], 2, torch.device("cpu"))
    policy = SimpleNamespace(device=torch.device("cpu"), config=CONFIG, num_parameters=lambda: 100)
    seconds = {"time/update": 2.0, "time/sample": 4.0}

    def found(dtype="bfloat16", kl=0.0):
        c, adv = Config(dtype=dtype, kl_coef=kl, group=2), torch.tensor([1.0, 0.0])
        return cost.utilisation(c, policy, [[group]], batch, adv, seconds)

    assert found() == {}
    for name, (flops, bandwidth) in (
        ("NVIDIA H200", (989e12, 4.8e12)),
        ("NVIDIA H100 PCIe", (756e12, 2.0e12)),
        ("A100-SXM4-40GB", (312e12, 1.555e12)),  # as older drivers call it
        ("NVIDIA A100-SXM4-80GB", (312e12, 1.935e12)),
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
    for name in ("NVIDIA GeForce RTX 5090", "NVIDIA GH200 480GB"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert found() == {}


def test_the_plan_of_a_model_counted_by_hand():
    """Of Qwen2.5-Math-7B as the paper trains it: 16 bytes per parameter for weights, gradients and
    moments, over 8 ranks; the frozen model too, in bf16; the copy to sample from whole.
    """
    config, n = cost.config_of(*cost.KNOWN["Qwen2.5-Math-7B"]), 7_615_616_512
    assert cost.parameters(config) == n
    c = Config(
        bonus="cfn",
        dtype="bfloat16",
        shard="fsdp",
        prompts=64,
        max_num_seqs=32,
        gradient_checkpointing=True,
    )
    plan, slots = cost.plan(c, config, n, 4096, 8, 80e9)
    assert slots == 32
    parts = {what: size for rows in plan.values() for what, size, _ in rows}
    assert parts["weights"] == parts["gradients"] == 4 * n / 8 == parts["optimiser"] / 2
    assert 8 * parts["frozen model"] == parts["copy"] == 2 * n
    # slots, tokens, key and value, layers, heads of keys and values, head size, bytes
    assert parts["KV cache"] == 32 * 4096 * 2 * 28 * 4 * 128 * 2
    always, sampling, updating = (sum(s for _, s, _ in rows) for rows in plan.values())
    assert cost.peak_bytes(plan) == always + max(sampling, updating)
    assert plan["always"][-1][0] == "KV cache"  # below an eighth of the card: it is kept
    alone, _ = cost.plan(c, config, n, 4096, 1, 80e9)
    assert cost.peak_bytes(alone) > 16 * n > 80e9 > cost.peak_bytes(plan)


def test_slots_are_as_many_as_the_card_has_room_for():
    """Half of what weights leave of it: as decode.max_slots() takes them on a GPU."""
    config, n = cost.config_of(*cost.KNOWN["Llama-3.1-8B"]), 8_030_261_248
    c = Config(bonus="none", dtype="bfloat16", shard="fsdp", prompts=64, max_num_seqs=64)
    a_slot = 20_000 * 2 * 32 * 8 * 128 * 2 + 12 * 128_256
    for card in (40e9, 80e9, 141e9):
        parts, slots = cost.plan(c, config, n, 20_000, 8, card)
        always = sum(size for what, size, _ in parts["always"] if what != "KV cache")
        assert slots == int((card - always) / 2 / a_slot) < 64
        (cache,) = (r[1] for rows in parts.values() for r in rows if r[0] == "KV cache")
        assert cache == slots * 20_000 * 2 * 32 * 8 * 128 * 2
        assert (parts["always"][-1][0] == "KV cache") == (cache <= card / 8)


@pytest.mark.parametrize("recipe", ["llama3_sql_grpo_cfn", "qwen2.5_math_dapo_cfn"])
def test_a_verdict_names_what_would_make_it_fit(recipe):
    """Each verdict against the plan of what it names."""
    given = parse([recipe])
    model = "Llama-3.1-8B" if "llama" in recipe else "Qwen2.5-Math-7B"
    config = cost.config_of(*cost.KNOWN[model])
    n, width = cost.parameters(config), given.max_new_tokens + 2048
    greedy = replace(given, gradient_checkpointing=False), replace(given, micro_batch_tokens=10**6)

    def fits(c, fleet, card):
        return cost.peak_bytes(cost.plan(c, config, n, width, fleet, card)[0]) < card

    seen, remedies = set(), set()
    for c, fleet, card in product((given, *greedy), (1, 4, 8), (40e9, 80e9, 141e9)):
        said = cost.verdict(c, config, n, width, fleet, card)
        seen.add(said.startswith("fits"))
        assert said.startswith("fits") == fits(c, fleet, card)
        if option := re.fullmatch(r"does not fit; (.*) would", said):
            remedies.add(option[1])
            words = option[1].split()
            values = map(yaml.safe_load, words[1::2])
            values = {name[2:]: value for name, value in zip(words[::2], values, strict=True)}
            assert fits(replace(c, **values), fleet, card)
        if ranks := re.fullmatch(r"does not fit on \d+ ranks; (\d+) would", said):
            remedies.add("ranks")
            assert fits(c, int(ranks[1]), card)
    assert "ranks" in remedies and len(remedies) > 1
    assert seen == {True, False}
