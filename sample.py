"""Sampling from Hugging Face causal language models, fast enough to train with.

Continuous batching over a fixed number of slots that share one KV cache. Each prompt is prefilled
once and its keys and values are copied to the slots of its n responses. A row that has ended leaves
its slot, the last row moves into it, and waiting prompts enter as soon as n slots are free: no step
computes a row that has ended. Row r, position t is drawn with a random number of its own
(nanomerci/address.py) by inverting the distribution function, so a response depends on the seed and
on its row number, never on the rows it was sampled with. For the same reason a call that ran out of
memory is simply made again with half as many slots.

Here: the algorithm. What only its speed needs is in nanomerci/loop/decode.py.
Run alone it answers (nanomerci/view/ask.py):  python sample.py MODEL_OR_RUN "prompt" -n 4

Axes: P prompts, n responses per prompt, B = P*n rows, S active slots, T token positions,
C = B*T cells, V vocabulary, D hidden width.
"""

if __name__ == "__main__":  # --help and mistakes are answered before torch has loaded
    from nanomerci.view import ask

    request = ask.parse()

from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import StringIO

import torch
from transformers import DynamicCache

from nanomerci.address import address, uniform
from nanomerci.kernels.draw import draw
from nanomerci.loop.decode import Decoder, say_once
from nanomerci.loop.families import ADVICE, rounding, short_window
from nanomerci.loop.model import CACHE, eos_ids, token_logp
from nanomerci.loop.rollout import Rollout, SampleOptions, pad
from nanomerci.runtime.checkpoint import reason
from nanomerci.runtime.config import UserError


@dataclass(frozen=True)
class Sampling:
    """The distribution to sample from, and when a response ends."""

    max_new_tokens: int
    eos_ids: tuple
    draw: partial
    """sample_token with its options."""
    seed: int


def truncate(logits_SV, top_p=1.0, top_k=0):
    """-inf on all but the top_k largest logits and on all beyond the smallest set whose probability
    reaches top_p.
    """
    if top_k:
        least_S1 = logits_SV.topk(min(top_k, logits_SV.shape[-1])).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < least_S1, -torch.inf)
    if top_p < 1:
        sorted_SV, order_SV = logits_SV.sort(descending=True)
        # mass of the strictly likelier tokens
        before_SV = sorted_SV.softmax(-1).cumsum(-1) - sorted_SV.softmax(-1)
        nothing_SV = torch.zeros_like(order_SV, dtype=torch.bool)
        drop_SV = nothing_SV.scatter(1, order_SV, before_SV >= top_p)
        logits_SV = logits_SV.masked_fill(drop_SV, -torch.inf)
    return logits_SV


def sample_token(logits_SV, uniform_S, temperature=1.0, top_p=1.0, top_k=0, backend=None):
    """One token per row by inverting the distribution function (kernels/draw.py). -> ids_S, and
    logp_S under the distribution drawn from.

    temperature 0 is greedy; its log-probs are those of temperature 1.
    """
    if temperature and (top_k or top_p < 1):
        logits_SV = truncate(logits_SV.float() / temperature, top_p, top_k)
        temperature = 1.0
    return draw(logits_SV, uniform_S, temperature, backend)


@dataclass(frozen=True)
class Sampler:
    """`generate` for one model and its tokenizer: what the loop, evaluation and pictures are
    handed.
    """

    model: torch.nn.Module
    tokenizer: object
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    backend: str | None = None

    @cached_property
    def decoder(self):
        """What one call leaves for the next."""
        return Decoder(self.model)

    def __call__(self, prompts, n, *, seed=0, options=None, temperature=None):
        """prompts: lists of token ids. -> Rollout. temperature: another than usual. The decoder is
        this sampler's own, whatever the options say.
        """
        return generate(
            self.model,
            prompts,
            n,
            max_new_tokens=self.max_new_tokens,
            eos_id=eos_ids(self.model, self.tokenizer),
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=seed,
            options=replace(options or SampleOptions(), backend=self.backend, decoder=self.decoder),
        )


class Draft:
    """The rollout while it is written. Every row has the full width, so a token has a cell: row *
    width + position. All random numbers are drawn at once: hashing one position at a time would be
    two dozen small operations per token.
    """

    def __init__(self, model, prompts, n, dtype, sampling, options):
        device = model.device
        prompt_BT = pad([p for p in prompts for _ in range(n)], device=device)
        B, width = len(prompt_BT), prompt_BT.shape[1] + sampling.max_new_tokens
        self.width = width
        self.tokens_BT = torch.nn.functional.pad(prompt_BT, (0, width - prompt_BT.shape[1]))
        self.logp_BT = torch.zeros(B, width, device=device)
        length_P = torch.tensor([len(p) for p in prompts], device=device)
        self.start_B = length_P.repeat_interleave(n)
        self.end_B = self.start_B + sampling.max_new_tokens  # one past a row's last token
        # the states of a row: that after the prompt's last token comes first
        self.columns = sampling.max_new_tokens * options.states
        shape = B * self.columns, model.config.hidden_size
        self.states_CD = torch.zeros(shape, dtype=dtype, device=device)
        rows_B = options.rows
        rows_B = torch.arange(B, device=device) if rows_B is None else rows_B.to(device)
        position_T = torch.arange(1, width + 1, device=device)  # that of the token after a cell
        chance_BT = uniform(address("draw", sampling.seed, rows_B[:, None], position_T))
        self.tokens_C, self.logp_C = self.tokens_BT.view(-1), self.logp_BT.view(-1)
        self.chance_C = chance_BT.view(-1)

    def rollout(self):
        """What was written, up to the end of the longest response."""
        column_T = torch.arange(int(self.end_B.max()), device=self.end_B.device)
        ended_BT = column_T >= self.end_B[:, None]
        mask_BT = ((column_T >= self.start_B[:, None]) & ~ended_BT).float()
        tokens_BT = self.tokens_BT[:, : len(column_T)].masked_fill(ended_BT, 0)
        logp_BT = self.logp_BT[:, : len(column_T)].masked_fill(ended_BT, 0)
        if not self.columns:  # of states
            return Rollout(tokens_BT, mask_BT, logp_BT)
        states_BRD = self.states_CD.view(len(tokens_BT), self.columns, -1)[:, 1:]
        return Rollout(tokens_BT, mask_BT, logp_BT, states_BRD)


class Slots:
    """The rows that are being written, slot by slot. For each: its row, the last position it may
    have, and of its newest token, which the next forward reads, the position, the cell, and the
    place of the state after it. They are rows of one tensor, so that one addition advances three.
    """

    def __init__(self, draft, n):
        self.draft, self.n = draft, n
        self.longest = 0  # positions that the next forward reads
        self._hold(torch.zeros(5, 0, dtype=torch.int64, device=draft.end_B.device))

    def _hold(self, table_5S):
        self.table_5S = table_5S
        self.row_S, self.last_S, self.position_S, self.cell_S, self.place_S = table_5S

    def __len__(self):
        return self.table_5S.shape[1]

    def enter(self, entering):
        """The rows of these prompts take the next free slots."""
        device, draft = self.table_5S.device, self.draft
        prompt_P1 = torch.tensor(entering, device=device)[:, None]
        row_S = (prompt_P1 * self.n + torch.arange(self.n, device=device)).flatten()
        before_S = draft.start_B[row_S] - 1
        cell_S = row_S * draft.width + before_S
        entry = [row_S, draft.end_B[row_S] - 1, before_S, cell_S, row_S * draft.columns]
        self._hold(torch.cat([self.table_5S, torch.stack(entry)], 1))
        self.longest = int(self.position_S.max())

    def advance(self):
        """The newest token of each slot is now the next one."""
        self.table_5S[2:] += 1

    def ended(self, ids_S, eos_E1):
        """Which slots have drawn their last token."""
        stops_S = (ids_S == eos_E1).any(0)
        here_S = torch.minimum(self.last_S, self.position_S)
        torch.where(stops_S, here_S, self.last_S, out=self.last_S)
        return self.position_S == self.last_S

    def leave(self, done_S, cache):
        """Rows that have ended free their slots, and the last rows move into the holes."""
        self.draft.end_B[self.row_S[done_S]] = self.last_S[done_S] + 1
        stay = (~done_S).nonzero()[:, 0]
        holes = done_S[: len(stay)].nonzero()[:, 0]
        movers = stay[stay >= len(stay)]
        if len(movers):
            cache.move(movers, holes, self.longest)
            self.table_5S[:, holes] = self.table_5S[:, movers]
        self._hold(self.table_5S[:, : len(stay)])
        self.longest = int(self.position_S.max()) if len(stay) else 0


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
    options=None,
):
    """Sample n responses to each prompt (a list of token ids). -> Rollout on the model's device,
    row p*n + g = response g to prompt p.

    eos_id: an id or several; a response ends with one, or after max_new_tokens. seed: an int. When
    a GPU's memory does not suffice for the slots, half as many are tried.
    """
    options = options or SampleOptions()
    eos_ids = tuple(sorted(eos_id)) if isinstance(eos_id, list | set | tuple) else (eos_id,)
    how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "backend": options.backend}
    sampling = Sampling(max_new_tokens, eos_ids, partial(sample_token, **how), seed)
    decoder = options.decoder or Decoder(model)
    longest = max(map(len, prompts)) + max_new_tokens
    slots = min(options.slots or n * len(prompts), n * len(prompts))
    report = Progress(options.progress)
    decoder.follow()
    while True:
        try:
            decoder.prepare(longest, slots)
            with torch.inference_mode():  # no bookkeeping of gradients: a tenth of a small step
                rollout = _generate(decoder.step, slots, prompts, n, sampling, options, report)
            decoder.release()
            return rollout.clone()  # training may read it
        except torch.cuda.OutOfMemoryError:
            if slots == 1:
                raise UserError(
                    f"out of memory with only one row of {longest} positions: lower "
                    "--max_new_tokens"
                ) from None
        # here, where the exception and all it held are gone
        slots = max(1, min(slots, decoder.slots) // 2)
        decoder.release(everything=True)
        torch.cuda.empty_cache()


def _generate(decode, slots, prompts, n, sampling, options, report):
    """One attempt, with at most so many slots of this step's cache."""
    model, cache = decode.model, decode.cache
    room = min(slots, cache.slots)
    # where not all of a group fits, its prompt is read once for each of equal parts
    part = max(d for d in range(1, min(n, room) + 1) if n % d == 0)
    prompts, n = [prompt for prompt in prompts for _ in range(n // part)], part
    eos_E1 = torch.tensor(sampling.eos_ids, device=model.device)[:, None]
    draft = Draft(model, prompts, n, cache.keys.dtype, sampling, options)
    slots = Slots(draft, n)
    # taken from the end: the longest prompt starts first
    waiting = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    ended = 0
    while waiting or len(slots):
        free = room - len(slots)
        if waiting and free >= n:
            entering = [waiting.pop() for _ in range(min(len(waiting), free // n))]
            prefill(model, cache, [prompts[p] for p in entering], len(slots), n)
            slots.enter(entering)

        slots.longest += 1
        cell_S = slots.cell_S
        newest = draft.tokens_C[cell_S], slots.position_S, draft.chance_C[cell_S]
        hidden_SD, ids_S, logp_S = decode(*newest, slots.longest, sampling.draw)
        if options.states:
            draft.states_CD.index_copy_(0, slots.place_S, hidden_SD.to(draft.states_CD.dtype))
        slots.advance()
        draft.tokens_C.index_copy_(0, cell_S, ids_S)
        draft.logp_C.index_copy_(0, cell_S, logp_S)
        if options.stream:
            for row, token in zip(slots.row_S.tolist(), ids_S.tolist(), strict=True):
                options.stream(row, token)

        done_S = slots.ended(ids_S, eos_E1)
        if done_S.any():
            before = len(slots)
            slots.leave(done_S, cache)
            ended += before - len(slots)
            report(ended)
    return draft.rollout()


def prefill(model, cache, prompts, first, n):
    """Keys and values of all but the last token of each prompt, which the first step of decoding
    reads, into n slots per prompt from slot `first` on.
    """
    if max(map(len, prompts)) > 1:
        prefilled = DynamicCache()
        tokens_PT = pad([prompt[:-1] for prompt in prompts], device=model.device)
        model.base_model(tokens_PT, use_cache=True, **{CACHE: prefilled})
        cache.insert_prefill(first, prefilled, n)


class Progress:
    """Tells a function how many rows have ended since its last call; a repeated attempt is quiet
    until it is further than the one before.
    """

    def __init__(self, function):
        self.function, self.told = function, 0

    def __call__(self, ended):
        if self.function and ended > self.told:
            self.function(ended - self.told)
            self.told = ended


def check_model(model, name):
    """Responses are sampled over a KV cache and under masks of our own, and log-probs computed from
    hidden states and the head's weight: try both, in plain torch, on two prompts beyond the window,
    which is short here, and refuse (UserError) a model with which they differ from its own logits.
    """
    words = model.config.vocab_size
    with torch.no_grad():
        logits_1TV = model(torch.arange(2, device=model.device)[None] % words).logits
    if not logits_1TV.isfinite().all():
        raise UserError(
            f"--model {name}: its logits are not finite; some of its weights are damaged"
        )
    prompts = [[i % words for i in range(length)] for length in (2, 9)]
    try:  # silently: how large this little cache is, is of no interest
        with redirect_stderr(StringIO()), short_window(model.config), torch.no_grad():
            options = SampleOptions(backend="torch")
            rollout = generate(model, prompts, 2, max_new_tokens=3, eos_id=-1, options=options)
            trained_BT = token_logp(model, rollout.tokens_BT, rollout.mask_BT, 1.0, "torch")[0]
            logits_BTV = model(rollout.tokens_BT).logits.float()
        say_once.cache_clear()  # what was said in here was not heard
    except Exception as error:  # whatever a foreign forward makes of our arguments
        raise UserError(
            f"--model {name}: cannot be sampled with our KV cache ({reason(error)}); {ADVICE}"
        ) from error
    logp_BTV, bound = logits_BTV[:, :-1].log_softmax(-1), rounding(model, logits_BTV)
    theirs_BT = logp_BTV.gather(2, rollout.tokens_BT[:, 1:, None])[..., 0]
    for what, logp_BT in (
        ("are not head(hidden): soft caps, scaling, a bias, a mask of its own", trained_BT),
        ("change with our cache", rollout.logp_BT),
    ):
        gap = ((logp_BT[:, 1:] - theirs_BT) * rollout.mask_BT[:, 1:]).abs().max()
        if not gap <= bound:  # nor is nan
            raise UserError(
                f"--model {name}: its logits {what} (log-probs differ by {gap:.2g}, by rounding at "
                f"most {bound:.2g}); {ADVICE}"
            )


if __name__ == "__main__":
    ask.main(request, Sampler, check_model)
