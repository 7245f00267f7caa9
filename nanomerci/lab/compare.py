"""Arms against arms, with error bars: does the bonus help?

    python -m nanomerci.lab.compare toy_sql_short --arms grpo,grpo+cfn,dapo,dapo+cfn --seeds 8
    python -m nanomerci.lab.compare toy_sql_short --arms rivals --gamma 0.3    for all arms
    python -m nanomerci.lab.compare toy_sql_short --arms grpo+cfn,grpo+cfn:top=1:run=1

An arm is ALGO[+BONUS][:option=value ...], where BONUS may be FILE.py:NAME; main, rivals and
ablations stand for several arms. A cell is one run of train.py: an arm, a warm start, a seed. All
arms of a pair (warm start, seed) share initial weights, problems and random numbers, and end after
the same number of prompts; so what differs within a pair is the arm, and pairs are what is
compared. The same command goes on after a kill, with more arms or seeds too. It ends with
results.md, results.json, compare.png and compare.html.

Choose settings with --eval_split tune (other problems); keep the test problems for the run that is
reported.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import itertools
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path

import torch
from tqdm import tqdm

from nanomerci import tasks
from nanomerci.lab import stats
from nanomerci.loop.warmstart import cache_folder, tiny_policy
from nanomerci.runtime import config
from nanomerci.runtime.config import UserError
from nanomerci.runtime.log import Stop, bar, say
from nanomerci.view import report

TRAIN = Path(__file__).parent.parent.parent / "train.py"
OURS = {
    "algo",
    "bonus",
    "seed",
    "sft_seed",
    "resume",
    "dry_run",
}  # options of train.py that the arms and cells decide


def sets(c):
    """Named sets of arms. Each ablation changes one thing of grpo+cfn."""
    decays = [
        f"gamma_decay={max(1, round(c.gamma_decay * share))}" for share in (0.5, 2)
    ]  # MERCI, table 10: 100, 200, 400
    filters = [
        "top=1",
        f"top={c.top / 3:.3g}",
        f"top={min(1, 2 * c.top):.3g}",
        "run=1",
        f"run={c.run + 1}",
        "noise_filter=False",
        "top=1:run=1:noise_filter=False",
    ]
    counter = ["cfn_prior=False", "cfn_features=policy", "cfn_pretrain=1"]
    changes = [
        "bonus_form=deviation",
        "bonus_form=sum",
        *decays,
        *filters,
        *counter,
        "credit=token",
        "bonus_on_zero_variance=True",
    ]
    return {
        "main": ["grpo", "grpo+cfn", "dapo", "dapo+cfn"],
        "rivals": [
            "grpo",
            *(
                f"grpo+{name}"
                for name in (
                    "cfn",
                    "elliptical",
                    "outcome",
                    "rnd",
                    "entropy",
                    "surprisal",
                    "random",
                )
            ),
        ],
        "ablations": ["grpo+cfn", "grpo", *(f"grpo+cfn:{change}" for change in changes)],
    }


# ---- what is to be run
@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison; every option of train.py (python train.py --help) is one for all arms"""

    arms: str = "main"
    """Arms or sets of arms (main, rivals, ablations), with commas."""
    seeds: config.Count = 8
    """Runs per arm and warm start."""
    warm_starts: config.Count = 1
    """Tiny models to start from; each meets all seeds and arms."""
    contrasts: str = ""
    """Comparisons ARM/ARM, with commas; default: every arm with the first."""
    jobs: config.Size = 0
    """Cells at a time; 0 = one per GPU, or one per core."""
    out: Path = Path("runs/compare")
    """Folder of the comparison."""
    keep_models: bool = False
    """Keep the checkpoints of finished cells."""


def arguments(argv):
    """-> our options, and what is train.py's: [RECIPE, --option value ...]"""
    recipe = list(argv[:1]) if config.named(argv) else []
    prog, also = "python -m nanomerci.lab.compare", [config.Config]
    a, rest = config.command_line(Comparison, argv[len(recipe) :], prog, __doc__, also=also)
    config.check_ranges(a)
    if taken := OURS & {config.option_name(word) for word in rest if word.startswith("--")}:
        raise UserError(
            f"--{min(taken)}: is set per arm; use --arms, --seeds or --warm_starts instead"
        )
    return a, recipe + rest


def options(arm):
    """grpo+cfn:top=1 or grpo+mine.py:Mine:top=1 -> the options of train.py that make it."""
    parts = arm.split(":")
    changes = [part for part in parts if "=" in part]
    algo, _, bonus = ":".join(part for part in parts if "=" not in part).partition("+")
    if not algo or ":" in algo or ":" in bonus and ".py:" not in bonus:
        raise UserError(f"--arms {arm}: expected ALGO[+BONUS][:option=value ...]")
    return ["--algo", algo, "--bonus", bonus or "none", *(f"--{change}" for change in changes)]


@dataclasses.dataclass(frozen=True)
class Cell:
    arm: str
    warm: int
    seed: int
    argv: tuple
    c: config.Config

    @property
    def folder(self):
        return Path(self.c.out)

    @property
    def rows(self):
        return report.read_lines(self.folder / "metrics.jsonl")

    @property
    def finished(self):
        last = (self.rows or [{"step": 0}])[-1]
        return (
            last["step"] > 0
            and "eval/problems" in last
            and (last["step"] == self.c.steps or last["prompts"] >= self.c.budget > 0)
        )


def plan(a, words):
    """-> the arms' names, the contrasts, the cells, seed by seed, so that a part of them is a
    smaller comparison.
    """
    base = config.parse(list(words))
    named = sets(base)
    arms = list(dict.fromkeys(arm for name in a.arms.split(",") for arm in named.get(name, [name])))
    contrasts = (
        [tuple(pair.split("/")) for pair in a.contrasts.split(",")]
        if a.contrasts
        else [(arm, arms[0]) for arm in arms[1:]]
    )
    for pair in contrasts:
        if len(pair) != 2 or set(pair) - set(arms):
            raise UserError(
                f"--contrasts {'/'.join(pair)}: expected ARM/ARM of the arms {', '.join(arms)}"
            )
    recipe, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    common = [
        "--budget",
        str(base.steps * base.prompts),
        "--threads",
        "1",
        "--graders",
        "1",
        "--report",
        "False",
    ]
    argv = {arm: [*recipe, *common, *rest, *options(arm)] for arm in arms}
    parsed, cells = {arm: config.parse(list(words)) for arm, words in argv.items()}, []
    for seed, warm, arm in itertools.product(
        range(a.seeds), range(a.warm_starts if base.model == "tiny" else 1), arms
    ):
        folder = a.out / "cells" / (re.sub(r"[^\w.+=-]", "_", arm) + f"-w{warm}-s{seed}")
        own = {"seed": seed, "sft_seed": warm, "out": str(folder)}
        words = (
            *argv[arm],
            *(word for name, value in own.items() for word in (f"--{name}", str(value))),
        )
        cells.append(Cell(arm, warm, seed, words, dataclasses.replace(parsed[arm], **own)))
    return arms, contrasts, cells


def check(cell):
    """A folder that holds another run than this cell's is refused."""
    file = cell.folder / "config.yaml"
    was = config.read(file) if file.exists() else {}
    for name in config.differing(cell.c, was):
        raise UserError(
            f"--out {cell.folder.parents[1]}: holds runs with --{name} {was[name]}, now "
            f"{getattr(cell.c, name)}; choose another --out"
        )


# ---- running them
def run_all(jobs, slots, gpus, description, unit, size, seen):
    """Each job (name, log file, function) in a process of its own, `slots` at a time. The processes
    are forks of this one, so torch is imported once; they die with it, however it dies. size, seen:
    a job's length, how far it is. -> {name: status}
    """
    fork, running, statuses, told = multiprocessing.get_context("fork"), {}, {}, False
    todo, done = list(jobs), 0
    tqdm.monitor_interval = 0  # no thread may be there when a process forks
    with Stop() as stop, bar(sum(size(name) for name, *_ in jobs), description, unit) as progress:
        try:
            while running or todo and not stop.asked:
                free = sorted(set(range(slots)) - {slot for _, slot, _ in running.values()})
                while todo and free and not stop.asked:
                    (name, log, function), slot = todo.pop(0), free.pop(0)
                    process = fork.Process(
                        target=_child,
                        args=(function, log, os.getpid(), gpus[slot % len(gpus)] if gpus else None),
                    )
                    process.start()
                    running[process.sentinel] = process, slot, name
                for sentinel in wait(list(running), timeout=0.5):
                    process, _, name = running.pop(sentinel)
                    process.join()
                    statuses[name], done = process.exitcode, done + size(name)
                if stop.asked and not told:
                    told = [
                        os.kill(process.pid, signal.SIGINT) for process, *_ in running.values()
                    ] or True
                progress.n = done + sum(
                    min(seen(name), size(name)) for *_, name in running.values()
                )
                progress.refresh()
        finally:
            for process, *_ in running.values():
                process.kill()
                process.join()
    if stop.asked:
        say("stopped; the same command goes on")
        raise KeyboardInterrupt
    return statuses


def _child(function, log, parent, gpu):
    os.setpgrp()  # Ctrl-C is for the parent, who passes it on
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG; the parent starts all of us from its only thread
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stream = sys.stdout = sys.stderr = open(log, "a", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    torch.set_num_threads(1)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    config.run_command(function)


def run(cells, jobs, keep_models):
    """Warm starts once, then every cell that is not finished. -> what failed, in words"""
    c, todo, logs = (
        cells[0].c,
        [cell for cell in cells if not cell.finished],
        cells[0].folder.parent,
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        (visible.split(",") if visible else list(map(str, range(torch.cuda.device_count()))))
        if c.device != "cpu"
        else []
    )
    slots, failed = jobs or len(gpus) or len(os.sched_getaffinity(0)), []
    if (
        c.model == "tiny"
        and todo
        and hasattr(task := tasks.load(c, cache_folder()), "demonstration")
    ):
        school = lambda warm: lambda: tiny_policy(task, warm)
        warm = [
            (f"warm start {w}", logs / f"warm-{w}.log", school(w))
            for w in sorted({cell.warm for cell in todo})
        ]
        statuses = run_all(
            warm, slots, gpus, "warm starts (once, then cached)", "model", lambda _: 1, lambda _: 0
        )
        failed = [
            f"{name}: status {status}; see {logs}" for name, status in statuses.items() if status
        ]
        if failed:
            raise UserError(failed[0])
    main = runpy.run_path(str(TRAIN), run_name="train")[
        "main"
    ]  # as the command runs it: nothing imports train.py
    for cell in set(cells) - set(todo) if not keep_models else ():  # a kill may have left them
        shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    by_name = {cell.folder.name: cell for cell in todo}
    work = [
        (name, logs / f"{name}.log", lambda cell=cell: train(main, cell, keep_models))
        for name, cell in by_name.items()
    ]
    steps = {name: cell.c.steps + 1 for name, cell in by_name.items()}
    say(f"{len(cells)} runs, {len(cells) - len(todo)} of them finished, {slots} at a time")
    for name, status in run_all(
        work, slots, gpus, "steps", "step", steps.get, lambda name: lines(by_name[name].folder)
    ).items():
        if status or not by_name[name].finished:
            told = (logs / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:] or [
                "said nothing"
            ]
            failed.append(f"{name}: status {status}, {told[0]}")
    return failed


def train(main, cell, keep_models):
    """In its own process: begin, or go on from the newest checkpoint. Finished, the metrics and the
    answers stay.
    """
    if any(cell.folder.glob("checkpoints/step_*")):
        argv = ["--resume", str(cell.folder)]
    else:
        shutil.rmtree(cell.folder, ignore_errors=True)
        argv = cell.argv
    sys.argv = ["train.py", *argv]
    main()
    if cell.finished and not keep_models:
        shutil.rmtree(cell.folder / "checkpoints")


def lines(folder):
    with contextlib.suppress(FileNotFoundError):
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def main():
    a, words = arguments(sys.argv[1:])
    arms, contrasts, cells = plan(a, words)
    logs = a.out / "cells"
    if logs.exists() and not logs.is_dir() or a.out.is_file():
        raise UserError(f"--out {a.out}: is a file; choose another --out")
    logs.mkdir(parents=True, exist_ok=True)
    with open(a.out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the cells' processes hold it too
        except BlockingIOError:
            raise UserError(
                f"--out {a.out}: another comparison is at work there; wait for it, or choose "
                "another --out"
            ) from None
        for cell in cells:
            check(cell)
        failed = run(cells, a.jobs, a.keep_models)
    command = shlex.join(["python", "-m", "nanomerci.lab.compare", *sys.argv[1:]])
    print(stats.write_all(a.out, command, arms, contrasts, cells, failed))
    if failed:
        raise UserError(f"{len(failed)} of {len(cells)} runs failed; the first: {failed[0]}")


if __name__ == "__main__":
    config.run_command(main)
