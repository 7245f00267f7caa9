"""The benchmarks: their work is what they say, and they print their tables."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanomerci.bench import __main__ as bench
from nanomerci.bench import speed
from nanomerci.runtime.config import UserError
from nanomerci.tasks.graders.pool import Pool


def test_streams_are_graded_as_they_are_meant():
    rng = random.Random(1)
    with Pool(1, 10.0) as pool:
        easy = [grade.outcome for grade in pool.grade([bench.easy(rng) for _ in range(100)])]
        mixed = [grade.outcome for grade in pool.grade([bench.mixed(rng) for _ in range(100)])]
    assert (
        set(easy) == set(mixed) == {"right", "wrong"}
        and easy.count("right") > 60
        and mixed.count("right") > 60
    )
    jobs = [bench.hostile(rng) for _ in range(2000)]
    assert (
        60 < sum(job in bench.HOSTILE for job in jobs) < 140
    )  # one in twenty: 100, four deviations are 39


def test_no_hostile_answer_is_right():
    with Pool(1, 1.0) as pool:
        assert not any(grade.reward for grade in pool.grade(bench.HOSTILE))


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(bench, "HOSTILE", bench.HOSTILE[2:])  # those that are refused at once
    monkeypatch.setattr(bench, "BATCH", 64)
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench", "graders", "--seconds", "0.01", "--workers", "1", "--grade_timeout", "10"],
    )
    bench.main()
    text = capsys.readouterr().out
    assert (
        all(f"\n{name} " in text for name in ("easy", "mixed", "hostile"))
        and "equal: the pool" in text
    )


def test_the_sampler_table(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", "bench sampler --rows 16 --group 4 --length 6 --rounds 1".split()
    )
    bench.main()
    text = capsys.readouterr().out
    assert all(
        f"\n{name} " in text
        for name in ("nanomerci", "transformers generate", "transformers continuous_batching")
    )
    assert "does not run here" not in text and "equal: weights" in text


def test_answers_of_the_sampler_bench_are_of_natural_lengths():
    model = speed.build("tiny", torch.float32, torch.device("cpu"))
    prompts, ends = speed.work(model, 256, 8, 48)
    assert len({len(p) for p in prompts}) > 4 and not set(ends) & {
        token for p in prompts for token in p
    }
    ours, theirs = (f(model, prompts, 8, 48, ends) for f in (speed.ours, speed.generate))
    for lengths in (
        ours,
        theirs,
        # geometric with p = 5/128, cut at 48: mean 21.8, sd 16.5 (random weights are not quite uniform)
    ):
        assert len(lengths) == 256 and max(lengths) == 48 and 15 < sum(lengths) / 256 < 29


def test_fast_paths_need_none_of_the_packages_for_tasks_and_commands():
    block = "import sys\nfor name in ('datasets', 'sqlglot', 'math_verify', 'tyro', 'trl'): sys.modules[name] = None\n"
    code = (
        block
        + "import sample, kernels.bench, kernels.logprob, kernels.cfn_score, nanomerci.loop.model, "
        "nanomerci.bench, nanomerci.bench.speed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_step_without_trl_is_one_line(monkeypatch):
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -e"):
        speed.step(None)
