"""Dynamic sampling, per-token credit, dead groups: the pieces, and whole runs of train.py on
tests/once.py.
"""

import json
from dataclasses import fields, replace
from itertools import combinations
from types import SimpleNamespace

import once
import pytest
import torch
from runs import metrics, same_weights, weights

from nanomerci import dapo, merci
from nanomerci.loop.collect import Collector
from nanomerci.loop.rollout import Batch, Group
from nanomerci.tasks import pick
from nanomerci.tasks.graders.pool import Grade


def round_of(first, rewards, width=3):
    """Groups numbered from `first` on, each number in one derived from its row's."""
    return [group(number, reward_G, width) for number, reward_G in enumerate(rewards, first)]


def group(number, rewards, width):
    row_G = number * len(rewards) + torch.arange(len(rewards))
    row_GT = row_G[:, None].float().expand(-1, width)
    return Group(
        number,
        SimpleNamespace(id=number),
        tokens_GT=row_GT.long(),
        mask_GT=torch.ones(len(rewards), width),
        logp_GT=row_GT,
        novelty_GT=row_GT,
        passed_GT=3 * (row_GT > 0),
        logp_ref_GT=row_GT,
        reward_G=torch.tensor(rewards),
        bonus_G=row_G.float(),
        grade_G=[Grade(r, "right" if r else "wrong") for r in rewards],
        text_G=[str(row) for row in row_G.tolist()],
        answer_G=[None] * len(rewards),
    )


def numbers(groups):
    return [group.number for group in groups]


MIXED, RIGHT, WRONG = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]


def test_fill_asks_until_enough_groups_are_mixed_and_keeps_the_surplus_in_order():
    rounds = iter(
        [
            round_of(0, [MIXED, RIGHT, WRONG]),
            round_of(3, [WRONG, WRONG, WRONG]),
            round_of(6, [MIXED, MIXED, MIXED]),
        ]
    )
    groups, asked = dapo.fill([], lambda: next(rounds), prompts=3, rounds=10, count=len)
    assert len(asked) == 3 and numbers(groups) == [0, 6, 7, 8]
    # what one step had too many of comes first in the next, which then asks for less
    one_more = round_of(9, [MIXED, RIGHT, RIGHT])
    groups, asked = dapo.fill(groups[2:], lambda: one_more, prompts=3, rounds=10, count=len)
    assert len(asked) == 1 and numbers(groups) == [7, 8, 9]


def test_fill_ends_when_nothing_carries_signal():
    dead = round_of(0, [RIGHT, WRONG])
    groups, asked = dapo.fill([], lambda: dead, prompts=2, rounds=4, count=len)
    assert len(asked) == 4 and groups == []


def test_a_length_penalty_makes_no_group_worth_learning():
    penalties = torch.tensor([[1.0, 0], [0, 0], [0, 0.5]])
    groups = [
        replace(group, reward_G=group.reward_G - penalty_G)
        for group, penalty_G in zip(round_of(0, [WRONG, MIXED, RIGHT]), penalties, strict=True)
    ]
    batch = Batch.of(groups, 2, "cpu")
    assert dapo.mixed(batch.reward_PG).all()
    assert dapo.mixed(batch.graded_PG).tolist() == [False, True, False]
    held, _ = dapo.fill([], lambda: groups, prompts=1, rounds=1, count=len)
    assert numbers(held) == [1]
    assert batch.correct_PG.tolist() == [[False, False], [True, False], [True, True]]


def test_a_batch_holds_its_groups_side_by_side_padded_to_the_widest():
    groups = round_of(0, [MIXED, RIGHT]) + round_of(2, [WRONG, MIXED], width=5)
    batch = Batch.of(groups, 2, "cpu")
    assert batch.kept_BT.shape == (8, 5) and batch.group == 2
    assert batch.rollout.mask_BT[:4, 3:].sum() == 0 and batch.rollout.mask_BT.sum() == 4 * 3 + 4 * 5
    assert batch.number_P.tolist() == [0, 1, 2, 3]
    assert batch.text_B[6:] == ["6", "7"] and batch.problem_P[3].id == 3
    assert batch.rollout.logp_BT[6:].tolist() == [[6.0] * 5, [7.0] * 5]
    assert [grade.reward for grade in batch.grade_B[6:]] == MIXED
    none = Batch.of([], 2, "cpu")
    assert none.text_B == [] and len(dapo.mixed(none.graded_PG)) == 0 and none.group == 2


def test_a_group_that_was_stored_is_the_same(tmp_path):
    c, task = SimpleNamespace(seed=5), once.Once()
    before, after = (Collector(c, task, None, None, None, None) for _ in range(2))
    (problem,) = pick(task.train, [3], c.seed)
    (left,) = round_of(3, [MIXED], width=5)
    before.prompts_sampled, before.leftover = 4, [replace(left, problem=problem)]
    torch.save(before.state_dict(), tmp_path / "collector.pt")
    after.load_state_dict(torch.load(tmp_path / "collector.pt", weights_only=True))
    assert after.prompts_sampled == 4 and len(after.leftover) == 1
    for field in fields(Group):
        ours, theirs = (getattr(x.leftover[0], field.name) for x in (after, before))
        same = torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs
        assert same, field.name


def test_dapo_learns_from_mixed_groups_only_and_fills_its_batch(run):
    plain = metrics(run("plain", algo="dapo", max_gen_rounds=1, steps=6))[1:]
    full = metrics(run("full", algo="dapo", max_gen_rounds=0, steps=6))[1:]
    # one round per step: dead groups are in it
    assert all(row["prompts"] == 4 * row["step"] for row in plain)
    assert any(row["groups/mixed"] < 1 for row in plain)
    assert all(row["groups/used"] == 4 for row in full) and full[-1]["prompts"] > 4 * 6


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_task_without_signal_neither_hangs_nor_crashes(run, reward, monkeypatch, capsys):
    outcome = "right" if reward else "wrong"
    monkeypatch.setattr(once.Once, "job", lambda self, problem, text: (Grade, reward, outcome))
    folder = run("dead", algo="dapo", max_gen_rounds=3, steps=3)
    rows = metrics(folder)[1:]
    assert [row["prompts"] for row in rows] == [12, 24, 36]
    assert all(row["groups/used"] == row["grad_norm"] == 0 for row in rows)
    assert same_weights(weights(folder, 0), weights(folder, 3))
    warning = "only 0 of 4 groups carried signal after 3 rounds of sampling, so the batch is"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_budget_of_prompts_ends_the_run(run):
    *_, before, last = metrics(run("budget", algo="dapo", steps=50, budget=20, eval_every=0))
    assert before["prompts"] < 20 <= last["prompts"]
    assert last["step"] < 50 and "eval/mean@4" in last


def test_credit_per_token_pays_for_what_lies_ahead():
    novelty_BT, mask_BT = torch.tensor([[0.0, 0.9, 0.0, 0.3]]), torch.tensor([[0.0, 1, 1, 1]])
    kept_BT = novelty_BT > 0
    to_go = merci.bonus_to_go(novelty_BT, kept_BT, mask_BT)
    assert torch.allclose(to_go.square(), torch.tensor([[0.0, 1.2 / 3, 0.3 / 2, 0.3]]))
    # at the first token: the bonus of the response
    assert to_go[0, 1] == merci.trajectory_bonus(novelty_BT, kept_BT, mask_BT)[0]
    two_BT = torch.cat([to_go, to_go * 0])
    expl_BT = merci.per_token_advantage(two_BT, torch.cat([mask_BT, mask_BT]), group=2)
    values = torch.tensor([0.4, 0.15, 0.3]).sqrt()
    all_six = torch.cat([values, torch.zeros(3)])
    z_scores = (values - all_six.mean()) / all_six.std(correction=0)
    assert torch.allclose(expl_BT[0, 1:], z_scores.clamp(min=0))
    assert (expl_BT[1] == 0).all() and expl_BT[0, 0] == 0


def test_dead_groups_get_a_capped_bonus_only_when_asked_for():
    adv_PG = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    expl_PG = torch.tensor([[3.0, 0.0], [3.0, 3.0]])
    assert merci.merge(adv_PG, expl_PG, 0.5, 0.8)[0].tolist() == [0, 0]
    paid_PG = merci.merge_dead(adv_PG, expl_PG, 0.5, 0.8)
    assert torch.allclose(paid_PG, torch.tensor([[0.8, 0.0], [1.8, -0.2]]))
    assert (merci.merge_dead(adv_PG, expl_PG, 0.0, 0.8) == adv_PG).all()


FORMS = {
    "token": {"credit": "token"},
    "dead": {"bonus_on_zero_variance": True},
    "policy": {"cfn_features": "policy"},
    "response": {},
}


def test_every_form_of_the_bonus_runs_and_gamma_zero_is_the_baseline(run):
    plain, trained = weights(run("plain", bonus="none"), 4), {}
    for name, options in FORMS.items():
        assert same_weights(weights(run(f"{name}0", gamma=0, **options), 4), plain), name
        trained[name] = weights(run(name, gamma=1.0, alpha=0.9, **options), 4)
    for a, b in combinations(trained, 2):
        assert not same_weights(trained[a], trained[b]), (a, b)


def test_the_metrics_of_the_bonus_add_up(run):
    folder = run("bonus", gamma=1.0, alpha=0.9)
    rows = metrics(folder)[1:]
    for row in rows:
        assert 0 <= row["merci/share"] < 1 and 0 <= row["merci/on_wrong"] <= 1
        assert -1 <= row["merci/length_corr"] <= 1
        right = row["outcome/right"]
        mean = right * row["merci/novelty_right"] + (1 - right) * row["merci/novelty_wrong"]
        assert mean == pytest.approx(row["merci/bonus"], rel=1e-4)
    assert any(row["merci/share"] > 0 for row in rows)
    assert json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["bonus"]
