"""What a step costs, by arithmetic: memory of a rank, seconds, and, beside the measured times, how
near a step came to the machine's limits.

`python train.py RECIPE --dry_run` prints the plan of a run, without a GPU and without weights:
prompts as the model would see them, tokens, memory, seconds, and on which cards it fits.

Counted as if every row were read alone, with no recomputation: 2 operations per parameter and token
forward, 4 backward, and those of causal attention (model FLOP utilisation: Chowdhery et al., PaLM,
appendix B). Memory is what nanoMERCI keeps, from the shapes.
"""

import socket
from dataclasses import replace
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from nanomerci import tasks
from nanomerci.kernels.logprob import TILE_BYTES
from nanomerci.loop.collect import needs_reference, reads_sampler_states
from nanomerci.loop.decode import Decoder, cache_bytes, memory, slots_in
from nanomerci.loop.model import encode, kinds, tiny
from nanomerci.loop.rollout import CACHED, Batch
from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError

# peak of dense bf16 arithmetic in FLOP/s, bandwidth of the memory in bytes/s: the makers' data
# sheets. The first name found counts, as a word: a GH200 is another card than an H200.
PEAKS = {
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "B200": (2250e12, 8.0e12),
    "A100-PCIE-40GB": (312e12, 1.555e12),
    "A100-SXM4-40GB": (312e12, 1.555e12),
    "A100": (312e12, 1.935e12),
    "L40S": (362e12, 0.864e12),
}
GPU = "an H100 SXM at 40 % of its peak arithmetic and 60 % of its bandwidth"  # ours
CPU = "a CPU core of 64 GFLOP/s and 10 GB/s"  # AMD EPYC, fp32, measured; small models stay below
RATES = {GPU: (0.4 * PEAKS["H100"][0], 0.6 * PEAKS["H100"][1]), CPU: (64e9, 10e9)}
CARDS = (80, 141)  # GB, for the verdict: A100 and H100, H200
REMEDIES = (  # what costs least first
    {"micro_batch_tokens": 1},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "micro_batch_tokens": 1},
    {"cfn_features": "policy"},
)
RANKS = 8  # assumed for a sharded run that was not started by torchrun
PROCESS = 0.5e9  # bytes; resident after the imports and one batch, measured on a CPU
FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads max_position_embeddings tie_word_embeddings"
)
KNOWN = {  # from the models' own config.json, in the order of FIELDS
    "Qwen2.5-Math-7B": (Qwen2Config, (152064, 3584, 18944, 28, 28, 4, 4096, False)),
    "Qwen2.5-0.5B": (Qwen2Config, (151936, 896, 4864, 24, 14, 2, 32768, True)),
    "Llama-3.1-8B": (LlamaConfig, (128256, 4096, 14336, 32, 32, 8, 131072, False)),
    "SmolLM2-135M": (LlamaConfig, (49152, 576, 1536, 30, 9, 3, 8192, True)),
}


def config_of(family, values, **more):
    return family(**dict(zip(FIELDS.split(), values, strict=True)), **more)


# ---- how near the limits a step came
def peak(device):
    """-> (FLOP/s, bytes/s) of a CUDA device, or None where it is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rates for part, rates in PEAKS.items() if f" {part}" in f" {name}"), None)


def forward_flops(config, parameters, length_B):
    """Of the weights, and of attention, where a token looks at half of its row on average."""
    length_B = length_B.double()
    attention_B = config.num_hidden_layers * config.hidden_size * length_B.square()
    return float((2 * parameters * length_B + 2 * attention_B).sum())


def bytes_read(config, weight_bytes, start_B, end_B, slots, itemsize):
    """Least that sampling reads: weights at every step (as many as the longest response has tokens,
    more if not all rows fit in the slots), and at each token the keys and values before it.
    """
    start_B, end_B = start_B.double(), end_B.double()
    length_B = end_B - start_B
    steps = max(float(length_B.max()), float(length_B.sum()) / slots)
    positions = float((length_B * (start_B + end_B) / 2).sum())
    return steps * weight_bytes + cache_bytes(config, itemsize) * positions


def utilisation(c, policy, rounds, batch, adv, seconds):
    """Of one step; {} where the device's peak is not known or the arithmetic is not bf16. rounds:
    lists of groups, all that was sampled; batch, adv: what was learned from; seconds: the timer's.
    """
    rates = peak(policy.device) if c.dtype == "bfloat16" else None
    if not rates:
        return {}
    config, n = policy.config, policy.num_parameters()
    learned_B = (adv.view(len(adv), -1) != 0).any(1) | (c.kl_coef > 0)
    learned = batch.rollout.rows(learned_B)
    flops = 3 * forward_flops(config, n, learned.end_B[kinds(learned)[1]])
    least = 0.0
    for groups in rounds:
        sampled = Batch.of(groups, c.group, adv.device).rollout
        start_B, end_B = sampled.end_B - sampled.length_B, sampled.end_B
        least += bytes_read(config, 2 * n, start_B, end_B, c.max_num_seqs, 2)
    return {
        "speed/mfu": flops / rates[0] / seconds["time/update"],
        "speed/bandwidth": least / rates[1] / seconds["time/sample"],
    }


# ---- the plan of a run
def parameters(config):
    """Their number, from the architecture alone: built without memory, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def on_cpu(c):
    """Whether the run will be: as far as its options tell."""
    return c.device == "cpu" or (c.device == "auto" and c.dtype == "float32")


def share(c, fleet):
    """-> bytes of a number computed with, one rank's responses, and how many at a time."""
    responses = -(-c.prompts * c.group // fleet)
    return getattr(torch, c.dtype).itemsize, responses, min(responses, c.max_num_seqs)


def plan(c, config, n, width, fleet, card):
    """Memory of one of `fleet` ranks with `card` bytes, of a model of n parameters and rows of
    `width` tokens. -> {"always", "sampling", "updating": [(what, bytes, note)]}, slots.
    """
    size, responses, slots = share(c, fleet)
    D, L, V, R = config.hidden_size, config.num_hidden_layers, config.vocab_size, c.max_new_tokens
    sharded, frozen = c.shard == "fsdp" and fleet > 1, needs_reference(c)
    part = n / fleet if sharded else n
    copies = (sharded or size == 2) + (on_cpu(c) and size == 2)  # gathered or cast; packed
    ends = V * D * (1 if config.tie_word_embeddings else 2)  # embedding and head
    layer = (n - ends) / L
    counter, replay = 24 * c.cfn_hidden * (D + c.coins), 2 * D * c.cfn_replay / fleet
    always = [
        ("process", PROCESS, "Python and its libraries; on a GPU its context takes about as much"),
        ("weights", 4 * part, "fp32 master weights"),
        ("optimiser", 8 * part, "AdamW's two moments, fp32"),
        ("frozen model", size * part * frozen, f"the initial policy, {c.dtype}"),
        ("copy", size * n * copies, f"of all weights, {c.dtype}, to compute with"),
        ("counter", counter + replay, "network, prior, moments; this rank's part of the replay"),
    ]
    free = card / 4 if on_cpu(c) else (card - sum(size for _, size, _ in always)) / 2
    slot = width * cache_bytes(config, size)
    slots = max(1, min(slots, slots_in(free, slot, config)))
    states = size * responses * (R + 1) * D * reads_sampler_states(c)
    cache = ("KV cache", slots * slot, f"{slots} slots x {width:,} tokens, --max_num_seqs")
    stays = slots * slot <= Decoder.KEPT * card  # from call to call
    always += [cache] * stays
    sampling = [
        *[cache] * (not stays),
        ("logits", slots * V * 12, "slots x vocabulary, fp32, three times"),
        ("states", states, f"handed over by the sampler, of {responses} responses"),
    ]
    budget = min(c.micro_batch_tokens, CACHED) if on_cpu(c) else c.micro_batch_tokens
    rows = min(max(1, budget // width), -(-responses // c.minibatches))
    tokens = rows * width
    once = -(-rows // c.group) * (width - R) + rows * R  # prompts forwarded once: model.states()
    if once <= 0.75 * tokens and not sharded:
        tokens = once
    # of a layer and token: input and norms (fp32), q, attention and its projection, k, v, MLP
    shared = config.num_key_value_heads / config.num_attention_heads
    kept = 16 * D + size * (4 * D + 2 * D * shared + 4 * config.intermediate_size)
    kept, again = kept * L, "less with --gradient_checkpointing True"
    if c.gradient_checkpointing:
        kept, again = kept / L + size * D * L, "recomputed"
    gathered = sharded * (size * (ends + 2 * layer) + 4 * max(ends, layer))
    updating = [
        ("gradients", 4 * part, "fp32"),
        ("activations", tokens * kept, f"{tokens:,} tokens, --micro_batch_tokens; {again}"),
        ("logits tile", TILE_BYTES, "of the fused head"),
        ("gathered", gathered, "embedding, head, two layers; a gradient before it is scattered"),
    ]
    return {"always": always, "sampling": sampling, "updating": updating}, slots


def peak_bytes(parts):
    """Sampling and updating take turns."""
    always, *turns = (sum(size for _, size, _ in rows) for rows in parts.values())
    return always + max(turns)


def verdict(c, config, n, width, fleet, card):
    """Whether a rank's share fits a card of so many bytes; if not, which option or fleet would."""

    def fits(c, fleet):
        parts, slots = plan(c, config, n, width, fleet, card)
        return slots if peak_bytes(parts) < card else 0

    wanted = share(c, fleet)[2]
    if slots := fits(c, fleet):
        fewer = f", with {slots} of {wanted} responses at a time" if slots < wanted else ""
        return f"fits{fewer}"
    for options in REMEDIES:
        if fits(replace(c, **options), fleet):
            words = (f"--{name} {value}" for name, value in options.items())
            return f"does not fit; {' '.join(words)} would"
    for more in (2 * fleet, 4 * fleet, 8 * fleet):
        if c.shard == "fsdp" and c.prompts % more == 0 and fits(c, more):
            return f"does not fit on {fleet} ranks; {more} would"
    return "does not fit"


def seconds(c, config, n, prompt, length, fleet, slots):
    """Of a step with responses of `length` tokens, `slots` at a time. -> name of the machine,
    seconds of sampling, of forward and backward.
    """
    machine = GPU if c.dtype == "bfloat16" and c.device != "cpu" else CPU
    (flops, bandwidth), (size, B, _) = RATES[machine], share(c, fleet)
    start_B = torch.full((B,), prompt)
    least = bytes_read(config, size * n, start_B, start_B + length, slots, size)
    sampling = max(B * length * 2 * n / flops, least / bandwidth)
    forwards = 3 + needs_reference(c) + (c.minibatches > 1 and c.old_logp == "trainer")
    return machine, sampling, forwards * forward_flops(config, n, start_B + length) / flops


# ---- what --dry_run prints
def show(c):
    """Print the plan."""
    go_offline()
    task = load_task(c)
    config, tokenizer = describe(c, task)
    mean, longest = prompt_lengths(c, task, tokenizer)
    limit, width = c.max_seq_len or config.max_position_embeddings, longest + c.max_new_tokens
    short = "" if width <= limit else ": TOO SHORT, lower --max_new_tokens or --max_prompt_tokens"
    rows, assumed = c.prompts * c.group, c.shard == "fsdp" and ranks.world == 1
    fleet, n = RANKS if assumed else ranks.world, parameters(config)
    how = f"ranks: {fleet}{' (assumed)' * assumed}, --shard {c.shard}"
    card, where = CARDS[0] * 1e9, f"a card of {CARDS[0]} GB"
    if on_cpu(c):
        card, where = memory(torch.device("cpu")), "this machine"
    parts, slots = plan(c, config, n, width, fleet, card)
    most = peak_bytes(parts) / 1e9
    print(
        f"responses     {c.max_new_tokens:,} at most, so {width:,} in all; the model's context is "
        f"{limit:,}{short}\n"
        f"step          {c.prompts} prompts x {c.group} responses = {rows:,}, "
        f"{rows * c.max_new_tokens:,} tokens at most; {c.minibatches} updates\n\n"
        f"--- memory per rank, on {where}; {how}; {n / 1e6:,.1f} M parameters"
    )
    for phase, lines in parts.items():
        for what, size, note in lines:
            if size:
                print(f"{what:13s} {size / 1e9:9.3f} GB   {phase:9s} {note}")
    load = (4 + getattr(torch, c.dtype).itemsize * needs_reference(c)) * n / 1e9
    print(
        f"{'peak':13s} {most:9.3f} GB   sampling and updating take turns\n"
        f"{'while loading':13s} {load:9.3f} GB   of the machine's own memory per rank: all "
        "weights, fp32, and the frozen copy\n"
    )
    for length in (c.max_new_tokens, c.max_new_tokens // 4):
        machine, sampling, update = seconds(c, config, n, mean, length, fleet, slots)
        print(
            f"--- seconds per step, responses of {length:,} tokens, on {machine}\n"
            f"{sampling + update:,.1f}: sampling {sampling:,.1f}, forward and backward "
            f"{update:,.1f}; {c.steps} steps {(sampling + update) * c.steps / 3600:,.1f} h"
        )
    for card in CARDS:
        print(f"{card} GB: {verdict(c, config, n, width, fleet, card * 1e9)}")


def go_offline():
    """Where the hub cannot be reached its client would try for half a minute, each time."""
    hub = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def load_task(c):
    """-> task, or None if its data is out of reach."""
    try:
        task = tasks.load(c)
    except UserError as error:
        if not c.train_data:
            raise
        return print(f"--- the data is out of reach ({error})\n")
    print(f"--- {len(task.train):,} training problems, {len(task.test):,} held out\n")
    return task


def describe(c, task):
    """-> config of the model, its tokenizer, or None if that is out of reach."""
    if c.model == "tiny":
        if not hasattr(task, "words"):
            raise UserError(
                f"--model tiny: --task {c.task} has no vocabulary for it; give a pretrained --model"
            )
        model, tokenizer = tiny(task.words)
        return model.config, tokenizer
    known = [config_of(*shape) for name, shape in KNOWN.items() if name in c.model]
    config = tokenizer = None
    try:
        config = AutoConfig.from_pretrained(c.model)
        tokenizer = AutoTokenizer.from_pretrained(c.model)
    except (OSError, ValueError) as error:
        if not config and not known:
            what = f"its config.json cannot be read ({str(error).splitlines()[0]})"
            raise UserError(f"--model {c.model}: {what}") from None
    return config or known[0], tokenizer


def prompt_lengths(c, task, tokenizer):
    """Print the shortest and the longest of up to 200 prompts. -> their mean and largest length."""
    limit = c.max_prompt_tokens
    if not task or not tokenizer:
        what = "tokenizer" if task else "data"
        print(f"--- tokens\nprompts       {limit:,}, --max_prompt_tokens: no {what} within reach")
        return limit, limit
    problems = task.train[:: -(-len(task.train) // 200)]
    ids = sorted((encode(tokenizer, p.prompt) for p in problems), key=len)
    for tokens in ids[:: max(1, len(ids) - 1)]:
        print(f"--- prompt, {len(tokens)} tokens\n{tokenizer.decode(tokens)}\n")
    lengths = [len(tokens) for tokens in ids]
    kept = [length for length in lengths if not limit or length <= limit]
    mean = sum(lengths) / len(ids)
    print(
        f"--- tokens\nprompts       {mean:,.0f} on average, {lengths[-1]:,} at most, of "
        f"{len(ids)}; {len(ids) - len(kept)} longer than --max_prompt_tokens are left out"
    )
    return mean, max(kept, default=limit)
