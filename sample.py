"""Sampling from Hugging Face causal language models (Qwen2/2.5/3, Llama), fast enough to train
with.

A fixed number of slots shares one key-value cache. Each prompt is prefilled once and its keys and
values copied to its n samples; a row that finishes leaves, the last row moves into its slot, and
waiting prompts enter as soon as n slots are free: no step computes a finished row. Row r, position
t is drawn with a random number of its own (nanomerci/address.py) by inverting the distribution
function, so a sample depends on the seed and its row number, never on the company it was sampled
in. For the same reason a round that ran out of memory is just sampled again, with half as many
slots.

As a command (nanomerci/view/ask.py):  python sample.py MODEL_OR_RUN "prompt" -n 4

Axes: P prompts, n samples a prompt, B = P*n rows, S active slots, T token positions, V vocabulary.
"""

import copy
import os
import sys
from functools import cache

if (
    __name__ == "__main__"
):  # the command; it answers --help and mistakes before torch is there, which takes seconds
    from nanomerci.view.ask import command

    sys.exit(command())

import torch
from transformers import DynamicCache

from nanomerci.address import address, uniform
from nanomerci.loop.model import CACHE
from nanomerci.loop.rollout import Rollout, pad
from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError


class SlotCache:
    """Keys and values of all slots: a tensor (slots, width, heads, head size) a layer. Slot s is
    written at its own position.

    Stands in for a transformers cache, of which a model's forward calls only update() and
    get_seq_length().
    """

    def __init__(self, config, slots, width, dtype, device):
        shape = (config.num_hidden_layers, slots, width, *_heads(config))
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.width, self.place_S, self.longest = (
            width,
            None,
            0,
        )  # where a forward writes, and how many positions it reads

    def admit(self, first, prefilled, repeats):
        """Copy each prefilled prompt to `repeats` slots, from slot `first` on."""
        for layer, filled in enumerate(prefilled.layers):
            for store, new in ((self.keys, filled.keys), (self.values, filled.values)):
                rows = slice(first, first + repeats * len(new))
                store[layer, rows, : new.shape[2]] = (
                    new.transpose(1, 2).repeat_interleave(repeats, 0).to(store.dtype)
                )

    def move(self, source, target, longest):
        for store in (self.keys, self.values):
            store[:, target, :longest] = store[:, source, :longest]

    def update(self, key, value, layer, *_, **__):
        read = []
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store.flatten(0, 1).index_copy_(
                0, self.place_S, new[:, :, 0].to(store.dtype)
            )  # one copy of whole rows of memory
            read.append(store[: len(new), : self.longest].transpose(1, 2))
        return read

    def get_seq_length(self, layer=0):
        return self.longest - 1


def cache_bytes(config, itemsize):
    """Of one position of one row, in all layers: a key and a value a head."""
    heads, size = _heads(config)
    return 2 * config.num_hidden_layers * heads * size * itemsize


def _heads(config):
    heads = (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )  # GPT-2 has as many as queries
    return heads, getattr(
        config, "head_dim", None
    ) or config.hidden_size // config.num_attention_heads


class Step:
    """The decoding step: newest token and its position of the first S slots -> the state after it,
    (S, D), and the logits of the next, (S, V) float32.

    On CUDA it is captured once for every power of two of rows and multiple of SPAN positions that
    occurs, and then replayed: one launch in place of hundreds. Rows up to the power of two compute
    something nobody reads, in slots nobody is in.
    """

    SPAN = 256

    def __init__(self, model, slots):
        self.model, self.slots, self.graphs, self.pool = model, slots, {}, None

    def forward(self, token_S, position_S, longest):
        device = position_S.device
        self.slots.longest = longest
        self.slots.place_S = (
            torch.arange(len(position_S), device=device) * self.slots.width + position_S
        )
        seen_SL = torch.arange(longest, device=device) <= position_S[:, None]
        hidden_S1D = self.model.base_model(
            token_S[:, None],
            position_ids=position_S[:, None],
            attention_mask=seen_SL[:, None, None],
            use_cache=True,
            **{CACHE: self.slots},
        ).last_hidden_state
        return hidden_S1D[:, 0], self.model.get_output_embeddings()(hidden_S1D[:, 0]).float()

    def __call__(self, token_S, position_S, longest):
        if position_S.device.type != "cuda":
            return self.forward(token_S, position_S, longest)
        S, rows = len(token_S), min(1 << (len(token_S) - 1).bit_length(), self.slots.keys.shape[1])
        longest = min(-(-longest // self.SPAN) * self.SPAN, self.slots.width)
        if (rows, longest) not in self.graphs:
            self.graphs[rows, longest] = self.capture(rows, longest)
        graph, token_R, position_R, hidden_RD, logits_RV = self.graphs[rows, longest]
        token_R[:S], position_R[:S] = token_S, position_S
        graph.replay()
        return hidden_RD[:S], logits_RV[:S]

    def capture(self, rows, longest):
        # the rows write where they are parked, in the last column, which a row uses in its last
        # step at the earliest: while it warms
        # up and is captured nobody's keys are touched
        token_R, position_R = (
            torch.full((rows,), value, device=self.model.device)
            for value in (0, self.slots.width - 1)
        )
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        with torch.autocast(
            "cuda", dtype, enabled=enabled, cache_enabled=False
        ):  # a cast kept for later would not be part of the graph
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.forward(
                    token_R, position_R, longest
                )  # libraries set themselves up on first use, which cannot be captured
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, pool=self.pool):
                hidden_RD, logits_RV = self.forward(token_R, position_R, longest)
        self.pool = (
            graph.pool()
        )  # graphs never run at the same time, so they share their scratch memory
        return graph, token_R, position_R, hidden_RD, logits_RV


def working(model):
    """The model in the form that samples fastest with the trainer's numbers: itself, or one that
    shares all but what must be cast.

    Under autocast on CUDA every step would cast every fp32 weight again; linear layers get theirs
    cast once a round. A processor without bf16 arithmetic multiplies fp32 six times as fast
    (measured: 64 against 10 GFLOP/s a core); there bf16 weights are widened.
    """
    kind, autocast = model.device.type, torch.is_autocast_enabled(model.device.type)
    if kind == "cpu" and not autocast and model.dtype == torch.bfloat16 and not _bf16_arithmetic():
        return copy.deepcopy(model).float()
    if kind == "cuda" and autocast and model.dtype == torch.float32:
        shared = copy.deepcopy(
            model, {id(x): x for x in (*model.parameters(), *model.buffers())}
        )  # new modules, the same tensors
        for module in shared.modules():
            if isinstance(module, torch.nn.Linear):
                for name, value in list(module.named_parameters(recurse=False)):
                    setattr(
                        module,
                        name,
                        torch.nn.Parameter(
                            value.to(torch.get_autocast_dtype(kind)), requires_grad=False
                        ),
                    )
        return shared
    return model


@cache
def _bf16_arithmetic():
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def room(config, width, dtype, device):
    """How many slots fit: in half of what is free on the GPU, or a quarter of the machine's memory.
    -> int, bytes of a slot.
    """
    size = width * cache_bytes(config, dtype.itemsize)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = (torch.cuda.mem_get_info(device)[0] + unused) // 2
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return free // size, size


def state(slots, size, width, told=set()):  # noqa: B006  it is to be remembered
    """Said once, and again when it is half as much more: how large the cache is."""
    if ranks.rank == 0 and slots * size > 1.5 * max(told, default=0):
        told.add(slots * size)
        print(
            f"sampler: {slots} slots of {width} positions, {slots * size / 2**20:,.0f} MiB of "
            "keys and values",
            file=sys.stderr,
        )


def truncate(logits_SV, top_p=1.0, top_k=0):
    """-inf on all but the top_k largest logits and on all beyond the smallest set whose probability
    reaches top_p.
    """
    if top_k:
        least_S1 = logits_SV.topk(min(top_k, logits_SV.shape[-1])).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < least_S1, -torch.inf)
    if top_p < 1:
        sorted_SV, order_SV = logits_SV.sort(descending=True)
        before_SV = sorted_SV.softmax(-1).cumsum(-1) - sorted_SV.softmax(
            -1
        )  # mass of the strictly likelier tokens
        drop_SV = torch.zeros_like(order_SV, dtype=torch.bool).scatter(
            1, order_SV, before_SV >= top_p
        )
        logits_SV = logits_SV.masked_fill(drop_SV, -torch.inf)
    return logits_SV


def draw(logits_SV, uniform_S, temperature=1.0, top_p=1.0, top_k=0):
    """One token a row by inverting the distribution function. -> ids_S, logp_S under the
    distribution drawn from.

    temperature 0 is greedy; its log-probs are those of temperature 1.
    """
    if temperature == 0:
        logp_SV = logits_SV.log_softmax(-1)
        ids_S = logp_SV.argmax(-1)
    else:
        logp_SV = truncate(logits_SV / temperature, top_p, top_k).log_softmax(-1)
        cdf_SV = logp_SV.exp().cumsum(-1)
        # right=True: the first token whose cdf is *beyond* the mark, so one of probability 0 is
        # never drawn
        ids_S = torch.searchsorted(cdf_SV, uniform_S[:, None] * cdf_SV[:, -1:], right=True)[:, 0]
    return ids_S, logp_SV.gather(1, ids_S[:, None])[:, 0]


@torch.no_grad()
def generate(
    model,
    prompts,
    n,
    *,
    max_new_tokens,
    eos_id,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    seed=0,
    rows=None,
    slots=0,
    states=False,
    progress=None,
    stream=None,
):
    """Sample n responses to each prompt (a list of token ids). -> Rollout on the model's device,
    row p*n + g = sample g of p. With states=True -> Rollout, states_BRD: the hidden state after
    token r of each response in the cache's dtype, 0 beyond its end.

    eos_id: an id or several; a response ends with one, or after max_new_tokens. seed: an int. rows:
    the number by which each row's random numbers are addressed (int64, default 0..B-1). slots: rows
    in flight at once, at least n; bounds the memory, 0 = as many as there is room for. When a GPU's
    memory does not suffice all the same, half as many are tried. progress: called with the number
    of rows finished since the last call. stream: called with (row, token id) as each is drawn; not
    with states.
    """
    if stream and states:
        raise ValueError(
            "with states a row draws one token more than its own: it cannot be streamed"
        )
    width, autocast = (
        max(map(len, prompts)) + max_new_tokens,
        torch.is_autocast_enabled(model.device.type),
    )
    model = working(model)
    dtype = torch.get_autocast_dtype(model.device.type) if autocast else model.dtype
    fit, size = room(model.config, width, dtype, model.device)
    slots = max(n, min(slots or fit, n * len(prompts)))
    told = 0  # rows that progress has heard of

    def finished(rows):
        nonlocal told
        if progress and rows > told:
            progress(rows - told)
            told = rows

    while True:
        state(slots, size, width)
        try:
            with (
                torch.inference_mode()
            ):  # spares the bookkeeping of gradients: a tenth of the time of small steps
                drawn = _generate(
                    model,
                    SlotCache(model.config, slots, width, dtype, model.device),
                    prompts,
                    n,
                    max_new_tokens,
                    eos_id,
                    (temperature, top_p, top_k),
                    seed,
                    rows,
                    states,
                    finished,
                    stream,
                )
            roll = Rollout(*(x.clone() for x in drawn[:3]))  # that training may read
            return (roll, drawn[3]) if states else roll
        except torch.cuda.OutOfMemoryError:
            if slots == n:
                raise UserError(
                    f"out of memory with only {n} rows of {width} positions: lower --group or "
                    "--max_new_tokens"
                ) from None
        slots = max(n, slots // 2)  # here, where the exception and all it held are gone
        torch.cuda.empty_cache()


def _generate(
    model, cache, prompts, n, max_new_tokens, eos_id, how, seed, rows, states, finished, stream
):
    # a state is there once its token is read, so with states a row stays one step longer and draws
    # a token that nobody reads
    device, width, slots = model.device, cache.width + states, cache.keys.shape[1]
    prompt_BT = pad([p for p in prompts for _ in range(n)], device=device)
    B = len(prompt_BT)
    tokens_BT = torch.nn.functional.pad(prompt_BT, (0, width - prompt_BT.shape[1]))
    logp_BT = torch.zeros(B, width, device=device)
    start_B = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(n)
    end_B = start_B + max_new_tokens  # one past a row's last token
    columns = (
        max_new_tokens + 1
    ) * states  # of states: that after the prompt's last token comes first
    states_CD = torch.zeros(
        B * columns, model.config.hidden_size, dtype=cache.keys.dtype, device=device
    )
    number_B = torch.arange(B, device=device) if rows is None else rows.to(device)
    # all random numbers at once: hashing one position at a time is two dozen small operations a
    # token
    chance_BT = uniform(
        address("draw", seed, number_B[:, None], torch.arange(width, device=device))
    )
    tokens_C, logp_C, chance_C = (
        tokens_BT.view(-1),
        logp_BT.view(-1),
        chance_BT.view(-1),
    )  # one index a cell, row * width + position
    eos_E1 = torch.tensor(
        sorted(eos_id) if isinstance(eos_id, list | set | tuple) else [eos_id], device=device
    )[:, None]

    step = Step(model, cache)
    waiting = sorted(
        range(len(prompts)), key=lambda p: len(prompts[p])
    )  # taken from the end: the longest prompt starts first
    # of each active slot: its row, the last position it may have, and of its newest token, which
    # the next forward reads: the
    # position, the cell and the place of the state
    state_5S = torch.zeros(5, 0, dtype=torch.int64, device=device)
    longest = over = 0  # positions that the next forward reads, rows that are finished

    while waiting or state_5S.shape[1]:
        active = state_5S.shape[1]
        if waiting and slots - active >= n:
            entering = [waiting.pop() for _ in range(min(len(waiting), (slots - active) // n))]
            if (
                max(len(prompts[p]) for p in entering) > 1
            ):  # all but the last token, which the first step of decoding reads
                prefilled = DynamicCache()
                model.base_model(
                    pad([prompts[p][:-1] for p in entering], device=device),
                    use_cache=True,
                    **{CACHE: prefilled},
                )
                cache.admit(active, prefilled, n)
            new_S = (
                torch.tensor(entering, device=device)[:, None] * n + torch.arange(n, device=device)
            ).flatten()
            before_S = start_B[new_S] - 1
            entry = torch.stack(
                [new_S, end_B[new_S] - 1, before_S, new_S * width + before_S, new_S * columns]
            )
            state_5S = torch.cat([state_5S, entry], 1)
            longest = int(state_5S[2].max())

        longest += 1
        row_S, last_S, position_S, cell_S, place_S = state_5S
        hidden_SD, logits_SV = step(tokens_C[cell_S], position_S, longest)
        if states:
            states_CD.index_copy_(0, place_S, hidden_SD.to(states_CD.dtype))
        state_5S[2:] += 1
        ids_S, drawn_logp_S = draw(logits_SV, chance_C[cell_S], *how)
        tokens_C.index_copy_(0, cell_S, ids_S)
        logp_C.index_copy_(0, cell_S, drawn_logp_S)
        for row, token in zip(row_S.tolist(), ids_S.tolist()) if stream else ():
            stream(row, token)

        torch.where((ids_S == eos_E1).any(0), torch.minimum(last_S, position_S), last_S, out=last_S)
        done_S = position_S == last_S + states
        if done_S.any():
            end_B[row_S[done_S]] = last_S[done_S] + 1
            stay = (~done_S).nonzero()[:, 0]
            holes, movers = done_S[: len(stay)].nonzero()[:, 0], stay[stay >= len(stay)]
            if len(movers):
                cache.move(movers, holes, longest)
                state_5S[:, holes] = state_5S[:, movers]
            over += len(done_S) - len(stay)
            state_5S = state_5S[:, : len(stay)]
            longest = int(state_5S[2].max()) if len(stay) else 0
            finished(over)

    column_T = torch.arange(int(end_B.max()), device=device)
    ended_BT = column_T >= end_B[:, None]
    mask_BT = ((column_T >= start_B[:, None]) & ~ended_BT).float()
    states_BRD = states_CD.view(B, columns, states_CD.shape[1])[:, 1:]
    return (
        tokens_BT[:, : len(column_T)].masked_fill(ended_BT, 0),
        mask_BT,
        logp_BT[:, : len(column_T)].masked_fill(ended_BT, 0),
        states_BRD,
    )
