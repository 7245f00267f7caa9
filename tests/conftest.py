"""One thread (or TEST_THREADS): the suite shares its cores, and sums come out in one order."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(int(os.environ.get("TEST_THREADS", 1)))
# a shell that starts the suite in the background has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

from backends import BACKENDS  # noqa: E402  which needs the path above


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request):
    """(torch or triton, device): see backends.py."""
    return request.param


@pytest.fixture(scope="session")
def small():
    """A random two-layer model over a dozen words, in each architecture that is promised."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    def make(family, layers=2, seed=0):
        torch.manual_seed(seed)
        shape = {
            "vocab_size": 31,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family](
            **shape, initializer_range=0.3
        )
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()

    return make


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """make(words) -> a Hugging Face folder with a random model over them and its tokenizer; the
    same words, the same folder.
    """
    from nanomerci.loop.model import tiny

    made = {}

    def make(words, width=32, layers=2, heads=2, seed=1):
        key = *words, width, layers, heads, seed
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            for part in tiny(list(words), width, layers, heads, seed):
                part.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def gpu(monkeypatch):
    """A pretended device "cuda", and what happened on it: see pretend.py."""
    from pretend import pretended

    with monkeypatch.context() as patch, pretended(patch) as device:
        yield device


@pytest.fixture
def run(small_model, tmp_path, monkeypatch):
    """run(name, **options): train.py on the task of once.py -> the run's folder."""
    from once import WORDS, Once
    from runs import SHORT_RUN

    from nanomerci import tasks, train
    from nanomerci.runtime import config

    monkeypatch.setattr(tasks, "load", lambda c: Once())
    settings = SHORT_RUN | {"model": small_model(WORDS), "lr": 3e-3, "lr_decay": False}

    def go(name, **options):
        if "resume" not in options:
            options = settings | {"out": tmp_path / name} | options
        train.main(config.parse([f"--{k}={v}" for k, v in options.items()]))
        return Path(options.get("out") or options["resume"])

    return go
