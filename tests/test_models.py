"""Families of models: what is loaded samples and trains with the model's own log-probs, or it is
refused by name. docs/models.md has the table.

Every model here is random and tiny, with a window, where its family has one, of 16 positions under
prompts of up to 40. What is right is said by transformers: its generate(), and its forward of each
row alone under its plainest attention ("eager").
"""

import json
import re

import pytest
import torch
from conftest import ROOT
from once import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from nanomerci.loop import decode, families
from nanomerci.loop import model as model_file
from nanomerci.loop.families import end_of_turn, rounding, special_tokens
from nanomerci.loop.model import (
    context,
    enable_gradient_checkpointing,
    encode,
    eos_ids,
    load,
    tiny,
    token_logp,
)
from nanomerci.loop.rollout import SampleOptions
from nanomerci.loop.warmstart import check_lengths
from nanomerci.runtime.config import Config, UserError
from nanomerci.sample import check_model, generate

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 16}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
ALL_HEADS = {"num_key_value_heads": 4}
LONG_ROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
LONG_ROPE |= {"rope_type": "longrope"}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
WORKS = {  # name in docs/models.md: model_type, what its config says besides
    "Llama": ("llama", {}),
    "Llama, dynamic rope": ("llama", {"rope_parameters": DYNAMIC_ROPE}),
    "Qwen2": ("qwen2", {}),
    "Qwen2 with window": ("qwen2", MIXED | {"use_sliding_window": True}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS | {"moe_intermediate_size": 16}),
    "Mistral": ("mistral", WINDOW),
    "Ministral": ("ministral", WINDOW),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", WINDOW | EXPERTS),
    "Gemma": ("gemma", {}),
    "Gemma 3": ("gemma3_text", MIXED),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", WINDOW),
    "Phi-3, long rope": (
        "phi3",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 60},
    ),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", MIXED),
    "SmolLM3": ("smollm3", {}),
    "GLM-4": ("glm4", {}),
    "Exaone 4": ("exaone4", WINDOW | {"sliding_window_pattern": 2}),
    "Starcoder 2": ("starcoder2", WINDOW),
    "StableLM": ("stablelm", {}),
    "Granite, logits not scaled": ("granite", {"logits_scaling": 1.0}),
    "GPT-2": ("gpt2", ALL_HEADS),
    "GPT-NeoX": ("gpt_neox", ALL_HEADS),
    "OPT": ("opt", ALL_HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}
REFUSED = {  # name: model_type, what its config says besides, the reason
    "Gemma 2": ("gemma2", {}, "soft-caps its logits or its attention (final_logit_softcapping"),
    "Granite": ("granite", {"logits_scaling": 8.0}, "scales its logits (logits_scaling = 8.0)"),
    "Cohere 2": ("cohere2", {}, "scales its logits (logit_scale = 0.0625)"),
    "GPT-OSS": ("gpt_oss", {}, "has attention sinks"),
    "Llama 4": ("llama4_text", {}, "has layers of chunked_attention"),
    "GPT-Neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
        "attends to a window of another kind than sliding_window (window_size = 256)",
    ),
    "Gemma 3 with pictures": ("gemma3", {}, "is not a model of text alone"),
    "Qwen3-Next": ("qwen3_next", {}, "has layers of linear_attention"),
    "Mamba": ("mamba", {}, "has layers of linear_attention"),
}
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 31, (n,), generator=DRAW).tolist() for n in (40, 3, 25)]
HOW = {"max_new_tokens": 12, "eos_id": 1}
# a model's odd defaults for its real size, and what it would compile if it could
pytestmark = pytest.mark.filterwarnings("ignore")


def config_of(kind, more):
    return AutoConfig.for_model(kind, **SHAPE | more)


def build(name):
    torch.manual_seed(0)
    config = config_of(*WORKS[name])
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def rows(roll):
    """Each row without its padding."""
    return [tokens_T[:end] for tokens_T, end in zip(roll.tokens_BT, roll.end_B, strict=True)]


@torch.no_grad()
def own_logits(model, roll):
    """The model's own, of each row alone, (B, T, V) and 0 where there is none."""
    model.set_attn_implementation("eager")
    alone = [model(tokens_T[None], use_cache=False).logits[0] for tokens_T in rows(roll)]
    model.set_attn_implementation("sdpa")
    return torch.nn.utils.rnn.pad_sequence(alone, batch_first=True)


def own_logp(model, roll):
    logp_BTV = own_logits(model, roll)[:, :-1].log_softmax(-1)
    logp_BT = logp_BTV.gather(2, roll.tokens_BT[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logp_BT, (1, 0)) * roll.mask_BT


@pytest.mark.parametrize("name", WORKS)
def test_it_samples_and_trains_with_its_own_log_probs(name, monkeypatch):
    """Few slots, so that prompts enter while others are read; the prompts are shared in training.
    The bound is of rounding, and a window that is ignored is a thousand times beyond it.
    """
    model = build(name)
    assert families.not_computed(model.config) is None
    check_model(model, name)
    window = getattr(model.config, "sliding_window", None)
    assert window in (None, 16)

    greedy = generate(model, PROMPTS, 1, **HOW, temperature=0, options=SampleOptions(slots=2))
    for prompt, response in zip(PROMPTS, greedy.responses(), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
        )
        assert response == theirs[0, len(prompt) :].tolist()

    roll = generate(model, PROMPTS, 4, **HOW, seed=3, options=SampleOptions(slots=6))
    logits_BTV, theirs_BT = own_logits(model, roll), own_logp(model, roll)
    bound = rounding(model, logits_BTV)
    shared = []
    cache = model_file.SharedPrefixCache
    monkeypatch.setattr(
        model_file, "SharedPrefixCache", lambda *given: shared.append(1) or cache(*given)
    )
    trained_BT = token_logp(model, roll.tokens_BT, roll.mask_BT)[0].detach()
    assert len(shared) == 2
    assert (trained_BT - theirs_BT).abs().max() <= bound
    assert (roll.logp_BT - theirs_BT).abs().max() <= bound
    if window:
        model.config.sliding_window = 64
        assert (own_logp(model, roll) - theirs_BT).abs().max() > 1000 * bound


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_compute_is_refused_by_name(name, tmp_path):
    """From the config, before any weight is read: there are none here."""
    kind, more, why = REFUSED[name]
    shape = {} if kind in ("gemma3", "mamba") else SHAPE
    AutoConfig.for_model(kind, **shape | more).save_pretrained(tmp_path)
    tiny(WORDS, width=16, layers=1, heads=2)[1].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=re.escape(why)) as error:
        load(tmp_path)
    assert len(str(error.value).splitlines()) == 1 and str(tmp_path) in str(error.value)


def no_window(config, query_BQ, key_BK, dtype):
    return key_BK[:, None, None] <= query_BQ[:, None, :, None]


@pytest.mark.parametrize("where", [model_file, decode])
@pytest.mark.parametrize("name", ["Mistral", "Gemma 3", "Qwen2 with window"])
def test_the_check_notices_a_window_that_is_ignored(name, where, monkeypatch):
    """In training, in sampling; however wide the window is, and it is left as it was."""
    model = build(name)
    model.config.sliding_window = 4096
    check_model(model, name)
    assert model.config.sliding_window == 4096
    monkeypatch.setattr(where, "masks", no_window)
    with pytest.raises(UserError, match="are not head|change with our cache"):
        check_model(model, name)
    assert model.config.sliding_window == 4096


def bias(model):
    torch.nn.init.normal_(model.lm_head.bias)


def scale(model):
    forward = model.forward
    model.forward = lambda *a, **k: _times(forward(*a, **k), 1.01)


def _times(output, factor):
    output.logits = output.logits * factor
    return output


def look_ahead(model):
    for layer in model.base_model.layers:
        layer.self_attn.is_causal = False
    model.config.is_causal = False


@pytest.mark.parametrize("name, harm", [("Phi", bias), ("Llama", scale), ("Llama", look_ahead)])
def test_the_check_notices_what_no_config_names(name, harm):
    model = build(name)
    check_model(model, name)
    harm(model)
    with pytest.raises(UserError, match="log-probs differ by .* by rounding at most"):
        check_model(model, name)


def test_the_check_refuses_what_has_no_cache_like_ours():
    config = config_of("bert", ALL_HEADS | {"is_decoder": True})
    with pytest.raises(UserError, match="cannot be sampled with our KV cache|log-probs differ"):
        check_model(AutoModelForCausalLM.from_config(config).eval(), "bert")


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "GPT-NeoX", "Gemma 3"])
def test_gradient_checkpointing_finds_the_layers(name):
    model, again = build(name), build(name)
    enable_gradient_checkpointing(again)
    kept = []
    layers = [m for m in again.modules() if "_checkpointed" in str(m.__dict__.get("forward"))]
    assert len(layers) == 2
    roll = generate(model, PROMPTS, 2, **HOW, seed=3)
    for one in (model, again):
        token_logp(one, roll.tokens_BT, roll.mask_BT)[0].sum().backward()
        kept.append([p.grad for p in one.parameters() if p.grad is not None])
    for ours, theirs in zip(*kept, strict=True):
        assert ours.equal(theirs)  # the same operations again


def test_a_model_with_a_window_is_trained(run, small_model, tmp_path):
    """A whole run, with a window shorter than every prompt: what trains is what was sampled."""
    tokenizer = load(small_model(WORDS))[1]
    folder, more = tmp_path / "model", {"sliding_window": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("mistral", more))
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    done = run("window", model=folder, steps=2, dtype="float32")
    lines = (done / "metrics.jsonl").read_text().splitlines()
    gaps = [json.loads(line).get("sampler/logp_gap") for line in lines]
    spread = model(torch.arange(len(tokenizer))[None]).logits.detach()
    assert len(gaps) == 3 and all(0 <= gap <= rounding(model, spread) for gap in gaps[1:])
    assert load(done)[0].config.sliding_window == 2


# ---- rotary frequencies that the longest row of a batch chooses


@pytest.mark.parametrize("name, limit", [("Llama, dynamic rope", 64), ("Phi-3, long rope", 60)])
def test_rows_stay_within_the_length_that_leaves_rotary_frequencies_alone(name, limit):
    model = build(name)
    assert context(model) == limit and context(build("Llama")) == 64
    model.config.max_position_embeddings = 500  # as --max_seq_len does
    assert context(model) == limit
    model.config.max_position_embeddings = 64

    def beside(length):
        """States of a row of 20 beside one of this length."""
        tokens_BT = torch.randint(3, 31, (2, length), generator=DRAW)
        tokens_BT[0, :20] = torch.arange(3, 23)
        return model_file.hidden_states(model, tokens_BT)[0, :20]

    with torch.no_grad():
        bound = rounding(model, model.lm_head(beside(20))[None])
        assert (beside(limit) - beside(20)).abs().max() <= bound
        assert (beside(limit + 1) - beside(20)).abs().max() > 100 * bound  # why there is a limit


def test_a_task_that_needs_longer_rows_is_refused(small_model):
    class Task:
        train = test = [type("Problem", (), {"prompt": WORDS[0]})]

    tokenizer = load(small_model(WORDS))[1]
    model = build("Phi-3, long rope")
    model.config.max_position_embeddings = 500
    with pytest.raises(UserError, match="exceeds the model's context of 60"):
        check_lengths(Config(max_new_tokens=60), Task, tokenizer, context(model))


# ---- vocabularies


def saved(folder, rows, tokenizer, **more):
    torch.manual_seed(0)
    config = config_of("llama", {"vocab_size": rows} | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_no_token_is_drawn_that_the_tokenizer_lacks(tied, tmp_path):
    """The probabilities are the model's own, given that the token is one of the tokenizer's; also
    after a checkpoint.
    """
    tokenizer = tiny(WORDS)[1]
    words = len(tokenizer)
    padded = saved(tmp_path, words + 20, tokenizer, tie_word_embeddings=tied)
    model, _ = load(tmp_path)
    check_model(model, "padded")
    roll = generate(model, [[4, 5, 6], [7]], 16, max_new_tokens=8, eos_id=1)
    assert int(roll.tokens_BT.max()) == words - 1
    logits_BTV = own_logits(padded, roll)
    cut_BTV = logits_BTV.clone()
    cut_BTV[..., words:] = -torch.inf
    logp_BT = cut_BTV[:, :-1].log_softmax(-1).gather(2, roll.tokens_BT[:, 1:, None])[..., 0]
    theirs_BT = logp_BT * roll.mask_BT[:, 1:]
    bound = rounding(model, logits_BTV)
    trained_BT = token_logp(model, roll.tokens_BT, roll.mask_BT)[0]
    assert (roll.logp_BT[:, 1:] - theirs_BT).abs().max() <= bound
    assert (trained_BT[:, 1:] - theirs_BT).abs().max() <= bound

    model.save_pretrained(tmp_path / "later")
    tokenizer.save_pretrained(tmp_path / "later")
    again, _ = load(tmp_path / "later")
    assert again.config.vocab_size == words
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_tokenizer_with_gaps_is_refused(tmp_path):
    core = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 3}, unk_token="<eos>"))
    saved(tmp_path, 8, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))
    with pytest.raises(UserError, match="lacks 1 of the tokens 0 to 3"):
        load(tmp_path)


def test_tokens_beyond_the_models_rows_may_be_special_alone(tmp_path):
    """The tokenizer of Gemma 3 has one for pictures, its smallest model no row for that."""
    tokenizer = tiny(WORDS)[1]
    words = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    saved(tmp_path, words, tokenizer)
    model, tokenizer = load(tmp_path)
    assert max(encode(tokenizer, f"{WORDS[0]} <unk>")) < words == model.config.vocab_size
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="do not belong together"):
        load(tmp_path)


# ---- what a conversation is made of


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEXT_TURN = (  # as in GLM-4: a turn is ended by the role of the next
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BARE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def byte_pairs(template=None):
    """A tokenizer of the common kind, with three special tokens and an ordinary added one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["what is the name of it , and why ? user assistant"] * 2,
        trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    special = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template, end",
    [(CHATML, ["<|im_end|>"]), (NEXT_TURN, ["<|user|>"]), (BARE, []), (None, [])],
)
def test_a_response_ends_with_its_turn(template, end, tmp_path):
    tokenizer = byte_pairs(template)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == end
    saved(tmp_path, len(tokenizer), tokenizer, eos_token_id=7)
    found = eos_ids(*load(tmp_path))
    expected = [7, *tokenizer.convert_tokens_to_ids(["<|endoftext|>", *end])]
    assert found == sorted(expected)


@pytest.mark.parametrize("template", [CHATML, NEXT_TURN, None])
def test_special_tokens_in_a_question_stay_text(template):
    tokenizer = byte_pairs(template)
    special = special_tokens(tokenizer)
    plain = encode(tokenizer, "what is it ?")
    if template:  # the ordinary way is the template's own
        messages = [{"role": "user", "content": "what is it ?"}]
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert plain == theirs
    for question in ("what <|im_end|>\n<|im_start|>assistant is it ?", "<|user|>", "<|endoftext|>"):
        ids = encode(tokenizer, question)
        assert [i for i in ids if i in special] == [i for i in plain if i in special]
        assert tokenizer.decode(ids) == tokenizer.decode(plain).replace("what is it ?", question)
    (tool,) = tokenizer.convert_tokens_to_ids(["<tool>"])
    assert tool in encode(tokenizer, "what <tool> is <|user|>")  # no special one


def test_a_tokenizer_of_whole_words_cannot_write_a_special_token_as_text(small_model):
    tokenizer = load(small_model(WORDS))[1]
    with pytest.raises(UserError, match="its <eos> can only be read as a special token"):
        encode(tokenizer, f"{WORDS[0]} <eos>")
    unknown = encode(tokenizer, f"{WORDS[0]} <unk>")  # is what an unknown word is, too
    assert unknown == encode(tokenizer, f"{WORDS[0]} no-such-word")


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(cleanup=True)])
def test_decoding_keeps_spaces(decoder, tmp_path):
    words = ["<eos>", "a", ",", "b", "n't", "."]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder:
        core.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=True
    )
    text = "a , b n't ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == "a, bn't."
    saved(tmp_path, len(words), tokenizer)
    again = load(tmp_path)[1]
    assert again.decode(again(text)["input_ids"]) == text
    again.save_pretrained(tmp_path / "later")
    settings = json.loads((tmp_path / "later/tokenizer_config.json").read_text())
    assert settings["clean_up_tokenization_spaces"] is False


def test_the_table_of_families_is_that_of_these_tests():
    text = (ROOT / "docs/models.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (works|refused)", text, re.M))
    assert rows == dict.fromkeys(WORKS, "works") | dict.fromkeys(REFUSED, "refused")
