"""Configurations compared over seeds, with error bars: does the bonus help?

    python -m nanomerci.lab.compare toy_sql_short --arms grpo,grpo+cfn,dapo,dapo+cfn --seeds 8
    python -m nanomerci.lab.compare toy_sql_short --arms baselines --warm_starts 3 --gamma 0.3
    python -m nanomerci.lab.compare toy_sql_short --arms grpo+cfn,grpo+cfn:top=1:run=1

An arm is ALGO[+BONUS][:option=value ...], names or FILE.py:NAME; without +BONUS it has no bonus.
main, baselines, benchmark, phase and ablations are sets of arms. Any option of train.py applies to
all arms. A cell is one run of train.py: an arm, a warm start, a seed. A pair is a warm start and a
seed: all its arms start from the same weights, get the same problems and random numbers, and end
after the same number of responses. Differences are taken within pairs. The same command resumes
after an interruption, with more arms or seeds if you like. It writes results.csv (a row per run),
results_curves.csv, results.md, compare.png and compare.html.

Choose settings with --eval_split tune (other problems); keep the test problems for the comparison
that you report.
"""

import ctypes
import dataclasses
import fcntl
import json
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain, cycle, islice, product
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from nanomerci import tasks, train
from nanomerci.lab import stats
from nanomerci.loop.warmstart import tiny_policy
from nanomerci.runtime import checkpoint, config
from nanomerci.runtime.config import UserError
from nanomerci.runtime.log import GracefulShutdown, log0, progress_bar
from nanomerci.view import report

# to settle --dtype asks for a GPU, which by default starts CUDA, and then no fork can use it
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
ROOT = Path(__file__).parents[2]
STARTS = 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32  # shares of the rare idiom, of the phase diagram
# options of train.py that the arms and cells decide
OURS = {"algo", "bonus", "seed", "sft_seed", "resume", "dry_run"}


def sets(c):
    """Named sets of arms. Each ablation changes one thing of grpo+cfn."""
    bonuses = "cfn", "elliptical", "outcome", "rnd", "entropy", "surprisal", "random"
    baselines = ["grpo", *(f"grpo+{name}" for name in bonuses)]
    objectives = "dapo", "dapo+cfn", "maxrl", "maxrl+cfn", "passk", "passk+cfn", "ips"
    more = "grpo+cfn:cfn_features=policy", "grpo+exact", "grpo+delight", "grpo+mistakes"
    starts = product(STARTS, ("grpo", "grpo+cfn", "grpo+surprisal", "maxrl", "maxrl+cfn"))
    half, double = max(1, round(c.gamma_decay / 2)), max(1, 2 * c.gamma_decay)
    changes = f"""
        bonus_form=deviation bonus_form=sum gamma_decay={half} gamma_decay={double} top=1
        top={c.top / 3:.3g} top={min(1, 2 * c.top):.3g} run=1 run={c.run + 1} noise_filter=False
        top=1:run=1:noise_filter=False cfn_prior=False cfn_features=policy cfn_pretrain=1
        credit=token bonus_on_zero_variance=True""".split()  # MERCI, tables 8-10, and ours
    return {
        "main": ["grpo", "grpo+cfn", "dapo", "dapo+cfn"],
        "baselines": baselines,
        "benchmark": [*baselines, *objectives, *more],
        "phase": [f"{arm}:rare_share={start}" for start, arm in starts],
        "ablations": ["grpo+cfn", "grpo", *(f"grpo+cfn:{change}" for change in changes)],
    }


# ---- what is to be run
@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison; every option of train.py (python train.py --help) applies to all arms"""

    arms: str = "main"
    """Arms or sets of arms (main, baselines, benchmark, phase, ablations), comma-separated."""
    seeds: config.Count = 8
    """Runs per arm and warm start."""
    warm_starts: config.Count = 1
    """Initial tiny models; each is trained with all seeds and arms."""
    contrasts: str = ""
    """Comparisons ARM/ARM, comma-separated; default: every arm with the first."""
    tested: str = ""
    """Metrics to test, comma-separated, such as pass@8,hard; default: mean@K and pass@K."""
    jobs: config.Size = 0
    """Runs at a time; 0 = one per GPU, or one per core."""
    out: Path = Path("runs/compare")
    """Folder of the comparison."""


def arguments(argv):
    """-> our options, and what is train.py's: [RECIPE, --option value ...]"""
    recipe = list(argv[:1]) if config.named(argv) else []
    prog, also = "python -m nanomerci.lab.compare", [config.Config]
    given, rest = config.command_line(Comparison(), argv[len(recipe) :], prog, __doc__, also=also)
    a = Comparison(**given)
    config.check_ranges(a)
    if taken := OURS & {config.option_name(word) for word in rest if word.startswith("--")}:
        raise UserError(
            f"--{min(taken)}: is set per arm; use --arms, --seeds or --warm_starts instead"
        )
    return a, recipe + rest


def options(arm):
    """grpo+cfn:top=1 or mine.py:best+theirs.py:Bonus:top=1 -> the options of train.py that make
    it.
    """
    name, *changes = re.split(r":(?=\w+=)", arm)
    algo, _, bonus = name.partition("+")
    known = re.compile(r"\w+|.+\.py:\w+")
    if not known.fullmatch(algo) or bonus and not known.fullmatch(bonus):
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
        ended = last["step"] == self.c.steps or last.get("prompts", 0) >= self.c.budget > 0
        return last["step"] > 0 and "eval/problems" in last and ended

    @property
    def described(self):
        """What stands in the run's row beside its numbers."""
        file, c = self.folder / "made_by.json", self.c
        return (json.loads(file.read_text()) if file.exists() else {}) | {
            "experiment": self.folder.parents[1].name,
            "dtype": c.dtype,
            "task": c.task,
            "split": c.eval_split,
            "problems": c.eval_problems,
            "command": shlex.join(["python", "train.py", *self.argv]),
        }


def plan(a, words):
    """-> the cells, seed by seed, so that a part of them is a smaller comparison."""
    base = config.parse(list(words))
    named = sets(base)
    groups = (named.get(name, [name]) for name in a.arms.split(","))
    arms = list(dict.fromkeys(chain(*groups)))
    for pair in stats.pairs(a.contrasts, arms):
        if len(pair) != 2 or set(pair) - set(arms):
            raise UserError(
                f"--contrasts {'/'.join(pair)}: expected ARM/ARM of the arms {', '.join(arms)}"
            )
    recipe = words[:1] if config.named(words) else []
    common = ["--budget", str(base.steps * base.prompts), "--threads", "1", "--graders", "1"]
    common += ["--report", "False", *words[len(recipe) :]]
    argv = {arm: [*recipe, *common, *options(arm)] for arm in arms}
    parsed = {arm: train.settle(config.parse(list(argv[arm]))) for arm in arms}
    warm_starts, cells = range(a.warm_starts if base.model == "tiny" else 1), []
    for seed, warm, arm in product(range(a.seeds), warm_starts, arms):
        name = re.sub(r"[^\w.+=-]", "_", arm) + f"-w{warm}-s{seed}"
        own = {"seed": seed, "sft_seed": warm, "out": str(a.out / "cells" / name)}
        flags = chain(*((f"--{option}", str(value)) for option, value in own.items()))
        c = dataclasses.replace(parsed[arm], **own)
        cells.append(Cell(arm, warm, seed, (*argv[arm], *flags), c))
    return cells


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
class Job(NamedTuple):
    folder: Path
    function: Callable
    size: int = 1  # lines of metrics.jsonl when it is done

    @property
    def log(self):
        return Path(f"{self.folder}.log")

    @property
    def seen(self):
        with suppress(FileNotFoundError):
            return min(self.size, (self.folder / "metrics.jsonl").read_bytes().count(b"\n"))
        return 0


def run_all(jobs, where, description, unit):
    """Each job in a process of its own, one at a time per place. The processes are forks of this
    one, so torch is imported once; they die with it, however it dies. -> {job: status}
    """
    fork, todo, done = multiprocessing.get_context("fork"), list(jobs), 0
    free, running, statuses, told = list(where), {}, {}, False
    tqdm.monitor_interval = 0  # no thread may be there when a process forks
    with (
        GracefulShutdown() as stop,
        progress_bar(sum(job.size for job in jobs), description, unit) as progress,
    ):
        try:
            while running or todo and not stop.requested:
                while todo and free and not stop.requested:
                    job, gpu = todo.pop(0), free.pop(0)
                    process = fork.Process(target=_child, args=(job, os.getpid(), gpu))
                    process.start()
                    running[process.sentinel] = process, gpu, job
                for sentinel in wait(list(running), timeout=0.5):
                    process, gpu, job = running.pop(sentinel)
                    process.join()
                    free.append(gpu)
                    statuses[job], done = process.exitcode, done + job.size
                if stop.requested and not told:
                    told = True
                    for process, *_ in running.values():
                        os.kill(process.pid, signal.SIGINT)
                progress.n = done + sum(job.seen for *_, job in running.values())
                progress.refresh()
        finally:
            for process, *_ in running.values():
                process.kill()
                process.join()
    if stop.requested:
        log0("stopped; the same command goes on")
        raise KeyboardInterrupt
    return statuses


def _child(job, parent, gpu):
    os.setpgrp()  # Ctrl-C is for the parent, who passes it on
    # PR_SET_PDEATHSIG; the parent starts all of us from its only thread
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stream = sys.stdout = sys.stderr = open(job.log, "a", buffering=1)  # noqa: SIM115
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    torch.set_num_threads(1)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    config.run_command(job.function)


def places(c, jobs):
    """The GPU, or None, of each run that is made at the same time."""
    gpus, visible = [], os.environ.get("CUDA_VISIBLE_DEVICES")
    if c.device != "cpu":
        gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    at_a_time = jobs or len(gpus) or len(os.sched_getaffinity(0))
    return list(islice(cycle(gpus or [None]), at_a_time))


def warm_starts(todo, where):
    """The tiny models that these cells start from: made once, then cached."""
    logs, work = todo[0].folder.parent, []
    for (warm, share), c in {(cell.warm, cell.c.rare_share): cell.c for cell in todo}.items():
        task = tasks.load(c)
        if c.model == "tiny" and hasattr(task, "demonstration"):
            work.append(Job(logs / f"warm-{warm}-{share}", partial(tiny_policy, task, warm)))
    if not work:
        return
    statuses = run_all(work, where, "warm starts (once, then cached)", "model")
    for job, status in statuses.items():
        if status:
            raise UserError(f"{job.folder.name}: status {status}; see {job.log}")


def run(cells, jobs):
    """Warm starts once, then every cell that is not finished. -> {folder's name: what failed}"""
    todo, where = [cell for cell in cells if not cell.finished], places(cells[0].c, jobs)
    if todo:
        warm_starts(todo, where)
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    for cell in set(cells) - set(todo):  # a kill may have left them
        shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
    work = {}
    for cell in todo:
        work[Job(cell.folder, partial(run_cell, cell, commit), cell.c.steps + 1)] = cell
    log0(f"{len(cells)} runs, {len(cells) - len(todo)} of them finished, {len(where)} at a time")
    failed = {}
    for job, status in run_all(work, where, "steps", "step").items():
        if status or not work[job].finished:
            said = job.log.read_text(errors="replace").strip().splitlines() or ["said nothing"]
            failed[job.folder.name] = f"{job.folder.name}: status {status}, {said[-1]}"
    return failed


def run_cell(cell, commit):
    """In its own process: begin, or go on from the newest checkpoint. Finished, the metrics and the
    answers stay.
    """
    folder, checkpoints, argv = cell.folder, cell.folder / "checkpoints", cell.argv
    if any(checkpoints.glob("step_*")):
        argv = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    made_by = {"commit": commit or None, "processor": processor(cell.c)}
    report.write(folder / "made_by.json", json.dumps(made_by))
    train.main(config.parse(list(argv)))
    if cell.finished:
        shutil.rmtree(checkpoints)


def processor(c):
    if c.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return model[1] if model else platform.machine()


def main(argv):
    a, words = arguments(argv)
    cells = plan(a, words)
    logs = a.out / "cells"
    checkpoint.writable(logs, "--out", "choose another")
    logs.mkdir(parents=True, exist_ok=True)
    with open(a.out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the cells' processes hold it too
        except BlockingIOError:
            raise UserError(
                f"--out {a.out}: another comparison is running there; wait for it, or choose "
                "another --out"
            ) from None
        for cell in cells:
            check(cell)
        failed = run(cells, a.jobs)
    command = shlex.join(["python", "-m", "nanomerci.lab.compare", *argv])
    print(stats.write(a.out, command, *stats.collect(cells, failed)))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} runs failed; the first: {next(iter(failed.values()))}"
        )


if __name__ == "__main__":
    config.run_command(main, sys.argv[1:])
