"""Sampling from Hugging Face causal language models (Qwen2/2.5/3, Llama), fast enough to train with.

A fixed number of slots shares one key-value cache. Each prompt is prefilled once and its keys and values copied to its n
samples; a row that finishes leaves, the last row moves into its slot, and waiting prompts enter as soon as n slots are free: no
step computes a finished row. Row r, position t is drawn with a random number of its own (nanomerci/address.py) by inverting
the distribution function, so a sample depends on the seed and its row number, never on the company it was sampled in.

As a command:  python sample.py MODEL_OR_RUN "prompt" -n 4

Axes: P prompts, n samples a prompt, B = P*n rows, S active slots, T token positions, V vocabulary.
"""
import argparse
import sys
from pathlib import Path

import torch
from transformers import DynamicCache

from nanomerci.address import address, uniform
from nanomerci.config import UserError, run_command
from nanomerci.model import CACHE
from nanomerci.rollout import Rollout, pad


class SlotCache:
    """Keys and values of all slots: a tensor (slots, heads, width, head size) a layer. Slot s is written at its own position.

    Stands in for a transformers cache, of which a model's forward calls only update() and get_seq_length().
    """

    def __init__(self, config, slots, width, dtype, device):
        heads = config.num_key_value_heads
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
             slots=512, progress=None):  # fmt: skip
    """Sample n responses to each prompt (a list of token ids). -> Rollout on the model's device, row p*n + g = sample g of p.

    eos_id: an id or several; a response ends with one, or after max_new_tokens. seed: an int. rows: the number by which each
    row's random numbers are addressed (int64, default 0..B-1). slots: rows in flight at once, at least n; bounds the memory.
    progress: called with the number of rows finished since the last call.
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


# ---- the command

class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, status 2, as for every command of ours
        raise UserError(f"{message}; see python sample.py --help")


def arguments(argv):
    p = Parser(prog="sample.py", formatter_class=argparse.RawDescriptionHelpFormatter, description="""\
Sample from a model: print its answers, or draw how new the states are that they go through.

  python sample.py runs/toy_sql-seed0                                 the run's newest model, its first held-out problem
  python sample.py runs/toy_sql-seed0 --heatmap out.html              the same as a picture in which red is new ground
  python sample.py HuggingFaceTB/SmolLM2-135M-Instruct "What is 27 + 85?" -n 4
  python sample.py MODEL < prompts.txt                                a prompt a line
  python sample.py MODEL --eval math500 -k 16 --temperature 0.6 --top_p 0.95 --max_new_tokens 8192""")  # fmt: skip
    p.add_argument("model", metavar="MODEL_OR_RUN", help="Hugging Face folder or hub id, or a run folder: its newest model")
    p.add_argument("prompt", nargs="?", help="what to ask; without it: --file, a pipe, or a run's first held-out problem")
    what = p.add_argument_group("what to sample")
    what.add_argument("-n", type=int, help="samples a prompt (default 1, or 4 for a picture)")
    what.add_argument("--file", help="file of prompts, one a line")
    what.add_argument("--raw", action="store_true", help="no chat template: the model continues the prompt")
    how = p.add_argument_group("how")
    how.add_argument("--max_new_tokens", type=int, help="longest response, tokens (default: the run's, or 256)")
    how.add_argument("--temperature", type=float, default=1.0, help="0 = greedy (default 1.0)")
    how.add_argument("--top_p", type=float, default=1.0, help="nucleus sampling (default 1.0 = off)")
    how.add_argument("--top_k", type=int, default=0, help="the k likeliest tokens only (default 0 = off)")
    how.add_argument("--seed", type=int, default=0, help="the same seed gives the same samples (default 0)")
    how.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    show = p.add_argument_group("pictures")
    show.add_argument("--heatmap", metavar="FILE", action="append", default=[], help="write tokens coloured by 1/n to a .html "
                      "(with sliders) or .png; may be given twice")  # fmt: skip
    show.add_argument("--color", action="store_true", help="the same colours in the terminal")
    show.add_argument("--gold", help="the right answer (a number or formula), to mark answers right or wrong")
    show.add_argument("--count", type=int, default=64, help="a model without a run has no counter: one is made from so many "
                      "further samples (default 64)")  # fmt: skip
    test = p.add_argument_group("evaluation: pass@k, mean@k, greedy, each with an interval; goes on where it was killed")
    test.add_argument("--eval", metavar="NAME", help="toy_sql, toy_math, arithmetic, aime24, math500 ... (nanomerci/tasks/math.py), "
                      "a file of problems, or a Spider or BIRD folder")  # fmt: skip
    test.add_argument("-k", type=int, help="samples a problem (default: the paper's for the set, else 16)")
    test.add_argument("--limit", type=int, help="the first so many problems only")
    test.add_argument("--data_folder", default="", help="where sets lie as files, for machines without network")
    test.add_argument("--out", help="JSONL, a line a problem (default: eval-... in the run folder, or in runs/)")
    a = p.parse_args(argv)
    a.n = (4 if a.heatmap or a.color else 1) if a.n is None else a.n
    for name, least in (("n", 1), ("count", 2), ("temperature", 0), ("top_k", 0), ("max_new_tokens", 1), ("k", 1), ("limit", 1)):
        if getattr(a, name) is not None and getattr(a, name) < least:
            raise UserError(f"--{name} {getattr(a, name)}: wanted at least {least}")
    if not 0 < a.top_p <= 1:
        raise UserError(f"--top_p {a.top_p}: is a share of probability; wanted above 0, at most 1")
    for file in map(Path, a.heatmap):
        if file.suffix not in (".html", ".png"):
            raise UserError(f"--heatmap {file}: wanted a name that ends in .html or .png")
        if not file.absolute().parent.is_dir():
            raise UserError(f"--heatmap {file}: there is no folder {file.parent}")
    return a


def read_prompts(a):
    """The prompt given, the lines of --file or of a pipe; [] if there is none."""
    if a.prompt is not None:
        return [a.prompt]
    try:
        text = Path(a.file).read_text() if a.file else "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{a.file or 'standard input'}: cannot be read ({error})") from None
    return [line for line in text.splitlines() if line.strip()]


def main():
    a = arguments(sys.argv[1:])
    from nanomerci import evaluate, heatmap, tasks  # they sample with generate(), above
    if a.eval:
        return evaluate.command(a)
    from nanomerci.grading import Pool
    from nanomerci.log import bar, say
    from nanomerci.model import context, encode, eos_ids, load
    from nanomerci.tasks import math
    from nanomerci.warmstart import cache_folder

    prompts, run = read_prompts(a), heatmap.Run.of(a.model)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if a.device == "auto" else a.device)
    task = tasks.load(run.options, cache_folder()) if run else None
    problems = {p.prompt: p for p in (*task.train, *task.test)} if task else {}
    if not prompts and not task:
        raise UserError('no prompt: give one in quotes ("What is 27 + 85?"), --file FILE, or pipe lines in')
    prompts = prompts or [task.test[0].prompt]
    if a.gold and len(prompts) > 1:
        raise UserError(f"--gold {a.gold}: is the answer to one prompt, got {len(prompts)} prompts")
    model, tokenizer = load(a.model, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    if not tokenizer.chat_template and not a.raw:
        say(f"{a.model} has no chat template: it continues the prompt as it stands (--raw says so without this line)")
    longest = a.max_new_tokens or (run.options.max_new_tokens if run else 256)
    ids = [tokenizer(prompt)["input_ids"] if a.raw else encode(tokenizer, prompt) for prompt in prompts]
    for prompt, tokens in zip(prompts, ids):
        if not tokens or not prompt.strip():
            raise UserError(f"prompt {prompt!r}: is empty; wanted some text")
        if len(tokens) + longest > context(model):
            raise UserError(f"--max_new_tokens {longest}: with a prompt of {len(tokens)} tokens that exceeds the model's "
                            f"context of {context(model)}")  # fmt: skip

    def grade(pool, prompt, texts):
        problem = problems.get(prompt)
        jobs = [(math.grade, a.gold, t) if a.gold else task.job(problem, t) for t in texts] if a.gold or problem else []
        return pool.grade(jobs) or [None] * len(texts), [task.noise(problem, t) if problem else math.noise(t) for t in texts]

    groups, together, pictured = [], max(1, 64 // a.n), a.heatmap or a.color
    with Pool(deadline=10.0) as pool:
        for first in range(0, len(prompts), together):
            part = range(first, min(first + together, len(prompts)))
            with bar(len(part) * a.n, "sample", "answer") as progress:
                roll = generate(model, [ids[i] for i in part], a.n, max_new_tokens=longest, eos_id=eos_ids(model, tokenizer),
                                temperature=a.temperature, top_p=a.top_p, top_k=a.top_k, seed=a.seed, progress=progress.update,
                                rows=torch.arange(first * a.n, (part[-1] + 1) * a.n))  # fmt: skip
            for i in part:
                mine = roll.rows(torch.arange((i - first) * a.n, (i - first + 1) * a.n, device=device))
                texts = tokenizer.batch_decode(mine.responses(), skip_special_tokens=True)
                grades, noise = grade(pool, prompts[i], texts)
                if pictured:
                    groups.append(heatmap.group(model, tokenizer, mine, prompts[i], ids[i], run, grades, noise, longest, a))
                place = heatmap.scale(groups[-1:]) if a.color else None
                if len(prompts) > 1:
                    print(f"\n=== {heatmap.visible(prompts[i])}")
                for g, (text, mark) in enumerate(zip(texts, grades)):
                    if a.n > 1 or mark:
                        print(f"--- sample {g + 1}" + (f": {mark.outcome}" if mark else ""))
                    print(heatmap.ansi(groups[-1]["samples"][g], place[2]) if place else heatmap.visible(text), flush=True)
                if place:
                    print(heatmap.ansi_bar(*place[:2]))
    for file in a.heatmap:
        heatmap.draw(file, f"How new is it? {Path(a.model).name}", groups, heatmap.options(run))
        say(f"heat map: {file}")


if __name__ == "__main__":
    run_command(main)
