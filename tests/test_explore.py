"""Every bonus by its name in whole runs of train.py: the control, resuming, what it changes."""

import json

import pytest
from test_train import metrics, model, run, same_weights, weights  # noqa: F401  the fixtures

from nanomerci.runtime.config import Config

BONUSES = Config.__dataclass_fields__["bonus"].type.__args__
THROUGH_GAMMA = (
    "cfn",
    "exact",
    "elliptical",
    "outcome",
    "surprisal",
    "random",
)  # the others have weights of their own


def test_each_bonus_changes_the_run_and_resumes_exactly(run):  # noqa: F811
    plain = weights(run("none", bonus="none", eval_every=0), 4)
    for bonus in BONUSES[1:]:
        options = {"bonus": bonus, "gamma": 1.0, "alpha": 0.9, "eval_every": 0}
        whole = run(bonus, **options)
        assert not same_weights(weights(whole, 4), plain), bonus
        half = run(f"{bonus}-half", steps=2, **options)
        assert metrics(run("x", resume=half, steps=4))[3:] == metrics(whole)[3:], bonus
        assert same_weights(weights(half, 4), weights(whole, 4)), bonus
        if bonus in THROUGH_GAMMA:
            assert same_weights(weights(run(f"{bonus}0", **options | {"gamma": 0}), 4), plain), (
                bonus
            )


@pytest.mark.parametrize("bonus", ["cfn", "elliptical"])
def test_oracle_counts_stand_beside_the_estimate_and_change_nothing(run, bonus):  # noqa: F811
    plain, with_oracle = (
        run(f"oracle{on}", bonus=bonus, oracle_counts=on, steps=6, group=8) for on in (False, True)
    )
    assert same_weights(weights(plain, 6), weights(with_oracle, 6))
    records = [
        json.loads(line) for line in (with_oracle / "calibration.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6] and all(
        r["bins"] and r["points"] for r in records
    )
    assert any(-1 <= row.get("oracle/spearman", 2) <= 1 for row in metrics(with_oracle))


def test_the_exact_bonus_is_its_own_truth(run):  # noqa: F811
    """The novelty that was paid for, against the table it was read from: on the line from the first
    step on.
    """
    folder = run("exact", bonus="exact", steps=6, group=8)
    records = [json.loads(line) for line in (folder / "calibration.jsonl").read_text().splitlines()]
    assert len(records) == 6 and all(
        abs(estimate - 1 / max(n, 1)) < 1e-4 for r in records for n, estimate in r["points"]
    )
    assert max(n for n, _ in records[-1]["points"]) > 1
    agreements = [
        (row["oracle/spearman"], row["oracle/slope"])
        for row in metrics(folder)
        if "oracle/spearman" in row
    ]
    assert agreements and all(abs(x - 1) < 1e-6 for pair in agreements for x in pair)
