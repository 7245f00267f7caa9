"""Sampled tokens per second, beside transformers' generate and continuous batching."""

import random
import time
from functools import cache
from itertools import chain
from statistics import mean, median

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
)

from nanomerci import sample
from nanomerci.loop import cost, decode
from nanomerci.loop.rollout import SampleOptions
from nanomerci.runtime import ranks

# random weights in the shapes of known models: speed does not ask what a model has learnt
TINY = LlamaConfig, (128, 96, 288, 3, 4, 4, 8192, True)
SHAPES = {"tiny": TINY} | {name.lower(): shape for name, shape in cost.KNOWN.items()}
PROMPT = 16  # tokens of the longest prompt; the shortest has half as many


def build(shape, dtype, device):
    torch.manual_seed(0)
    config = cost.config_of(*SHAPES[shape], eos_token_id=1, pad_token_id=0, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.to(device).eval()


def work(model, rows, group, length):
    """-> prompts of unequal lengths, and as many end tokens as make responses of length/2 tokens on
    average (random weights: p = share).
    """
    rng, V = random.Random(0), model.config.vocab_size
    ends = list(range(1, 1 + max(1, round(2 * V / length))))
    prompts = []
    for _ in range(max(1, rows // group)):
        tokens = rng.randint(PROMPT // 2, PROMPT)
        prompts.append([rng.randrange(len(ends) + 1, V) for _ in range(tokens)])
    return prompts, ends


decoder = cache(decode.Decoder)  # kept from round to round, as a run keeps it


def ours(model, prompts, group, length, ends):
    options = SampleOptions(decoder=decoder(model))
    seed = int(torch.randint(2**31, ()))  # a new draw in each round, as the others make
    how = {"max_new_tokens": length, "eos_id": ends, "options": options, "seed": seed}
    roll = sample.generate(model, prompts, group, **how)
    return roll.length_B.tolist()


def plain_sampling(length, ends, **how):
    """The same distribution in transformers' words."""
    how |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(max_new_tokens=length, eos_token_id=ends, pad_token_id=0, **how)


def repeated(prompts, group):
    return list(chain.from_iterable([prompt] * group for prompt in prompts))


def generate(model, prompts, group, length, ends, **how):
    rows = [torch.tensor(prompt, device=model.device) for prompt in repeated(prompts, group)]
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    plain = plain_sampling(length, ends, **how)
    with torch.no_grad():
        full = model.generate(tokens, attention_mask=tokens.sign(), generation_config=plain)
    return (full[:, tokens.shape[1] :] != 0).sum(1).tolist()


def compiled_generate(*arguments):
    """generate with a static cache, its decoding step compiled, as it is on a GPU."""
    compilation = CompileConfig()
    compilation._compile_all_devices = True  # else not on a CPU
    how = {"cache_implementation": "static", "compile_config": compilation}
    return generate(*arguments, **how)


def continuous_batching(model, prompts, group, length, ends):
    rows = repeated(prompts, group)
    # by its own choice it fills the memory, which takes minutes on a CPU; this is what is needed
    size = ContinuousBatchingConfig(
        num_blocks=len(rows) * (1 + (PROMPT + length) // 32), max_batch_tokens=max(256, len(rows))
    )
    how = {"generation_config": plain_sampling(length, ends), "continuous_batching_config": size}
    found = model.generate_batch(rows, **how)
    model.set_attn_implementation("sdpa")
    if len(found) < len(rows):
        raise RuntimeError(f"{len(found)} responses to {len(rows)} requests")
    return [len(output.generated_tokens) for output in found.values()]


PEERS = {
    "nanomerci": ours,
    "transformers generate": generate,
    "transformers continuous_batching": continuous_batching,
}


def timed(model, function, *arguments):
    """-> seconds, lengths of the responses, which are known when the device is done."""
    start = time.perf_counter()
    lengths = function(model, *arguments)
    return time.perf_counter() - start, lengths


def peers_that_run(model, given, compiled):
    """The first call of each sets things up, and is not counted."""
    wanted, peers = dict(PEERS), {}
    if compiled == "yes":
        wanted["generate, static and compiled"] = compiled_generate
    for name, function in wanted.items():
        try:
            timed(model, function, *given)
            peers[name] = function
        except (RuntimeError, ValueError, AttributeError, ImportError, TypeError) as error:
            if function is ours:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:90]
            print(f"{name:32s} does not run here: {reason}")
    return peers


def fastest(function, *arguments, rounds=5):
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def floor(model, prompts, group, lengths):
    """What a round takes at least, in words: the arithmetic of its tokens, and reading the weights
    at every step, each at the rate of one large operation measured here.
    """
    how = {"dtype": model.dtype, "device": model.device}
    square, line = torch.randn(2048, 2048, **how), torch.zeros(1 << 27, **how)
    flops = 2 * 2048**3 / fastest(torch.mm, square, square)
    bandwidth = 2 * line.nbytes / fastest(line.clone)
    start_B = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(group)
    end_B, n = start_B + torch.tensor(lengths), model.num_parameters()
    size, prompts_once = model.dtype.itemsize, start_B[::group]
    work = cost.forward_flops(model.config, n, end_B - start_B)
    work += cost.forward_flops(model.config, n, prompts_once)
    least = cost.bytes_read(model.config, n * size, start_B, end_B, len(start_B), size)
    return (
        f"at least: arithmetic {work / flops:.2f} s at {flops / 1e9:,.0f} GFLOP/s, reading "
        f"{least / bandwidth:.2f} s at {bandwidth / 1e9:,.0f} GB/s"
    )


def profile(model, given, shown=6):
    """Which operations a round of ours spends its time in, in words."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ours(model, *given)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    parts = [(e.key, e.self_cpu_time_total / total, e.count) for e in events[:shown]]
    return "ours: " + ", ".join(f"{name} {share:.0%} ({n:,} calls)" for name, share, n in parts)


def run(o):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        ranks.keep_freed_memory()  # as a run does
    model = build(o.shape, getattr(torch, o.dtype), device)
    prompts, ends = work(model, o.rows, o.group, o.length)
    given = prompts, o.group, o.length, ends
    print(
        f"sampler: {o.shape}, {o.dtype}, {device.type}, {torch.get_num_threads()} threads; "
        f"{len(prompts) * o.group} rows in groups of {o.group}, at most {o.length} new tokens\n"
        f"{'peer':32s} {'tokens/s':>10s} {'seconds':>8s} {'ours is':>8s}"
    )
    peers = peers_that_run(model, given, o.compiled)
    seconds, lengths, tokens = {name: [] for name in peers}, {}, []
    for _ in range(o.rounds):
        for name, function in peers.items():  # in turn, so that a busy machine slows all alike
            took, lengths[name] = timed(model, function, *given)
            seconds[name].append(took)
            tokens.append(sum(lengths[name]))
    least, most = int(min(tokens)), int(max(tokens))
    for name, times in seconds.items():
        took = median(times)
        ratio = took / median(seconds["nanomerci"])
        print(f"{name:32s} {mean(tokens) / took:10,.0f} {took:8.2f} {ratio:6.2f} x")
    print(
        f"equal: weights, prompts, dtype, process, temperature 1, end tokens; median seconds of "
        f"{o.rounds} rounds in turn.\nNot equal: the random numbers. All draw responses from one "
        f"distribution, so a round's tokens are the mean over\nall peers and rounds, "
        f"{mean(tokens):,.0f} ({least:,} to {most:,}), end tokens included, pads not."
    )
    if decode.inference_copy(model).dtype != model.dtype:
        print(
            "Nor the arithmetic: this processor has none in bf16, and ours widens the weights to "
            "fp32 for the round."
        )
    print(floor(model, prompts, o.group, lengths["nanomerci"]))
    if device.type == "cpu":
        print(profile(model, given))
