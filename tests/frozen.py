"""The frozen record: do two trees of nanoMERCI train the same, bit for bit?

    python frozen.py OLD_TREE NEW_TREE [-k FILTER] [-j JOBS] [--out FOLDER]

Each run takes 4 steps on the task of tests/once.py, on one thread, from a model that the tree
builds. Compared are the SHA-256 of the final policy's file of weights, and metrics.jsonl without
times. The results of an old tree at a clean commit are kept in FOLDER; the runs and their logs stay
in FOLDER/old and FOLDER/new until the next call. Exit status 1: something differs or fails.
"""

import argparse
import hashlib
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

# Those of tests/ranks.py and what the recipe toy_sql sets besides, by the names of the old tree.
SETTINGS = """prompts=4 group=4 minibatches=2 max_new_tokens=8 lr=1e-3 lr_decay=False run=1 top=0.3
gamma=0.5 gamma_decay=60 alpha=0.8 old_logp=sampler cfn_hidden=16 cfn_pretrain=4 cfn_passes=3
eval_problems=4 eval_k=4 eval_every=2 save_every=2 keep=9 report=False device=cpu
dtype=float32 threads=1
graders=1 patience=60 seed=0"""
RENAMED = """kl=kl_coef max_norm=max_grad_norm rounds=max_gen_rounds micro_tokens=micro_batch_tokens
recompute=gradient_checkpointing patience=rank_timeout keep=keep_checkpoints slots=max_num_seqs
deadline=grade_timeout max_prompt=max_prompt_tokens context=max_seq_len warm_seed=sft_seed
dead_groups=bonus_on_zero_variance cfn_passes=cfn_pretrain_epochs cfn_trunk=cfn_features
lucky_copies=perturbed_copies"""
BONUSES = "none cfn exact elliptical outcome rnd entropy surprisal random".split()
MORE = """kl=0.1 credit=token cfn_trunk=policy dead_groups=True gamma=0 bonus_form=deviation
bonus_form=sum old_logp=trainer lr_decay=True minibatches=1 micro_tokens=30 recompute=True slots=5
oracle_counts=True,prompts=32,group=8 overlong_buffer=4 noise_filter=False clip_low=1e-3,lr=1e-2
clip_high=1e-3,lr=1e-2"""
TIMES = ("time/", "tokens_per_s", "speed/")
fork = get_context("fork")  # cheap: torch has been imported, and has not computed anything yet


def all_runs():
    """{name: (options, ranks, the steps at which it ends; from the second on it is resumed)}"""
    runs = {}
    for algo in ("grpo", "dapo", "dr_grpo"):
        for bonus in BONUSES:
            for how, ends in (("whole", [4]), ("resumed", [2, 4])):
                runs[f"{bonus}-{algo}-{how}"] = f"bonus={bonus} algo={algo}", 1, ends
        runs[f"two-ranks-{algo}"] = f"algo={algo}", 2, [4]
    runs["two-ranks-resumed"] = "algo=dapo", 2, [2, 4]
    runs["two-ranks-sharded"] = "shard=fsdp", 2, [2, 4]
    return runs | {more: (more.replace(",", " "), 1, [4]) for more in MORE.split()}


def table(text):
    return dict(pair.split("=") for pair in text.split())


# ---- within a tree: a process that has imported it, and forks one for every rank of a run


def modules(tree):
    """What is driven, by its old or its new name."""
    from once import Once

    from nanomerci import tasks

    tasks.load = lambda *_: Once()
    if (tree / "nanomerci/runtime").is_dir():
        from nanomerci import train
        from nanomerci.loop import model
        from nanomerci.runtime import config, ranks
    else:
        import train
        from nanomerci import config, model
        from nanomerci import dist as ranks
    return train, model, config, ranks


def build_model(tree, folder):
    from once import WORDS

    for part in modules(tree)[1].tiny(WORDS, width=32, layers=2, heads=2, seed=1):
        part.save_pretrained(folder)


def one_rank(tree, log, rank, world, port, argv):
    os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train, _, config, ranks = modules(tree)
    ranks.rank, ranks.world = rank, world
    if inspect.signature(train.main).parameters:
        return train.main(config.parse(argv))
    sys.argv = ["train.py", *argv]
    train.main()


def one_run(tree, out, name):
    """-> its name, and its result or None if a rank failed"""
    options, world, ends = all_runs()[name]
    run, source = out / name, inspect.getsource(modules(tree)[2])  # that of config.py
    new = {a: b for a, b in table(RENAMED).items() if f" {b}: " in source}
    options = table(SETTINGS) | table(options) | {"model": out / "model", "out": run}
    argv = ["toy_sql", *(f"--{new.get(k, k)}={v}" for k, v in options.items())]
    for end in ends:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(world):
            arguments = tree, f"{run}.log.{rank}", rank, world, port, [*argv, f"--steps={end}"]
            processes.append(fork.Process(target=one_rank, args=arguments))
            processes[-1].start()
        for process in processes:
            process.join(120)  # it takes two seconds
            process.kill()
            process.join()
        if any(process.exitcode for process in processes):
            return name, None
        argv = [f"--resume={run}"]
    (weights,) = run.glob("checkpoints/step_000004/**/model.safetensors")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]
    return name, {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "metrics": rows}


def serve(tree, out, jobs, names):
    """Print what one_run() returns, a line for each of these runs."""
    # an editable install somewhere else would lend this tree the modules that it lacks
    sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
    for module in modules(tree):
        assert Path(module.__file__).is_relative_to(tree), module
    first = fork.Process(target=build_model, args=(tree, out / "model"))
    first.start()
    first.join()
    with ProcessPoolExecutor(jobs, fork) as pool:
        for result in pool.map(partial(one_run, tree, out), names):
            print(json.dumps(result), flush=True)


# ---- outside the trees


def train_all(tree, out, jobs, names):
    """Yields (name, result) as they come."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    environment = {"PYTHONPATH": f"{tree}:{tree / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "NANOMERCI_CACHE": str(out / "cache")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", os.path.abspath(__file__), "serve", tree, out, str(jobs)]
    options = {
        "cwd": tree,
        "env": os.environ | environment,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen([*command, *names], **options) as server:
        for line in server.stdout:
            yield json.loads(line)
    if server.returncode:
        sys.exit(f"{tree}: cannot be driven, see above")


def old_results(tree, out, jobs, names):
    """{name: result}, as far as possible those that were kept of a clean commit."""
    git = ["git", "-C", tree]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    clean = not subprocess.check_output([*git, "status", "--porcelain"])
    setting = str([SETTINGS, all_runs(), version("torch"), version("transformers")])
    file = out / f"{commit}-{hashlib.sha256(setting.encode()).hexdigest()[:8]}.json"
    known = json.loads(file.read_text()) if clean and file.exists() else {}
    if missing := [name for name in names if name not in known]:
        known |= train_all(tree, out / "old", jobs, missing)
        if failed := [name for name in missing if not known[name]]:
            sys.exit(f"{failed[0]} fails in {tree}, see {out}/old/{failed[0]}.log.*")
        if clean:
            file.write_text(json.dumps(known))
    return known


def compare(name, old, new, out):
    """Print a line. -> whether all is equal"""
    if not new:
        log = (out / f"{name}.log.0").read_text().splitlines()
        print(f"{name:37s} FAILED, see {out}/{name}.log.*: {log[-1:]}", flush=True)
        return False
    texts, rows = [], [len(old["metrics"]), len(new["metrics"])]
    if rows[0] != rows[1]:
        texts.append(f"number of rows: {rows[0]} -> {rows[1]}")
    for before, after in zip(old["metrics"], new["metrics"], strict=False):
        for metric in sorted(before.keys() | after.keys()):
            a, b = before.get(metric, "absent"), after.get(metric, "absent")
            if repr(a) != repr(b):  # to the last bit, and nan is nan
                texts.append(f"step {before['step']} {metric}: {a} -> {b}")
    weights = "equal " if old["weights"] == new["weights"] else "DIFFER"
    metrics = f"DIFFER in {len(texts)} values, first {texts[0]}" if texts else "equal"
    print(f"{name:37s} weights {weights}    metrics {metrics}", flush=True)
    return weights == "equal " and not texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("-k", default="", help="only runs with this in their name")
    parser.add_argument("-j", type=int, default=2, help="runs at once")
    parser.add_argument("--out", type=Path, default=Path("/tmp/nanomerci_frozen"))
    c = parser.parse_args()
    names, out = [name for name in all_runs() if c.k in name], c.out.resolve()
    old = old_results(c.old.resolve(), out, c.j, names)
    new = train_all(c.new.resolve(), out / "new", c.j, names)
    equal = sum(compare(name, old[name], result, out / "new") for name, result in new)
    print(f"{equal} of {len(names)} runs are equal")
    sys.exit(equal < len(names))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    else:
        main()
