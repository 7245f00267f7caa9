"""What a run leaves behind while it runs: metrics.jsonl (an object per step), samples.jsonl, a
progress bar, warnings in plain words. Metrics also go to sinks: TensorBoard, Weights & Biases, the
report.
"""

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex

from tqdm import tqdm

from nanomerci.runtime import config, ranks
from nanomerci.runtime.checkpoint import newest, sync, truncate

FILES = ("metrics.jsonl", "samples.jsonl", "evals.jsonl", "calibration.jsonl")
# what the progress bar shows
WATCHED = {"reward": "reward/mean", "mixed": "groups/mixed", "entropy": "entropy"}
WATCHED |= {"1/n": "cfn/invn", "bonus": "merci/share"}


def log0(*words):
    """A line for the person watching: on rank 0, above the progress bar, on stderr."""
    if ranks.rank == 0:
        tqdm.write(" ".join(map(str, words)), file=sys.stderr)


def progress_bar(total, description, unit, initial=0):
    how = {"disable": ranks.rank > 0 or None, "dynamic_ncols": True, "leave": False}
    return tqdm(total=total, initial=initial, desc=description, unit=unit, **how)


class Log:
    """The files of a run folder, cut back to step `done` (a resumed run writes the later lines
    again). sinks: functions that are given every step's metrics, on rank 0.
    """

    def __init__(self, folder, c, done, sinks=()):
        self.folder, self.c, self.sinks = Path(folder), c, list(sinks)
        self.warned, self.bar = set(), None
        ranks.barrier()  # every rank listens to signals by now
        if ranks.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                truncate(self.folder / name, done)
            config.write(c, self.folder / "config.yaml")
            if c.logger != "none":
                self.sinks.append(LOGGERS[c.logger](c, self.folder, done))

    def progress(self, first, last):
        """The steps, with a progress bar."""
        with progress_bar(last, "train", "step", initial=first - 1) as self.bar:
            for step in range(first, last + 1):
                yield step
                self.bar.update()

    def step(self, m):
        """One object per step; the numbers one watches go to the bar."""
        if "time/step" in m:
            responses = m["groups/asked"] * self.c.group
            seconds = m["time/step"] - m.get("time/eval", 0.0)
            m = m | {"tokens_per_s": m["length/mean"] * responses / seconds}
        self.write("metrics.jsonl", m)
        if "eval/problems" in m:
            log0(f"step {m['step']}: held-out " + ", ".join(headline(m, self.c.eval_k)))
        if self.bar is not None and m["step"]:
            self.bar.set_postfix({short: f"{m[name]:.3f}" for short, name in WATCHED.items()})
            found = alarms(m, self.c)
            for key in [key for key in found if key not in self.warned]:
                log0("warning:", found[key])
            self.warned |= found.keys()
        if ranks.rank == 0:
            for sink in self.sinks:
                sink(m)

    def summary(self):
        """Print the table before / after."""
        if ranks.rank:
            return
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        evals = [m for m in map(json.loads, lines) if "eval/problems" in m]
        first, last = evals[0], evals[-1]
        head = f"{last['eval/problems']} held-out problems      before            after step "
        print(f"\n{head}{last['step']}")
        for name in [name for name in first if f"{name}_ci" in first]:
            before, after = interval(first, name), interval(last, name)
            print(f"  {name.removeprefix('eval/'):14s} {before:>22s}   {after:>22s}")
        report = f"report: {self.folder / 'report.html'}   " if self.c.report else ""
        print(f"{report}model: {newest(self.folder) / 'model'}")

    def write(self, name, record):
        if ranks.rank == 0:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(record) + "\n")

    def sync(self):
        """Before a checkpoint: what was logged up to it must survive with it."""
        if ranks.rank == 0:
            for name in FILES:
                if (self.folder / name).exists():
                    sync(self.folder / name)


def headline(m, K):
    """mean@K and pass@K of an evaluation, in words."""
    names = [name for name in (f"mean@{K}", f"pass@{K}") if f"eval/{name}" in m]
    return [f"{name} {m[f'eval/{name}']:.3f}" for name in names]


def interval(m, name):
    low, high = m[f"{name}_ci"]
    return f"{m[name]:.3f} [{low:.3f}, {high:.3f}]"


WARNINGS = {
    "zero": "all rewards are 0, so every advantage is 0 and nothing is learned (a bonus cannot "
    "help here). Use easier prompts, a larger --group or a stronger --model",
    "dead": "{dead:.0%} of the groups have zero reward variance and contribute no gradient "
    "({m[groups/all_right]:.0%} are all correct). Use prompts of another difficulty, or a larger "
    "--group",
    "gap": "sampler and trainer disagree on log-probs by {m[sampler/logp_gap]:.2f} on average, so "
    "the data is off-policy. Try --dtype float32",
    "text": "responses repeat themselves ({m[text/repetition]:.0%} of their four-token sequences) "
    "or are no clean text ({m[text/gibberish]:.0%} of them). Try a lower --lr or --gamma, or "
    "--kl_coef 0.01",
    "few": "only {m[groups/used]} of {c.prompts} groups carried signal after {c.max_gen_rounds} "
    "rounds of sampling, so the batch is smaller. Use prompts of another difficulty",
    "error": "the grader itself failed on {m[outcome/error]:.1%} of the responses (counted as "
    "incorrect)",
}


def alarms(m, c):
    """What the numbers mean when nothing can be learned from them. -> {key: warning}."""
    zero, dead = m["reward/mean"] == 0, 1 - m["groups/mixed"]
    true = {
        "zero": zero,
        "dead": not zero and m["groups/mixed"] < 0.1,
        "gap": m["sampler/logp_gap"] > 0.1,
        "text": m["text/repetition"] > 0.5 or m["text/gibberish"] > 0.2,
        "few": c.max_gen_rounds > 1 and m["groups/used"] < c.prompts,
        "error": m["outcome/error"] > 0,
    }
    words = {key: text.format(m=m, c=c, dead=dead) for key, text in WARNINGS.items() if true[key]}
    return {key: f"step {m['step']}: {text}" for key, text in words.items()}


# ---- --logger: made of (config, run folder, last step done), called with every step's metrics


def numbers(m):
    """The metrics that are one number: no intervals, and not the step itself."""
    return {k: v for k, v in m.items() if isinstance(v, int | float) and k != "step"}


def tensorboard(c, folder, done):
    """Writes to RUN/tensorboard; what a killed run wrote after step `done` is dropped."""
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def write(m):
        for name, value in numbers(m).items():
            board.add_scalar(name, value, m["step"])
        board.flush()

    return write


def weights_and_biases(c, folder, done):
    """Logs to Weights & Biases, a resumed run in the same place. Offline: WANDB_MODE=offline."""
    import wandb

    known = folder / "wandb_id"
    if not known.exists():
        known.write_text(token_hex(4))
    where = {"project": "nanomerci", "name": folder.name, "dir": folder, "id": known.read_text()}
    how = {"resume": "allow", "config": asdict(c), "settings": wandb.Settings(console="off")}
    try:
        run = wandb.init(**where, **how)
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "log in with `wandb login`, or set WANDB_MODE=offline"
        raise config.UserError(f"--logger wandb: {reason}; {remedy}") from None
    return lambda m: run.log(numbers(m), step=m["step"], commit=True)


LOGGERS = {"tensorboard": tensorboard, "wandb": weights_and_biases}


class StepTimer:
    """timer("sample") charges the time since the last call to time/sample."""

    def __init__(self):
        self.times, self.last = {}, time.perf_counter()

    def __call__(self, name):
        now = time.perf_counter()
        self.times[f"time/{name}"] = self.times.get(f"time/{name}", 0.0) + now - self.last
        self.last = now

    @property
    def metrics(self):
        return self.times | {"time/step": sum(self.times.values())}


class GracefulShutdown:
    """`with GracefulShutdown() as shutdown:` the first Ctrl-C or SIGTERM only sets
    shutdown.requested, for the step in hand to be finished and saved; the second interrupts.
    """

    def __enter__(self):
        self.requested = None
        signals = signal.SIGINT, signal.SIGTERM
        self.before = {s: signal.signal(s, self._note) for s in signals}
        return self

    def _note(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        log0(f"{self.requested}: finishing this step, then saving (again: stop at once)")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
