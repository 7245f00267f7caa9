"""The sampler: the model's own distribution, whatever the batch looks like."""

import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nanomerci import sample
from nanomerci.loop import decode
from nanomerci.loop.decode import (
    Decoder,
    DecodeStep,
    PackedLinear,
    SlotKVCache,
    bf16_arithmetic,
    inference_copy,
    max_slots,
)
from nanomerci.loop.model import StateReader, tiny, token_logp
from nanomerci.loop.rollout import Rollout, SampleOptions, micro_batches, pad
from nanomerci.loop.text import noise_mask
from nanomerci.runtime.config import UserError
from nanomerci.sample import generate, sample_token, truncate

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
HOW = {"max_new_tokens": 10, "eos_id": [1, 2, 3], "seed": 5}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_greedy_equals_transformers_generate(small, family):
    model = small(family)
    roll = generate(model, PROMPTS, 1, max_new_tokens=12, eos_id=1, temperature=0)
    for prompt, response in zip(PROMPTS, roll.responses(), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert response == theirs


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_sampler_trainer_and_transformers_agree(small, family, temperature):
    model = small(family)
    roll = generate(model, PROMPTS, 4, max_new_tokens=12, eos_id=1, temperature=temperature, seed=3)
    trained_BT, entropy_BT = token_logp(model, roll.tokens_BT, roll.mask_BT, temperature)
    assert (trained_BT - roll.logp_BT).abs().max() < 2e-5
    theirs = (model(roll.tokens_BT).logits[:, :-1] / temperature).log_softmax(-1)
    logp = theirs.gather(2, roll.tokens_BT[:, 1:, None])[..., 0] * roll.mask_BT[:, 1:]
    assert (trained_BT[:, 1:] - logp).abs().max() < 2e-5
    entropy = -(theirs.exp() * theirs).sum(-1) * roll.mask_BT[:, 1:]
    assert (entropy_BT[:, 1:] - entropy).abs().max() < 2e-5


@pytest.mark.parametrize("slots", [3, 4, 7, 512])
def test_a_sample_does_not_depend_on_its_company(small, slots):
    model = small("llama")
    whole = generate(model, PROMPTS, 3, **HOW)
    some = generate(model, PROMPTS, 3, **HOW, options=SampleOptions(slots=slots))
    assert some.responses() == whole.responses()
    assert torch.allclose(some.logp_BT, whole.logp_BT, atol=1e-5)
    order = [2, 0, 3, 1]
    rows = (torch.tensor(order)[:, None] * 3 + torch.arange(3)).flatten()
    prompts = [PROMPTS[p] for p in order]
    shuffled = generate(model, prompts, 3, **HOW, options=SampleOptions(rows=rows))
    assert shuffled.responses() == [whole.responses()[r] for r in rows.tolist()]
    other = generate(model, PROMPTS, 3, **HOW | {"seed": 6})
    assert other.responses() != whole.responses()


def test_samples_follow_the_models_distribution(small):
    """Chi-square of first tokens against the exact probabilities; 30 degrees of freedom, bound at
    six standard deviations.
    """
    model, n = small("llama"), 4000
    roll = generate(model, [[5, 6, 7]], n, max_new_tokens=1, eos_id=1, temperature=1.3)
    p_V = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 1.3).softmax(-1).detach()
    seen_V = torch.bincount(roll.tokens_BT[:, 3], minlength=len(p_V))
    chi = ((seen_V - n * p_V).square() / (n * p_V)).sum().item()
    assert chi < 30 + 6 * math.sqrt(60)


def test_out_of_memory_halves_the_slots_and_changes_nothing(small, monkeypatch):
    model, seen, told, most = small("llama"), [], [], 5
    whole = generate(model, PROMPTS, 3, **HOW)
    forward = DecodeStep.forward

    def cramped(step, token_S, *more):
        seen.append(step.cache.slots)
        if len(token_S) > most:
            raise torch.cuda.OutOfMemoryError("as on a GPU")
        return forward(step, token_S, *more)

    monkeypatch.setattr(DecodeStep, "forward", cramped)
    again = generate(model, PROMPTS, 3, **HOW, options=SampleOptions(progress=told.append))
    assert again.responses() == whole.responses()
    assert list(dict.fromkeys(seen)) == [12, 6, 3] and sum(told) == 12
    most = 2  # less than a group: its rows enter one by one
    again = generate(model, PROMPTS, 3, **HOW)
    assert again.responses() == whole.responses() and seen[-1] == 1
    most = 0
    with pytest.raises(UserError, match="only one row of 16"):
        generate(model, PROMPTS, 6, max_new_tokens=10, eos_id=1)


@pytest.mark.parametrize("slots, parts", [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 6)])
def test_a_group_larger_than_the_slots_enters_in_equal_parts(small, monkeypatch, slots, parts):
    model, entered = small("qwen2"), []
    whole = generate(model, PROMPTS, 6, **HOW)
    prefill = sample.prefill

    def noted(model, cache, prompts, first, n):
        entered.append(n)
        prefill(model, cache, prompts, first, n)

    monkeypatch.setattr(sample, "prefill", noted)
    again = generate(model, PROMPTS, 6, **HOW, options=SampleOptions(slots=slots))
    assert set(entered) == {parts} and again.responses() == whole.responses()
    assert torch.allclose(again.logp_BT, whole.logp_BT, atol=1e-5)


def test_a_decoder_that_is_kept_samples_what_a_new_one_samples(small):
    """After the weights have changed, and when more or longer rows are asked for."""
    model = small("llama")
    sampler = sample.Sampler(model, None, 10)
    decoder = Decoder(model)
    options, steps = SampleOptions(decoder=decoder), []
    for prompts, n in ((PROMPTS, 3), (PROMPTS[:2], 2), (PROMPTS, 4), ([[5] * 12], 2)):
        kept = generate(model, prompts, n, **HOW, options=options)
        new = generate(model, prompts, n, **HOW)
        assert kept.tokens_BT.equal(new.tokens_BT) and kept.logp_BT.equal(new.logp_BT)
        steps.append(decoder.step)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
    assert steps[0] is steps[1] and len({id(step) for step in steps[1:]}) == 3
    assert sampler.decoder is sampler.decoder


def test_fewer_slots_than_a_decoder_has_are_kept_to(small, monkeypatch):
    """Also after it ran out of memory."""
    model, seen = small("llama"), []
    decoder = Decoder(model)
    whole = generate(model, PROMPTS, 3, **HOW, options=SampleOptions(decoder=decoder))
    forward = DecodeStep.forward

    def noted(step, token_S, *more):
        seen.append(len(token_S))
        if len(seen) == 1:
            raise torch.cuda.OutOfMemoryError("as on a GPU")
        return forward(step, token_S, *more)

    monkeypatch.setattr(DecodeStep, "forward", noted)
    options = SampleOptions(decoder=decoder, slots=4)
    again = generate(model, PROMPTS, 3, **HOW, options=options)
    assert again.responses() == whole.responses()
    assert seen[0] == 3 and max(seen[1:]) <= 2  # a group of three in four slots; then in two


def test_a_decoder_gives_up_a_cache_that_there_is_no_room_for_now(small, monkeypatch):
    decoder, room = Decoder(small("llama")), [12]
    monkeypatch.setattr(decode, "max_slots", lambda *_, **__: (room[0], 16, 1))
    monkeypatch.setattr(decode, "announce", lambda *_: None)
    for room[0], found in ((12, 12), (20, 12), (5, 5), (20, 12)):
        generate(decoder.model, PROMPTS, 3, **HOW, options=SampleOptions(decoder=decoder))
        assert decoder.step.cache.slots == found


bf16_only = pytest.mark.skipif(not bf16_arithmetic(), reason="needs bf16 arithmetic")


@pytest.mark.parametrize(
    "weights, autocast, packed",
    [
        (torch.bfloat16, False, False),
        pytest.param(torch.bfloat16, False, True, marks=bf16_only),
        pytest.param(torch.float32, True, True, marks=bf16_only),
    ],
)
def test_weights_that_were_cast_follow_the_model(small, monkeypatch, weights, autocast, packed):
    """Also those of a head that is tied to the embedding."""
    monkeypatch.setattr(decode, "bf16_arithmetic", lambda: packed)
    model = small("qwen2").to(weights)
    model.lm_head.weight = model.model.embed_tokens.weight
    decoder = Decoder(model)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            kept = generate(model, PROMPTS, 3, **HOW, options=SampleOptions(decoder=decoder))
            assert kept.logp_BT.equal(generate(model, PROMPTS, 3, **HOW).logp_BT)
        assert isinstance(decoder.copy.lm_head, PackedLinear) == packed
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
    assert decoder.copy is not model


def test_a_decoder_notices_other_weights_in_the_models_place(small):
    model, other = small("llama"), small("llama")
    decoder = Decoder(model)
    options = SampleOptions(decoder=decoder)
    generate(model, PROMPTS, 3, **HOW, options=options)
    with torch.no_grad():
        for p in other.parameters():
            p.neg_()
    before = decoder.step
    model.load_state_dict(other.state_dict(), assign=True)
    kept = generate(model, PROMPTS, 3, **HOW, options=options)
    assert kept.responses() == generate(other, PROMPTS, 3, **HOW).responses()
    assert decoder.step is not before


def test_a_decoder_keeps_no_large_cache(small, monkeypatch):
    decoder = Decoder(small("llama"))
    for total, kept in ((10**9, True), (10**4, False)):
        monkeypatch.setattr(decode, "memory", lambda device, total=total: total)
        monkeypatch.setattr(decode, "max_slots", lambda *_, **__: (12, 16, 1))
        generate(decoder.model, PROMPTS, 3, **HOW, options=SampleOptions(decoder=decoder))
        assert bool(decoder.step) == kept


def test_slots_fit_in_what_is_there(small):
    model = small("qwen3")
    count, width, size = max_slots(model, 100, torch.bfloat16)
    cache = SlotKVCache(model.config, 1, width, torch.bfloat16, "cpu")
    assert cache.keys.shape[1] == cache.slots == 1 and width == 100
    assert size == sum(store.numel() * store.element_size() for store in (cache.keys, cache.values))
    size += 3 * 4 * 31  # logits, their log-softmax and its sums
    assert 0.2 < count * size / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) <= 0.25


@pytest.mark.parametrize("asked, found", [(0, 7), (4, 4), (512, 7)])
def test_no_more_slots_than_there_is_room_for(small, monkeypatch, asked, found):
    room, made = (7, 16, 1), []
    monkeypatch.setattr(decode, "max_slots", lambda *_, **__: room)
    monkeypatch.setattr(decode, "announce", lambda slots, size, width: made.append((slots, width)))
    generate(small("llama"), PROMPTS, 3, **HOW, options=SampleOptions(slots=asked))
    assert made == [(found, 16)]


def test_on_a_gpu_widths_are_whole_spans_but_within_the_context(monkeypatch):
    """Counted by hand: 5 slots where 10 would take all that is free."""
    config = SimpleNamespace(
        vocab_size=100,
        num_hidden_layers=2,
        num_key_value_heads=1,
        head_dim=8,
        num_attention_heads=1,
    )
    model = SimpleNamespace(device=torch.device("cuda"), config=config, modules=list)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    for longest, context, width in ((1, 4096, 256), (257, 4096, 512), (257, 300, 300)):
        config.max_position_embeddings = context
        size = width * 2 * 2 * 8 * 2
        free = 10 * (size + 3 * 4 * 100)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert max_slots(model, longest, torch.bfloat16) == (5, width, size)


def test_bf16_weights_are_widened_where_the_processor_cannot_multiply_them(small, monkeypatch):
    model = small("llama").to(torch.bfloat16)
    monkeypatch.setattr(decode, "bf16_arithmetic", lambda: False)
    wide = inference_copy(model)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    roll = generate(model, PROMPTS, 4, max_new_tokens=12, eos_id=1, seed=3)
    assert (token_logp(wide, roll.tokens_BT, roll.mask_BT)[0] - roll.logp_BT).abs().max() < 2e-5


@bf16_only
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 576, 1536), (7, 3, 5), (33, 129, 70)])
def test_a_packed_layer_multiplies_as_linear_does(rows, inputs, outputs, bias):
    """Against the exact product of the numbers rounded to bf16: 8 bits remain of it, and sums are
    made in fp32.
    """
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(inputs, outputs, bias), torch.randn(rows, 1, inputs)
    layer.__class__ = PackedLinear
    layer.pack()
    rounded, weight = x.bfloat16().double(), layer.weight.bfloat16().double()
    exact, terms = rounded @ weight.T, rounded.abs() @ weight.abs().T
    if bias:
        added = layer.bias.bfloat16().double()
        exact, terms = exact + added, terms + added.abs()
    found = layer(x)
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert ((found - exact).abs() <= 2**-8 * exact.abs() + inputs * 2**-23 * terms).all()


@bf16_only
def test_what_is_packed(small, monkeypatch):
    """What is multiplied in bf16 where there is room, but no layer whose forward is its own; the
    weights, also a sharded model's, stay the model's.
    """
    model = small("llama")
    model.shards = list(model.parameters())
    assert inference_copy(model) is model

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.model.layers[0].mlp.up_proj.__class__ = Doubled
    with torch.autocast("cpu", torch.bfloat16):
        packed = inference_copy(model)
    kinds = [type(m) for m in packed.modules() if isinstance(m, torch.nn.Linear)]
    assert kinds.count(Doubled) == 1 and set(kinds) == {Doubled, PackedLinear}
    assert {p.data_ptr() for p in packed.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert packed.shards[0] is model.shards[0] and PackedLinear not in map(type, model.modules())
    model.model.bfloat16()  # the head stays in fp32, and its layer is none of bf16
    mixed = inference_copy(model)
    assert type(mixed.model.layers[1].mlp.up_proj) is PackedLinear
    assert type(mixed.lm_head) is torch.nn.Linear
    monkeypatch.setattr(decode, "memory", lambda device: 4 * 2 * model.num_parameters() - 1)
    assert inference_copy(model) is model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 5}], ids=str)
def test_captured_steps_on_a_gpu_are_those_not_captured(small, monkeypatch, autocast, how):
    """With a decoder that is kept and with a new one, before and after the weights change."""
    model = small("qwen2").to("cuda")
    decoder = Decoder(model)
    options = SampleOptions(decoder=decoder, slots=7)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            kept = generate(model, PROMPTS, 3, **HOW | how, options=options)
            new = generate(model, PROMPTS, 3, **HOW | how, options=SampleOptions(slots=7))
            with monkeypatch.context() as patch:
                patch.setattr(DecodeStep, "__call__", DecodeStep.forward)
                eager = generate(model, PROMPTS, 3, **HOW | how, options=SampleOptions(slots=7))
        assert kept.responses() == new.responses() and kept.logp_BT.equal(new.logp_BT)
        if not autocast:  # in bf16 another number of rows rounds differently
            assert kept.responses() == eager.responses()
            assert torch.allclose(kept.logp_BT, eager.logp_BT, atol=1e-4)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)


def test_every_token_is_streamed_as_it_is_drawn(small):
    seen = [[] for _ in range(12)]
    options = SampleOptions(slots=4, stream=lambda row, token: seen[row].append(token))
    roll = generate(small("llama"), PROMPTS, 3, **HOW, options=options)
    assert seen == roll.responses()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("slots, most", [(3, 10), (7, 10), (512, 10), (3, 1)])
def test_the_states_it_went_through_are_those_of_a_forward_of_the_whole_text(
    small, family, slots, most
):
    model, how = small(family), HOW | {"max_new_tokens": most}
    alone = generate(model, PROMPTS, 3, **how)
    roll = generate(model, PROMPTS, 3, **how, options=SampleOptions(slots=slots, states=True))
    assert alone.states_BRD is None
    assert roll.tokens_BT.equal(alone.tokens_BT) and roll.mask_BT.equal(alone.mask_BT)
    # other slots, other shapes of matrix products: a few roundings of a log-prob of at most 20
    assert torch.allclose(roll.logp_BT, alone.logp_BT, atol=1e-5)
    if slots >= len(alone.tokens_BT):
        assert roll.logp_BT.equal(alone.logp_BT)  # handing states over changes no bit
    lengths = roll.length_B.long().tolist()
    if most > 1:  # some ended themselves, some were cut off
        assert len(set(lengths)) > 1 and max(lengths) == most
    for row, length in enumerate(lengths):
        start = len(PROMPTS[row // 3])
        text_T = roll.tokens_BT[row, : start + length]
        theirs_TD = model.model(text_T[None]).last_hidden_state[0, start:-1]  # the last is terminal
        assert torch.allclose(roll.states_BRD[row, : length - 1], theirs_TD, atol=2e-5)
        assert not roll.states_BRD[row, length - 1 :].any()


def test_what_has_states_fits_in_the_context(monkeypatch):
    """Also the last column of the cache, where rows that nobody reads are parked: its position must
    be one the model has.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    gpt2, made = GPT2LMHeadModel(config).eval(), []

    def noted(*given):
        made.append(SlotKVCache(*given))
        return made[-1]

    monkeypatch.setattr(decode, "SlotKVCache", noted)
    how = {"max_new_tokens": 10, "eos_id": 31}
    roll = generate(gpt2, PROMPTS, 3, **how, options=SampleOptions(states=True))
    assert int(roll.end_B.max()) == 16 and roll.states_BRD.shape == (12, 9, 16)
    token_S, last = torch.zeros(2, dtype=torch.int64), made[0].width - 1
    with torch.inference_mode():
        newest = token_S, torch.full((2,), last), torch.zeros(2)
        DecodeStep(gpt2, made[0]).forward(*newest, made[0].width, sample_token)


def mean_square(hidden_ND):
    return hidden_ND.square().mean(1)


@pytest.mark.parametrize("budget", [20, 4096])
def test_states_that_the_sampler_went_through_are_read_like_those_of_a_forward(small, budget):
    model = small("llama")
    roll = generate(model, PROMPTS, 3, **HOW, options=SampleOptions(states=True))
    visit_BT = torch.arange(roll.tokens_BT.numel()).view(roll.tokens_BT.shape)
    reader = StateReader(model, score=mean_square, budget=budget)
    novelty_BT, _, hidden_ND, address_N = reader(roll, visit_BT)
    again_BT, _, again_ND, again_N = reader(replace(roll, states_BRD=None), visit_BT)
    assert torch.allclose(novelty_BT, again_BT, atol=2e-5)
    assert (novelty_BT > 0).equal(roll.visited_BT) and len(address_N) == roll.visited_BT.sum()
    assert torch.allclose(hidden_ND, again_ND, atol=2e-5) and address_N.equal(again_N)


def test_the_state_after_a_responses_last_token_is_not_visited():
    mask_BT = torch.tensor([[0.0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])
    roll = Rollout(mask_BT.long(), mask_BT, mask_BT)
    visited = [[False, True, True, False], [False] * 4, [True, False, False, False]]
    assert roll.visited_BT.tolist() == visited and roll.length_B.tolist() == [3, 1, 2]


def test_layout_of_a_rollout(small):
    model = small("llama")
    roll = generate(model, PROMPTS, 2, max_new_tokens=5, eos_id=[1, 2, 3, 4, 5, 6, 7, 8])
    for row, tokens in enumerate(roll.tokens_BT.tolist()):
        prompt = PROMPTS[row // 2]
        mask, start = roll.mask_BT[row].tolist(), len(prompt)
        length = int(sum(mask))
        assert tokens[:start] == prompt and 1 <= length <= 5
        assert mask == [0] * start + [1] * length + [0] * (len(mask) - start - length)
        response = tokens[start : start + length]
        assert all(t > 8 for t in response[:-1]) and (response[-1] in range(1, 9) or length == 5)
        assert (roll.logp_BT[row][torch.tensor(mask) == 0] == 0).all()
        assert (roll.logp_BT[row] <= 0).all()
        assert int(roll.end_B[row]) == start + length == start + int(roll.length_B[row])
    assert roll.rows(torch.tensor([2, 3])).tokens_BT.shape[1] == int(roll.end_B[2:4].max())


def test_truncation_keeps_the_right_tokens():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()

    def kept(logits_SV):
        return (logits_SV > -torch.inf)[0].tolist()

    assert kept(truncate(logits, top_k=2)) == [False, True, True, False]
    assert kept(truncate(logits, top_p=0.69)) == [False, True, True, False]
    assert kept(truncate(logits, top_p=0.71)) == [False, True, True, True]
    assert kept(truncate(logits, top_p=1e-9)) == [False, True, False, False]
    assert kept(truncate(logits)) == [True] * 4


def test_a_draw_inverts_the_distribution_function_and_never_takes_the_impossible():
    logits = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).log().expand(5, 4)
    ids, logp = sample_token(logits, torch.tensor([0.0, 0.2499, 0.2501, 0.9, 1 - 2.0**-23]))
    assert ids.tolist() == [1, 1, 2, 2, 2]
    assert torch.allclose(logp.exp(), torch.tensor([0.25, 0.25, 0.75, 0.75, 0.75]))
    ids, logp = sample_token(logits, torch.zeros(5), top_k=1)
    # under the truncated distribution
    assert ids.tolist() == [2] * 5 and torch.allclose(logp, torch.zeros(5), atol=1e-6)


def test_micro_batches_cover_every_row_once_within_the_budget():
    length_B = torch.tensor([3, 50, 7, 7, 100, 1, 30])
    parts = micro_batches(length_B, 60)
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    for part in parts:
        assert len(part) == 1 or len(part) * int(length_B[part].max()) <= 60
    assert parts[0].tolist() == [4]  # the longest first


SPANS = [
    ((4, 7), [2]),
    ((5, 6), [2]),
    ((0, 18), [1, 2, 3, 4]),
    ((6, 9), [2, 3]),
    ((4, 4), []),
]


@pytest.mark.parametrize("span, expected", SPANS)
def test_noise_spans_become_tokens(span, expected):
    _, tokenizer = tiny(["one", "two", "three", "four"])
    ids = tokenizer("one two three four")["input_ids"]
    tokens_BT, mask_BT = pad([[9, *ids]]), torch.tensor([[0.0, 1, 1, 1, 1]])
    roll = Rollout(tokens_BT, mask_BT, mask_BT)
    assert noise_mask(tokenizer, roll, [[span]])[0].nonzero()[:, 0].tolist() == expected
