"""Arms against arms: whole comparisons on a task of milliseconds, killed and continued; the numbers
recomputed by hand.
"""

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from once import WORDS

from nanomerci.lab import compare, stats
from nanomerci.loop.evaluate import pass_at_k
from nanomerci.runtime import config
from nanomerci.runtime.config import UserError
from nanomerci.view import report
from tests.test_browser import drive

# starts python and torch once; then each line of stdin is a command line, run in a fork, whose id
# and status are printed
SERVER = """
import json, os, sys, traceback
from once import Once
from nanomerci.lab import compare
from nanomerci.runtime import config
from nanomerci import tasks
tasks.load = lambda c, cache: Once()
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        said, *sys.argv = json.loads(line)
        stream = sys.stdout = sys.stderr = open(said, "w", buffering=1)
        status = 1
        try:
            config.run_command(compare.main)
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
ARMS = ["grpo", "grpo+cfn:gamma=0", "grpo:lr=0.03"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, small_model):
    folder = tmp_path_factory.mktemp("compare")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    options = dict(
        model=small_model(WORDS),
        steps=2,
        prompts=4,
        group=4,
        minibatches=2,
        lr=3e-3,
        max_new_tokens=8,
        run=1,
        cfn_hidden=16,
        cfn_pretrain=1,
        eval_problems=4,
        eval_k=4,
        eval_every=0,
        save_every=1,
        lr_decay=False,
    )

    def start(out, *words):
        argv = [
            "compare",
            *(f"--{k}={v}" for k, v in options.items()),
            "--arms",
            ",".join(ARMS),
            "--seeds",
            "2",
            "--jobs",
            "2",
            *words,
        ]
        (folder / "said").write_text("")
        process.stdin.write(json.dumps([str(folder / "said"), *argv, "--out", str(out)]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield SimpleNamespace(
        start=start,
        status=lambda: int(process.stdout.readline()),
        said=lambda: (folder / "said").read_text(),
    )
    process.stdin.close()
    process.stdout.close()
    process.wait()


def until(true, said):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end and "Traceback" not in said(), said()
        time.sleep(0.01)


def finished(out):
    """Runs that wrote their last step, and when."""
    ended = [
        p
        for p in out.glob("cells/*/metrics.jsonl")
        if report.read_lines(p)[-1:] and report.read_lines(p)[-1]["step"] == 2
    ]
    return {path.parent.name: path.stat().st_mtime_ns for path in ended}


def nobody_is_left(out):
    """The processes of the runs hold the comparison's lock."""
    with open(out / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    """A comparison that was killed after its first run, interrupted once more, and then left to
    end.
    """
    out = tmp_path_factory.mktemp("done")
    pid = server.start(out)
    until(lambda: len(list(out.glob("cells/*/metrics.jsonl"))) > 2, server.said)
    os.kill(pid, signal.SIGKILL)
    assert server.status() == -signal.SIGKILL
    until(lambda: nobody_is_left(out), server.said)
    assert 0 < len(list(out.glob("cells/*/metrics.jsonl"))) < 6
    some = len(finished(out))
    pid = server.start(out)
    until(lambda: len(finished(out)) > some, server.said)
    os.kill(pid, signal.SIGINT)
    assert (
        server.status() == 130
        and "the same command goes on" in server.said()
        and nobody_is_left(out)
    )
    before = finished(out)
    assert some < len(before) < 6
    server.start(out)
    assert server.status() == 0, server.said()
    assert before.items() <= finished(out).items()  # what was finished was not run again
    assert not list(out.glob("cells/*/checkpoints"))
    return out, json.loads((out / "results.json").read_text()), server.said()


def cell(out, arm, seed, name):
    return report.read_lines(
        out / "cells" / f"{arm.replace(':', '_')}-w0-s{seed}" / f"{name}.jsonl"
    )


def test_killed_and_continued_it_is_complete_and_arms_that_must_be_equal_are(done):
    out, r, _ = done
    assert (
        r["runs"] == dict.fromkeys(ARMS, 2)
        and not r["failed"]
        and not r["unfinished"]
        and r["same_start"]
    )
    for d in r["differences"] + r["differences_seconds"][:0]:
        if d["arm"] == "grpo+cfn:gamma=0":  # gamma 0 is the control bit for bit
            assert d["difference"] == d["low"] == d["high"] == 0 and d["p"] == 1
    assert [row["prompts"] for row in cell(out, "grpo", 0, "metrics")[1:]] == [4, 8]
    problems = [[r["id"] for r in cell(out, arm, 1, "samples")] for arm in ARMS]
    assert (
        problems[0]
        == problems[1]
        == problems[2]
        != [r["id"] for r in cell(out, "grpo", 0, "samples")]
    )


@pytest.mark.parametrize("eval_every", [1, 0])
def test_arms_that_end_at_different_samples_make_a_picture(tmp_path, eval_every):
    """DAPO's last step may pass the budget: there the curves of the others have ended."""
    line = {"y": [0.1, 0.2, None], "low": [0.1, 0.1, None], "high": [0.1, 0.3, None]}
    longer = {"y": [0.1, 0.2, 0.3], "low": [0.1, 0.1, 0.2], "high": [0.1, 0.3, 0.4]}
    curves = {
        name: {"x": [0, 10, 20], "arms": {"grpo": line, "dapo": longer}}
        for name in ("mean@8", "pass@8")
    }
    r = {
        "task": "toy",
        "primary": ["mean@8", "pass@8"],
        "arms": ["grpo", "dapo"],
        "differences": [],
        "curves": curves,
    }
    table = {arm: dict.fromkeys(curves, [0.3, 0.2, 0.4]) for arm in r["arms"]}
    r |= {
        "eval_every": eval_every,
        "table": table,
        "before": dict.fromkeys(curves, [0.1, 0.0, 0.2]),
    }
    stats.picture(r, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_table_is_what_the_answers_say(done):
    out, r, said = done
    by_hand = {}
    for arm, seed in itertools.product(ARMS, (0, 1)):
        records = cell(out, arm, seed, "evals")[-1]["records"]
        right = [
            [text for text, outcome in zip(x["answers"], x["outcomes"]) if outcome == "right"]
            for x in records
        ]
        rows = cell(out, arm, seed, "metrics")
        by_hand[arm, seed] = {
            "mean@4": sum(map(len, right)) / 16,
            "pass@4": sum(float(pass_at_k(4, len(x), 4)) for x in right) / 4,
            "coverage": sum(bool(x) for x in right) / 4,
            "distinct": sum(len(set(x)) for x in right) / 4,
            "answers": 32,
            "steps": 2,
            "greedy": sum(x["greedy_outcome"] == ["right"] for x in records) / 4,
            "length": (rows[1]["length/mean"] + rows[2]["length/mean"]) / 2,
            "seconds": rows[0].get("time/pretrain", 0)
            + sum(row["time/step"] - row.get("time/eval", 0) for row in rows[1:]),
        }
    for arm, (name, (middle, low, high)) in (
        (a, item) for a in ARMS for item in r["table"][a].items()
    ):
        if name != "entropy":
            two = [by_hand[arm, seed][name] for seed in (0, 1)]
            assert middle == pytest.approx(sum(two) / 2) and (low, high) == pytest.approx(
                (min(two), max(two))
            )  # two draws: 1/4, 1/2, 1/4
    for d in r["differences"]:
        two = [
            by_hand[d["arm"], seed][d["metric"]] - by_hand[d["base"], seed][d["metric"]]
            for seed in (0, 1)
        ]
        assert d["difference"] == pytest.approx(sum(two) / 2) and d["by_warm_start"] == {
            "0": pytest.approx(d["difference"])
        }
    assert (
        f"{r['table']['grpo']['mean@4'][0]:.3f} [" in said
        and said.count("no significant difference") == 4
    )
    assert (out / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (
        out / "results.md"
    ).read_text() in said


def test_the_page_shows_it(done):
    out, r, _ = done
    html = (out / "compare.html").read_text()
    assert (
        "http://" not in html.replace("http://www.w3.org/2000/svg", "") and "https://" not in html
    )
    seen = drive(
        html,
        "seen.text = document.body.innerText; seen.plots = "
        "document.querySelectorAll('svg.plot').length;",
    )
    assert all(line in seen["text"] for line in r["verdict"]) and seen["plots"] > 5
    assert all(arm in seen["text"] for arm in ARMS)


def test_another_comparison_in_the_same_folder_is_refused_but_more_arms_are_not(done, server):
    out, r, _ = done
    before = finished(out)
    server.start(out, "--lr", "0.1")
    assert server.status() == 2 and "holds runs with --lr 0.003, now 0.1" in server.said()
    server.start(out, "--arms", "grpo,grpo+cfn:gamma=0")
    assert server.status() == 0 and finished(out) == before
    assert json.loads((out / "results.json").read_text())["arms"] == ["grpo", "grpo+cfn:gamma=0"]


def test_a_run_that_fails_is_named_and_the_others_are_compared(server, tmp_path):
    server.start(tmp_path / "out", "--arms", "grpo,grpo:max_new_tokens=500", "--seeds", "1")
    assert server.status() == 2
    said = server.said()
    assert (
        "1 of 2 runs failed; the first: grpo_max_new_tokens=500-w0-s0: status 2, error: "
        "--max_new_tokens 500" in said
    )
    assert "1 runs are not finished" in said and "| grpo | " in said


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--arms", "grpo,ppo"], "--algo"),
        (["--arms", "grpo+cfn:top"], "expected ALGO"),
        (["--seed", "3"], "--seed: is set per arm"),
        (["--arms", "grpo:tpo=1"], "unknown option --tpo; did you mean --top"),
        (["--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["--contrasts", "grpo/dapo", "--arms", "grpo"], "--contrasts grpo/dapo"),
        (["--seeds", "x"], "--seeds"),
        (["nowhere"], "unknown recipe"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(argv, message):
    with pytest.raises(UserError, match=message):
        compare.plan(*compare.arguments(argv))


def test_arms_are_options_and_sets_are_arms():
    arms, contrasts, cells = compare.plan(
        *compare.arguments(
            [
                "toy_sql_short",
                "--arms",
                "main,grpo+cfn:top=1:run=1",
                "--steps",
                "7",
                "--warm_starts",
                "2",
                "--seeds",
                "3",
            ]
        )
    )
    assert arms == ["grpo", "grpo+cfn", "dapo", "dapo+cfn", "grpo+cfn:top=1:run=1"]
    assert contrasts == [(arm, "grpo") for arm in arms[1:]] and len(cells) == 30 == len(
        {cell.c.out for cell in cells}
    )
    assert [cell.arm for cell in cells[:5]] == arms and len(
        {(cell.warm, cell.seed) for cell in cells[:5]}
    ) == 1
    assert all(config.parse(list(cell.argv)) == cell.c for cell in cells[:7])
    c = {cell.arm: cell.c for cell in cells}
    assert all(x.steps == 7 and x.budget == 7 * 16 for x in c.values())  # equal samples
    assert (c["grpo"].bonus, c["dapo+cfn"].bonus, c["dapo"].algo) == ("none", "cfn", "dapo")
    assert (c["grpo+cfn:top=1:run=1"].top, c["grpo+cfn:top=1:run=1"].run) == (1, 1)
    for name in ("rivals", "ablations"):
        arms, _, cells = compare.plan(*compare.arguments(["--arms", name, "--seeds", "1"]))
        assert len(set(arms)) == len(arms) > 6
        values = [
            tuple(sorted((k, v) for k, v in vars(cell.c).items() if k != "out")) for cell in cells
        ]
        assert len(set(values)) == len(values), "two arms of a set are the same run"


def test_p_values_are_those_of_the_sign_flip_test():
    assert stats.sign_flip([1, 2, 3, 4, 5]) == 2 / 32  # all on one side: only all signs or none
    assert stats.sign_flip([1, -1]) == 1 and stats.sign_flip([0, 0, 0]) == 1
    d = [0.3, -0.1, 0.4, 0.2]  # |sum| >= .8 for +-(.3 -.1 .4 .2) and +-(.3 .1 .4 .2)
    assert stats.sign_flip(d) == 4 / 16
    many = [0.1 * i - 0.5 for i in range(16)]
    exact = (
        sum(
            abs(sum(s * x for s, x in zip(signs, many))) >= sum(many) - 1e-9
            for signs in itertools.product((1, -1), repeat=16)
        )
        / 2**16
    )
    assert stats.sign_flip(many) == pytest.approx(
        exact, abs=0.01
    )  # 20,000 draws: three standard deviations


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx(
        [0.03, 0.06, 0.06]
    )  # 3 x .01; then 2 x .03; then at least that
    assert stats.holm([0.6, 0.7]) == [1, 1] and stats.holm([]) == []


def runs(shift, n):
    """Seeds differ, pairs a little, and warm start 0 gains .001 more than warm start 1."""
    return {
        (i % 2, i): {
            "mean@8": 0.5 + 0.01 * i + shift + 0.001 * (-1) ** (i // 2) + 0.0005 * (-1) ** i
        }
        for i in range(n)
    }


@pytest.mark.parametrize(
    "shift, n, words",
    [
        (0.1, 10, "b is above a in mean@8: +0.100 "),
        (-0.1, 10, "b is below a in mean@8: -0.100 "),
        (0.0, 10, "no significant difference between b and a in mean@8: "),
        (0.1, 4, r"(so few pairs cannot show one): +0.100 "),
    ],
)
def test_the_verdict_follows_from_the_corrected_p(shift, n, words):
    base = {pair: {"mean@8": 0.5 + 0.01 * pair[1]} for pair in runs(0, n)}
    d, other = stats.differences(
        {"a": base, "b": runs(shift, n), "c": base}, [("b", "a"), ("c", "a")], ["mean@8"]
    )
    assert words in stats.verdict(d) and d["pairs"] == n and other["difference"] == 0
    assert d["p_holm"] == min(1, 2 * d["p"]) and d["low"] <= d["difference"] <= d["high"]
    assert d["by_warm_start"][0] - d["by_warm_start"][1] == pytest.approx(0.001)
    assert d["p"] == (2 / 2**n if shift else pytest.approx(d["p"]))


def test_pairs_are_compared_not_runs():
    """Seeds differ by far more than arms do: only a paired comparison sees the difference; a run
    without its partner is left out.
    """
    base, arm = ({(0, i): {"m": i + shift} for i in range(n)} for shift, n in ((0, 8), (0.01, 9)))
    (d,) = stats.differences({"a": base, "b": arm}, [("b", "a")], ["m"])
    assert (
        d["pairs"] == 8
        and d["p"] == 2 / 256
        and d["difference"] == pytest.approx(0.01)
        and d["low"] > 0
    )


def test_rare_and_hard_are_counted_where_the_task_knows_them():
    task = SimpleNamespace(rare=lambda problem, text: "set" in text)
    by_id = {"a": SimpleNamespace(hard=True), "b": SimpleNamespace(hard=False)}
    records = [
        {"id": "a", "answers": ["set x", "y"], "outcomes": ["right", "wrong"]},
        {"id": "b", "answers": ["y", "y "], "outcomes": ["right"] * 2},
    ]
    row = {"eval/mean@2": 0.75, "eval/pass@2": 1.0, "eval/solved": 2, "eval/problems": 2}
    assert stats.held_out(row, records, 2, task, by_id) == {
        "mean@2": 0.75,
        "pass@2": 1.0,
        "coverage": 1.0,
        "distinct": 1.0,
        "rare": 0.25,
        "hard": 0.5,
    }


def test_a_band_holds_its_mean_and_ends_where_a_run_does():
    band = stats.band([([0, 2, 4], [0, 2, 4]), ([0, 2], [2, 2])], [0, 1, 2, 4])
    assert band["y"][:3] == [1, 1.5, 2] and band["y"][3] != band["y"][3]
    assert band["low"][:3] == [0, 1, 2] and band["high"][:3] == [2, 2, 2]


def test_settings_can_be_chosen_on_other_problems(tmp_path):
    from nanomerci import tasks

    test, tune = (
        tasks.load(config.Config(task="toy_math", eval_split=split), tmp_path)
        for split in ("test", "tune")
    )
    ids = lambda problems: {p.id for p in problems}
    assert len(tune.test) == len(test.test) and not ids(tune.test) & (
        ids(tune.train) | ids(test.test)
    )
    assert ids(tune.train) | ids(tune.test) == ids(test.train)


def test_the_registration_names_a_command_that_parses():
    text = (ROOT / "nanomerci/lab/experiments/toy_sql.md").read_text()
    commands = re.findall(r"^python -m nanomerci\.compare (.*)$", text, re.M)
    assert commands
    for command in commands:
        compare.plan(*compare.arguments(command.split()))
