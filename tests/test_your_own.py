"""The recipes of docs/your-own.md, run as printed: each file is written to an empty folder, each
command runs there, and the result differs by what the file says.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from once import WORDS
from runs import metrics, same_weights, weights

from nanomerci import train
from nanomerci.loop import warmstart
from nanomerci.runtime import config

PAGE = (ROOT / "docs/your-own.md").read_text()
SHORT = shlex.split(
    "--steps 3 --prompts 4 --group 4 --minibatches 1 --eval_problems 4 --eval_k 2 --eval_every 0 "
    "--save_every 0 --cfn_pretrain 1 --cfn_hidden 16 --threads 1 --graders 1 --report False"
)


def printed(name):
    """The file of that name, as the page prints it."""
    (found,) = re.findall(rf"^```python\n(# {re.escape(name)}\n.*?)^```$", PAGE, re.M | re.S)
    return found


def command(*parts):
    """The one command of the page that has these parts -> its words after `python`."""
    lines = [line for line in PAGE.splitlines() if line.startswith("python ")]
    (found,) = [line for line in lines if all(part in line for part in parts)]
    return shlex.split(found)[1:]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with its own cache and a warm start of a few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(warmstart, "STEPS", 30)
    return tmp_path


@pytest.fixture
def once(elsewhere, small_model):
    """Options for a task that a random model can do now and then (tests/once.py)."""
    (elsewhere / "easy.py").write_text("from once import Once\n\ndef load(c):\n    return Once()\n")
    options = "--task", "easy.py", "--model", str(small_model(WORDS)), "--max_new_tokens", "8"
    return [*options, "--lr", "3e-3", "--run", "1"]


def go(words, *options):
    """A command of train.py, in this process -> its run folder."""
    assert words[0] == "train.py"
    c = config.parse([*words[1:], *SHORT, *options])
    train.main(c)
    return c.out


def samples(folder):
    return list(map(json.loads, Path(folder, "samples.jsonl").read_text().splitlines()))


def test_a_task(elsewhere):
    (elsewhere / "last_letter.py").write_text(printed("last_letter.py"))
    groups, outcomes = samples(go(command("--task last_letter.py"), "--out", "task")), set()
    assert len(groups) == 3
    for group in groups:
        letters = group["prompt"].split()
        expected = [
            "right" if answer.split() == [sorted(letters)[-1]] else "wrong"
            for answer in group["answers"]
        ]
        assert group["outcomes"] == expected and len(letters) == 4
        outcomes |= {*expected}
    assert outcomes == {"right", "wrong"}


def test_a_bonus(elsewhere, once):
    (elsewhere / "first_use.py").write_text(printed("first_use.py"))
    words = command("train.py", "first_use.py:FirstUse")
    mine = go(words, *once, "--out", "mine")
    plain = go(words, *once, "--out", "plain", "--bonus", "none")
    assert not same_weights(weights(mine, 3), weights(plain, 3))
    values = set()
    for group in samples(mine):
        for tokens, invn in zip(group["tokens"], group["invn"], strict=True):
            seen = {*group["prompt"].split(), "answer:"}  # which the chat template adds
            for token, novelty in zip(map(str.strip, tokens), invn, strict=True):
                assert novelty == float(token not in seen), (group["prompt"], tokens, invn)
                seen.add(token)
            values |= {*invn}
    assert values == {0.0, 1.0}
    assert all(row["merci/bonus"] == 0 for row in metrics(plain)[1:])


def test_an_objective(elsewhere, once):
    (elsewhere / "best_only.py").write_text(printed("best_only.py"))
    words = command("--algo best_only.py")
    rest = [*once, *SHORT, "--bonus", "none"]
    go([*words, *rest], "--out", "mine")
    plain = go(["train.py", words[1], *rest], "--out", "plain")
    assert not same_weights(weights("mine", 3), weights(plain, 3))
    for group in samples("mine"):
        rewards = [float(outcome == "right") for outcome in group["outcomes"]]
        above = [max(reward - sum(rewards) / len(rewards), 0) for reward in rewards]
        assert group["advantage"] == pytest.approx(above, abs=1e-4)  # as they are rounded there
    assert min(min(group["advantage"]) for group in samples(plain)) < 0


def test_a_reward(elsewhere, small_model):
    (elsewhere / "brief.py").write_text(printed("brief.py"))
    records = [{"question": f"{a} {b}", "answer": b} for a in "abcd" for b in "abcd" if a != b]
    page = re.search(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)[1]
    assert json.loads(page).keys() == records[0].keys()
    (elsewhere / "questions.jsonl").write_text("\n".join(map(json.dumps, records)))
    model = str(small_model([*"abcd"]))
    words = [model if word == "MODEL" else word for word in command("brief.py:reward")]
    short = "--max_new_tokens", "24", "--prompt_template", "{question}", "--run", "1"
    folder = go(words, *short, "--out", "mine")
    answers, outcomes = {record["question"]: record["answer"] for record in records}, set()
    for group in samples(folder):
        for text, outcome in zip(group["answers"], group["outcomes"], strict=True):
            correct = answers[group["prompt"]] in text.split() and len(text) < 40
            assert outcome == ("right" if correct else "wrong")
            outcomes.add(outcome)
    assert outcomes == {"right", "wrong"}
    sums = [4 * 4 * row["reward/mean"] for row in metrics(folder)[1:]]  # 4 prompts, 4 responses
    assert any(total % 1 for total in sums)  # an odd number of halves


def test_a_session(tmp_path):
    """The session of the page, with `from train import main` as in a checkout: two steps."""
    session = printed("session.py")
    code = session.replace("from nanomerci.train import main", "from train import main")
    small = "prompts=4, group=4, max_new_tokens=8, eval_problems=4, eval_k=2"
    small = f'{small}, threads=1, report=False, out="'
    code = code.replace('out="', small)
    assert "from train import main" in code and small in code
    code = f"from nanomerci.loop import warmstart\nwarmstart.STEPS = 2\n{code}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "NANOMERCI_CACHE": str(tmp_path / "cache")}
    how = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert done.returncode == 0, done.stderr
    reward, share = map(float, done.stdout.splitlines()[-1].split())
    *_, last = metrics(tmp_path / "runs/session")
    assert last["step"] == 2 and (reward, share) == (last["reward/mean"], last["merci/share"])


def test_the_readme_prints_the_same_files():
    readme = (ROOT / "README.md").read_text()
    files = re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```$", readme, re.M | re.S)
    assert len(files) == 2
    for file, name in files:
        assert file == printed(name)
