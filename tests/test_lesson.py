"""docs/lesson.py: its numbers against grpo, merci, closed forms and a recorded run; as a script; as
a page in Chromium, in which moving a slider changes a number.
"""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from nanomerci import grpo, merci

if not importlib.util.find_spec("marimo"):
    pytest.skip("the lesson needs marimo: pip install -e '.[lesson]'", allow_module_level=True)
# It is imported by the tests, not here: where marimo has been imported, transformers believes to be
# in a notebook, and its Trainer, which other tests collect, asks for IPython.
LESSON = ROOT / "docs" / "lesson.py"
PICTURES = {"coins", "filters", "merge", "two_strategies", "expected_update", "phase"}
# Advantages are float32, and grpo.advantage adds 1e-6 to a standard deviation of at least 0.35 in
# groups of up to 8: 3e-6 relative, and a few roundings of 6e-8.
EXACT = 1e-5


@pytest.fixture(scope="module")
def lesson():
    spec = importlib.util.spec_from_file_location("lesson", LESSON)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- counting, adding, filtering, merging
def test_coins_estimate_one_over_n(lesson):
    for visits, coins in ((1, 4), (4, 20), (9, 20), (16, 100)):
        estimate_N = lesson.coin_estimates(visits, coins, states=2000)
        error = lesson.coin_error(visits, coins) / 2000**0.5
        assert abs(float(estimate_N.mean()) - 1 / visits) <= 4 * error + 1e-6


def test_the_error_of_coins_is_that_of_all_ways_they_can_fall(lesson):
    for visits in (1, 2, 5, 8):
        ways = itertools.product((-1, 1), repeat=visits)
        squares = torch.tensor([(sum(way) / visits) ** 2 for way in ways], dtype=torch.float64)
        error = float(squares.var(correction=0).sqrt())
        assert lesson.coin_error(visits, 1) == pytest.approx(error, abs=1e-12)
        assert lesson.coin_error(visits, 20) == pytest.approx(error / 20**0.5, abs=1e-12)


def test_variances_add(lesson):
    new, familiar = lesson.variance_rows(lesson.two_responses(16))
    for row, variance in ((new, 1 + 15 / 100), (familiar, 1)):
        # the standard error of a standard deviation of 100,000 draws is sd / sqrt(2 * 100,000)
        error = 4 * math.sqrt(variance / 200_000) + 5e-4  # 5e-4: the table's rounding
        spread = row["spread of the sum, measured"]
        assert spread == pytest.approx(math.sqrt(variance), abs=error)
        assert row["√(sum of 1/n)"] == round(math.sqrt(variance), 3)
        assert row["MERCI's bonus √(mean of 1/n)"] == round(math.sqrt(variance / 16), 3)
    assert new["mean of √(1/n)"] == round(2.5 / 16, 3) < familiar["mean of √(1/n)"] == 0.25


def test_the_real_group_is_the_recorded_one(lesson):
    """What train.py recorded of this group in samples.jsonl: kept tokens, bonuses, advantages."""
    tokens, invn, of_group, correct = lesson.real_group()
    recorded = {0: "-----------xx----xxx------", 1: "----------------xxxx---"}
    recorded[2] = "-----------------xxxx--xxx-------xxx-----"
    bonus_G = [0.24693, *[0.10229] * 3, 0.17717, *[0.10229] * 3]
    adv_G = [-0.0707, *[-0.3536] * 3, 2.8414, *[-0.3536] * 3]
    mine = [lesson.filtered(*pair, 0.3, 2, False) for pair in zip(tokens, invn, strict=False)]
    for i, (_, fate) in enumerate(mine):
        assert "".join("-x"[f == 3] for f in fate) == recorded[i]
    # 1/n is recorded to three digits, so within 0.5 %; a root halves that
    assert [mine[i][0] for i in of_group] == pytest.approx(bonus_G, rel=0.0025)
    expl_PG = merci.exploration_advantage(torch.tensor([bonus_G]))
    gamma = merci.gamma_at(36, 0.5, 110)  # step 37 is the 37th
    adv_PG = grpo.advantage(torch.tensor([correct]).float())
    merged_PG = merci.merge(adv_PG, expl_PG, gamma, 0.8)
    # bonuses to five digits, z-scores divide by their spread of 0.05: 1e-5 / 0.05 * gamma
    assert merged_PG[0].tolist() == pytest.approx(adv_G, abs=2e-4)
    rows = lesson.merge_rows(bonus_G, correct, gamma, 0.8)
    assert [row["merged"] for row in rows] == [2.841, -0.354, -0.071]


def test_the_box_of_the_third_filter(lesson):
    tokens, invn, *_ = lesson.real_group()
    without, with_noise = (lesson.filtered(tokens[2], invn[2], 0.3, 2, on) for on in (False, True))
    assert without[1].count(2) == 0 and without[1].count(3) == 10
    dropped = [token for token, fate in zip(tokens[2], with_noise[1], strict=False) if fate == 2]
    assert dropped == ["?", "plan"] and with_noise[0] < without[0]
    for one in (0, 1):
        assert lesson.filtered(tokens[one], invn[one], 0.3, 2, True)[1].count(2) == 0


# ---- two strategies
def test_maxrl_and_dr_grpo_advantages(lesson):
    reward_PG = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert lesson.advantage(reward_PG, "maxrl").tolist() == [[3, -1, -1, -1], [0] * 4, [0] * 4]
    assert lesson.advantage(reward_PG, "dr_grpo")[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert torch.equal(lesson.advantage(reward_PG, "grpo"), grpo.advantage(reward_PG))


def test_the_gradient_is_that_of_the_surrogate(lesson):
    """One policy-gradient step of grpo.surrogate and grpo.weights on two logits, by autograd."""
    rng = torch.Generator().manual_seed(0)
    logit_2 = torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True)
    rare_B = torch.rand(32, generator=rng) < 0.3
    adv_B = torch.randn(32, dtype=torch.float64, generator=rng)
    logp_BT = logit_2.log_softmax(0)[rare_B.long()][:, None]
    mask_BT = torch.ones_like(logp_BT)
    loss_BT = grpo.surrogate(logp_BT, logp_BT.detach(), adv_B)
    (loss_BT * grpo.weights(mask_BT, grpo.units(mask_BT))).sum().backward()
    share_R1 = logit_2.detach().softmax(0)[None, 1:]
    mine = lesson.logit_gradient(adv_B[None], rare_B[None], share_R1).mean()
    assert float(mine) == pytest.approx(float(logit_2.grad[0] - logit_2.grad[1]), rel=1e-12)


def test_each_bonus_by_hand(lesson):
    """One group of 4: two correct, one of them by the rare strategy, whose z-score is (1 - 1/4) /
    sqrt(1/4 * 3/4) = sqrt(3). A is 0.5 / sqrt(1/3) above and below.
    """
    rare_RB, correct_RB = torch.tensor([[True, False, False, False], [True, True, False, False]])
    share_R1, visits_R2 = torch.tensor([[0.1]]), torch.tensor([[1.0, 2.0]])
    a = 0.75**0.5

    def shaped(bonus, **how):
        toy = lesson.Toy(group=4, bonus=bonus, gamma=0.1, **how)
        rng = torch.Generator().manual_seed(0)
        parts = rare_RB[None], correct_RB[None], share_R1, visits_R2, rng
        return lesson.shaped_advantage(toy, 0, *parts)[0].tolist()

    assert shaped("none") == pytest.approx([a, a, -a, -a], rel=EXACT)
    # the rare strategy is rarer by probability, the common one (3 of 4) by these visits
    assert shaped("surprisal") == pytest.approx([a + 0.1 * 3**0.5, a, -a, -a], rel=EXACT)
    paid = 0.1 / 3**0.5
    assert shaped("count") == pytest.approx([a, a + paid, -a + paid, -a + paid], rel=EXACT)
    entropy = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    paid = min(0.4 * entropy, a / 2)
    assert shaped("entropy") == pytest.approx([a + paid, a + paid, -a + paid, -a + paid], rel=EXACT)
    capped = lesson.shaped_advantage(
        lesson.Toy(group=4, bonus="entropy"),
        step=0,
        rare_RB=rare_RB[None],
        correct_RB=torch.tensor([[True, False, False, False]]),
        share_R1=torch.tensor([[0.5]]),
        visits_R2=visits_R2,
    )
    expected = [1.5 + 0.4 * math.log(2), -0.25, -0.25, -0.25]  # 0.4 H is above |A| / 2 = 0.25
    assert capped[0].tolist() == pytest.approx(expected, rel=EXACT)
    noise_G = torch.rand(4, generator=torch.Generator().manual_seed(0)).sqrt()
    paid_G = 0.1 * ((noise_G - noise_G.mean()) / noise_G.std(correction=0)).clamp(min=0)
    expected = [x + float(paid) for x, paid in zip((a, a, -a, -a), paid_G, strict=False)]
    assert shaped("random", alpha=0.9) == pytest.approx(expected, rel=EXACT)


def test_with_many_groups_chance_disappears(lesson):
    toy = lesson.Toy(start=0.2, steps=20, groups=2000, bonus="count", seen=50_000)
    share_SR, path = lesson.simulate(toy, runs=8, block=8), lesson.expected_path(toy)
    # |A| < 2.5, so a step's update has a variance below (2 * 2.5)^2 / 16,000; after 20 steps the
    # logit one of 20 * 0.6^2 * 0.0016 = 0.11^2; a share moves by at most a quarter of that
    assert (share_SR.mean(1) - torch.tensor(path)).abs().max() <= 4 * 0.11 / 4 / 8**0.5
    assert path[-1] - 0.2 > 0.2


def test_every_group_is_enumerated(lesson):
    for group in (2, 4, 8):
        rare_NG, correct_NG, prob_N = lesson.every_group(lesson.Toy(group=group), 0.1)
        assert len(prob_N) == math.comb(group + 3, 3)
        assert float(prob_N.sum()) == pytest.approx(1, abs=1e-12)
        assert float(prob_N @ rare_NG.double().mean(1)) == pytest.approx(0.1, abs=1e-12)
        both = (rare_NG & correct_NG).double().mean(1)
        assert float(prob_N @ both) == pytest.approx(0.1 * 0.6, abs=1e-12)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("share, p_common, p_rare", [(0.02, 0.5, 0.6), (0.4, 0.8, 0.3)])
def test_expected_updates_in_closed_form(lesson, group, share, p_common, p_rare):
    """With p the success rate and slope = dp / dlogit, K of G correct:
    GRPO: slope / (p (1 - p)) sqrt((G - 1) / G) E sqrt(K/G (1 - K/G));
    Dr.GRPO: slope (G - 1) / G; MaxRL: slope ((1 - (1 - p)^G) / p - (1 - p)^(G - 1)).
    """
    p = share * p_rare + (1 - share) * p_common
    slope = 2 * share * (1 - share) * (p_rare - p_common)  # 2: the difference of both logits moves
    root = 0.0
    for k in range(group + 1):
        chance = math.comb(group, k) * p**k * (1 - p) ** (group - k)
        root += chance * math.sqrt(k / group * (1 - k / group))
    expected = {
        "grpo": slope / (p * (1 - p)) * math.sqrt((group - 1) / group) * root,
        "dr_grpo": slope * (group - 1) / group,
        "maxrl": slope * ((1 - (1 - p) ** group) / p - (1 - p) ** (group - 1)),
    }
    for objective, value in expected.items():
        toy = lesson.Toy(p_common=p_common, p_rare=p_rare, group=group, objective=objective)
        assert lesson.expected_update(toy, 0, share, [1.0, 1.0]) == pytest.approx(value, rel=EXACT)


def pair_bonus(toy, share):
    """What MERCI adds to the expected update in groups of 2, where the rarer strategy's z-score is
    1 and |A| = 1 / sqrt(2). -> paid to the rare, paid to the common strategy
    """
    paid = min(toy.gamma, toy.alpha / math.sqrt(2))
    differ = toy.p_rare * (1 - toy.p_common) + (1 - toy.p_rare) * toy.p_common
    mixed = 2 * share * (1 - share) * differ  # both strategies, one of them correct
    return paid * mixed * (1 - share), -paid * mixed * share


def test_expected_bonus_of_pairs_in_closed_form(lesson):
    for gamma, alpha, share in ((0.5, 0.8, 0.05), (0.5, 0.3, 0.6)):
        toy = lesson.Toy(group=2, bonus="count", gamma=gamma, alpha=alpha)
        plain = lesson.expected_update(replace(toy, bonus="none"), 0, share, [1.0, 1.0])
        up, down = pair_bonus(toy, share)
        for visits, added in (([500.0, 12.0], up), ([12.0, 500.0], down), ([7.0, 7.0], 0.0)):
            update = lesson.expected_update(toy, 0, share, visits)
            assert update == pytest.approx(plain + added, rel=EXACT, abs=1e-7)


def test_only_the_order_of_the_visits_matters(lesson):
    toy = lesson.Toy(bonus="count")
    updates = [lesson.expected_update(toy, 0, 0.2, [n, 10.0]) for n in (11.0, 20.0, 1e5)]
    assert updates == pytest.approx([updates[0]] * 3, rel=EXACT)
    assert lesson.expected_update(toy, 0, 0.2, [9.0, 10.0]) < updates[0]


def test_resting_share_of_pairs_in_closed_form(lesson):
    """Where lead / sqrt(2) = paid * share * P(one of two correct)."""
    toy = lesson.Toy(group=2, bonus="count")
    rest = (toy.p_rare - toy.p_common) / math.sqrt(2) / (toy.gamma * 0.5)
    assert lesson.resting_share(toy, 0) == pytest.approx(rest, rel=1e-4)  # bisected to 1e-6
    assert lesson.resting_share(replace(toy, p_rare=0.95, alpha=0.1), 0) == 1.0


@pytest.mark.parametrize("bonus", ["none", "count", "surprisal", "entropy"])
@pytest.mark.parametrize("objective", ["grpo", "maxrl"])
def test_sampled_updates_are_the_expected_ones_on_average(lesson, objective, bonus):
    toy = lesson.Toy(start=0.2, steps=1, group=4, groups=4, objective=objective, bonus=bonus)
    first_R, last_R = lesson.simulate(toy, runs=4000).double().logit()
    update_R = (last_R - first_R) / toy.lr
    visits = [toy.seen * 0.8, toy.seen * 0.2]
    error = float(update_R.std()) / 4000**0.5
    # 1e-5: float32 logits
    expected = lesson.expected_update(toy, 0, 0.2, visits)
    assert abs(float(update_R.mean()) - expected) <= 4 * error + 1e-5
    assert abs(expected) > 2e-3


def test_gamma_0_is_the_plain_objective_bit_for_bit(lesson):
    toy = lesson.Toy(start=0.05, steps=20)
    plain = lesson.simulate(toy, runs=10)
    assert torch.equal(plain, lesson.simulate(replace(toy, bonus="count", gamma=0), runs=10))
    assert not torch.equal(plain, lesson.simulate(replace(toy, bonus="count"), runs=10))


@pytest.mark.parametrize(
    "start, p_common, p_rare, grpo_, merci_5, merci_8, maxrl",
    [
        (0.01, 0.8, 0.95, 0.02, 0.08, 0.46, 0.01),
        (0.02, 0.5, 0.6, 0.05, 0.94, 0.94, 0.07),
        (0.05, 0.8, 0.95, 0.96, 0.97, 0.97, 0.81),
        (0.1, 0.5, 0.6, 0.93, 0.54, 0.63, 0.93),
    ],
)
def test_final_shares_are_those_of_an_independent_program(
    lesson, start, p_common, p_rare, grpo_, merci_5, merci_8, maxrl
):
    """Mean final shares over 200 runs, to two digits, of a simulation written before this one."""
    toy = lesson.Toy(start=start, p_common=p_common, p_rare=p_rare)
    methods = {
        replace(toy): grpo_,
        replace(toy, bonus="count", alpha=0.5): merci_5,
        replace(toy, bonus="count", alpha=0.8): merci_8,
        replace(toy, objective="maxrl"): maxrl,
    }
    for method, theirs in methods.items():
        final_R = lesson.simulate(method, runs=200)[-1]
        error = float(final_R.std()) * math.sqrt(2 / 200)  # both means have one
        assert abs(float(final_R.mean()) - theirs) <= 4 * error + 0.005


def test_what_the_phase_diagram_teaches(lesson):
    """The numbers in the text of part 7, to two digits."""
    text = " ".join(LESSON.read_text().split())
    assert "at 0.94 with MERCI, 0.05 with GRPO and 0.07 with MaxRL" in text
    assert "at 0.64 with MERCI and 0.93 with GRPO" in text
    assert "from 2 % to 0.40 (GRPO: 0.01)" in text
    told = {(0.02, 0.6): (0.05, 0.94), (0.1, 0.6): (0.93, 0.64), (0.02, 0.4): (0.01, 0.40)}
    for (start, p_rare), shares in told.items():
        toy = lesson.Toy(start=start, p_rare=p_rare)
        arms = toy, replace(toy, bonus="count")
        for arm, share in zip(arms, shares, strict=False):
            final_R = lesson.simulate(arm, runs=200)[-1]
            error = float(final_R.std()) * math.sqrt(2 / 200)  # of this mean and of the told one
            assert abs(float(final_R.mean()) - share) <= 4 * error + 0.005
        later = [lesson.simulate(replace(arm, steps=400), runs=100)[-1].mean() for arm in arms]
        assert abs(later[0] - later[1]) < 0.05
    final_R = lesson.simulate(lesson.Toy(objective="maxrl"), runs=200)[-1]
    error = float(final_R.std()) * math.sqrt(2 / 200)
    assert abs(float(final_R.mean()) - 0.07) <= 4 * error + 0.005


def test_helped_and_harmed_cells(lesson):
    """Below a lead of 0 the common strategy is the better one."""
    toy = lesson.Toy()
    lead = lesson.phase_grid(toy)[1]
    low = torch.zeros(len(lead) - 1, 17, 4)
    helps_LS, harms_LS = lesson.against_grpo(toy, low + 0.3, low)
    positive_L = lead[1:] + lead[:-1] > 0
    assert torch.equal(helps_LS.all(1), positive_L) and torch.equal(harms_LS.all(1), ~positive_L)
    assert not any(marks.any() for marks in lesson.against_grpo(toy, low + 0.05, low))
    chance = torch.tensor([0.0, 0, 0, 1]).expand_as(low)  # 0.25 +- 0.25
    assert not any(marks.any() for marks in lesson.against_grpo(toy, chance, low))


def test_tables_of_final_shares(lesson):
    toy = lesson.Toy(p_common=0.5, p_rare=0.9)
    row = lesson.summary("name", toy, torch.tensor([[0.1, 0.1], [0.8, 0.4]]))
    assert row["final share, mean"] == 0.6 and row["runs above one half"] == 0.5
    assert row["success rate"] == round(0.6 * 0.9 + 0.4 * 0.5, 3)
    lead = lesson.phase_grid(toy)[1]
    low = torch.zeros(len(lead) - 1, 17, 2)
    plain, other = lesson.phase_rows(toy, {"GRPO": low, "other": low + 0.5})
    assert plain["helped"] == plain["harmed"] == 0 and plain["where harmed"] == "-"
    assert (other["helped"], other["harmed"]) == (
        10 * 17,
        5 * 17,
    )  # leads of 0.02 .. 0.38, -0.18 ..
    assert other["success rate, change where helped"] == pytest.approx(0.5 * 0.2, abs=1e-4)
    assert other["where harmed"] == pytest.approx(-0.5 * 0.1, abs=1e-4)


def test_phase_cells_are_runs_of_their_own_start_and_lead(lesson):
    toy = lesson.Toy(steps=0)
    start, lead = lesson.phase_grid(toy)
    share_LSR = lesson.phase(toy, repeats=2)
    assert share_LSR.shape == (len(lead) - 1, len(start) - 1, 2)
    middle_S = (start[1:] * start[:-1]).sqrt()
    assert torch.equal(share_LSR, middle_S[None, :, None].expand(share_LSR.shape))
    for p_common, least in ((0.1, -0.1), (0.9, -0.2)):
        lead = lesson.phase_grid(lesson.Toy(p_common=p_common))[1]
        assert lead[0] >= least - 1e-6 and lead[-1] + p_common <= 1


# ---- as a script and as a page
def environment(folder):
    """One thread; marimo's own files go to a scratch folder."""
    places = {f"XDG_{name}_HOME": str(folder) for name in ("CONFIG", "STATE", "CACHE", "DATA")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    extra = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "MARIMO_SKIP_UPDATE_CHECK": "1"}
    return os.environ | places | extra


def test_runs_as_a_script_and_writes_the_pictures(lesson, tmp_path):
    command = [sys.executable, "-W", "error", LESSON, "--pictures", tmp_path, "--repeats", "2"]
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.stem for path in tmp_path.glob("*.png")} == PICTURES
    assert {path.stem for path in (ROOT / "docs" / "pictures").glob("*.png")} >= PICTURES
    rows = lesson.variance_rows(lesson.two_responses(16))
    assert str(rows[0]) in done.stdout and str(rows[1]) in done.stdout
    assert f"(predicted {lesson.coin_error(4, 20):.4f})" in done.stdout
    assert "'cells': 255, 'helped': 0, 'harmed': 0" in done.stdout  # GRPO against itself


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


def until(look, seconds=300):
    """Call `look` until it returns something. The limit only ends a test that hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s")


@contextmanager
def running(command, **how):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def fetch(address):
    """The body, or b"" while nobody answers."""
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.read()
    except OSError:
        return b""


@contextmanager
def browser(folder):
    """Chromium, spoken to by its debugging protocol. -> call(method, parameters)"""
    client = pytest.importorskip("websockets.sync.client", reason="no websockets package")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    at = folder / "profile" / "DevToolsActivePort"
    with running([CHROMIUM, *flags, "about:blank"]):
        port = until(lambda: at.exists() and at.read_text().split("\n")[0])
        tabs = json.loads(until(lambda: fetch(f"http://127.0.0.1:{port}/json/list")))
        tab = next(tab for tab in tabs if tab["type"] == "page")
        with client.connect(tab["webSocketDebuggerUrl"], max_size=None) as wire:
            numbers = itertools.count(1)

            def call(method, **parameters):
                number = next(numbers)
                wire.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while (answer := json.loads(wire.recv())).get("id") != number:
                    pass
                return answer["result"]

            yield call


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_slider_changes_a_number_of_the_page(lesson, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        page = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "marimo", "run", LESSON, "--headless", "--no-token"]
    command += ["--port", page.rsplit(":", 1)[1]]
    with running(command, env=environment(tmp_path)), browser(tmp_path) as call:

        def script(text):
            return call("Runtime.evaluate", expression=text, returnByValue=True)["result"].get(
                "value"
            )

        def shares():
            text = script("document.querySelector('#share')?.textContent") or ""
            return [float(number) for number in re.findall(r"\d\.\d+", text)]

        until(lambda: fetch(f"{page}/health"))
        call("Page.navigate", url=page)
        before = until(shares)
        until(lambda: script("document.querySelector('#update') && document.images.length"))
        slider = "[...document.querySelectorAll('marimo-slider')]"
        slider += ".find(e => e.dataset.label.includes('start frequency'))"
        script(f"{slider}.shadowRoot.querySelector('[role=slider]').focus()")
        for kind in ("keyDown", "keyUp"):
            call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
        after = until(lambda: (now := shares()) != before and now)
        assert not script("document.body.textContent.includes('Traceback')")
    for start, seen in ((0.02, before), (0.04, after)):
        toy = lesson.Toy(start=start)
        for bonus, share in zip(("none", "count"), seen, strict=False):
            final = lesson.simulate(replace(toy, bonus=bonus), runs=1000)[-1].mean()
            assert share == pytest.approx(float(final), abs=6e-4)  # three digits; one more rounding
