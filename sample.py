"""Sampling from Hugging Face causal language models (Qwen2/2.5/3, Llama), fast enough to train with.

A fixed number of slots shares one key-value cache. Each prompt is prefilled once and its keys and values copied to its n
samples; a row that finishes leaves, the last row moves into its slot, and waiting prompts enter as soon as n slots are free: no
step computes a finished row. Row r, position t is drawn with a random number of its own (nanomerci/address.py) by inverting
the distribution function, so a sample depends on the seed and its row number, never on the company it was sampled in.

As a command (nanomerci/ask.py):  python sample.py MODEL_OR_RUN "prompt" -n 4

Axes: P prompts, n samples a prompt, B = P*n rows, S active slots, T token positions, V vocabulary.
"""
import sys

if __name__ == "__main__":  # the command; it answers --help and mistakes before torch is there, which takes seconds
    from nanomerci.ask import command

    sys.exit(command())

import torch
from transformers import DynamicCache

from nanomerci.address import address, uniform
from nanomerci.model import CACHE
from nanomerci.rollout import Rollout, pad


class SlotCache:
    """Keys and values of all slots: a tensor (slots, heads, width, head size) a layer. Slot s is written at its own position.

    Stands in for a transformers cache, of which a model's forward calls only update() and get_seq_length().
    """

    def __init__(self, config, slots, width, dtype, device):
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots, heads, width, size)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.slot_S = self.position_S = None  # which slots a forward writes, and where
        self.longest = 0  # how many positions a forward reads

    def admit(self, first, prefilled, repeats):
        """Copy each prefilled prompt to `repeats` slots, from slot `first` on."""
        for layer, filled in enumerate(prefilled.layers):
            for store, new in ((self.keys, filled.keys), (self.values, filled.values)):
                rows = slice(first, first + repeats * len(new))
                store[layer, rows, :, : new.shape[2]] = new.repeat_interleave(repeats, 0).to(store.dtype)

    def move(self, source, target):
        for store in (self.keys, self.values):
            store[:, target, :, : self.longest] = store[:, source, :, : self.longest]

    def update(self, key, value, layer, *_, **__):
        read = []
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store[self.slot_S, :, self.position_S] = new[:, :, 0].to(store.dtype)
            read.append(store[: len(new), :, : self.longest])
        return read

    def get_seq_length(self, layer=0):
        return self.longest - 1


def truncate(logits_SV, top_p=1.0, top_k=0):
    """-inf on all but the top_k largest logits and on all beyond the smallest set whose probability reaches top_p."""
    if top_k:
        least_S1 = logits_SV.topk(min(top_k, logits_SV.shape[-1])).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < least_S1, -torch.inf)
    if top_p < 1:
        sorted_SV, order_SV = logits_SV.sort(descending=True)
        before_SV = sorted_SV.softmax(-1).cumsum(-1) - sorted_SV.softmax(-1)  # mass of the strictly likelier tokens
        drop_SV = torch.zeros_like(order_SV, dtype=torch.bool).scatter(1, order_SV, before_SV >= top_p)
        logits_SV = logits_SV.masked_fill(drop_SV, -torch.inf)
    return logits_SV


def draw(logits_SV, uniform_S, temperature=1.0, top_p=1.0, top_k=0):
    """One token a row by inverting the distribution function. -> ids_S, logp_S under the distribution drawn from.

    temperature 0 is greedy; its log-probs are those of temperature 1.
    """
    if temperature == 0:
        logp_SV = logits_SV.log_softmax(-1)
        ids_S = logp_SV.argmax(-1)
    else:
        logp_SV = truncate(logits_SV / temperature, top_p, top_k).log_softmax(-1)
        cdf_SV = logp_SV.exp().cumsum(-1)
        # right=True: the first token whose cdf is *beyond* the mark, so one of probability 0 is never drawn
        ids_S = torch.searchsorted(cdf_SV, uniform_S[:, None] * cdf_SV[:, -1:], right=True)[:, 0]
    return ids_S, logp_SV.gather(1, ids_S[:, None])[:, 0]


@torch.no_grad()
def generate(model, prompts, n, *, max_new_tokens, eos_id, temperature=1.0, top_p=1.0, top_k=0, seed=0, rows=None,
             slots=512, progress=None, stream=None):  # fmt: skip
    """Sample n responses to each prompt (a list of token ids). -> Rollout on the model's device, row p*n + g = sample g of p.

    eos_id: an id or several; a response ends with one, or after max_new_tokens. seed: an int. rows: the number by which each
    row's random numbers are addressed (int64, default 0..B-1). slots: rows in flight at once, at least n; bounds the memory.
    progress: called with the number of rows finished since the last call. stream: called with (row, token id) as each is drawn.
    """
    device, width = model.device, max(map(len, prompts)) + max_new_tokens
    prompt_BT = pad([p for p in prompts for _ in range(n)], device=device)
    B = len(prompt_BT)
    tokens_BT = torch.nn.functional.pad(prompt_BT, (0, width - prompt_BT.shape[1]))
    logp_BT = torch.zeros(B, width, device=device)
    start_B = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(n)
    end_B = start_B + max_new_tokens  # one past a row's last token
    number_B = torch.arange(B, device=device) if rows is None else rows.to(device)
    eos = torch.tensor(sorted(eos_id) if isinstance(eos_id, list | set | tuple) else [eos_id], device=device)

    slots = min(B, max(slots, n))
    autocast = torch.is_autocast_enabled(device.type)
    cache = SlotCache(model.config, slots, width, torch.get_autocast_dtype(device.type) if autocast else model.dtype, device)
    waiting = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))  # taken from the end: the longest prompt starts first
    row_S = torch.zeros(0, dtype=torch.int64, device=device)  # the row in each active slot
    position_S = torch.zeros_like(row_S)  # the position of its newest token, which the next forward reads

    while waiting or len(row_S):
        if waiting and slots - len(row_S) >= n:
            entering = [waiting.pop() for _ in range(min(len(waiting), (slots - len(row_S)) // n))]
            if max(len(prompts[p]) for p in entering) > 1:  # all but the last token, which the first step of decoding reads
                prefilled = DynamicCache()
                model.base_model(pad([prompts[p][:-1] for p in entering], device=device), use_cache=True, **{CACHE: prefilled})
                cache.admit(len(row_S), prefilled, n)
            new_S = (torch.tensor(entering, device=device)[:, None] * n + torch.arange(n, device=device)).flatten()
            row_S, position_S = torch.cat([row_S, new_S]), torch.cat([position_S, start_B[new_S] - 1])
            cache.longest = int(position_S.max())

        cache.longest += 1
        cache.slot_S, cache.position_S = torch.arange(len(row_S), device=device), position_S
        seen_SL = torch.arange(cache.longest, device=device) <= position_S[:, None]
        hidden_S1D = model.base_model(
            tokens_BT[row_S, position_S][:, None], position_ids=position_S[:, None], attention_mask=seen_SL[:, None, None],
            use_cache=True, **{CACHE: cache}).last_hidden_state  # fmt: skip
        logits_SV = model.get_output_embeddings()(hidden_S1D[:, 0]).float()
        position_S = position_S + 1
        chance_S = uniform(address("draw", seed, number_B[row_S], position_S))
        ids_S, drawn_logp_S = draw(logits_SV, chance_S, temperature, top_p, top_k)
        tokens_BT[row_S, position_S], logp_BT[row_S, position_S] = ids_S, drawn_logp_S
        for row, token in zip(row_S.tolist(), ids_S.tolist()) if stream else ():
            stream(row, token)

        done_S = torch.isin(ids_S, eos) | (position_S + 1 == end_B[row_S])
        if done_S.any():
            end_B[row_S[done_S]] = position_S[done_S] + 1
            stay = (~done_S).nonzero()[:, 0]
            holes, movers = done_S[: len(stay)].nonzero()[:, 0], stay[stay >= len(stay)]
            cache.move(movers, holes)
            for state_S in (row_S, position_S):
                state_S[holes] = state_S[movers]
            row_S, position_S = row_S[: len(stay)], position_S[: len(stay)]
            cache.longest = int(position_S.max()) if len(stay) else 0
            if progress:
                progress(len(done_S) - len(stay))

    column_T = torch.arange(int(end_B.max()), device=device)
    mask_BT = ((column_T >= start_B[:, None]) & (column_T < end_B[:, None])).float()
    return Rollout(tokens_BT[:, : len(column_T)], mask_BT, logp_BT[:, : len(column_T)])
