"""Real processes that train on the task of once.py: one a rank, forked off a server that has loaded torch already."""
import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from once import WORDS

TESTS = Path(__file__).parent
SETTINGS = dict(steps=4, prompts=4, group=4, minibatches=2, lr=1e-3, max_new_tokens=8, run=1, cfn_hidden=16, eval_problems=4, eval_k=4,
                eval_every=2, save_every=2, keep=9, threads=1, graders=1, gamma_decay=60, alpha=0.8, patience=60, device="cpu")  # fmt: skip
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["train", "once", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"])


def small_model(folder):
    from nanomerci.model import tiny

    policy, tokenizer = tiny(WORDS, width=32, layers=2, heads=2, seed=1)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def start(world, argv, log, environment=()):
    """`world` processes of train.py -> the processes; what they say goes to log.0, log.1 ..."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [str(TESTS.parent), str(TESTS)]
    sys.path[:] = found + [p for p in sys.path if p not in found]
    processes = [server.Process(target=train, args=(rank, world, port, argv, f"{log}.{rank}", dict(environment))) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def run(world, folder, timeout=120, environment=(), **options):
    """Train to the end. -> (folder, exit statuses, what rank 0 said)"""
    options = options if "resume" in options and options["resume"] != "auto" else SETTINGS | {"out": folder} | options
    log = f"{folder}.log"
    processes = start(world, ["train.py"] + [f"--{k}={v}" for k, v in options.items()], log, environment)
    until = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
    return Path(folder), [process.exitcode for process in processes], Path(f"{log}.0").read_text()


def train(rank, world, port, argv, log, environment):
    """What a process does."""
    with open(log, "w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = argv
    from nanomerci import dist

    dist.rank, dist.world = rank, world
    main()


def main():
    """train.py on the task of once.py. GROUPS: folder to write every group to that was learned from. POISON=RANK:STEP: that rank's
    gradient is not finite there. SLOW: seconds by which each step is longer."""
    import train
    from nanomerci import config, dist, tasks
    from once import Once

    tasks.load = lambda c, cache: Once()
    update, token_logp, now = train.update, train.token_logp, []

    def watched(c, policy, actor, optimizer, rate, batch, first, merged, precision, where):
        now[:] = [where]
        time.sleep(float(os.environ.get("SLOW", 0)))
        if "GROUPS" in os.environ:
            with open(f"{os.environ['GROUPS']}/{dist.rank}.jsonl", "a") as file:
                for p, number in enumerate(batch.number_P.tolist()):
                    rows = slice(p * batch.group, (p + 1) * batch.group)
                    group = {"where": where, "number": number, "text": batch.text_B[rows], "advantage": merged[rows].tolist()}
                    file.write(json.dumps(group) + "\n")
        return update(c, policy, actor, optimizer, rate, batch, first, merged, precision, where)

    def poisoned(*arguments):
        logp, entropy = token_logp(*arguments)
        here = now and os.environ.get("POISON") == f"{dist.rank}:{now[0].split()[1]}" and logp.requires_grad
        return (logp * float("nan") if here else logp), entropy

    train.update, train.token_logp = watched, poisoned
    config.run_command(train.main)


if __name__ == "__main__":
    main()
