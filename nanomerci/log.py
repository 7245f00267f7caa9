"""What a run leaves behind while it runs: metrics.jsonl (an object a step), samples.jsonl, a progress bar, plain words of alarm."""
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex

from tqdm import tqdm

from nanomerci import dist, plots
from nanomerci.config import UserError
from nanomerci.config import write as write_config
from nanomerci.grading import OUTCOMES
from nanomerci.rollout import pieces
from nanomerci.state import newest, truncate


def say(*words):
    """A line for the person watching: on rank 0, above the progress bar, on stderr."""
    if dist.rank == 0:
        tqdm.write(" ".join(map(str, words)), file=sys.stderr)


def bar(total, description, unit, initial=0):
    return tqdm(total=total, initial=initial, desc=description, unit=unit, disable=dist.rank > 0 or None, dynamic_ncols=True, leave=False)


FILES = ("metrics.jsonl", "samples.jsonl", "evals.jsonl")
COLOURED = 1000  # tokens of a sample that keep their 1/n, for the report's heat map
PAUSE, SHARE = 10.0, 0.02  # the report is written anew at most so often (seconds), and for at most that share of a run's time


class Log:
    """The files of a run folder, cut back to step `done` (a resumed run writes the later lines again)."""

    def __init__(self, folder, c, done):
        self.folder, self.warned, self.c, self.bar, self.next_report = Path(folder), set(), c, None, 0.0
        self.also = lambda m: None
        if dist.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                truncate(self.folder / name, done)
            write_config(c, self.folder / "config.yaml")
            self.also = LOGGERS[c.logger](c, self.folder, done)

    def progress(self, first, last):
        """The steps, with a progress bar."""
        with bar(last, "train", "step", initial=first - 1) as self.bar:
            for step in range(first, last + 1):
                yield step
                self.bar.update()

    def step(self, m):
        """One object a step; the numbers one watches go to the bar."""
        if "time/step" in m:
            answers, seconds = self.c.prompts * self.c.group, m["time/step"] - m.get("time/eval", 0.0)
            m = m | {"tokens_per_s": m["length/mean"] * answers / seconds}
        self.write("metrics.jsonl", m)
        self.also(m)
        if "eval/problems" in m:
            K = max(int(name.split("@")[1]) for name in m if name.startswith("eval/mean@") and name[-1].isdigit())
            shown = [f"{name} {m[f'eval/{name}']:.3f}" for name in (f"mean@{K}", f"pass@{K}") if f"eval/{name}" in m]
            say(f"step {m['step']}: held-out " + ", ".join(shown))
        if self.bar is not None and m["step"]:
            watched = {"reward": "reward/mean", "mixed": "groups/mixed", "entropy": "entropy", "1/n": "cfn/invn", "bonus": "merci/share"}
            self.bar.set_postfix({short: f"{m[name]:.3f}" for short, name in watched.items()})
            self.alarms(m["step"], m)
        if dist.rank == 0 and time.perf_counter() > self.next_report:
            start = time.perf_counter()
            plots.report(self.folder, pictures=False)
            now = time.perf_counter()
            self.next_report = now + max(PAUSE, (now - start) / SHARE)

    def samples(self, step, G, problem_B, text_B, grade_B, adv_PG, bonus_PG, roll, tokenizer, invn_BT):
        """The first group of each step, whole: what was asked, written, graded, what it was worth, and how new each token was."""
        if dist.rank:
            return
        record = {
            "step": step, "id": problem_B[0].id, "prompt": problem_B[0].prompt, "answers": text_B[:G],
            "outcomes": [g.outcome for g in grade_B[:G]], "advantage": [round(a, 4) for a in adv_PG[0].tolist()],
            "bonus": [round(b, 5) for b in bonus_PG[0].tolist()]}  # fmt: skip
        if invn_BT.any():
            at_GT = roll.mask_BT[:G] > 0
            record["tokens"] = [pieces(tokenizer, row[at][:COLOURED].tolist()) for row, at in zip(roll.tokens_BT, at_GT)]
            record["invn"] = [[float(f"{x:.3g}") for x in row[at][:COLOURED].tolist()] for row, at in zip(invn_BT, at_GT)]
        self.write("samples.jsonl", record)

    def summary(self):
        """Print the table before / after."""
        if dist.rank:
            return
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        evals = [m for m in rows if any(k.startswith("eval/mean@") for k in m)]
        first, last = evals[0], evals[-1]
        print(f"\n{last['eval/problems']} held-out problems      before            after step {last['step']}")
        for name in (k.removesuffix("_ci") for k in first if k.startswith("eval/") and k.endswith("_ci")):
            cells = (f"{m[name]:.3f} [{m[name + '_ci'][0]:.3f}, {m[name + '_ci'][1]:.3f}]" for m in (first, last))
            print(f"  {name.removeprefix('eval/'):14s} " + "   ".join(f"{cell:>22s}" for cell in cells))
        print(f"report: {self.folder / 'report.html'}   model: {newest(self.folder) / 'model'}")

    def write(self, name, record):
        if dist.rank == 0:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(record) + "\n")

    def sync(self):
        """Before a checkpoint: what was logged up to it must survive with it."""
        if dist.rank == 0:
            for name in FILES:
                if (self.folder / name).exists():
                    with open(self.folder / name) as file:
                        os.fsync(file.fileno())

    def once(self, key, *words):
        if key not in self.warned:
            self.warned.add(key)
            say("warning:", *words)

    def alarms(self, step, m):
        """Say in plain words what the numbers mean when nothing can be learned from them."""
        if m["reward/mean"] == 0:
            self.once("zero", f"step {step}: not one answer was right. With a bonus or without, nothing is learned from an all-wrong "
                      "batch: take easier problems, a larger --group or a better --model")  # fmt: skip
        elif m["groups/mixed"] < 0.1:
            self.once("dead", f"step {step}: {1 - m['groups/mixed']:.0%} of the groups are all right or all wrong and teach nothing "
                      f"({m['groups/all_right']:.0%} all right); take problems of another difficulty, or a larger --group")  # fmt: skip
        if m["sampler/logp_gap"] > 0.1:
            self.once("gap", f"step {step}: sampler and trainer disagree on log-probs by {m['sampler/logp_gap']:.2f} on average; "
                      "the data is off-policy. Try --dtype float32")  # fmt: skip
        if m["outcome/error"] > 0:
            self.once("error", f"step {step}: the grader itself failed on {m['outcome/error']:.1%} of the answers (counted as wrong)")


def tensorboard(c, folder, done):
    """-> a function that writes the numbers of a step to RUN/tensorboard; what a killed run wrote after step `done` is dropped."""
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def write(m):
        for name in filter(lambda name: name != "step" and plots.is_number(m[name]), m):
            board.add_scalar(name, m[name], m["step"])
        board.flush()

    return write


def wandb(c, folder, done):
    """-> a function that logs a step to Weights & Biases; a resumed run goes on in the same place. Offline: WANDB_MODE=offline."""
    import wandb

    known = folder / "wandb_id"
    if not known.exists():
        known.write_text(token_hex(4))
    try:
        run = wandb.init(project="nanomerci", name=folder.name, dir=folder, id=known.read_text(), resume="allow", config=asdict(c),
                         settings=wandb.Settings(console="off"))  # fmt: skip
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--logger wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline") from None
    return lambda m: run.log({name: value for name, value in m.items() if plots.is_number(value)}, step=m["step"])


LOGGERS = {"none": lambda c, folder, done: lambda m: None, "tensorboard": tensorboard, "wandb": wandb}


def tally(roll, grade_B, reward_PG, adv_PG, merged_PG, bonus_PG, invn_BT, kept_BT):
    """The step in numbers: {metric: (sum, count)}, to be added up over ranks. The README's glossary explains each."""
    B, P, mask_BT, outcomes = len(grade_B), len(reward_PG), roll.mask_BT, [g.outcome for g in grade_B]
    equal_P = (reward_PG == reward_PG[:, :1]).all(1)
    right_P = (reward_PG >= 1).all(1)
    tokens = mask_BT.sum()
    return {
        "reward/mean": (sum(g.reward for g in grade_B), B),
        "groups/mixed": ((~equal_P).sum(), P), "groups/all_right": ((equal_P & right_P).sum(), P),
        "groups/all_wrong": ((equal_P & ~right_P).sum(), P),
        "entropy": (-roll.logp_BT.sum(), tokens), "length/mean": (tokens, B),
        "cfn/invn": ((invn_BT * mask_BT).sum(), tokens), "merci/bonus": (bonus_PG.sum(), B),
        "merci/kept": ((kept_BT & (invn_BT > 0)).sum(), tokens), "merci/share": ((merged_PG - adv_PG).abs().sum(), merged_PG.abs().sum()),
    } | {f"outcome/{name}": (outcomes.count(name), B) for name in OUTCOMES}  # fmt: skip


class Clock:
    """clock("sample") charges the time since the last call to time/sample."""

    def __init__(self):
        self.times, self.start = {}, time.perf_counter()
        self.last = self.start

    def __call__(self, name):
        now = time.perf_counter()
        self.times[f"time/{name}"] = self.times.get(f"time/{name}", 0.0) + now - self.last
        self.last = now

    @property
    def metrics(self):
        return self.times | {"time/step": self.last - self.start}


class Stop:
    """`with Stop() as stop:` the first Ctrl-C or SIGTERM only sets stop.asked, so that the step in hand can be finished and
    saved; the second interrupts at once."""

    def __enter__(self):
        self.asked = None
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        say(f"{self.asked}: finishing this step, then saving (again: stop at once)")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
