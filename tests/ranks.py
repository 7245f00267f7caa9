"""Real processes that train on the task of once.py: one a rank, forked off a server that has loaded
torch already.
"""

import json
import multiprocessing
import os
import resource
import socket
import sys
import time
from itertools import chain
from pathlib import Path

from once import WORDS
from runs import SHORT_RUN

TESTS = Path(__file__).parent
SETTINGS = SHORT_RUN | {"lr": 1e-3, "graders": 1, "rank_timeout": 60, "device": "cpu"}
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "nanomerci.train",
        "once",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
    ]
)


def small_model(folder, width=32, layers=2, heads=2):
    from nanomerci.loop.model import tiny

    policy, tokenizer = tiny(WORDS, width=width, layers=layers, heads=heads, seed=1)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def start(world, argv, log, environment=(), what="main"):
    """`world` processes of train.py (or of another function below) -> the processes; what they say
    goes to log.0, log.1 ...
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [str(TESTS.parent), str(TESTS)]
    sys.path[:] = found + [p for p in sys.path if p not in found]
    processes = [
        server.Process(
            target=one_rank,
            args=(rank, world, port, argv, f"{log}.{rank}", dict(environment), what),
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def command(folder, **options):
    if options.get("resume", "auto") == "auto":
        options = SETTINGS | {"out": folder} | options
    return ["train.py"] + [f"--{k}={v}" for k, v in options.items()]


def end(processes, timeout=120):
    """Wait for them. -> their exit statuses"""
    until = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def run(world, folder, environment=(), **options):
    """Train to the end. -> (folder, exit statuses, what rank 0 said)"""
    processes = start(world, command(folder, **options), f"{folder}.log", environment)
    return Path(folder), end(processes), Path(f"{folder}.log.0").read_text()


def groups(folder):
    """What a run with GROUPS=folder learned from, whichever rank had it."""
    text = "".join(file.read_text() for file in Path(folder).iterdir())
    rows = map(json.loads, text.splitlines())
    return sorted((row["step"], row["number"], row["text"]) for row in rows)


def farthest(a, b):
    """The largest difference of two state dicts, or of two lists of metrics."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((a[k].double() - b[k].double()).abs().max().item() for k in a if a[k].numel())
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return max(abs(x - y) for x, y in zip(numbers(a), numbers(b), strict=True))


def numbers(rows):
    """All values of these metrics; of an interval, both ends."""
    values = chain.from_iterable(row.values() for row in rows)
    return list(chain.from_iterable(v if isinstance(v, list) else [v] for v in values))


def one_rank(rank, world, port, argv, log, environment, what):
    """What a process does."""
    with open(log, "w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(
        environment,
        RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    sys.argv = argv
    from nanomerci.runtime import ranks

    ranks.rank, ranks.world = rank, world
    globals()[what]()


def main():
    """train.py on the task of once.py. The environment may ask for more. GROUPS: folder to write
    every group to that was learned from. POISON=RANK:STEP: that rank's gradient is not finite
    there. SLOW: seconds by which each step is longer. FULL=STEP: from that step on no file can grow
    beyond 60 kB. PHASE: file in which rank 0 says what it is at.
    """
    from once import Once

    from nanomerci import sample, tasks, train
    from nanomerci.runtime import checkpoint, config, ranks

    tasks.load = lambda c: Once()
    update, token_logp, now = train.update, train.token_logp, [0]

    def watched(c, models, optimizer, bonus, batch, adv, first, step):
        now[0] = step
        time.sleep(float(os.environ.get("SLOW", 0)))
        if os.environ.get("FULL") == str(step):
            resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
        if "GROUPS" in os.environ:
            with open(f"{os.environ['GROUPS']}/{ranks.rank}.jsonl", "a") as file:
                for p, number in enumerate(batch.number_P.tolist()):
                    rows = slice(p * batch.group, (p + 1) * batch.group)
                    group = {
                        "step": step,
                        "number": number,
                        "text": batch.text_B[rows],
                        "advantage": adv[rows].tolist(),
                    }
                    file.write(json.dumps(group) + "\n")
        return update(c, models, optimizer, bonus, batch, adv, first, step)

    def poisoned(*arguments):
        logp, entropy = token_logp(*arguments)
        here = os.environ.get("POISON") == f"{ranks.rank}:{now[0]}" and logp.requires_grad
        return (logp * float("nan") if here else logp), entropy

    def said(name, function):
        def call(*arguments, **options):
            phase.write_text(name)
            try:
                return function(*arguments, **options)
            finally:
                phase.write_text("between")

        return call

    train.update, train.token_logp = watched, poisoned
    if "PHASE" in os.environ and ranks.rank == 0:
        phase = Path(os.environ["PHASE"])
        sample.generate = said("sample", sample.generate)
        train.update = said("update", watched)
        checkpoint.save = said("save", checkpoint.save)
    config.run_command(lambda: train.main(config.parse(sys.argv[1:])))


def weighed():
    """main(), and the most memory that this rank held once its models were there, beyond what it
    held before, in bytes.
    """
    from ctypes import CDLL

    from nanomerci.kernels.bench import forget_peak, resident
    from nanomerci.train import Models

    CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed is not kept for later
    load, before = Models.load, resident()

    def loaded(*arguments):
        models = load(*arguments)
        forget_peak()
        return models

    Models.load = loaded
    main()
    print("held", resident("VmHWM") - before)


def stale():
    """The copy to sample from refuses to work once the policy has moved on."""
    import torch

    from nanomerci.loop.model import tiny
    from nanomerci.runtime import ranks

    ranks.start("cpu", 60)
    # as where there is a GPU: torch would shard onto it, and AdamW go over all tensors at once,
    # in which their versions stay
    torch._C._get_accelerator = lambda *_: torch.device("cuda")
    whole = tiny(WORDS, width=32, layers=2, heads=2)[0]
    ids = torch.tensor([[4, 5, 6]])
    frozen = ranks.frozen(whole, "fsdp", torch.float32, torch.device("cpu"))
    reads = ranks.call(frozen, lambda model, ids: model(ids).logits, ids)
    print("reads", torch.equal(reads, whole(ids).logits))
    held = sum(p.to_local().untyped_storage().nbytes() for p in frozen.parameters())
    print("holds", held / sum(p.nbytes for p in whole.parameters()))
    policy, actor = ranks.shard(whole, "fsdp", torch.bfloat16, torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, foreach=True)

    def total(model, ids):
        return model(ids).logits.float().logsumexp(-1).sum()

    before = actor(ids).logits
    ranks.call(policy, total, ids).backward()
    ranks.step(optimizer, 1.0, "step 1")
    try:
        actor(ids)
        print("sampled from stale weights")
    except RuntimeError as error:
        print(error)
    ranks.refresh(actor)
    after = ranks.call(policy, lambda model, ids: model(ids).logits, ids)
    print(
        "moved",
        not torch.equal(actor(ids).logits, before),
        "same",
        torch.equal(actor(ids).logits, after),
    )
    ranks.finish()


if __name__ == "__main__":
    main()
