"""What a run leaves behind while it runs: metrics.jsonl (an object a step), samples.jsonl, a
progress bar, plain words of alarm.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from nanomerci import dapo
from nanomerci.loop.rollout import pieces
from nanomerci.runtime import ranks
from nanomerci.runtime.checkpoint import newest, truncate
from nanomerci.runtime.config import write as write_config
from nanomerci.runtime.loggers import LOGGERS
from nanomerci.tasks.graders.pool import OUTCOMES
from nanomerci.view import report


def say(*words):
    """A line for the person watching: on rank 0, above the progress bar, on stderr."""
    if ranks.rank == 0:
        tqdm.write(" ".join(map(str, words)), file=sys.stderr)


def bar(total, description, unit, initial=0):
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=ranks.rank > 0 or None,
        dynamic_ncols=True,
        leave=False,
    )


FILES = ("metrics.jsonl", "samples.jsonl", "evals.jsonl", "calibration.jsonl")
COLOURED = 1000  # tokens of a sample that keep their 1/n, for the report's heat map
PAUSE, SHARE = (
    10.0,
    0.02,
    # the report is written anew at most so often (seconds), and for at most that share of a run's time
)


class Log:
    """The files of a run folder, cut back to step `done` (a resumed run writes the later lines
    again).
    """

    def __init__(self, folder, c, done):
        self.folder, self.warned, self.c, self.bar, self.next_report = (
            Path(folder),
            set(),
            c,
            None,
            0.0,
        )
        self.also = lambda m: None
        ranks.barrier()  # every rank listens to signals by now
        if ranks.rank == 0:
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
            answers, seconds = (
                m["groups/asked"] * self.c.group,
                m["time/step"] - m.get("time/eval", 0.0),
            )
            m = m | {"tokens_per_s": m["length/mean"] * answers / seconds}
        self.write("metrics.jsonl", m)
        self.also(m)
        if "eval/problems" in m:
            K = max(
                int(name.split("@")[1])
                for name in m
                if name.startswith("eval/mean@") and name[-1].isdigit()
            )
            shown = [
                f"{name} {m[f'eval/{name}']:.3f}"
                for name in (f"mean@{K}", f"pass@{K}")
                if f"eval/{name}" in m
            ]
            say(f"step {m['step']}: held-out " + ", ".join(shown))
        if self.bar is not None and m["step"]:
            watched = {
                "reward": "reward/mean",
                "mixed": "groups/mixed",
                "entropy": "entropy",
                "1/n": "cfn/invn",
                "bonus": "merci/share",
            }
            self.bar.set_postfix({short: f"{m[name]:.3f}" for short, name in watched.items()})
            self.alarms(m["step"], m)
        if ranks.rank == 0 and self.c.report and time.perf_counter() > self.next_report:
            start = time.perf_counter()
            report.report(self.folder, pictures=False)
            now = time.perf_counter()
            self.next_report = now + max(PAUSE, (now - start) / SHARE)

    def samples(self, step, batch, adv, tokenizer):
        """The first group that was learned from, whole: what was asked, written, graded, what it
        was worth, and how new each token was, and whether the filters kept it.
        """
        if ranks.rank or not len(batch.number_P):
            return
        G, adv_B, roll = batch.group, per_response(adv, batch.roll.mask_BT), batch.roll
        record = {
            "step": step,
            "id": batch.problem_P[0].id,
            "prompt": batch.problem_P[0].prompt,
            "answers": batch.text_B[:G],
            "outcomes": [g.outcome for g in batch.grade_B[:G]],
            "advantage": [round(a, 4) for a in adv_B[:G].tolist()],
            "bonus": [round(b, 5) for b in batch.bonus_B[:G].tolist()],
        }
        if batch.novelty_BT[:G].any():
            part = lambda x_BT: [
                row[mask > 0][:COLOURED].tolist() for row, mask in zip(x_BT[:G], roll.mask_BT)
            ]
            record["tokens"] = [pieces(tokenizer, ids) for ids in part(roll.tokens_BT)]
            record["invn"] = [[float(f"{x:.3g}") for x in row] for row in part(batch.novelty_BT)]
            record["kept"] = ["".join("-x"[kept] for kept in row) for row in part(batch.kept_BT)]
            record["cut"] = [max(0, int(length) - COLOURED) for length in roll.length_B[:G]]
        self.write("samples.jsonl", record)

    def summary(self):
        """Print the table before / after."""
        if ranks.rank:
            return
        rows = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        evals = [m for m in rows if any(k.startswith("eval/mean@") for k in m)]
        first, last = evals[0], evals[-1]
        print(
            f"\n{last['eval/problems']} held-out problems      before            after step "
            f"{last['step']}"
        )
        for name in (
            k.removesuffix("_ci") for k in first if k.startswith("eval/") and k.endswith("_ci")
        ):
            cells = (
                f"{m[name]:.3f} [{m[name + '_ci'][0]:.3f}, {m[name + '_ci'][1]:.3f}]"
                for m in (first, last)
            )
            print(
                f"  {name.removeprefix('eval/'):14s} "
                + "   ".join(f"{cell:>22s}" for cell in cells)
            )
        print(
            (f"report: {self.folder / 'report.html'}   " if self.c.report else "")
            + f"model: {newest(self.folder) / 'model'}"
        )

    def write(self, name, record):
        if ranks.rank == 0:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(record) + "\n")

    def sync(self):
        """Before a checkpoint: what was logged up to it must survive with it."""
        if ranks.rank == 0:
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
            self.once(
                "zero",
                f"step {step}: not one answer was right. With a bonus or without, nothing is "
                "learned from an all-wrong "
                "batch: take easier problems, a larger --group or a better --model",
            )
        elif m["groups/mixed"] < 0.1:
            self.once(
                "dead",
                f"step {step}: {1 - m['groups/mixed']:.0%} of the groups are all right or all "
                "wrong and teach nothing "
                f"({m['groups/all_right']:.0%} all right); take problems of another "
                "difficulty, or a larger --group",
            )
        if m["sampler/logp_gap"] > 0.1:
            self.once(
                "gap",
                f"step {step}: sampler and trainer disagree on log-probs by "
                f"{m['sampler/logp_gap']:.2f} on average; "
                "the data is off-policy. Try --dtype float32",
            )
        if m["text/repetition"] > 0.5 or m["text/gibberish"] > 0.2:
            self.once(
                "text",
                f"step {step}: answers repeat themselves ({m['text/repetition']:.0%} of their "
                "four-token pieces) or are "
                f"no clean text ({m['text/gibberish']:.0%} of them); try a lower --lr or "
                "--gamma, or --kl_coef 0.01",
            )
        if 1 < self.c.max_gen_rounds and m["groups/used"] < self.c.prompts:
            self.once(
                "few",
                f"step {step}: only {m['groups/used']} of {self.c.prompts} groups carried "
                "signal after "
                f"{self.c.max_gen_rounds} rounds of sampling; the batch is smaller. Take problems of "
                "another difficulty",
            )
        if m["outcome/error"] > 0:
            self.once(
                "error",
                f"step {step}: the grader itself failed on {m['outcome/error']:.1%} of the "
                "answers (counted as wrong)",
            )


def per_response(adv, mask_BT):
    """(B,) as it is; per-token values (B, T) -> their mean over each response."""
    return adv if adv.dim() == 1 else (adv * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def tally(seen, batch, adv_PG, merged):
    """The step in numbers: {metric: (sum, count)}, to be added up over ranks. The README's glossary
    explains each.

    seen: all groups sampled in this step; batch: those learned from, with their advantage before
    and after the bonus.
    """
    B, P, mask_BT, roll = len(seen.text_B), len(seen.number_P), seen.roll.mask_BT, seen.roll
    mixed_P = dapo.mixed(seen.grade_PG)
    right_P, tokens = seen.right_B.view(seen.reward_PG.shape).all(1), mask_BT.sum()
    outcomes = [g.outcome for g in seen.grade_B]
    return (
        {
            "reward/mean": (sum(g.reward for g in seen.grade_B), B),
            "groups/mixed": (mixed_P.sum(), P),
            "groups/all_right": ((~mixed_P & right_P).sum(), P),
            "groups/all_wrong": ((~mixed_P & ~right_P).sum(), P),
            "entropy": (-roll.logp_BT.sum(), tokens),
            "length/mean": (tokens, B),
            "cfn/invn": ((seen.novelty_BT * mask_BT).sum(), tokens),
            "merci/bonus": (seen.bonus_B.sum(), B),
            **{
                name: (((seen.passed_BT > n) & (seen.novelty_BT > 0)).sum(), tokens)
                for n, name in enumerate(("merci/kept_top", "merci/kept_run", "merci/kept"))
            },
        }
        | ledger(batch, adv_PG.flatten(), per_response(merged, batch.roll.mask_BT))
        | text_alarms(seen)
        | {f"outcome/{name}": (outcomes.count(name), B) for name in OUTCOMES}
    )


def ledger(batch, adv_B, merged_B):
    """Where the bonus went: {metric: (sum, count)}."""
    paid_B, right_B, bonus_B = (merged_B - adv_B).abs(), batch.right_B, batch.bonus_B
    length_PG, bonus_PG = (
        (x.view(len(batch.number_P), -1) for x in (batch.roll.length_B, bonus_B))
        if len(bonus_B)
        else [adv_B[None]] * 2
    )
    centred = lambda x: x - x.mean(1, keepdim=True)
    together_P = (centred(length_PG) * centred(bonus_PG)).sum(1)
    alone_P = (centred(length_PG).square().sum(1) * centred(bonus_PG).square().sum(1)).sqrt()
    varied_P = alone_P > 1e-9
    return {
        "merci/share": (paid_B.sum(), merged_B.abs().sum()),
        "merci/on_wrong": (paid_B[~right_B].sum(), paid_B.sum()),
        "merci/novelty_right": (bonus_B[right_B].sum(), right_B.sum()),
        "merci/novelty_wrong": (bonus_B[~right_B].sum(), (~right_B).sum()),
        "merci/length_corr": ((together_P / alone_P)[varied_P].sum(), varied_P.sum()),
    }


def text_alarms(seen):
    """Is it writing the same over and over, or no text at all? {metric: (sum, count)}"""
    repeated = total = 0
    for ids in seen.roll.responses():
        fours = list(zip(ids, ids[1:], ids[2:], ids[3:]))
        repeated, total = repeated + len(fours) - len(set(fours)), total + len(fours)
    strange = sum(
        any(x == "\ufffd" or x < " " and x not in "\n\r\t" for x in text) for text in seen.text_B
    )
    return {"text/repetition": (repeated, total), "text/gibberish": (strange, len(seen.text_B))}


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
    """`with Stop() as stop:` the first Ctrl-C or SIGTERM only sets stop.asked, so that the step in
    hand can be finished and saved; the second interrupts at once.
    """

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
