"""`python train.py RECIPE --dry_run`: what a run would do, without a GPU and without weights: prompts as the model would see
them, tokens, memory of a rank, seconds a step. What cannot be reached (hub, data) is replaced by what is known here, and it
says so.

Memory counts what nanoMERCI keeps, from the shapes; time is arithmetic at the rates below, not a measurement.
"""
import socket
import time
from urllib.parse import urlparse

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, Qwen2Config

from kernels.logprob import TILE_BYTES
from nanomerci import dist, tasks
from nanomerci.config import UserError
from nanomerci.model import encode, tiny
from nanomerci.tasks.database import Script
from nanomerci.warmstart import cache_folder

GPU = ("an H100 SXM at 40 % of its peak arithmetic and 60 % of its bandwidth", 0.4 * 989e12, 0.6 * 3.35e12)  # bf16; ours
RANKS = 8  # assumed for a sharded run that was not started by torchrun
CHARACTERS = 3.2  # a token, where the tokenizer is out of reach
KNOWN = {  # from the models' own config.json
    "Qwen2.5-Math-7B": Qwen2Config(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                                   num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=4096),
    "Llama-3.1-8B": LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072),
    "SmolLM2-135M": LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                                num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
                                tie_word_embeddings=True),
}  # fmt: skip
CHAT = {  # the shape of their chat templates, without the default system message
    "Qwen2.5-Math-7B": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "Llama-3.1-8B": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "SmolLM2-135M": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
}  # fmt: skip


def show(c):
    """Print the plan."""
    go_offline()
    task, problems = examples(c)
    config, tokenizer, known = describe(c, task)
    chat = lambda text: CHAT[known].format(text) if known else text
    lengths = [len(encode(tokenizer, p.prompt)) if tokenizer else round(len(chat(p.prompt)) / CHARACTERS) for p in problems]
    for problem, length in sorted(zip(problems, lengths), key=lambda pair: pair[1])[:: max(1, len(problems) - 1)][:2]:
        text = tokenizer.decode(encode(tokenizer, problem.prompt)) if tokenizer else chat(problem.prompt)
        print(f"--- prompt {problem.id}, {length} tokens\n{text}\n")
    long = sum(bool(c.max_prompt) and n > c.max_prompt for n in lengths)
    mean = sum(lengths) / len(lengths)
    print(f"--- tokens\nprompts       {mean:,.0f} on average, {max(lengths):,} at most, of {len(lengths)} looked at"
          + ("" if tokenizer else f" (no tokenizer: {CHARACTERS} characters a token)")
          + (f"; {long} longer than --max_prompt {c.max_prompt}, left out" if c.max_prompt else ""))  # fmt: skip
    longest = max([n for n in lengths if task and (not c.max_prompt or n <= c.max_prompt)] or [c.max_prompt])
    limit = c.context or config.max_position_embeddings
    width = longest + c.max_new_tokens
    print(f"responses     {c.max_new_tokens:,} at most, so {width:,} in all; the model's context is {limit:,}"
          + ("" if width <= limit else ": TOO SHORT, lower --max_new_tokens or --max_prompt"))  # fmt: skip
    print(f"step          {c.prompts} prompts x {c.group} samples = {c.prompts * c.group:,} responses, "
          f"{c.prompts * c.group * c.max_new_tokens:,} tokens at most; {c.minibatches} updates\n")  # fmt: skip
    ranks = RANKS if c.shard == "fsdp" and dist.world == 1 else dist.world
    memory(c, config, width, ranks)
    seconds(c, config, mean, ranks)


def go_offline():
    """Ask the hub for nothing if it cannot be reached: its client would try for half a minute, each time."""
    from huggingface_hub import constants

    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def examples(c):
    """-> task or None, some of its problems (spread over the training data)."""
    try:
        task = tasks.load(c, cache_folder())
    except UserError as error:
        from nanomerci.tasks import math, sql

        if not c.train_data:
            raise
        print(f"--- the data is out of reach; the example is built in ({error})\n")
        if c.task == "sql":
            shop = Script("CREATE TABLE owner (name TEXT, age INTEGER); INSERT INTO owner VALUES ('Ann', 30), ('Bob', 28);")
            return None, [sql.Problem("example/0", "Who is the oldest owner?", "SELECT 1", shop, "oldest = highest age")]
        return None, [math.Problem("example/0", "What is the sum of the first 10 odd numbers?" + math.BOXED, "100")]
    print(f"--- {len(task.train):,} training problems, {len(task.test):,} held out\n")
    return task, task.train[:: -(-len(task.train) // 200)]


def describe(c, task):
    """-> config of the model; its tokenizer, or None; the key of KNOWN if the config is from there."""
    if c.model == "tiny":
        if not hasattr(task, "words"):
            raise UserError(f"--model tiny: --task {c.task} has no vocabulary for it; give a pretrained --model")
        model, tokenizer = tiny(task.words)
        return model.config, tokenizer, None
    known = next((name for name in KNOWN if name in c.model), None)
    try:
        config, known = AutoConfig.from_pretrained(c.model), None
    except (OSError, ValueError) as error:
        if not known:
            raise UserError(f"--model {c.model}: its config.json cannot be read ({str(error).splitlines()[0]})") from None
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


def cache_bytes(c, config):
    """Of one token in the key-value cache."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * (2 if c.dtype == "bfloat16" else 4)


def slots(c, ranks):
    return min(max(1, c.prompts * c.group // ranks), max(c.slots, c.group))


def memory(c, config, width, ranks):
    """The plan of one rank, in GB."""
    n, half = parameters(config), 2 if c.dtype == "bfloat16" else 4
    cut = ranks if c.shard == "fsdp" else 1
    trunk = c.bonus == "cfn" and c.cfn_trunk == "frozen" or c.kl > 0
    rows = slots(c, ranks)
    D, shared = config.hidden_size, config.num_key_value_heads / config.num_attention_heads
    tokens = min(max(c.micro_tokens, width), -(-c.prompts * c.group // ranks // c.minibatches) * width)  # at least one row
    # what a layer keeps of a token for its backward pass: input and norms (fp32), q, attention and its projection, k, v, MLP
    kept = config.num_hidden_layers * (16 * D + half * (4 * D + 2 * D * shared + 4 * config.intermediate_size))
    rows_ = [
        ("weights", 4 * n / cut, "fp32 master weights"),
        ("gradients", 4 * n / cut, "fp32"),
        ("optimiser", 8 * n / cut, "AdamW's two moments, fp32"),
        ("trunk", half * n / cut * trunk, f"frozen copy of the initial policy, {c.dtype}" if trunk else "none"),
        ("bf16 copy", n * 2 * (half == 2), "of the policy, to sample from" if half == 2 else "none"),
        ("KV cache", rows * width * cache_bytes(c, config), f"while sampling: {rows} slots x {width:,} tokens, --slots"),
        ("activations", tokens * kept, f"while updating: {tokens:,} tokens, no recomputation; --micro_tokens"),
        ("logits tile", max(TILE_BYTES, rows * config.vocab_size * 12), "of the update; while sampling slots x vocabulary x 3"),
        ("counter", 4 * (3 * c.cfn_hidden * (D + c.coins) * 2) + c.cfn_replay * D * 4, "head, its prior and moments; replay"),
    ]  # fmt: skip
    fixed = sum(size for name, size, _ in rows_ if name not in ("KV cache", "activations", "logits tile"))
    phases = [size for name, size, _ in rows_ if name in ("KV cache", "activations")]
    print(f"--- memory of a rank, {ranks} rank{'s' if ranks > 1 else ''}" + (f", sharded over {cut}" if cut > 1 else "")
          + (" (assumed; torchrun says how many)" if ranks != dist.world else "")
          + f": {n / 1e6:,.1f} M parameters")  # fmt: skip
    for name, size, note in rows_:
        print(f"{name:13s} {size / 1e9:9.3f} GB   {note}")
    print(f"{'peak':13s} {(fixed + rows_[-2][1] + max(phases)) / 1e9:9.3f} GB   sampling and updating take turns\n")


def seconds(c, config, prompt, ranks):
    """A step, in seconds: sampling reads all weights and the cache for every token; 2 operations a parameter and token forward,
    4 backward, and those of attention. For responses as long as allowed, and for a quarter of that."""
    n, half = parameters(config), 2 if c.dtype == "bfloat16" else 4
    name, flops, bandwidth = GPU if c.dtype == "bfloat16" and c.device != "cpu" else cpu_rate()
    B, rows, attention = c.prompts * c.group / ranks, slots(c, ranks), 2 * config.num_hidden_layers * config.hidden_size
    print(f"--- seconds a step, on {name}")
    for share in (1, 0.25):
        length = c.max_new_tokens * share
        tokens, reads = B * length, B / rows * length
        forward = B * (prompt + length) * (2 * n + attention * (prompt + length))
        read = half * n + rows * (prompt + length / 2) * cache_bytes(c, config)
        sampling = max(tokens * 2 * n / flops, reads * read / bandwidth)
        looks = (c.bonus == "cfn" or c.kl > 0) + (c.minibatches > 1 and c.old_logp == "trainer")
        update = (3 + looks) * forward / flops
        print(f"responses of {length:7,.0f} tokens: {sampling + update:9,.1f}   sampling {sampling:,.1f}, forward and backward "
              f"{update:,.1f}; {c.steps} steps {(sampling + update) * c.steps / 3600:,.1f} h")  # fmt: skip


def cpu_rate():
    """This machine's, measured in a blink."""
    a = torch.rand(512, 512)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    rate = 5 * 2 * 512**3 / (time.perf_counter() - start)
    return f"this CPU ({rate / 1e9:,.0f} GFLOP/s measured on a matrix product; small models come nowhere near)", rate, 10e9
