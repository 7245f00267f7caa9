"""Every bonus by its name in whole runs of train.py: the control, resuming, what it changes."""

import json
from itertools import chain

import pytest
from runs import metrics, same_weights, weights

from nanomerci.bonuses import BONUSES

# these do not enter the advantage by MERCI's merge: they have weights of their own
WITHOUT_GAMMA = {"none", "entropy", "rnd", "delight"}


def test_each_bonus_changes_the_run_and_resumes_exactly(run):
    plain = weights(run("none", bonus="none", eval_every=0), 4)
    for name in BONUSES.keys() - {"none"}:
        options = {"bonus": name, "gamma": 1.0, "alpha": 0.9, "eval_every": 0}
        whole = run(name, **options)
        assert not same_weights(weights(whole, 4), plain), name
        half = run(f"{name}-half", steps=2, **options)
        assert metrics(run("x", resume=half, steps=4))[3:] == metrics(whole)[3:], name
        assert same_weights(weights(half, 4), weights(whole, 4)), name
        if name not in WITHOUT_GAMMA:
            control = run(f"{name}0", **options | {"gamma": 0})
            assert same_weights(weights(control, 4), plain), name


def calibration(folder):
    return [json.loads(line) for line in (folder / "calibration.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bonus", ["cfn", "elliptical"])
def test_exact_counts_stand_beside_the_estimate_and_change_nothing(run, bonus):
    options = {"bonus": bonus, "steps": 6, "group": 8}
    plain, counted = run("plain", **options), run("counted", oracle_counts=True, **options)
    assert same_weights(weights(plain, 6), weights(counted, 6))
    records = calibration(counted)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert all(r["bins"] and r["points"] for r in records)
    assert any(-1 <= row.get("oracle/spearman", 2) <= 1 for row in metrics(counted))


def test_the_exact_bonus_is_its_own_truth(run):
    """The novelty that was paid for, against the table it was read from: on the line from the first
    step on.
    """
    folder = run("exact", bonus="exact", steps=6, group=8)
    points = [record["points"] for record in calibration(folder)]
    assert len(points) == 6
    for n, estimate in chain.from_iterable(points):
        assert abs(estimate - 1 / max(n, 1)) < 1e-4
    assert max(n for n, _ in points[-1]) > 1
    rows = [row for row in metrics(folder) if "oracle/spearman" in row]
    assert rows
    for row in rows:
        assert abs(row["oracle/spearman"] - 1) < 1e-6 and abs(row["oracle/slope"] - 1) < 1e-6
