"""Everything that has to be seen on a GPU once: tests, kernels, sampler, step, a run."""

import shlex
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from nanomerci.runtime.config import UserError

ROOT = Path(__file__).parents[2]
SAMPLER = "-m nanomerci.bench sampler --rows 256 --rounds 3"
COMMANDS = (  # (what, the module it needs, command)
    ("tests", "pytest", "-m pytest -q -m gpu tests"),
    ("kernels", "triton", "-m nanomerci.kernels.bench --quick"),
    ("sampler", None, f"{SAMPLER} --shape qwen2.5-0.5b --dtype bfloat16 --length 256"),
    ("sampler, tiny", None, SAMPLER),
    ("step", "trl", "-m nanomerci.bench step --bonus none"),
    ("default run", "sqlglot", "train.py --device cuda --report False --out {out}/run"),
    ("resumed", "sqlglot", "train.py --resume {out}/run --steps 125"),
    ("bf16", "sqlglot", "train.py --dtype bfloat16 --steps 10 --report False --out {out}/bf16"),
)
SHARDED = "-m torch.distributed.run --nproc-per-node={gpus} train.py --shard fsdp --prompts {p}"
SHARDED += " --dtype bfloat16 --steps 10 --report False --out {out}/sharded"


def run(o):
    """One after the other, whatever the others found; what each printed, then one line of each."""
    if not torch.cuda.is_available():
        raise UserError("bench gpu: torch finds no GPU on this machine")
    gpus, outcomes = torch.cuda.device_count(), []
    commands = list(COMMANDS)
    if gpus > 1:
        commands.append(("sharded", "sqlglot", SHARDED))
    print(f"{gpus} x {torch.cuda.get_device_name()}, torch {torch.__version__}, {time.ctime()}")
    with tempfile.TemporaryDirectory() as out:
        for what, module, words in commands:
            words = words.format(out=out, gpus=gpus, p=4 * gpus)
            if module and find_spec(module) is None:
                outcomes.append((what, f"left out: {module} is not installed", 0.0))
                continue
            print(f"\n=== {what}: python {words}", flush=True)
            start = time.perf_counter()
            status = subprocess.run([sys.executable, *shlex.split(words)], cwd=ROOT).returncode
            outcome = f"failed with status {status}" if status else "done"
            outcomes.append((what, outcome, time.perf_counter() - start))
    print("\n=== found")
    for what, outcome, seconds in outcomes:
        print(f"{what:16s} {seconds:7.0f} s   {outcome}")
    if any("failed" in outcome for _, outcome, _ in outcomes):
        sys.exit(1)
