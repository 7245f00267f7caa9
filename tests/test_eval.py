"""sample.py --eval: its numbers are those of its records, and a killed evaluation goes on to the
same file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from conftest import ROOT

from nanomerci import sample
from nanomerci.loop.model import tiny
from nanomerci.runtime.config import UserError
from nanomerci.tasks.graders.pool import Pool
from nanomerci.view import ask, evaluation

WORDS = [*(f"\\boxed{{{i}}}" for i in range(4)), *"0123", "so", "answer", "is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that often boxes a digit, and twelve problems whose answers are digits."""
    folder = tmp_path_factory.mktemp("eval")
    model, tokenizer = tiny(WORDS, width=32, layers=1, heads=2, seed=3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with open(folder / "mine.jsonl", "w") as file:
        for i in range(12):
            problem = {"problem": f"so {i % 4} {'is ' * (i // 4)}answer", "answer": str(i % 4)}
            file.write(json.dumps(problem) + "\n")
    return folder


def arguments(folder, out, *more):
    options = ["--eval", f"{folder}/mine.jsonl", "-k", "4", "--max_new_tokens", "12"]
    return [f"{folder}/model", *options, "--device", "cpu", "--out", str(out), *more]


@pytest.fixture(scope="module")
def pool():
    with Pool(1, deadline=10.0) as pool:
        yield pool


@pytest.fixture
def command(folder, pool, monkeypatch):
    monkeypatch.setattr(evaluation, "TOGETHER", 16)  # rounds of four problems
    # starting workers costs a second
    monkeypatch.setattr(evaluation, "Pool", lambda **_: nullcontext(pool))

    def go(out, *more):
        request = ask.arguments(arguments(folder, out, *more))
        ask.evaluate(request, sample.Sampler, sample.check_model)
        return [json.loads(line) for line in out.read_text().splitlines()]

    return go


def test_the_summary_is_that_of_the_records(command, tmp_path, capsys):
    settings, *records, summary = command(tmp_path / "a.jsonl")
    assert settings["settings"]["k"] == 4 and settings["settings"]["problems"] == len(records) == 12
    right = [sum(o == "right" for o in record["outcomes"]) for record in records]
    assert 0 < sum(right) < 48  # else this test says little
    summary = summary["summary"]
    assert summary["eval/mean@4"] == pytest.approx(sum(right) / 48)
    assert summary["eval/pass@4"] == pytest.approx(sum(map(bool, right)) / 12)
    assert summary["eval/pass@4"] == summary["eval/solved"] / 12
    shown = capsys.readouterr().out
    assert f"{summary['eval/solved']} of 12 problems" in shown
    assert "greedy" in shown and "pass@2" in shown
    for record in records:
        assert len(record["answers"]) == 4 and len(record["greedy"]) == 1
        assert record["prompt"].startswith("so ")


CUTS = {  # what is left of the lines of a file, and the rounds that are then asked
    "a half line": (lambda lines: [*lines[:7], lines[7][:40]], [4, 8]),
    "half a round": (lambda lines: lines[:11], [8]),
    "before the summary": (lambda lines: lines[:13], []),
    "only the settings": (lambda lines: lines[:1], [0, 4, 8]),
    "nothing at all": (lambda lines: [], [0, 4, 8]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_what_a_kill_leaves_is_gone_on_with(command, tmp_path, cut, monkeypatch):
    whole, part, asked = tmp_path / "whole.jsonl", tmp_path / "part.jsonl", []
    command(whole)
    left, rounds = CUTS[cut]
    part.write_text("".join(left(whole.read_text().splitlines(keepends=True))))
    evaluate = evaluation.evaluate

    def watched(*arguments, **options):
        asked.append(options["first"])
        return evaluate(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    command(part)
    assert part.read_bytes() == whole.read_bytes() and asked == rounds
    command(part)  # a finished one is only read
    assert part.read_bytes() == whole.read_bytes() and asked == rounds
    assert not list(tmp_path.glob("*.partial"))


CODE = """
import torch
from nanomerci import sample
from nanomerci.view import ask, evaluation
evaluation.TOGETHER = 16
torch.set_num_threads(1)
ask.main(ask.parse(), sample.Sampler, sample.check_model)
"""


def test_a_real_kill(folder, command, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    command(whole)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments(folder, killed)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    while process.poll() is None and not (killed.exists() and killed.read_text().count("\n") > 1):
        time.sleep(0.005)
    # in the middle of a round, unless it was faster than we: both must do
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL) and killed.exists()
    command(killed)
    assert killed.read_bytes() == whole.read_bytes()


def test_rounds_do_not_change_the_samples(command, tmp_path, monkeypatch):
    rounds = command(tmp_path / "rounds.jsonl")
    monkeypatch.setattr(evaluation, "TOGETHER", 1000)
    at_once = command(tmp_path / "once.jsonl")
    assert rounds == at_once


def test_another_evaluation_is_not_overwritten(command, tmp_path):
    out = tmp_path / "a.jsonl"
    command(out, "--limit", "4")
    before = out.read_bytes()
    changes = {
        "temperature 1.0, now 0.5": ["--temperature", "0.5"],
        "seed 0, now 1": ["--seed", "1"],
    }
    for was, more in changes.items():
        with pytest.raises(UserError, match=f"holds another evaluation .{was}"):
            command(out, "--limit", "4", *more)
    with pytest.raises(UserError, match="problems 4, now 12"):
        command(out)
    assert out.read_bytes() == before
    out.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="holds another evaluation"):
        command(out)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--eval", "math50"), "--eval math50: unknown; did you mean math500?"),
        (("-k", "0"), "-k 0: expected 1 or more"),
        (("--max_new_tokens", "300"), "exceeds the model's context of 256"),
        (("--eval", "no/such.jsonl"), "--eval no/such.jsonl"),
    ],
)
def test_bad_input(command, tmp_path, more, message):
    with pytest.raises(UserError) as error:
        command(tmp_path / "a.jsonl", *more)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "a.jsonl").exists()


def test_sets_by_name_have_the_papers_k(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path))
    for name, k in (("aime24", 256), ("math500", 16), ("college_math", 8)):
        (tmp_path / f"{name}.jsonl").write_text('{"problem": "P?", "answer": "1"}\n')
        task, samples = evaluation.held_out(name, str(tmp_path))
        assert samples == k and task.test[0].gold == "1"
    for name in ("toy_sql", "toy_sql_chatty", "toy_math", "arithmetic"):
        task, samples = evaluation.held_out(name)
        assert len(task.test) == 400 and samples == 16
