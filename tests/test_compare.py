"""Comparisons: whole ones on a task of milliseconds, killed and continued; their numbers recomputed
by hand; the published tables printed again.
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
import tomllib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from once import WORDS

from nanomerci import train
from nanomerci.lab import board, compare, phase, stats
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
tasks.load = lambda c: Once()
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        said, *sys.argv = json.loads(line)
        stream = sys.stdout = sys.stderr = open(said, "w", buffering=1)
        status = 1
        try:
            config.run_command(compare.main, sys.argv[1:])
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
EXPERIMENTS = ROOT / "nanomerci/lab/experiments"
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
    options = {"model": small_model(WORDS), "steps": 2, "prompts": 4, "group": 4, "lr": 3e-3}
    options |= {"minibatches": 2, "max_new_tokens": 8, "run": 1, "lr_decay": False, "save_every": 1}
    options |= {"cfn_hidden": 16, "cfn_pretrain": 1}
    options |= {"eval_problems": 4, "eval_k": 4, "eval_every": 0}

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
    return out, stats.results(*stats.read(out / "results.csv")), server.said()


def cell(out, arm, seed, name):
    return report.read_lines(
        out / "cells" / f"{arm.replace(':', '_')}-w0-s{seed}" / f"{name}.jsonl"
    )


def test_killed_and_continued_it_is_complete_and_arms_that_must_be_equal_are(done):
    out, r, _ = done
    assert r["runs"] == [2] and r["arms"] == ARMS and not r["failed"] and r["same_start"]
    for d in r["differences"]:
        if d["arm"] == "grpo+cfn:gamma=0":  # gamma 0 is the control bit for bit
            assert d["mean"] == d["low"] == d["high"] == 0 and d["p"] == 1
    assert [row["prompts"] for row in cell(out, "grpo", 0, "metrics")[1:]] == [4, 8]
    problems = [[r["id"] for r in cell(out, arm, 1, "samples")] for arm in ARMS]
    assert (
        problems[0]
        == problems[1]
        == problems[2]
        != [r["id"] for r in cell(out, "grpo", 0, "samples")]
    )


def test_the_table_is_what_the_answers_say(done):
    out, r, said = done
    by_hand = {}
    for arm, seed in itertools.product(ARMS, (0, 1)):
        records = cell(out, arm, seed, "evals")[-1]["records"]
        right = [
            [
                text
                for text, outcome in zip(x["answers"], x["outcomes"], strict=True)
                if outcome == "right"
            ]
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
        assert d["mean"] == pytest.approx(sum(two) / 2)
        assert d["by_warm_start"] == [pytest.approx(d["mean"])]
    assert (
        f"{r['table']['grpo']['mean@4'][0]:.3f} [" in said
        and said.count("no significant difference") == 4
    )
    assert (out / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (
        out / "results.md"
    ).read_text() in said


def test_a_row_says_what_its_run_was_and_the_curves_end_where_it_does(done):
    out, r, _ = done
    runs = pd.read_csv(out / "results.csv", comment="#")
    assert list(runs)[: len(stats.RUN)] == stats.RUN
    dtypes = {config.read(file)["dtype"] for file in out.glob("cells/*/config.yaml")}
    assert len(runs) == 6 and set(runs["dtype"]) == dtypes and runs["processor"].notna().all()
    curves = pd.read_csv(out / "results_curves.csv")
    assert len(curves) == 6 * 3
    runs, by_run = runs.set_index(stats.KEY).sort_index(), curves.groupby(stats.KEY)
    for name in ("mean@4", "pass@4", "answers", "seconds"):
        np.testing.assert_array_equal(by_run[name].last(), runs[name])
    first, before = by_run["mean@4"].first(), runs["before mean@4"]
    assert (first == before).all() and r["before"]["mean@4"][0] == before["grpo"].mean()


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
    assert all(line in seen["text"] for line in r["conclusions"]) and seen["plots"] > 5
    assert all(arm in seen["text"] for arm in ARMS)


def test_another_comparison_in_the_same_folder_is_refused_but_more_arms_are_not(done, server):
    out, r, _ = done
    before = finished(out)
    server.start(out, "--lr", "0.1")
    assert server.status() == 2 and "holds runs with --lr 0.003, now 0.1" in server.said()
    server.start(out, "--arms", "grpo,grpo+cfn:gamma=0")
    assert server.status() == 0 and finished(out) == before
    runs = pd.read_csv(out / "results.csv", comment="#")
    assert runs["arm"].unique().tolist() == ["grpo", "grpo+cfn:gamma=0"]


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
    cells = compare.plan(
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
    arms = ["grpo", "grpo+cfn", "dapo", "dapo+cfn", "grpo+cfn:top=1:run=1"]
    assert len(cells) == 30 == len({cell.c.out for cell in cells})
    assert [cell.arm for cell in cells[:5]] == arms and len(
        {(cell.warm, cell.seed) for cell in cells[:5]}
    ) == 1
    assert all(train.settle(config.parse(list(cell.argv))) == cell.c for cell in cells[:7])
    c = {cell.arm: cell.c for cell in cells}
    assert all(x.steps == 7 and x.budget == 7 * 16 for x in c.values())  # equal samples
    assert (c["grpo"].bonus, c["dapo+cfn"].bonus, c["dapo"].algo) == ("none", "cfn", "dapo")
    assert (c["grpo+cfn:top=1:run=1"].top, c["grpo+cfn:top=1:run=1"].run) == (1, 1)
    for name in ("baselines", "ablations"):
        cells = compare.plan(*compare.arguments(["--arms", name, "--seeds", "1"]))
        assert len({cell.arm for cell in cells}) == len(cells) > 6
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
            abs(sum(s * x for s, x in zip(signs, many, strict=True))) >= sum(many) - 1e-9
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


def rows(arm, values):
    """{(warm start, seed): mean@8} -> a table of runs."""
    return [
        {"arm": arm, "warm_start": warm, "seed": seed, "mean@8": value}
        for (warm, seed), value in values.items()
    ]


def runs(shift, n):
    """Seeds differ, pairs a little, and warm start 0 gains .001 more than warm start 1."""
    small = {i: 0.001 * (-1) ** (i // 2) + 0.0005 * (-1) ** i for i in range(n)}
    return {(i % 2, i): 0.5 + 0.01 * i + shift + small[i] for i in range(n)}


@pytest.mark.parametrize(
    "shift, n, words",
    [
        (0.1, 10, "b is above a in mean@8: +0.100 "),
        (-0.1, 10, "b is below a in mean@8: -0.100 "),
        (0.0, 10, "no significant difference between b and a in mean@8: "),
        (0.1, 4, r"(so few pairs cannot show one): +0.100 "),
    ],
)
def test_the_conclusion_follows_from_the_corrected_p(shift, n, words):
    base = {pair: 0.5 + 0.01 * pair[1] for pair in runs(0, n)}
    table = pd.DataFrame(rows("a", base) + rows("b", runs(shift, n)) + rows("c", base))
    d, other = stats.differences(table, [("b", "a"), ("c", "a")], ["mean@8"])
    assert words in stats.conclusion(d) and d["pairs"] == n and other["mean"] == 0
    assert d["p_holm"] == min(1, 2 * d["p"]) and d["low"] <= d["mean"] <= d["high"]
    assert d["by_warm_start"][0] - d["by_warm_start"][1] == pytest.approx(0.001)
    assert d["p"] == (2 / 2**n if shift else pytest.approx(d["p"]))


def test_pairs_are_compared_not_runs():
    """Seeds differ by far more than arms do: only a paired comparison sees the difference; a run
    without its partner is left out.
    """
    table = pd.DataFrame(
        rows("a", {(0, i): i for i in range(8)}) + rows("b", {(0, i): i + 0.01 for i in range(9)})
    )
    (d,) = stats.differences(table, [("b", "a")], ["mean@8"])
    assert d["pairs"] == 8 and d["p"] == 2 / 256
    assert d["mean"] == pytest.approx(0.01) and d["low"] > 0


def test_at_equal_seconds_a_run_is_read_off_between_its_evaluations():
    table = pd.DataFrame(rows("a", {(0, 0): 0.2}) * 4)
    table["mean@8"] = [0.2, None, None, 0.8]
    table["seconds"] = [1, 2, 3, 5]
    for seconds, value in ((3, 0.5), (0, 0.2), (9, 0.8)):
        (at,) = stats.at_seconds(table, seconds, ["mean@8"])["mean@8"]
        assert at == pytest.approx(value)


def test_a_comparison_of_which_nothing_is_finished_says_so(tmp_path):
    run = dict.fromkeys(stats.RUN) | {"arm": "grpo", "warm_start": 0, "seed": 0, "task": "toy_sql"}
    runs = pd.DataFrame([run | {"problems": 4, "failed": "grpo-w0-s0: status 2, error: so"}])
    text = stats.write(tmp_path, "python", runs, pd.DataFrame(columns=stats.KEY))
    assert "1 runs are not finished and not counted. grpo-w0-s0: status 2, error: so" in text
    assert (tmp_path / "compare.html").exists() and not (tmp_path / "compare.png").exists()


@pytest.mark.parametrize("text", ["", "# a\nb,c\n1,2\n", "# a\nb\n1,2\n3,4,5\n"])
def test_what_is_no_table_of_runs_is_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match="x.csv: is no table of runs .*; expected a results.csv"):
        stats.read(tmp_path / "x.csv")


def test_rare_and_hard_are_counted_where_the_task_knows_them():
    problems = [SimpleNamespace(id="a", hard=True), SimpleNamespace(id="b", hard=False)]
    task = SimpleNamespace(rare=lambda problem, text: "set" in text, test=problems)
    records = [
        {"id": "a", "answers": ["set x", "y"], "outcomes": ["right", "wrong"]},
        {"id": "b", "answers": ["y", "y "], "outcomes": ["right"] * 2},
    ]
    row = {"eval/mean@2": 0.75, "eval/pass@2": 1.0, "eval/solved": 2, "eval/problems": 2}
    assert stats.held_out(row, records, 2, task) == {
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


def test_settings_can_be_chosen_on_other_problems(tmp_path, monkeypatch):
    from nanomerci import tasks

    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path))
    splits = "test", "tune"
    test, tune = (tasks.load(config.Config(task="toy_math", eval_split=s)) for s in splits)

    def ids(problems):
        return {p.id for p in problems}

    assert len(tune.test) == len(test.test) and not ids(tune.test) & (
        ids(tune.train) | ids(test.test)
    )
    assert ids(tune.train) | ids(tune.test) == ids(test.train)


def registered(name):
    """The registered text, and below its heading what is called otherwise today."""
    text = (EXPERIMENTS / f"{name}.md").read_text()
    return text, dict(re.findall(r"^\| `(.*)` \| `(.*)` \|$", text.split("\n# ")[0], re.M))


@pytest.mark.parametrize("name", ["toy_sql", "smollm2_arithmetic"])
def test_the_registered_commands_parse_with_todays_names(name):
    text, today = registered(name)
    commands = re.findall(r"^(python -m nanomerci\.compare .*)$", text, re.M)
    assert commands and today
    for command in commands:
        for old, new in today.items():
            command = command.replace(old, new)
        head, *words = command.split()[2:]
        assert head == "nanomerci.lab.compare"
        assert compare.plan(*compare.arguments(words))


PUBLISHED = {
    "toy_sql": ("toy_sql", 300),
    "toy_sql_later": ("toy_sql", 60),
    "toy_sql_ablations": ("toy_sql", 57),
    "smollm2_arithmetic": ("smollm2_arithmetic", 12),
}


@pytest.mark.parametrize("table", PUBLISHED)
def test_the_published_tables_are_printed_again_to_the_last_digit(table):
    """From the rows of the runs, 429 in all; at equal seconds only means were recorded."""
    name, runs = PUBLISHED[table]
    command, rows, *beside = stats.read(EXPERIMENTS / f"{table}.csv")
    r = stats.results(command, rows, *beside)
    printed = stats.markdown(r)
    if table == "toy_sql_ablations":  # the notes were published without a table at equal seconds
        printed = printed.removesuffix("\n".join(stats.notes(r)) + "\n")
    assert len(rows) == runs == len(rows[stats.KEY].drop_duplicates())
    assert printed in registered(name)[0] and printed.count("\n|") > 20


def test_the_tables_do_not_travel_with_the_package():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "nanomerci/lab/experiments" in build["targets"]["wheel"]["exclude"]


def phase_runs():
    """Two warm starts, four seeds, three starts; the bonus adds .3 where rare, takes .1 where
    common.
    """
    rows = []
    for start, warm, seed in itertools.product((0.01, 0.04, 0.32), range(2), range(4)):
        noise = 0.01 * seed + 0.002 * warm
        gain = {0.01: 0.3, 0.04: 0.9, 0.32: -0.1}[start]
        for arm, rare in (("grpo", 0.4), ("grpo+cfn", 0.4 + gain + 0.1 * noise), ("maxrl", 0.5)):
            key = {"arm": f"{arm}:rare_share={start}", "warm_start": warm, "seed": seed}
            rows.append(key | {"rare": rare + noise, "pass@8": rare / 2, "failed": None})
    return pd.DataFrame(rows)


def test_the_phase_diagram_pools_pairs_over_starts_and_pictures_them(tmp_path, monkeypatch):
    rows = phase.rows_of(phase_runs())
    rare, _, common, _ = phase.tests(rows)
    assert rare["arm"] == "grpo+cfn, start at most 2 %" and rare["pairs"] == common["pairs"] == 8
    assert rare["mean"] == pytest.approx(0.3 + 0.1 * 0.016) and common["mean"] < 0
    # all 8 differences have one sign, so 2 of 2^8 assignments are as large; Holm: four tests
    assert rare["p"] == 2 / 2**8 and rare["p_holm"] == 4 * 2 / 2**8
    assert "| 1.0% | 0.416 / 0.200 | 0.718 / 0.351 | 0.516 / 0.250 |" in phase.table(rows)
    drawn, save = [], report.save
    monkeypatch.setattr(
        report, "save", lambda figure, path: drawn.append(figure) or save(figure, path)
    )
    phase.picture(rows, tmp_path / "phase.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [rows["arm"].nunique()] * 2
    assert (tmp_path / "phase.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="expected arms ARM:rare_share=S"):
        phase.rows_of(phase_runs().assign(arm="grpo"))


def test_the_published_phase_diagram_is_printed_again(capsys):
    records = ROOT / "nanomerci/lab/experiments"
    phase.main(records / "benchmark_phase.csv")
    printed = capsys.readouterr().out
    assert "| on each start |" in printed and "warm start" not in printed
    assert printed.strip() in (records / "benchmark.md").read_text()


def test_a_comparison_tests_the_metrics_that_it_names(tmp_path):
    """Without --tested the means and pass rates; Holm counts what is tested, and the picture shows
    it.
    """
    runs = phase_runs().assign(
        task="t", split="s", problems=1, experiment="e", hard=0.5, seconds=1.0
    )
    runs["mean@8"] = runs["rare"]
    named = "x --contrasts grpo+cfn:rare_share=0.01/grpo:rare_share=0.01"
    r = stats.results(f"{named} --tested hard,pass@8,rare", runs)
    assert [d["metric"] for d in r["differences"]] == ["hard", "pass@8", "rare"]
    stats.picture(r, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    assert {d["metric"] for d in stats.results(named, runs)["differences"]} == {"mean@8", "pass@8"}


def test_the_boards_line():
    """Differences from GRPO and from GRPO + CFN, and the price of a response."""
    rows = []
    for seed in range(6):
        for arm, gain in (("grpo", 0.0), ("grpo+cfn", 0.1), ("maxrl+delight:top=1", 0.3)):
            value = dict.fromkeys(board.METRICS, gain + 0.01 * seed)
            key = {"arm": arm, "warm_start": 0, "seed": seed, "commit": "abc", "processor": "P"}
            rows.append(key | value | {"seconds": 20 + 50 * gain, "answers": 10})
    cells = board.line(pd.DataFrame(rows), "maxrl+delight:top=1")
    gain, over_cfn = "+0.300 [+0.300, +0.300]", "+0.200 [+0.200, +0.200]"
    papers = "2602.02710, 2603.14608"
    wanted = ["`maxrl+delight:top=1`", papers, 6, gain, gain, gain, over_cfn, "1.75", "abc", "P"]
    assert cells == wanted and len(cells) == len(board.HEAD)


def test_the_boards_lines_of_recorded_runs(capsys):
    board.main(csv=ROOT / "nanomerci/lab/experiments/benchmark.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| method | paper |") and len(lines) == 2 + 18
    assert "| `grpo+cfn` | 2402.03300, 2510.16614 | 30 | +0.073 [+0.052, +0.093] |" in lines[2]
    assert "\n".join(lines) in (ROOT / "docs/board.md").read_text()
    with pytest.raises(UserError, match="expected an arm"):
        board.main()
    with pytest.raises(UserError, match="expected runs of grpo and"):
        board.main(csv=ROOT / "nanomerci/lab/experiments/smollm2_arithmetic.csv")


@pytest.mark.parametrize(
    "arm, algo, bonus, rest",
    [
        ("grpo", "grpo", "none", []),
        ("grpo+cfn:top=1:run=2", "grpo", "cfn", ["--top=1", "--run=2"]),
        ("a/b.py:mine", "a/b.py:mine", "none", []),
        ("b.py:mine+c.py:Yours:top=1", "b.py:mine", "c.py:Yours", ["--top=1"]),
    ],
)
def test_an_arm_is_options(arm, algo, bonus, rest):
    assert compare.options(arm) == ["--algo", algo, "--bonus", bonus, *rest]
