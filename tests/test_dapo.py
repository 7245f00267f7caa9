"""Dynamic sampling, per-token credit, dead groups: the pieces, and whole runs of train.py on
tests/once.py.
"""

import dataclasses
import json
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from test_train import metrics, model, run, same_weights, weights  # noqa: F401  the fixtures

from nanomerci import dapo, merci
from nanomerci.loop.rollout import Experience, Rollout
from nanomerci.tasks.graders.pool import Grade


def round_of(first, rewards, width=3):
    """An Experience of len(rewards) groups numbered from `first` on, every number in it derived
    from its group's.
    """
    reward_PG = torch.tensor(rewards)
    P, G = reward_PG.shape
    row_BT = (first * G + torch.arange(P * G))[:, None].float().expand(-1, width)
    return Experience(
        first + torch.arange(P),
        [SimpleNamespace(id=first + p) for p in range(P)],
        Rollout(row_BT.long(), torch.ones(P * G, width), row_BT),
        [str(first * G + b) for b in range(P * G)],
        [Grade(r, "right" if r else "wrong") for r in reward_PG.flatten().tolist()],
        reward_PG.flatten(),
        row_BT,
        3 * (row_BT > 0),
        row_BT[:, 0],
        row_BT,
    )


count = lambda batches: sum(len(b.number_P) for b in batches)
MIXED, RIGHT, WRONG = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]


def test_fill_asks_until_enough_groups_are_mixed_and_keeps_the_surplus_in_order():
    rounds = iter(
        [
            round_of(0, [MIXED, RIGHT, WRONG]),
            round_of(3, [WRONG, WRONG, WRONG]),
            round_of(6, [MIXED, MIXED, MIXED]),
        ]
    )
    held, asked = dapo.fill([], lambda: next(rounds), wanted=3, rounds=10, count=count)
    assert len(asked) == 3 and Experience.join(held).number_P.tolist() == [0, 6, 7, 8]
    # what one step had too many of comes first in the next, which then asks for less
    rest = Experience.join(held).groups(torch.tensor([False, False, True, True]))
    held, asked = dapo.fill(
        [rest], lambda: round_of(9, [MIXED, RIGHT, RIGHT]), wanted=3, rounds=10, count=count
    )
    assert len(asked) == 1 and Experience.join(held).number_P.tolist() == [7, 8, 9]


def test_fill_ends_when_nothing_carries_signal():
    held, asked = dapo.fill(
        [], lambda: round_of(0, [RIGHT, WRONG]), wanted=2, rounds=4, count=count
    )
    assert len(asked) == 4 and count(held) == 0


def test_a_length_penalty_makes_no_group_worth_learning():
    round_ = round_of(0, [WRONG, MIXED, RIGHT])
    round_ = dataclasses.replace(
        round_, reward_B=round_.reward_B - torch.tensor([1.0, 0, 0, 0, 0, 0.5])
    )
    assert dapo.mixed(round_.reward_PG).all() and dapo.mixed(round_.grade_PG).tolist() == [
        False,
        True,
        False,
    ]
    held, _ = dapo.fill([], lambda: round_, wanted=1, rounds=1, count=count)
    assert held[0].number_P.tolist() == [1] and round_.right_B.tolist() == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]


def test_an_experience_cut_joined_and_stored_is_the_same():
    narrow, wide = round_of(0, [MIXED, RIGHT]), round_of(2, [WRONG, MIXED], width=5)
    both = Experience.join([narrow, wide])
    assert both.kept_BT.shape == (8, 5) and both.group == 2 and both.roll.mask_BT[:4, 3:].sum() == 0
    last = both.groups(torch.tensor([3]))
    assert last.number_P.tolist() == [3] and last.text_B == ["6", "7"] and last.problem_P[0].id == 3
    assert (
        last.roll.logp_BT.tolist() == [[6.0] * 5, [7.0] * 5]
        and [g.reward for g in last.grade_B] == MIXED
    )
    again = Experience.of_state(
        last.state(), lambda numbers: [SimpleNamespace(id=n) for n in numbers]
    )
    assert (
        again.problem_P == last.problem_P
        and again.grade_B == last.grade_B
        and torch.equal(again.roll.tokens_BT, last.roll.tokens_BT)
    )
    none = both.groups(torch.zeros(4, dtype=torch.bool))
    assert (
        none.text_B == []
        and len(dapo.mixed(none.grade_PG)) == 0
        and len(Experience.join([none, last]).text_B) == 2
    )


def test_dapo_learns_from_mixed_groups_only_and_fills_its_batch(run):  # noqa: F811
    plain, full = (
        metrics(run(name, algo="dapo", max_gen_rounds=rounds, steps=6))
        for name, rounds in (("plain", 1), ("full", 0))
    )
    assert all(
        row["prompts"] == 4 * row["step"] for row in plain[1:]
    )  # one round a step: dead groups are in it
    assert any(row["groups/mixed"] < 1 for row in plain[1:])
    assert all(row["groups/used"] == 4 for row in full[1:]) and full[-1]["prompts"] > 4 * 6


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_task_without_signal_neither_hangs_nor_crashes(run, reward, monkeypatch, capsys):  # noqa: F811
    import once

    monkeypatch.setattr(
        once.Once,
        "job",
        lambda self, problem, text: (Grade, reward, "right" if reward else "wrong"),
    )
    folder = run("dead", algo="dapo", max_gen_rounds=3, steps=3)
    rows = metrics(folder)[1:]
    assert [row["prompts"] for row in rows] == [12, 24, 36] and all(
        row["groups/used"] == row["grad_norm"] == 0 for row in rows
    )
    assert same_weights(weights(folder, 0), weights(folder, 3))
    said = capsys.readouterr().err
    assert (
        said.count(
            "only 0 of 4 groups carried signal after 3 rounds of sampling; the batch is smaller"
        )
        == 1
    )


def test_a_budget_of_prompts_ends_the_run(run):  # noqa: F811
    rows = metrics(run("budget", algo="dapo", steps=50, budget=20, eval_every=0))
    assert (
        rows[-2]["prompts"] < 20 <= rows[-1]["prompts"]
        and rows[-1]["step"] < 50
        and "eval/mean@4" in rows[-1]
    )


def test_credit_per_token_pays_for_what_lies_ahead():
    novelty_BT, mask_BT = torch.tensor([[0.0, 0.9, 0.0, 0.3]]), torch.tensor([[0.0, 1, 1, 1]])
    kept_BT = novelty_BT > 0
    to_go = merci.bonus_to_go(novelty_BT, kept_BT, mask_BT)
    assert torch.allclose(to_go.square(), torch.tensor([[0.0, 1.2 / 3, 0.3 / 2, 0.3]]))
    assert (
        to_go[0, 1] == merci.trajectory_bonus(novelty_BT, kept_BT, mask_BT)[0]
    )  # at the first token: the bonus of the response
    expl_BT = merci.per_token_advantage(
        torch.cat([to_go, to_go * 0]), torch.cat([mask_BT, mask_BT]), group=2
    )
    values = torch.tensor([0.4, 0.15, 0.3]).sqrt()
    all_six = torch.cat([values, torch.zeros(3)])
    assert torch.allclose(
        expl_BT[0, 1:], ((values - all_six.mean()) / all_six.std(correction=0)).clamp(min=0)
    )
    assert (expl_BT[1] == 0).all() and expl_BT[0, 0] == 0


def test_dead_groups_get_a_capped_bonus_only_when_asked_for():
    adv_PG, expl_PG = (
        torch.tensor([[0.0, 0.0], [1.0, -1.0]]),
        torch.tensor([[3.0, 0.0], [3.0, 3.0]]),
    )
    assert merci.merge(adv_PG, expl_PG, 0.5, 0.8)[0].tolist() == [0, 0]
    assert torch.allclose(
        merci.merge_dead(adv_PG, expl_PG, 0.5, 0.8), torch.tensor([[0.8, 0.0], [1.8, -0.2]])
    )
    assert (merci.merge_dead(adv_PG, expl_PG, 0.0, 0.8) == adv_PG).all()


def test_every_form_of_the_bonus_runs_and_gamma_zero_is_the_baseline(run):  # noqa: F811
    plain = run("plain", bonus="none")
    trained = {}
    forms = {
        "token": dict(credit="token"),
        "dead": dict(bonus_on_zero_variance=True),
        "trunk": dict(cfn_features="policy"),
        "response": {},
    }
    for name, options in forms.items():
        assert same_weights(weights(run(f"{name}0", gamma=0, **options), 4), weights(plain, 4)), (
            name
        )
        trained[name] = weights(run(name, gamma=1.0, alpha=0.9, **options), 4)
    assert not any(same_weights(trained[a], trained[b]) for a, b in combinations(trained, 2))


def test_the_ledger_adds_up(run):  # noqa: F811
    folder = run("ledger", gamma=1.0, alpha=0.9)
    for row in metrics(folder)[1:]:
        assert (
            0 <= row["merci/share"] < 1
            and 0 <= row["merci/on_wrong"] <= 1
            and -1 <= row["merci/length_corr"] <= 1
        )
        right, wrong = row["outcome/right"], 1 - row["outcome/right"]
        assert right * row["merci/novelty_right"] + wrong * row[
            "merci/novelty_wrong"
        ] == pytest.approx(row["merci/bonus"], rel=1e-4)
    assert any(row["merci/share"] > 0 for row in metrics(folder)[1:])
    assert json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["bonus"]
