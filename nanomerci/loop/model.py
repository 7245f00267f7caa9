"""The policy and its hidden states: any Hugging Face causal LM, or the tiny one that is built here.

All of nanoMERCI asks two things of a model: hidden states of a padded batch, and log-probs of its
tokens. Which families of models answer truly, and why others are refused: docs/models.md.

Axes: B rows, T token positions, N response tokens, D hidden width, V vocabulary.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from nanomerci.address import address, uniform
from nanomerci.kernels.logprob import linear_logprob_entropy
from nanomerci.loop import families
from nanomerci.loop.families import computed_in, end_of_turn, masks
from nanomerci.loop.rollout import Rollout, micro_batches
from nanomerci.runtime import ranks
from nanomerci.runtime.checkpoint import newest, reason
from nanomerci.runtime.config import UserError

transformers_logging.disable_progress_bar()
# a forward's argument for keys and values seen before: transformers 5.24 renamed it
CACHE = (
    "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
)


def load(name, device="cpu", dtype=torch.float32):
    """A hub id, a Hugging Face folder or a run folder -> model in `dtype` on `device`, tokenizer.

    UserError where there are no weights, where they and the tokenizer do not belong together, or
    where the config names what we do not compute. What has no name, sample.check_model() notices.
    """
    folder = Path(name)
    if (folder / "checkpoints").is_dir():
        folder = newest(folder) / "model"
    name = str(folder) if folder.exists() else str(name)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise UserError(
            f"--model {name}: no weights there; expected a Hugging Face folder with "
            "*.safetensors (or a hub id)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        encode(tokenizer, "a")  # through its chat template
        end_of_turn(tokenizer)
        config = AutoConfig.from_pretrained(name)
        why = families.not_computed(config)
        model = why or AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, attn_implementation="sdpa"
        )
    except Exception as error:
        # a broken folder can provoke anything in there
        raise UserError(
            f"--model {name}: cannot be loaded ({reason(error)}); expected a Hugging Face or run "
            "folder, or a hub id"
        ) from None
    if why:
        raise UserError(f"--model {name}: {why}, which is not supported; {families.ADVICE}")
    families.fit_vocabulary(model, tokenizer, name)
    families.keep_spaces(tokenizer)
    return model.to(device).eval(), tokenizer


def eos_ids(model, tokenizer):
    """All ids that end a response: the tokenizer's, that which ends a turn in its chat template,
    and those of the generation config (Llama-3 lists three).
    """
    extra = getattr(model.generation_config, "eos_token_id", None)
    if not isinstance(extra, list):
        extra = [extra]
    return sorted({tokenizer.eos_token_id, *end_of_turn(tokenizer), *extra} - {None})


def context(model):
    """The longest row, in tokens, that the model has positions for."""
    longest = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    return min(longest, families.rope_limit(model))


def encode(tokenizer, prompt):
    """User text -> token ids, through the tokenizer's chat template where it has one. What looks
    like a special token in it stays text.
    """
    if any(text in prompt for text in families.special_tokens(tokenizer).values()):
        return families.encode_literally(tokenizer, prompt)
    if not tokenizer.chat_template:
        return tokenizer(prompt)["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]


def autocast(c, device):
    """The precision of forward and backward passes: --dtype."""
    return torch.autocast(device.type, torch.bfloat16, enabled=c.dtype == "bfloat16")


def attend_in_fp32(model):
    """Wherever more than one token is forwarded. On a CPU PyTorch's backward pass of attention
    takes five times as long in bf16, and its forward pass as long.
    """
    AttentionInterface.register("in_fp32", _attend)
    AttentionMaskInterface.register("in_fp32", sdpa_mask)
    model.set_attn_implementation("in_fp32")


def _attend(module, query, key, value, attention_mask, **options):
    if query.shape[2] == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        wide = query.float(), key.float(), value.float(), attention_mask
        attended, weights = sdpa_attention_forward(module, *wide, **options)
    return attended.to(query.dtype), weights


def hidden_states(model, tokens_BT):
    """Final hidden states (B, T, D): column t is after token t. Right-padded rows need no mask."""
    return model.base_model(tokens_BT, use_cache=False).last_hidden_state


class SharedPrefixCache:
    """Keys and values of prompts, each computed once, for the many responses to it to read. Stands
    in for a transformers cache.

    SharedPrefixCache() takes those of a forward over prompts; SharedPrefixCache(kept, of_B) gives
    them to a forward over responses, row b those of prompt of_B[b]. Nothing is appended, so that
    layers may be run again (gradient checkpointing).
    """

    def __init__(self, kept=None, of_B=None):
        self.kept = {} if kept is None else kept
        self.of_B = of_B

    def update(self, key, value, layer, *_, **__):
        if self.of_B is None:
            self.kept[layer] = key, value
            return key, value
        prompt_key, prompt_value = self.kept[layer]
        keys = torch.cat([prompt_key[self.of_B], key], 2)
        return keys, torch.cat([prompt_value[self.of_B], value], 2)

    def get_seq_length(self, layer=0):
        return 0 if self.of_B is None else self.kept[layer][0].shape[2]


def states(model, tokens_BT, mask_BT, whole=False):
    """Hidden states around every response -> states_BKD, before_B: column t - before_B[b] of row b
    is the state that predicts token t, the next column the state after it. There is none after the
    last token.

    The rows of a group share their prompt, and it is forwarded once: prompts first, then responses
    that read the prompts' keys and values. That is done where it saves a quarter of the tokens,
    unless `whole` rows are asked for, which every kind of attention computes. It is not worth the
    explicit mask where responses are long, and sharded models must not do it, as all ranks have to
    call their layers equally often.
    """
    column_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    start_B = mask_BT.argmax(1).clamp(min=1)
    end_B = torch.maximum((mask_BT * (column_T + 1)).amax(1).long() - 1, start_B)
    P, R, T = int(start_B.max()), int((end_B - start_B).max()), int(end_B.max())
    prompt_BT = tokens_BT[:, :P].masked_fill(column_T[:P] >= start_B[:, None], 0)
    keyed_BT = torch.cat([start_B[:, None], prompt_BT], 1)
    keyed_PT, prompt_B = keyed_BT.unique(dim=0, return_inverse=True)
    start_P, prompt_PT = keyed_PT[:, 0], keyed_PT[:, 1:]
    shared = prompt_PT.numel() + len(tokens_BT) * R
    if whole or shared > 0.75 * len(tokens_BT) * T or ranks.is_sharded(model):
        return hidden_states(model, tokens_BT[:, :T]), torch.ones_like(start_B)

    once, dtype = SharedPrefixCache(), computed_in(model)
    position_1P = column_T[None, :P]
    prompt_PTD = model.base_model(
        prompt_PT,
        position_ids=position_1P,
        attention_mask=masks(model.config, position_1P, position_1P, dtype),
        use_cache=True,
        **{CACHE: once},
    ).last_hidden_state
    row_P = torch.arange(len(start_P), device=start_P.device)
    first_B1D = prompt_PTD[row_P, start_P - 1][prompt_B][:, None]
    if not R:
        return first_B1D, start_B
    position_BR = start_B[:, None] + torch.arange(R, device=start_B.device)
    # where each key stands; a pad, beyond all
    prompt_key_BT = column_T[:P].where(column_T[:P] < start_B[:, None], T)
    key_BK = torch.cat([prompt_key_BT, position_BR], 1)
    response_BRD = model.base_model(
        tokens_BT.gather(1, position_BR.clamp(max=tokens_BT.shape[1] - 1)),
        position_ids=position_BR,
        attention_mask=masks(model.config, position_BR, key_BK, dtype),
        use_cache=True,
        **{CACHE: SharedPrefixCache(once.kept, prompt_B)},
    ).last_hidden_state
    return torch.cat([first_B1D, response_BRD], 1), start_B


def states_and_logp(model, tokens_BT, mask_BT, temperature=1.0, backend=None):
    """-> states_BKD, before_B of states(), and log-prob and entropy of every response token given
    its prefix, both (B, T) float32 and 0 where mask is 0.

    The one place where logits are shifted: the hidden state at t - 1 predicts token t. Prompts and
    pads never reach the head.
    """
    at = row_N, column_N = mask_BT.nonzero(as_tuple=True)
    states_BKD, before_B = states(model, tokens_BT, mask_BT)
    dtype = computed_in(model)  # autocast does not see a head whose backward is its own
    hidden_ND = states_BKD[row_N, column_N - before_B[row_N]].to(dtype)
    weight_VD = model.get_output_embeddings().weight.to(dtype)
    logp_N, entropy_N = linear_logprob_entropy(
        hidden_ND, weight_VD, tokens_BT[at], temperature, backend
    )
    empty_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    return states_BKD, before_B, empty_BT.index_put(at, logp_N), empty_BT.index_put(at, entropy_N)


def token_logp(model, tokens_BT, mask_BT, temperature=1.0, backend=None):
    """states_and_logp() -> log-prob and entropy alone."""
    return states_and_logp(model, tokens_BT, mask_BT, temperature, backend)[2:]


@dataclass(frozen=True)
class StateReader:
    """One forward pass of a model for everything that is read off its hidden states, of each
    different response once; none where the rollout brings the states that its sampler went through
    (not with kl).
    """

    model: torch.nn.Module
    score: Callable | None = None
    """hidden_ND -> novelty_N, such as a counter's 1/n."""
    kl: bool = False
    """Whether reference log-probs are wanted."""
    temperature: float = 1.0
    budget: int = 16384
    """Tokens per micro-batch."""
    whole: bool = False
    """As in states()."""
    limit: int = 65536
    """About how many visits to keep, a fair sample, where there are more."""
    backend: str | None = None

    @torch.no_grad()
    def __call__(self, rollout, address_BT):
        """-> novelty_BT, score of every prefix that is counted, 0 elsewhere; logp_BT, the reference
        log-probs, 0 without kl; and the visits to learn, hidden_ND and address_N.
        """
        novelty_BT, logp_BT = torch.zeros_like(rollout.logp_BT), torch.zeros_like(rollout.logp_BT)
        share = self.limit / max(float(rollout.visited_BT.sum()), 1.0)
        hiddens, addresses = [], []
        every_B = torch.arange(len(logp_BT), device=logp_BT.device)
        for part in distinct_rows(self.model, rollout, every_B, self.budget):
            if part is None:  # nothing left here, but other ranks need our slice of the weights
                self.read(Rollout.blank(rollout.logp_BT.device))
                continue
            once_u, row_b, place_b = part
            once = rollout.rows(once_u)
            if rollout.states_BRD is None:
                states_uKD, before_u, logp_uT = self.read(once)
            else:
                states_uKD, logp_uT = rollout.states_BRD[once_u], None
                before_u = once.mask_BT.argmax(1) + 1
            if logp_uT is not None:
                logp_BT[row_b, : logp_uT.shape[1]] = logp_uT[place_b]
            if self.score is not None:
                place_N, column_N = at = once.visited_BT.nonzero(as_tuple=True)
                score_N = self.score(states_uKD[place_N, column_N - before_u[place_N] + 1])
                score_uT = torch.zeros_like(once.logp_BT).index_put(at, score_N.float())
                novelty_BT[row_b, : score_uT.shape[1]] = score_uT[place_b]
            row_N, column_N = rollout.visited_BT[row_b].nonzero(as_tuple=True)
            address_N = address_BT[row_b[row_N], column_N]
            keep_N = uniform(address("learn", address_N)) < share
            place_N, column_N = place_b[row_N[keep_N]], column_N[keep_N]
            hiddens.append(states_uKD[place_N, column_N - before_u[place_N] + 1])
            addresses.append(address_N[keep_N])
        return novelty_BT, logp_BT, torch.cat(hiddens), torch.cat(addresses)

    def read(self, rollout):
        """One forward pass -> states_BKD, before_B; reference log-probs, None without kl."""
        text, head = (rollout.tokens_BT, rollout.mask_BT), (self.temperature, self.backend)
        if self.kl:
            return ranks.call(self.model, states_and_logp, *text, *head)[:3]
        return *ranks.call(self.model, states, *text, self.whole), None


def distinct_rows(model, rollout, row_B, budget):
    """Micro-batches of these rows in which equal ones stand once: once a small policy is sure of
    its answer, half of a batch need not be computed. -> for each: once_u, the rows to compute;
    row_b, all rows that they stand for; place_b, where row_b[i] is in once_u. Then None, as
    ranks.pad_micro_batches() says.
    """
    kind_B, first_U = kinds(rollout.rows(row_B))
    batches = micro_batches(rollout.end_B[row_B[first_U]], budget)
    for here_u in ranks.pad_micro_batches(model, batches):
        if here_u is None:
            yield None
            continue
        at_b, place_b = (kind_B[:, None] == here_u).nonzero(as_tuple=True)
        yield row_B[first_U[here_u]], row_B[at_b], place_b


def kinds(rollout):
    """Which rows are the same, prompt and response. -> kind_B, and first_U, a row of each kind."""
    both_B2T = torch.cat([rollout.tokens_BT, rollout.mask_BT.long()], 1)
    kind_U2T, kind_B = both_B2T.unique(dim=0, return_inverse=True)
    row_B = torch.arange(len(kind_B), device=kind_B.device)
    return kind_B, torch.zeros_like(kind_U2T[:, 0]).scatter_(0, kind_B, row_B)


def enable_gradient_checkpointing(model):
    """Keep only what enters each layer, and compute it again on the way back: the same numbers."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # its layers, whatever they are called
            layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward, *arguments, **options):
    if torch.is_grad_enabled():  # without dropout no random numbers have to be drawn again
        options |= {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(forward, *arguments, **options)
    return forward(*arguments, **options)


def tiny(words, width=96, layers=3, heads=4, seed=0):
    """A small Llama from scratch over a vocabulary of words, and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", "answer:", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(cleanup=False)  # puts the spaces back
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} answer:"
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval(), tokenizer
