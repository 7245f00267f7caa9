"""Hidden states and log-probs: a prompt that several rows share is forwarded once, and nothing else
changes.
"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from nanomerci.loop import model as model_file
from nanomerci.loop.model import StateReader, enable_gradient_checkpointing, token_logp
from nanomerci.loop.rollout import Rollout, pad

A, B, C = [5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 0], [12, 13]
ROWS = [
    (A, [3, 4]),
    (B, [9]),
    (A, [9]),
    (C, [20, 21, 22]),
    (B, [4, 4, 4]),
    (A, [3, 4]),
    (B + [0], [7, 8]),
    (C, [1]),
]
SHAPES = {
    "ragged": ROWS,
    "one token": [(p, r[:1]) for p, r in ROWS],
    "one prompt": [(A, r) for _, r in ROWS],
}


def rollout(rows):
    tokens_BT = pad([prompt + response for prompt, response in rows])
    mask_BT = pad([[0] * len(prompt) + [1] * len(response) for prompt, response in rows]).float()
    return Rollout(tokens_BT, mask_BT, mask_BT * 0)


def forwarded(model, work):
    """-> what work() returns, and how many tokens the layers saw meanwhile."""
    seen = []
    handle = model.base_model.layers[0].register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1])
    )
    try:
        return work(), sum(seen)
    finally:
        handle.remove()


def plainly(monkeypatch, work):
    """The same without sharing."""

    def states(model, tokens_BT, mask_BT, last=True):
        return model_file.hidden_states(model, tokens_BT), torch.ones_like(tokens_BT[:, 0])

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "states", states)
        return work()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_those_of_whole_rows(
    small, monkeypatch, family, shape, checkpointing
):
    model, roll = small(family), rollout(SHAPES[shape])
    if checkpointing:
        enable_gradient_checkpointing(model)
    weight_BT = torch.rand(roll.mask_BT.shape, generator=torch.Generator().manual_seed(0)) - 0.5

    def learn():
        model.zero_grad()
        logp_BT, entropy_BT = token_logp(model, roll.tokens_BT, roll.mask_BT, 0.9)
        ((logp_BT + entropy_BT) * weight_BT).sum().backward()
        return logp_BT.detach(), entropy_BT.detach(), *(p.grad.clone() for p in model.parameters())

    shared, tokens = forwarded(model, learn)
    whole, plain_tokens = forwarded(model, lambda: plainly(monkeypatch, learn))
    assert tokens < plain_tokens
    for ours, theirs in zip(shared, whole, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-6)
    assert (shared[0] < 0).equal(roll.mask_BT > 0)


def square(hidden_ND):
    return hidden_ND.square().sum(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reader_sees_the_same_states(small, monkeypatch, shape):
    roll = rollout(SHAPES[shape])
    reader = StateReader(small("qwen3").requires_grad_(False), score=square, kl=True)
    place_BT = torch.arange(roll.tokens_BT.numel()).view_as(roll.tokens_BT)

    def look():
        return reader(roll, place_BT)

    (*shared, address_N), tokens = forwarded(reader.model, look)
    (*whole, address_again_N), plain_tokens = forwarded(
        reader.model, lambda: plainly(monkeypatch, look)
    )
    assert tokens < plain_tokens and address_N.equal(address_again_N)
    for ours, theirs in zip(shared, whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_equal_responses_are_forwarded_once_and_every_visit_is_counted(small):
    """Two prompts, rows 0, 2 and 4 alike: what is read is what each row alone reads, under the
    address of each; the same tokens cut elsewhere into prompt and response are another response.
    """
    rows = [
        (A, [4, 5, 1]),
        (B, [4, 5, 1]),
        (A, [4, 5, 1]),
        (A, [7]),
        (A, [4, 5, 1]),
        (A + [4], [5, 1]),
    ]
    roll, model = rollout(rows), small("llama").requires_grad_(False)
    reader = StateReader(model, score=square, kl=True)
    place_BT = torch.arange(roll.tokens_BT.numel()).view_as(roll.tokens_BT)
    (novelty_BT, logp_BT, hidden_ND, address_N), tokens = forwarded(
        model, lambda: reader(roll, place_BT)
    )
    once, fewer = forwarded(model, lambda: reader(roll.rows(torch.tensor([0, 1, 3, 5])), place_BT))
    assert tokens == fewer
    assert novelty_BT[0].equal(novelty_BT[2]) and logp_BT[0].equal(logp_BT[4])
    assert address_N.sort()[0].equal(place_BT[roll.visited_BT].sort()[0])
    scores = dict(zip(address_N.tolist(), square(hidden_ND).tolist(), strict=True))
    for row in range(len(rows)):
        alone = reader(roll.rows(torch.tensor([row])), place_BT)
        width = alone[0].shape[1]
        torch.testing.assert_close(novelty_BT[row, :width], alone[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logp_BT[row, :width], alone[1][0], rtol=1e-4, atol=1e-5)
    for place, novelty in zip(
        place_BT.flatten().tolist(), novelty_BT.flatten().tolist(), strict=True
    ):
        assert novelty == pytest.approx(scores.get(place, 0.0), rel=1e-5)


def test_each_prompt_is_forwarded_once_or_not_apart_at_all(small):
    model = small("llama")

    def tokens(rows):
        roll = rollout(rows)
        return forwarded(model, lambda: token_logp(model, roll.tokens_BT, roll.mask_BT))[1]

    # four prompts, as wide as the longest; the response's only token predicts nothing
    assert tokens(SHAPES["one token"]) == 4 * 8
    assert tokens(SHAPES["one prompt"]) == 1 * 7 + 8 * 2
    # every row its own prompt: nothing to share
    assert tokens([(p, [4] * 3) for p in (A, B, C)]) == 3 * (7 + 3 - 1)
    assert tokens([(C, [4] * 20)] * 8) == 8 * (2 + 20 - 1)  # long responses: not worth it
    model.call = None  # what marks a sharded model
    assert tokens(SHAPES["one prompt"]) == 8 * (7 + 3 - 1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_attention_in_fp32_has_the_values_and_the_gradient_of_fp32(small, family):
    """Of the same bf16 numbers, under autocast or not, with gradients or without; for a single
    query nothing changes.
    """
    model = small(family)
    layer = model.model.layers[0].self_attn
    torch.manual_seed(0)
    heads, shared = model.config.num_attention_heads, model.config.num_key_value_heads
    query = torch.randn(3, heads, 5, layer.head_dim, dtype=torch.bfloat16, requires_grad=True)
    key, value = torch.randn(2, 3, shared, 7, layer.head_dim, dtype=torch.bfloat16)
    for mask in (None, torch.zeros(3, 1, 5, 7).index_fill(3, torch.tensor([6]), -torch.inf)):
        if mask is not None:
            mask = mask.bfloat16()
        one = query[:, :, :1], key, value, None if mask is None else mask[:, :, :1]
        plain = model_file.sdpa_attention_forward(layer, *one)[0]
        assert model_file._attend(layer, *one)[0].equal(plain)
        wide = [x.detach().float().requires_grad_() for x in (query, key, value)]
        wide_mask = None if mask is None else mask.float()
        exact = model_file.sdpa_attention_forward(layer, *wide, wide_mask)[0].bfloat16()
        exact.sum().backward()
        for autocast in (False, True):
            query.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = model_file._attend(layer, query, key, value, mask)[0]
            found.sum().backward()
            with torch.no_grad():
                assert model_file._attend(layer, query, key, value, mask)[0].equal(found)
            assert found.equal(exact) and query.grad.equal(wide[0].grad.bfloat16())


def test_a_model_that_attends_in_fp32_is_the_same_model(small):
    """Also where its layers see a window of the text, by a mask that transformers makes."""
    tokens_BT = torch.arange(24).reshape(2, 12) % 20
    shape = small("qwen2").config.to_dict()
    windowed = MistralConfig(**shape | {"sliding_window": 4, "head_dim": 8, "layer_types": None})
    for model in (small("llama"), AutoModelForCausalLM.from_config(windowed).eval()):
        before = model(tokens_BT).logits
        model_file.attend_in_fp32(model)
        assert model(tokens_BT).logits.equal(before)


KEPT = """
import torch
from nanomerci.runtime import ranks

def resident():  # bytes
    return int(open("/proc/self/statm").read().split()[1]) * 4096

ranks.keep_freed_memory()
torch.ones(1 << 20)
before = resident()
large = torch.ones(1 << 26)
del large
assert resident() - before > 0.9 * (1 << 28), resident() - before
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    subprocess.run([sys.executable, "-c", KEPT], cwd=Path(__file__).parent.parent, check=True)
