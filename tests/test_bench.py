"""The graders' benchmark: its streams are what they say, and it prints its table."""
import random
import sys

from nanomerci import bench
from nanomerci.grading import Pool


def test_streams_are_graded_as_they_are_meant():
    rng = random.Random(1)
    with Pool(1, 10.0) as pool:
        easy = [grade.outcome for grade in pool.grade([bench.easy(rng) for _ in range(100)])]
        mixed = [grade.outcome for grade in pool.grade([bench.mixed(rng) for _ in range(100)])]
    assert set(easy) == set(mixed) == {"right", "wrong"} and easy.count("right") > 60 and mixed.count("right") > 60
    jobs = [bench.hostile(rng) for _ in range(2000)]
    assert 60 < sum(job in bench.HOSTILE for job in jobs) < 140  # one in twenty: 100, four deviations are 39


def test_no_hostile_answer_is_right():
    with Pool(1, 1.0) as pool:
        assert not any(grade.reward for grade in pool.grade(bench.HOSTILE))


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(bench, "HOSTILE", bench.HOSTILE[2:])  # those that are refused at once
    monkeypatch.setattr(bench, "BATCH", 64)
    monkeypatch.setattr(sys, "argv", ["bench", "graders", "--seconds", "0.01", "--workers", "1", "--deadline", "10"])
    bench.main()
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in ("easy", "mixed", "hostile")) and "equal: the pool" in text
