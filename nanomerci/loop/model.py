"""The policy and its hidden states: any Hugging Face causal LM, or the tiny one that is built here.

All of nanoMERCI asks two things of a model: hidden states of a padded batch, and log-probs of its
tokens.

Axes: B rows, T token positions, N response tokens, D hidden width, V vocabulary.
"""

import copy
import inspect
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from nanomerci.address import address, uniform
from nanomerci.kernels.logprob import linear_logprob_entropy
from nanomerci.loop.rollout import micro_batches
from nanomerci.runtime import ranks
from nanomerci.runtime.checkpoint import newest, reason
from nanomerci.runtime.config import UserError

transformers_logging.disable_progress_bar()
# a forward's argument for keys and values seen before: transformers 5.24 renamed it
CACHE = (
    "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
)


def load(name, device="cpu", dtype=torch.float32):
    """A hub id, a Hugging Face folder or a run folder -> model in `dtype` on `device`, tokenizer."""
    folder = Path(name)
    if (folder / "checkpoints").is_dir():
        folder = newest(folder) / "model"
    name = str(folder) if folder.exists() else str(name)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise UserError(
            f"--model {name}: no weights there; wanted a Hugging Face folder with "
            "*.safetensors (or a hub id)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        encode(tokenizer, "a")  # through its chat template
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
    except Exception as error:
        # what a broken folder provokes in there is anyone's guess; it is the user's folder all the same
        raise UserError(
            f"--model {name}: cannot be loaded ({reason(error)}); wanted a Hugging Face or run "
            "folder, or a hub id"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--model {name}: its tokenizer has no end-of-sequence token, so responses would "
            "never end; set eos_token"
        )
    words, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if words > rows:
        raise UserError(
            f"--model {name}: its tokenizer has {words} tokens, the model only {rows}; they do "
            "not belong together"
        )
    model.to(device).eval()
    _check(model, name)
    return model, tokenizer


def _check(model, name):
    """Log-probs are computed from hidden states and the head's weight alone, and samples are drawn
    over a cache of our own: try both on two short prompts, and refuse a model with which they
    differ from its own logits.
    """
    from nanomerci.sample import generate

    advice = "use a Qwen2/2.5/3, Llama or GPT-2 like model"
    with torch.no_grad():
        if (
            not model(torch.arange(2, device=model.device)[None] % model.config.vocab_size)
            .logits.isfinite()
            .all()
        ):
            raise UserError(
                f"--model {name}: its logits are not finite; some of its weights are damaged"
            )
    try:
        with redirect_stderr(StringIO()):  # how large this little cache is, is of no interest
            roll = generate(
                model,
                [[i % model.config.vocab_size for i in range(n)] for n in (2, 4)],
                2,
                max_new_tokens=2,
                eos_id=-1,
            )
        with torch.no_grad():
            ours_BT = token_logp(model, roll.tokens_BT, roll.mask_BT)[0]
            logits_BTV = model(roll.tokens_BT).logits.float()
    except Exception as error:  # whatever a foreign forward makes of our arguments
        raise UserError(
            f"--model {name}: cannot be sampled with our key-value cache ({reason(error)}); "
            f"{advice}"
        ) from error
    theirs_BT = logits_BTV[:, :-1].log_softmax(-1).gather(2, roll.tokens_BT[:, 1:, None])[..., 0]
    for what, logp_BT in (
        ("are not head(hidden): soft-capping, scaling or a bias", ours_BT),
        ("change with our cache", roll.logp_BT),
    ):
        gap = ((logp_BT[:, 1:] - theirs_BT) * roll.mask_BT[:, 1:]).abs().max()
        if gap > (0.01 if model.dtype == torch.float32 else 0.3):
            raise UserError(
                f"--model {name}: its logits {what} (log-probs differ by {gap:.2g}); {advice}"
            )


def eos_ids(model, tokenizer):
    """All ids that end a response: the tokenizer's, and those of the generation config (Llama-3
    lists three).
    """
    extra = getattr(model.generation_config, "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [] if extra is None else [extra]
    return sorted({tokenizer.eos_token_id, *extra})


def context(model):
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30


def encode(tokenizer, prompt):
    """User text -> token ids, through the tokenizer's chat template where it has one."""
    if not tokenizer.chat_template:
        return tokenizer(prompt)["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]


def hidden_states(model, tokens_BT):
    """Final hidden states (B, T, D): column t summarises the prefix that ends in token t.
    Right-padded rows need no mask.
    """
    return model.base_model(tokens_BT, use_cache=False).last_hidden_state


class Prompts:
    """Keys and values of prompts, each computed once, for the many responses to it to read. Stands
    in for a transformers cache.

    Prompts() takes those of a forward over prompts; Prompts(kept, of_B) gives them to a forward
    over responses, row b those of prompt of_B[b]. Nothing is appended, so that layers may be run
    again (recompute).
    """

    def __init__(self, kept=None, of_B=None):
        self.kept, self.of_B = {} if kept is None else kept, of_B

    def update(self, key, value, layer, *_, **__):
        if self.of_B is None:
            self.kept[layer] = key, value
            return key, value
        return [
            torch.cat([prompt[self.of_B], own], 2)
            for prompt, own in zip(self.kept[layer], (key, value))
        ]


def states(model, tokens_BT, mask_BT, last=True):
    """Hidden states around every response -> states_BKD, before_B: column t - before_B[b] of row b
    is the state that predicts token t, the next column the state after it. last=False leaves out
    states after which no token comes.

    The rows of a group share their prompt, and it is forwarded once: prompts first, then responses
    that read the prompts' keys and values. That is done where it saves a quarter of the tokens. It
    is not worth the explicit mask where responses are long, and sharded models must not do it, as
    all ranks have to call their layers equally often.
    """
    device, column_T = tokens_BT.device, torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    start_B = mask_BT.argmax(1).clamp(min=1)
    end_B = torch.maximum((mask_BT * (column_T + 1)).amax(1).long() - (0 if last else 1), start_B)
    P, R, T = int(start_B.max()), int((end_B - start_B).max()), int(end_B.max())
    prompt_BT = tokens_BT[:, :P].masked_fill(column_T[:P] >= start_B[:, None], 0)
    prompt_PT, prompt_B = torch.cat([start_B[:, None], prompt_BT], 1).unique(
        dim=0, return_inverse=True
    )
    if prompt_PT[:, 1:].numel() + len(tokens_BT) * R > 0.75 * len(tokens_BT) * T or hasattr(
        model, "call"
    ):
        return hidden_states(model, tokens_BT[:, :T]), torch.ones_like(start_B)

    start_P, prompt_PT = prompt_PT[:, 0], prompt_PT[:, 1:]
    once, causal_TT = Prompts(), column_T[:P] <= column_T[:P, None]
    prompt_PTD = model.base_model(
        prompt_PT,
        position_ids=column_T[None, :P],
        attention_mask=causal_TT[None, None],
        use_cache=True,
        **{CACHE: once},
    ).last_hidden_state
    first_B1D = prompt_PTD[torch.arange(len(start_P), device=device), start_P - 1][prompt_B][
        :, None
    ]
    if not R:
        return first_B1D, start_B
    position_BR = start_B[:, None] + torch.arange(R, device=device)
    key_BK = torch.cat(
        [column_T[:P].where(column_T[:P] < start_B[:, None], T), position_BR], 1
    )  # where each key stands; a pad, beyond all
    seen_B1RK = (key_BK[:, None] <= position_BR[:, :, None])[:, None]
    response_BRD = model.base_model(
        tokens_BT.gather(1, position_BR.clamp(max=tokens_BT.shape[1] - 1)),
        position_ids=position_BR,
        attention_mask=seen_B1RK,
        use_cache=True,
        **{CACHE: Prompts(once.kept, prompt_B)},
    ).last_hidden_state
    return torch.cat([first_B1D, response_BRD], 1), start_B


def head_logp(model, hidden_ND, ids_N, temperature, backend):
    """The fused head, in the precision autocast asks for (its own custom backward is invisible to
    autocast).
    """
    weight_VD, device = model.get_output_embeddings().weight, hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        hidden_ND, weight_VD = (
            x.to(torch.get_autocast_dtype(device)) for x in (hidden_ND, weight_VD)
        )
    return linear_logprob_entropy(hidden_ND, weight_VD, ids_N, temperature, backend=backend)


def token_logp(model, tokens_BT, mask_BT, temperature=1.0, backend=None):
    """Log-prob and entropy of every response token given its prefix, both (B, T) float32 and 0
    where mask is 0.

    The one place where logits are shifted: the hidden state at t - 1 predicts token t. Prompts and
    pads never reach the head.
    """
    row_N, column_N = mask_BT.nonzero(as_tuple=True)
    states_BKD, before_B = states(model, tokens_BT, mask_BT, last=False)
    hidden_ND = states_BKD[row_N, column_N - before_B[row_N]]
    logp_N, entropy_N = head_logp(
        model, hidden_ND, tokens_BT[row_N, column_N], temperature, backend
    )
    empty_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    return empty_BT.index_put((row_N, column_N), logp_N), empty_BT.index_put(
        (row_N, column_N), entropy_N
    )


@torch.no_grad()
def look_at(
    trunk,
    roll,
    address_BT,
    states_BRD=None,
    *,
    score=None,
    kl=False,
    temperature=1.0,
    budget=16384,
    limit=65536,
    backend=None,
):
    """One forward of the trunk for everything that is read off it; none where the sampler has read
    its states already (states_BRD, not with kl).

    -> invn_BT, score(hidden_ND) of every response prefix (a counter's 1/n), 0 elsewhere; logp_BT,
    the reference log-probs, if kl; and the visits to learn, (hidden_ND, address_N): all, or where
    there are more than `limit`, a fair sample of about so many.
    """
    invn_BT, logp_BT = torch.zeros_like(roll.logp_BT), torch.zeros_like(roll.logp_BT)
    share, hiddens, addresses = limit / max(float(roll.mask_BT.sum()), 1.0), [], []
    for rows in micro_batches(roll.end_B, budget):
        part = roll.rows(rows)
        width = part.mask_BT.shape[1]
        row_N, column_N = part.mask_BT.nonzero(as_tuple=True)
        address_N = address_BT[rows, :width][row_N, column_N]
        if states_BRD is None:
            states_BKD, before_B = states(trunk, part.tokens_BT, part.mask_BT)
            state_N = column_N - before_B[row_N]
            hidden_ND = states_BKD[row_N, state_N + 1]
        else:
            hidden_ND = states_BRD[rows[row_N], column_N - part.mask_BT.argmax(1)[row_N]]
        if score is not None:
            invn_BT[rows[row_N], column_N] = score(hidden_ND)
        if kl:
            ids_N = part.tokens_BT[row_N, column_N]
            logp_BT[rows[row_N], column_N] = head_logp(
                trunk, states_BKD[row_N, state_N], ids_N, temperature, backend
            )[0]
        keep_N = uniform(address("learn", address_N)) < share
        hiddens.append(hidden_ND[keep_N])
        addresses.append(address_N[keep_N])
    return invn_BT, logp_BT, (torch.cat(hiddens), torch.cat(addresses))


def frozen_copy(model, device, dtype):
    """The trunk: the initial policy, never trained. Its hidden states feed the CFN, its log-probs
    are the KL reference.
    """
    return ranks.cast(copy.deepcopy(model).to(device), dtype).eval().requires_grad_(False)


def recompute(model):
    """Keep only what enters each layer, and compute the layer again on the way back. The numbers
    stay the same.
    """
    for layer in model.base_model.layers:
        layer.forward = partial(_again, layer.forward)


def _again(forward, *arguments, **options):
    return (
        checkpoint(forward, *arguments, use_reentrant=False, **options)
        if torch.is_grad_enabled()
        else forward(*arguments, **options)
    )


def tiny(words, width=96, layers=3, heads=4, seed=0):
    """A small Llama from scratch over a vocabulary of words, and its tokenizer: both save and load
    like any other.
    """
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
