"""What families of models and of tokenizers differ in: what is put right when a model is loaded,
and what it is refused for. The table of families: docs/models.md.

Axes: B rows, Q queries, K keys, T token positions, V vocabulary.
"""

from contextlib import contextmanager
from functools import cache

import torch
from tokenizers import decoders

from nanomerci.runtime.config import UserError

# where a chat template puts a text; of Unicode's private use, so in no template and no question
MARK = "\ue000"
ADVICE = "use a Llama, Qwen, Mistral or Gemma 3 model, or another that docs/models.md lists"
WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern")
# part of the name of a setting that is on: what such a model does
NOT_COMPUTED = {
    "softcap": "soft-caps its logits or its attention",
    "logit_scale": "scales its logits",
    "logits_scaling": "scales its logits",
    "sink": "has attention sinks",
    "chunk": "attends in chunks",
    "window": "attends to a window of another kind than sliding_window",
    "local_attention": "attends to a window of another kind than sliding_window",
}


def not_computed(config):
    """What a model of this config does that our masks, cache and head do not, or None. Names say
    it clearly, and before the weights are read; sample.check_model() notices what has no name.
    """
    if config.get_text_config() is not config:
        return f"it is not a model of text alone ({config.model_type})"
    if config.model_type == "gpt_oss":
        return "it has attention sinks (gpt_oss)"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of {' and '.join(kinds)} (layer_types)"
    for key, value in config.to_dict().items():
        off = value in (None, False, 0, 1) or key.strip("_") in WINDOW
        for part, what in NOT_COMPUTED.items():
            if part in key and not off:
                return f"it {what} ({key} = {value})"
    return None


def heads(config):
    """Key-value heads and their size. GPT-2 has as many key-value heads as queries."""
    count = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return count, size


def masks(config, query_BQ, key_BK, dtype):
    """What is added to a query's score of a key, given where both stand: 0 where the query sees it,
    -inf where not. It sees the earlier ones and itself, and in layers with a sliding window only
    the last of those. (B, 1, Q, K), or for layers of different kinds one for each, by name, as
    transformers wants it; in the dtype of the queries, or each layer would convert it anew.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    query_B1Q1, key_B11K = query_BQ[:, None, :, None], key_BK[:, None, None]
    later_B1QK = key_B11K > query_B1Q1
    nothing_B1QK = torch.zeros_like(later_B1QK, dtype=dtype)
    full_B1QK = nothing_B1QK.masked_fill(later_B1QK, -torch.inf)
    if "sliding_attention" not in kinds:
        return full_B1QK
    near_B1QK = full_B1QK.masked_fill(key_B11K <= query_B1Q1 - window, -torch.inf)
    if "full_attention" not in kinds:
        return near_B1QK
    return {"full_attention": full_B1QK, "sliding_attention": near_B1QK}


def computed_in(model):
    """The dtype of a model's hidden states and queries: its own, or autocast's."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def fit_vocabulary(model, tokenizer, name):
    """Embedding and head lose the rows, if any, beyond the tokenizer's last token, which many
    models have for the speed of matrix products: what no token belongs to is not drawn, and has no
    share in any probability.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--model {name}: its tokenizer has no end-of-sequence token, so responses would "
            "never end; set eos_token"
        )
    rows, ids = model.get_input_embeddings().num_embeddings, set(tokenizer.get_vocab().values())
    # a model of text may come with the tokenizer of one that sees: never in a prompt (see encode)
    unused = special_tokens(tokenizer).keys() - {tokenizer.eos_token_id}
    if max(ids - unused) >= rows:
        raise UserError(
            f"--model {name}: its tokenizer has {len(tokenizer)} tokens, the model only {rows}; "
            "they do not belong together"
        )
    words = min(rows, max(ids) + 1)
    if gaps := words - sum(i < words for i in ids):
        raise UserError(
            f"--model {name}: its tokenizer lacks {gaps} of the tokens 0 to {words - 1}, which the "
            "model would sample; add them to the tokenizer"
        )
    if words < rows:
        model.resize_token_embeddings(words)


def keep_spaces(tokenizer):
    """Decoding returns what was written: no space before a comma disappears."""
    tokenizer.clean_up_tokenization_spaces = False
    core = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(getattr(core, "decoder", None), decoders.WordPiece):
        core.decoder = decoders.WordPiece(prefix=core.decoder.prefix, cleanup=False)


@cache
def end_of_turn(tokenizer):
    """The token by which the chat template ends an answer, which need not be the end-of-sequence
    token: a list of one id, or of none where the template uses no such token.
    """
    if not tokenizer.chat_template:
        return []
    messages = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
    parts = tokenizer.apply_chat_template(messages, tokenize=False).split(MARK)
    after = parts[2].strip() if len(parts) == 4 else ""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return [i for i in ids[:1] if i in tokenizer.added_tokens_decoder]


@cache
def special_tokens(tokenizer):
    """{id: text} of the tokens that are no text, such as those that begin and end a turn."""
    return {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def encode_literally(tokenizer, prompt):
    """encode() of a prompt with special tokens in it: by itself, between the template's halves."""
    alone = {"add_special_tokens": False}
    ids = tokenizer(prompt, split_special_tokens=True, **alone)["input_ids"]
    special = special_tokens(tokenizer)
    if left := {special[i] for i in ids if i in special} - {tokenizer.unk_token}:
        raise UserError(
            f"prompt {prompt[:60]!r}: its {' and '.join(sorted(left))} can only be read as a "
            "special token by this tokenizer; leave it out"
        )
    if not tokenizer.chat_template:
        return tokenizer(prompt, split_special_tokens=True)["input_ids"]
    messages = [{"role": "user", "content": MARK}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    before, _, after = text.partition(MARK)
    return [*tokenizer(before, **alone)["input_ids"], *ids, *tokenizer(after, **alone)["input_ids"]]


def rope_limit(model):
    """The longest row, in tokens, with which rotary frequencies stay as they are. Beyond, some are
    chosen by the longest row of a batch, and numbers depend on the rows beside one.
    """
    limits = [1 << 30]
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]  # one for each kind of layer
        if {"dynamic", "longrope"}.intersection(kinds):
            limits.append(module.original_max_seq_len)
            rope = module.config.rope_parameters
            parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
            limits += [part.get("original_max_position_embeddings") or 1 << 30 for part in parts]
    return min(limits)


@contextmanager
def short_window(config):
    """A model's sliding window, where it has one, is of 4 positions."""
    window = getattr(config, "sliding_window", None)
    try:
        if window:
            config.sliding_window = 4
        yield
    finally:
        if window:
            config.sliding_window = window


def rounding(model, logits_BTV):
    """How far log-probs may lie apart by rounding alone.

    Each of L layers rounds what flows through it a dozen times, by a relative error whose root mean
    square is eps / 5; in fp32 the sums of D products weigh more, sqrt(D) roundings each. Attention
    multiplies the errors of queries and keys by its scores, of about 3: 2 * 3^2 roundings more.
    They add up as independent errors do, sqrt(30 L) eps / 5, and move a logit by so much of a
    logit's size, the standard deviation over the vocabulary. Of some hundred differences of two
    such numbers none is beyond five deviations: 5 sqrt(2) sqrt(30) / 5 = 8.
    """
    config, eps = model.config, torch.finfo(torch.float32).eps
    eps = max(torch.finfo(model.dtype).eps, eps * config.hidden_size**0.5)
    size = float(logits_BTV.std(-1).max())
    return 8 * config.num_hidden_layers**0.5 * eps * size
