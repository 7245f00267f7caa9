"""`python train.py RECIPE --dry_run`: what a run would do, without a GPU and without weights:
prompts as the model would see them, tokens, memory of a rank, seconds a step. What cannot be
reached (hub, data) is replaced by what is known here, and it says so.

Memory counts what nanoMERCI keeps, from the shapes; time is arithmetic at the rates below, not a
measurement.
"""

import dataclasses
import socket
import time
from urllib.parse import urlparse

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, Qwen2Config

from nanomerci import tasks
from nanomerci.bonuses import BONUSES
from nanomerci.kernels.logprob import TILE_BYTES
from nanomerci.loop.cost import forward_flops
from nanomerci.loop.decode import cache_bytes
from nanomerci.loop.model import encode, tiny
from nanomerci.loop.rollout import CACHED
from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError
from nanomerci.tasks.graders.sqlite import Script

GPU = (
    "an H100 SXM at 40 % of its peak arithmetic and 60 % of its bandwidth",
    0.4 * 989e12,
    0.6 * 3.35e12,
)  # bf16; ours
RANKS = 8  # assumed for a sharded run that was not started by torchrun
PROCESS = (
    0.5e9  # bytes; resident once all is imported and a batch has gone through, measured on a CPU
)
FLEET = (1, 2, 4, 8, 16, 32, 64)  # numbers of ranks in the table of peaks
SIZES = {  # the shapes of Qwen2.5, for that table
    f"Qwen2.5-{name}": Qwen2Config(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=M,
        num_hidden_layers=L,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
    )
    for name, V, D, M, L, heads, kv, tied in (
        ("1.5B", 151936, 1536, 8960, 28, 12, 2, True),
        ("7B", 152064, 3584, 18944, 28, 28, 4, False),
        ("32B", 152064, 5120, 27648, 64, 40, 8, False),
    )
}
CHARACTERS = 3.2  # a token, where the tokenizer is out of reach
KNOWN = {  # from the models' own config.json
    "Qwen2.5-Math-7B": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    ),
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}
CHAT = {  # the shape of their chat templates, without the default system message
    "Qwen2.5-Math-7B": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "Llama-3.1-8B": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "SmolLM2-135M": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
}


def show(c):
    """Print the plan."""
    go_offline()
    task, problems = examples(c)
    config, tokenizer, known = describe(c, task)
    chat = lambda text: CHAT[known].format(text) if known else text
    lengths = [
        len(encode(tokenizer, p.prompt)) if tokenizer else round(len(chat(p.prompt)) / CHARACTERS)
        for p in problems
    ]
    for problem, length in sorted(zip(problems, lengths), key=lambda pair: pair[1])[
        :: max(1, len(problems) - 1)
    ][:2]:
        text = (
            tokenizer.decode(encode(tokenizer, problem.prompt))
            if tokenizer
            else chat(problem.prompt)
        )
        print(f"--- prompt {problem.id}, {length} tokens\n{text}\n")
    long = sum(bool(c.max_prompt_tokens) and n > c.max_prompt_tokens for n in lengths)
    mean = sum(lengths) / len(lengths)
    print(
        f"--- tokens\nprompts       {mean:,.0f} on average, {max(lengths):,} at most, of "
        f"{len(lengths)} looked at"
        + ("" if tokenizer else f" (no tokenizer: {CHARACTERS} characters a token)")
        + (
            f"; {long} longer than --max_prompt_tokens {c.max_prompt_tokens}, left out"
            if c.max_prompt_tokens
            else ""
        )
    )
    longest = max(
        [n for n in lengths if task and (not c.max_prompt_tokens or n <= c.max_prompt_tokens)]
        or [c.max_prompt_tokens]
    )
    limit = c.max_seq_len or config.max_position_embeddings
    width = longest + c.max_new_tokens
    print(
        f"responses     {c.max_new_tokens:,} at most, so {width:,} in all; the model's context "
        f"is {limit:,}"
        + ("" if width <= limit else ": TOO SHORT, lower --max_new_tokens or --max_prompt_tokens")
    )
    print(
        f"step          {c.prompts} prompts x {c.group} samples = {c.prompts * c.group:,} "
        "responses, "
        f"{c.prompts * c.group * c.max_new_tokens:,} tokens at most; {c.minibatches} updates\n"
    )
    fleet = RANKS if c.shard == "fsdp" and ranks.world == 1 else ranks.world
    memory(c, config, width, fleet)
    seconds(c, config, mean, fleet)


def go_offline():
    """Ask the hub for nothing if it cannot be reached: its client would try for half a minute, each
    time.
    """
    from huggingface_hub import constants

    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def examples(c):
    """-> task or None, some of its problems (spread over the training data)."""
    try:
        task = tasks.load(c)
    except UserError as error:
        from nanomerci.tasks import math, sql

        if not c.train_data:
            raise
        print(f"--- the data is out of reach; the example is built in ({error})\n")
        if c.task == "sql":
            shop = Script(
                "CREATE TABLE owner (name TEXT, age INTEGER); INSERT INTO owner VALUES ('Ann', "
                "30), ('Bob', 28);"
            )
            return None, [
                sql.Problem(
                    "example/0",
                    "Who is the oldest owner?",
                    "SELECT 1",
                    shop,
                    "oldest = highest age",
                )
            ]
        return None, [
            math.Problem(
                "example/0", "What is the sum of the first 10 odd numbers?" + math.BOXED, "100"
            )
        ]
    print(f"--- {len(task.train):,} training problems, {len(task.test):,} held out\n")
    return task, task.train[:: -(-len(task.train) // 200)]


def describe(c, task):
    """-> config of the model; its tokenizer, or None; the key of KNOWN if the config is from there."""
    if c.model == "tiny":
        if not hasattr(task, "words"):
            raise UserError(
                f"--model tiny: --task {c.task} has no vocabulary for it; give a pretrained --model"
            )
        model, tokenizer = tiny(task.words)
        return model.config, tokenizer, None
    known = next((name for name in KNOWN if name in c.model), None)
    try:
        config, known = AutoConfig.from_pretrained(c.model), None
    except (OSError, ValueError) as error:
        if not known:
            raise UserError(
                f"--model {c.model}: its config.json cannot be read ({str(error).splitlines()[0]})"
            ) from None
        config = KNOWN[known]
    try:
        return config, AutoTokenizer.from_pretrained(c.model), known
    except (OSError, ValueError):
        return config, None, known or next((name for name in CHAT if name in c.model), None)


def parameters(config):
    """Their number, from the architecture alone: built without memory, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def slots(c, fleet):
    return min(max(1, c.prompts * c.group // fleet), max(c.max_num_seqs, c.group))


def plan(c, config, n, width, fleet):
    """Memory of a rank, of a model of n parameters -> [(what, bytes, when: "always", "sampling" or
    "updating", note)].
    """
    half = 2 if c.dtype == "bfloat16" else 4  # bytes of a number computed with
    sharded = c.shard == "fsdp" and fleet > 1
    cut = fleet if sharded else 1
    rows, D, L = slots(c, fleet), config.hidden_size, config.num_hidden_layers
    shared = config.num_key_value_heads / config.num_attention_heads
    trunk, answers = (
        (BONUSES[c.bonus].counts_states and c.cfn_features == "frozen" or c.kl_coef > 0),
        -(-c.prompts * c.group // fleet),
    )
    on_cpu = c.device == "cpu" or c.dtype == "float32"
    budget = min(c.micro_batch_tokens, CACHED) if on_cpu else c.micro_batch_tokens
    batch = min(max(1, budget // width), -(-answers // c.minibatches))  # rows of a micro-batch
    tokens, once = (
        batch * width,
        -(-batch // c.group) * (width - c.max_new_tokens) + batch * c.max_new_tokens,
    )
    tokens = (
        once if not sharded and once <= 0.75 * tokens else tokens
    )  # a group's prompt is forwarded once: model.states()
    # what a layer keeps of a token for its backward pass: input and norms (fp32), q, attention and
    # its projection, k, v, MLP
    kept = 16 * D + half * (4 * D + 2 * D * shared + 4 * config.intermediate_size)
    kept = half * D * L + kept if c.gradient_checkpointing else kept * L
    ends = config.vocab_size * D * (1 if config.tie_word_embeddings else 2)  # embedding and head
    layer = (n - ends) / L
    copy = (
        ("copy", half * n, "always", f"of the whole policy, to sample from, {c.dtype}")
        if sharded
        else (
            "casts",
            half * n * (half == 2),
            "always",
            "of all weights, by autocast" if half == 2 else "none",
        )
    )
    gathered = (
        "gathered",
        sharded * (half * (ends + 2 * layer) + 4 * max(ends, layer)),
        "updating",
        "embedding, head, two layers; a gradient before it is scattered" if sharded else "none",
    )
    return [
        (
            "process",
            PROCESS,
            "always",
            "Python, torch, other libraries; on a GPU its context takes about as much",
        ),
        ("weights", 4 * n / cut, "always", "fp32 master weights"),
        ("optimiser", 8 * n / cut, "always", "AdamW's two moments, fp32"),
        (
            "trunk",
            half * n * trunk,
            "always",
            f"frozen copy of the initial policy, {c.dtype}" if trunk else "none",
        ),
        copy,
        (
            "counter",
            4 * (3 * c.cfn_hidden * (D + c.coins) * 2) + 2 * c.cfn_replay / fleet * D,
            "always",
            "head, its prior and moments; this rank's part of the replay",
        ),
        (
            "KV cache",
            rows * width * cache_bytes(config, half),
            "sampling",
            f"{rows} slots x {width:,} tokens, --max_num_seqs",
        ),
        (
            "logits",
            rows * config.vocab_size * 12,
            "sampling",
            "slots x vocabulary, fp32, three times",
        ),
        (
            "states",
            half
            * answers
            * (c.max_new_tokens + 1)
            * D
            * (BONUSES[c.bonus].counts_states and c.cfn_features == "policy"),
            "sampling",
            f"read by the sampler, of {answers} answers"
            if (BONUSES[c.bonus].counts_states and c.cfn_features == "policy")
            else "none",
        ),
        ("gradients", 4 * n / cut, "updating", "fp32"),
        (
            "activations",
            tokens * kept,
            "updating",
            f"{tokens:,} tokens, --micro_batch_tokens"
            + (
                "; layers are computed again"
                if c.gradient_checkpointing
                else "; a fraction with --gradient_checkpointing True"
            ),
        ),
        ("logits tile", TILE_BYTES, "updating", "of the fused head"),
        gathered,
    ]


def peak(rows):
    """Sampling and updating take turns."""
    total = lambda phase: sum(size for _, size, when, _ in rows if when in ("always", phase))
    return max(total("sampling"), total("updating"))


def memory(c, config, width, fleet):
    """Print the plan of a rank, and for models that want several GPUs, peaks over their number."""
    n = parameters(config)
    rows = plan(c, config, n, width, fleet)
    print(
        f"--- memory of a rank, {fleet} rank{'s' if fleet > 1 else ''}, --shard {c.shard}"
        + (" (assumed; torchrun says how many)" if fleet != ranks.world else "")
        + f": {n / 1e6:,.1f} M parameters"
    )
    for name, size, when, note in rows:
        print(f"{name:13s} {size / 1e9:9.3f} GB   {when:9s} {note}")
    print(f"{'peak':13s} {peak(rows) / 1e9:9.3f} GB   sampling and updating take turns\n")
    if c.dtype == "bfloat16":
        print(
            "--- peak of a rank in GB by number of ranks, with these options\n"
            + " " * 24
            + "".join(f"{fleet:8d}" for fleet in FLEET)
        )
        for name, model in {"this model": config, **SIZES}.items():
            n = parameters(model)
            for how in ("none", "fsdp"):
                cells = (
                    peak(plan(dataclasses.replace(c, shard=how), model, n, width, fleet)) / 1e9
                    for fleet in FLEET
                )
                print(f"{name:14s} {how:9s}" + "".join(f"{x:8.1f}" for x in cells))
        print()


def seconds(c, config, prompt, fleet):
    """A step, in seconds: sampling reads all weights and the cache for every token; 2 operations a
    parameter and token forward, 4 backward, and those of attention. For responses as long as
    allowed, and for a quarter of that.
    """
    n, half = parameters(config), 2 if c.dtype == "bfloat16" else 4
    name, flops, bandwidth = GPU if c.dtype == "bfloat16" and c.device != "cpu" else cpu_rate()
    B, rows = c.prompts * c.group / fleet, slots(c, fleet)
    print(f"--- seconds a step, on {name}")
    for share in (1, 0.25):
        length = c.max_new_tokens * share
        tokens, reads = B * length, B / rows * length
        forward = B * forward_flops(config, n, torch.tensor([prompt + length]))
        read = half * n + rows * (prompt + length / 2) * cache_bytes(config, half)
        sampling = max(tokens * 2 * n / flops, reads * read / bandwidth)
        looks = (BONUSES[c.bonus].counts_states and c.cfn_features == "frozen" or c.kl_coef > 0) + (
            c.minibatches > 1 and c.old_logp == "trainer"
        )
        update = (3 + looks) * forward / flops
        print(
            f"responses of {length:7,.0f} tokens: {sampling + update:9,.1f}   sampling "
            f"{sampling:,.1f}, forward and backward "
            f"{update:,.1f}; {c.steps} steps {(sampling + update) * c.steps / 3600:,.1f} h"
        )


def cpu_rate():
    """This machine's, measured in a blink."""
    a = torch.rand(512, 512)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    rate = 5 * 2 * 512**3 / (time.perf_counter() - start)
    return (
        f"this CPU ({rate / 1e9:,.0f} GFLOP/s measured on a matrix product; small models come "
        "nowhere near)",
        rate,
        10e9,
    )
