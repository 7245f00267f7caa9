"""A lesson one can play with: MERCI from coins to a phase diagram, without a language model.

    pip install marimo
    marimo run docs/lesson.py                          a page with sliders
    marimo edit docs/lesson.py                         the same as a notebook, with its code
    python docs/lesson.py                              a script: prints every number, under 30 s
    python docs/lesson.py --pictures docs/pictures --repeats 48       the same, writes the pictures

The maths is in plain functions, which call grpo.py, cfn.py and nanomerci/merci.py. The cells below
them only draw.

Axes: P groups, G responses per group, B responses of one step, T tokens, R independent runs, N
groups that differ in more than their order; 2 = (common, rare) strategy.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="MERCI: a lesson")

with app.setup:
    import math
    from dataclasses import dataclass, replace
    from itertools import combinations_with_replacement
    from pathlib import Path

    import marimo as mo
    import torch
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from nanomerci import cfn, grpo, merci
    from nanomerci.address import address

    BLUE, RED, GREEN, GREY, PURPLE = "#2f6db5", "#c8352d", "#2b8a3e", "#9aa0a6", "#8250b4"


@app.cell
def _():
    mo.md(r"""
    # MERCI: a lesson

    RL with verifiable rewards (RLVR) makes a model better at the strategies it already uses. A
    better but rare strategy can disappear before it has been tried often enough. MERCI (*Motivating
    Exploration in LLM Reasoning with Count-based Intrinsic Rewards*) adds a count-based exploration
    bonus to the advantage: responses that pass through rarely visited states get a larger one.

    Five steps: **count** with coins, **add variances**, **filter** tokens, **merge** the bonus with
    the advantage; then a model of training with only **two strategies**, in which one can see where
    the bonus decides and where it harms.
    """)
    return


@app.function
def table(rows):
    """Dicts with the same keys, printed and as a table of the page."""
    print(*rows, sep="\n")
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return mo.md("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


@app.function
def coin_estimates(visits, coins, states=100):
    """1/n of states visited `visits` times each, as a perfectly trained CFN estimates it: the mean
    of each state's coins, squared. -> (states,)
    """
    address_NV = address("lesson", torch.arange(states)[:, None], torch.arange(visits))
    coins_NVC = cfn.draw_coins(address_NV.flatten(), coins).view(states, visits, coins)
    return cfn.inverse_count(coins_NVC.mean(1))


@app.function
def coin_error(visits, coins):
    """Standard deviation of such an estimate: Var[z^2] = 2 (n - 1) / n^3 for the mean z of n coins,
    averaged over C coins.
    """
    return math.sqrt(2 * (visits - 1) / visits**3 / coins)


@app.function
def draw_coins_figure(coins):
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    visits = [1, 2, 4, 8, 16, 32, 64]
    estimates = [coin_estimates(n, coins) for n in visits]
    axes.plot(visits, [1 / n for n in visits], color=GREY, label="1/n")
    low, high = ([1 / n + sign * coin_error(n, coins) for n in visits] for sign in (-1, 1))
    axes.fill_between(visits, low, high, color=GREY, alpha=0.25, label="1/n ± predicted error")
    axes.errorbar(
        visits,
        [float(x.mean()) for x in estimates],
        [float(x.std()) for x in estimates],
        fmt="o",
        color=BLUE,
        capsize=3,
        label="measured over 100 states",
    )
    axes.set(xscale="log", yscale="log", xlabel="visits n", ylabel="estimate of 1/n")
    axes.set_xticks(visits, visits)
    axes.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@app.cell
def _():
    coins = mo.ui.slider(steps=[4, 20, 100, 400], value=20, show_value=True, label="coins C")
    counts = [1, 2, 4, 8, 16, 32, 64]
    visits = mo.ui.slider(steps=counts, value=4, show_value=True, label="visits n")
    mo.md(f"""
    ## 1. Coins count

    A table of prefixes is useless for long responses: almost every prefix occurs once. A Coin
    Flipping Network (CFN) counts without a table. At each visit of a state draw C random labels ±1
    ("coins"), fixed for that visit, and regress a network on them. After n visits the best
    prediction of a coin is the mean of n labels, and the square of that mean is 1/n on average.

    {coins} {visits}
    """)
    return coins, visits


@app.cell
def _(coins, visits):
    estimate_N = coin_estimates(visits.value, coins.value)
    coins_text = (
        f"n = {visits.value}, C = {coins.value}: 1/n = {1 / visits.value:.4f}, mean estimate "
        f"{estimate_N.mean():.4f}, standard deviation {estimate_N.std():.4f} "
        f"(predicted {coin_error(visits.value, coins.value):.4f})"
    )
    coins_figure = draw_coins_figure(coins.value)
    print(coins_text)
    mo.vstack([mo.Html(f'<p id="coins">{coins_text}</p>'), coins_figure])
    return (coins_figure,)


@app.function
def spread_of_sum(variance_T, draws=100_000, seed=0):
    """Standard deviation of a sum of independent errors, measured. variance_T -> float"""
    rng = torch.Generator().manual_seed(seed)
    return float((torch.randn(draws, len(variance_T), generator=rng) @ variance_T.sqrt()).std())


@app.function
def two_responses(familiar):
    """1/n of two responses of 16 tokens. A: one new state and 15 visited 100 times. B: 16 states
    visited `familiar` times. -> (2, 16)
    """
    return torch.tensor([[1.0] + [1 / 100] * 15, [1 / familiar] * 16])


@app.cell
def _():
    familiar = mo.ui.slider(steps=[4, 9, 16, 36, 100], value=16, show_value=True, label="visits, B")
    mo.md(f"""
    ## 2. Variances add, then one root

    1/n is a *variance*: that of a mean of n observations. Errors of different states are
    independent, so over a response variances add up (the Uncertainty Bellman Equation with known
    transitions), and one root at the end gives a standard deviation. Adding up standard deviations
    instead exaggerates long responses. Compare A, one new state among 15 that were visited 100
    times, with B, 16 states of equally many visits each:

    {familiar}
    """)
    return (familiar,)


@app.function
def variance_rows(invn_BT):
    """The two responses by four measures, as rows of a table."""
    every_BT = torch.ones_like(invn_BT)
    measures = {
        "√(sum of 1/n)": merci.bonus_of_sum(invn_BT, every_BT, every_BT),
        "MERCI's bonus √(mean of 1/n)": merci.trajectory_bonus(invn_BT, every_BT, every_BT),
        "mean of √(1/n)": merci.bonus_of_deviations(invn_BT, every_BT, every_BT),
    }
    rows = []
    for i, name in enumerate("AB"):
        spread = spread_of_sum(invn_BT[i])
        row = {"response": name, "spread of the sum, measured": round(spread, 3)}
        rows.append(row | {key: round(float(value_B[i]), 3) for key, value_B in measures.items()})
    return rows


@app.cell
def _(familiar):
    variance_table = variance_rows(two_responses(familiar.value))
    mo.vstack(
        [
            table(variance_table),
            mo.md("""
            At 16 visits the root of the sum, and MERCI's bonus, prefer A. The mean of the standard
            deviations prefers B, which discovers nothing.
            """),
        ]
    )
    return


@app.function
def real_group():
    """A group of 8 responses of a real run: step 37 of `python train.py --threads 1`, "who has a
    short task in 'support' ?". -> three different responses as tokens, their 1/n by the run's CFN,
    the index of each of the 8 among the three, and which of the 8 are correct.
    """
    rare = "plan link ```sql select name from emp where dept = 'support' and name in ( select who"
    responses = [
        f"{rare} from task where hours < 5 ) ``` <eos>",
        "plan join ```sql select name from emp join task on name = who where dept = 'support' "
        "and hours < 5 ``` <eos>",
        f"{rare} from task ? plan set ```sql select name from emp where dept = 'support' "
        "and city = 'bonn' and hours < 5 ``` <eos>",
    ]
    start = ".0336 .0122 .0109 .0191 .0153 .0227 .05 .12 .0271 .0282 .0275 .0815 .0919 .0345 .0125 "
    novelty = [
        start + ".275 .06 .228 .279 .136 .0469 .0302 .0544 .227 .0123 .0313",
        ".0336 .0195 .0123 .0164 .0182 .0466 .0304 .0159 .0126 .0174 .0255 .128 .0225 .0175 "
        ".00621 .0287 .0336 .0729 .102 .0325 .0238 .0124 .02",
        start + ".275 .06 .228 .279 .612 .115 .035 .0178 .255 .244 .128 .0172 .0252 .00945 .0481 "
        ".0238 .214 .0155 .141 .209 .288 .0303 .0396 .0319 .0129 .0203",
    ]
    tokens = [response.split() for response in responses]
    invn = [[float(x) for x in response.split()] for response in novelty]
    return tokens, invn, [2, 1, 1, 1, 0, 1, 1, 1], [i == 4 for i in range(8)]


@app.function
def filtered(tokens, invn, top, run, noise):
    """The three filters on one response. -> its bonus, and for each token what became of it."""
    invn_BT = torch.tensor([invn])
    mask_BT = torch.ones_like(invn_BT)
    percentile_BT = merci.percentile(invn_BT, mask_BT, top)
    coherent_BT = merci.coherent(percentile_BT, run)
    last = len(tokens) - 1 - tokens[::-1].index("```sql")
    first = tokens.index("?") if "?" in tokens else last + 1
    position_BT = torch.arange(len(tokens))[None]
    noise_BT = (position_BT >= first) & (position_BT <= last) & noise
    kept_BT = merci.suppress(coherent_BT, noise_BT)
    fate = (percentile_BT.int() + coherent_BT.int() + kept_BT.int())[0].tolist()
    return float(merci.trajectory_bonus(invn_BT, kept_BT, mask_BT)), fate


@app.function
def draw_filters_figure(tokens, invn, fate):
    """1/n of each token, coloured by the filter that dropped it."""
    names = ["below the top share", "isolated", "noise", "kept"]
    colours = [GREY, BLUE, PURPLE, RED]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(tokens)), invn, color=[colours[f] for f in fate])
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, family="monospace", parse_math=False)
    axes.set(ylabel="estimate of 1/n", xlim=(-1, len(tokens)))
    handles = [
        Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


@app.cell
def _():
    which = mo.ui.dropdown(
        {"correct, rare strategy": 0, "incorrect, common strategy": 1, "incorrect, garbled": 2},
        value="incorrect, garbled",
        label="response",
    )
    top = mo.ui.slider(0.05, 1, 0.05, value=0.3, show_value=True, label="top share kept")
    run = mo.ui.slider(1, 5, value=2, show_value=True, label="shortest run")
    noise = mo.ui.checkbox(value=True, label="treat `? plan set sql` as noise")
    mo.md(f"""
    ## 3. Three filters

    Not every new token matters. MERCI keeps (1) the most novel share of each response, (2) of
    these only runs of adjacent tokens, (3) no tokens that the task marks as noise. The bonus is
    √(sum of the kept 1/n, divided by the response's length).

    These are responses of a real run (step 37 of the default recipe) to "who has a short task in
    'support' ?". One of 8 is correct; it uses the rare strategy. The task's own rule finds no noise
    here; the box marks the garbled restart in the middle of one response to show the third filter.

    {which} {noise}

    {top} {run}
    """)
    return noise, run, top, which


@app.cell
def _(noise, run, top, which):
    tokens, invn, of_group, correct = real_group()
    three = [
        filtered(t, u, top.value, run.value, noise.value)
        for t, u in zip(tokens, invn, strict=False)
    ]
    bonus, fate = three[which.value]
    filters_text = (
        f"kept {fate.count(3)} of {len(fate)} tokens; dropped {fate.count(0)} below the top share, "
        f"{fate.count(1)} isolated, {fate.count(2)} as noise; bonus {bonus:.4f}"
    )
    filters_figure = draw_filters_figure(tokens[which.value], invn[which.value], fate)
    print(filters_text)
    mo.vstack([mo.Html(f'<p id="filters">{filters_text}</p>'), filters_figure])
    return correct, filters_figure, of_group, three


@app.function
def draw_merge_figure(gamma, alpha):
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    expl = torch.linspace(0, 3, 61)
    for adv, colour in ((2.0, GREEN), (1.0, BLUE), (0.0, GREY), (-0.5, PURPLE), (-1.0, RED)):
        merged = merci.merge(torch.full_like(expl, adv), expl, gamma, alpha)
        axes.plot(expl, merged, color=colour, label=f"A = {adv:g}")
    axes.set(xlabel="exploration advantage (z-score, 0 if below)", ylabel="advantage with bonus")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@app.cell
def _():
    merge_gamma = mo.ui.slider(0, 1, 0.05, value=0.4, show_value=True, label="γ")
    merge_alpha = mo.ui.slider(0, 0.95, 0.05, value=0.8, show_value=True, label="α")
    mo.md(f"""
    ## 4. The merge

    Within the group the bonus becomes an exploration advantage: its z-score, and 0 where that is
    negative. The merged advantage is min(A + γ·A_expl, A + α|A|). The bonus never lowers an
    advantage, adds at most the share α of |A|, never changes the sign (α < 1), and adds nothing
    where A = 0: groups with all responses correct or all incorrect still teach nothing.

    {merge_gamma} {merge_alpha}
    """)
    return merge_alpha, merge_gamma


@app.function
def merge_rows(bonus_G, correct_G, gamma, alpha):
    """The three kinds of responses in the real group, as rows of a table."""
    adv_PG = grpo.advantage(torch.tensor([correct_G]).float())
    expl_PG = merci.exploration_advantage(torch.tensor([bonus_G]))
    merged_PG = merci.merge(adv_PG, expl_PG, gamma, alpha)
    rows = []
    for kind, g in (("correct, rare", 4), ("incorrect, common (6 of 8)", 1), ("garbled", 0)):
        row = {"response": kind, "bonus": round(bonus_G[g], 4), "A": round(float(adv_PG[0, g]), 3)}
        row["A_expl"] = round(float(expl_PG[0, g]), 3)
        rows.append(row | {"merged": round(float(merged_PG[0, g]), 3)})
    return rows


@app.cell
def _(correct, merge_alpha, merge_gamma, of_group, three):
    merge_table = merge_rows(
        [three[i][0] for i in of_group], correct, merge_gamma.value, merge_alpha.value
    )
    merge_figure = draw_merge_figure(merge_gamma.value, merge_alpha.value)
    mo.vstack([table(merge_table), merge_figure])
    return (merge_figure,)


@app.class_definition
@dataclass(frozen=True)
class Toy:
    """A softmax policy over two strategies, trained by policy gradient. `start` and `p_rare` may be
    tensors, one value per run.
    """

    start: float = 0.02  # initial probability of the rare strategy
    p_common: float = 0.5  # success rates
    p_rare: float = 0.6
    group: int = 8
    groups: int = 16  # per step
    steps: int = 150
    lr: float = 0.6
    objective: str = "grpo"  # grpo, dr_grpo, maxrl
    bonus: str = "none"  # none, count (MERCI), surprisal, entropy, random
    gamma: float = 0.5
    alpha: float = 0.8
    decay: int = 200  # steps until gamma reaches a tenth
    seen: int = 512  # visits counted before the first step, at the initial probabilities


@app.function
def advantage(reward_PG, objective):
    """The objective's group advantage. MaxRL: (r - mean) / mean, and 0 where the mean is 0."""
    if objective == "grpo":
        return grpo.advantage(reward_PG)
    centred_PG = grpo.centred(reward_PG)
    if objective == "dr_grpo":
        return centred_PG
    return centred_PG / reward_PG.mean(1, keepdim=True).clamp(min=1e-6)


@app.function
def novelty(bonus, rare_RB, share_R1, visits_R2, rng):
    """Of each response: 1/n of its strategy, exactly counted; or -log p of it; or noise. -> _RB"""
    if bonus == "random":
        return torch.rand(rare_RB.shape, generator=rng)
    if bonus == "count":
        novelty_R2 = 1 / visits_R2
    else:
        novelty_R2 = -torch.cat([1 - share_R1, share_R1], 1).log()
    return novelty_R2.gather(1, rare_RB.long())


@app.function
def shaped_advantage(toy, step, rare_RB, correct_RB, share_R1, visits_R2, rng=None):
    """Advantage with the bonus in it, of responses given by strategy and outcome. -> _RB

    `entropy` is that of the policy at this one choice, the same for both strategies; with its
    paper's weights, A + min(0.4 H, |A| / 2), which is a merge as well.
    """
    adv_PG = advantage(correct_RB.float().view(-1, toy.group), toy.objective)
    adv_RB = adv_PG.view(rare_RB.shape)
    if toy.bonus == "none":
        return adv_RB
    if toy.bonus == "entropy":
        share_R2 = torch.cat([1 - share_R1, share_R1], 1)
        return merci.merge(adv_RB, torch.special.entr(share_R2).sum(1, keepdim=True), 0.4, 0.5)
    novelty_BT = novelty(toy.bonus, rare_RB, share_R1, visits_R2, rng).reshape(-1, 1)  # one token
    every_BT = torch.ones_like(novelty_BT)
    bonus_PG = merci.trajectory_bonus(novelty_BT, every_BT, every_BT).view_as(adv_PG)
    expl_PG = merci.exploration_advantage(bonus_PG)
    gamma = merci.gamma_at(step, toy.gamma, toy.decay)
    return merci.merge(adv_PG, expl_PG, gamma, toy.alpha).view(rare_RB.shape)


@app.function
def logit_gradient(adv_RB, rare_RB, share_R1):
    """Policy gradient of logit(rare) - logit(common), per response: each logit moves by A times
    (chosen - probability), in opposite directions. -> _RB
    """
    return 2 * adv_RB * (rare_RB.float() - share_R1)


@app.function
def simulate(toy, runs, seed=0, block=200):
    """Train `runs` policies at once, every response sampled; blocks of runs stay in the processor's
    cache. -> probability of the rare strategy before each step and at the end, (steps + 1, runs).
    """
    rng = torch.Generator().manual_seed(seed)
    start_R1, p_rare_R1 = (
        torch.as_tensor(x).expand(runs)[:, None].split(block) for x in (toy.start, toy.p_rare)
    )
    blocks = [train(toy, *part, rng) for part in zip(start_R1, p_rare_R1, strict=False)]
    return torch.cat(blocks, 1)


@app.function
def train(toy, start_R1, p_rare_R1, rng):
    """The loop itself: sample, grade, advantage with bonus, update, count. -> as simulate"""
    logit_R1 = start_R1.logit()
    visits_R2 = toy.seen * torch.cat([1 - start_R1, start_R1], 1)
    history = [start_R1]
    shape = len(start_R1), toy.groups * toy.group
    for step in range(toy.steps):
        share_R1 = history[-1]
        rare_RB = torch.rand(shape, generator=rng) < share_R1
        success_RB = torch.where(rare_RB, p_rare_R1, toy.p_common)
        correct_RB = torch.rand(shape, generator=rng) < success_RB
        adv_RB = shaped_advantage(toy, step, rare_RB, correct_RB, share_R1, visits_R2, rng)
        gradient_RB = logit_gradient(adv_RB, rare_RB, share_R1)
        logit_R1 = logit_R1 + toy.lr * gradient_RB.mean(1, keepdim=True)
        visits_R2 = visits_R2 + torch.stack([(~rare_RB).sum(1), rare_RB.sum(1)], 1)
        history.append(logit_R1.sigmoid())
    return torch.cat(history, 1).T


@app.function
def every_group(toy, share):
    """All groups that differ in more than their order. -> rare_NG, correct_NG, and prob_N, the
    multinomial probability of each.
    """
    kind_NG = torch.tensor(list(combinations_with_replacement(range(4), toy.group)))
    times_N4 = torch.nn.functional.one_hot(kind_NG, 4).sum(1).double()
    p_4 = [(1 - share) * (1 - toy.p_common), (1 - share) * toy.p_common]
    p_4 = torch.tensor([*p_4, share * (1 - toy.p_rare), share * toy.p_rare], dtype=torch.float64)
    orders_N = math.lgamma(toy.group + 1) - torch.lgamma(times_N4 + 1).sum(1)
    prob_N = (orders_N + torch.xlogy(times_N4, p_4).sum(1)).exp()
    return kind_NG >= 2, kind_NG % 2 == 1, prob_N


@app.function
def expected_update(toy, step, share, visits):
    """Expected policy gradient of one step by enumeration, exact; not for the random bonus.
    visits: of the common and the rare strategy. -> float
    """
    rare_NG, correct_NG, prob_N = every_group(toy, share)
    rare_RB, correct_RB = rare_NG.view(1, -1), correct_NG.view(1, -1)
    share_R1, visits_R2 = torch.tensor([[share]]), torch.tensor([visits])
    adv_RB = shaped_advantage(toy, step, rare_RB, correct_RB, share_R1, visits_R2)
    gradient_NG = logit_gradient(adv_RB, rare_RB, share_R1).view(rare_NG.shape)
    return float((prob_N * gradient_NG.mean(1)).sum())


@app.function
def expected_path(toy):
    """Training without chance: every step makes its expected update. -> list of steps + 1 shares"""
    share, logit = toy.start, math.log(toy.start / (1 - toy.start))
    visits = [toy.seen * (1 - share), toy.seen * share]
    path = [share]
    for step in range(toy.steps):
        logit += toy.lr * expected_update(toy, step, share, visits)
        new = toy.groups * toy.group
        visits = [visits[0] + new * (1 - share), visits[1] + new * share]
        share = 1 / (1 + math.exp(-logit))
        path.append(share)
    return path


@app.function
def summary(name, toy, share_SR):
    """What came of some runs, as a row of a table."""
    final_R = share_SR[-1]
    success = final_R * toy.p_rare + (1 - final_R) * toy.p_common
    return {
        "method": name,
        "final share, mean": round(float(final_R.mean()), 3),
        "runs above one half": round(float((final_R > 0.5).float().mean()), 3),
        "success rate": round(float(success.mean()), 3),
        "final share, expected updates": "-",
    }


@app.function
def draw_runs_figure(curves):
    """curves: name -> (share_SR, expected path or [])."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, (share_SR, path)), colour in zip(curves.items(), (GREY, RED), strict=False):
        steps = range(len(share_SR))
        low_S, high_S = share_SR.quantile(torch.tensor([0.1, 0.9]), 1)
        axes.fill_between(steps, low_S, high_S, color=colour, alpha=0.2)
        axes.plot(steps, share_SR.mean(1), color=colour, label=f"{name}: mean, 10-90 %")
        if path:
            axes.plot(steps, path, "--", color=colour, label=f"{name}: expected updates")
    axes.set(xlabel="step", ylabel="probability of the rare strategy", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


@app.cell
def _():
    starts = [0.0025, 0.005, 0.01, 0.02, 0.04, 0.05, 0.08, 0.1, 0.15, 0.3]
    shown = {"show_value": True}
    controls = mo.ui.dictionary(
        {
            "start": mo.ui.slider(steps=starts, value=0.02, label="start frequency", **shown),
            "p_common": mo.ui.slider(0.05, 0.95, 0.05, value=0.5, label="p(common)", **shown),
            "p_rare": mo.ui.slider(0.05, 0.95, 0.05, value=0.6, label="p(rare)", **shown),
            "group": mo.ui.slider(steps=[2, 4, 8, 16], value=8, label="group size G", **shown),
            "steps": mo.ui.slider(50, 400, 50, value=150, label="steps", **shown),
            "gamma": mo.ui.slider(0, 1, 0.05, value=0.5, label="γ", **shown),
            "alpha": mo.ui.slider(0, 0.95, 0.05, value=0.8, label="α", **shown),
            "decay": mo.ui.slider(50, 800, 50, value=200, label="γ decay, steps", **shown),
            "objective": mo.ui.dropdown(["grpo", "dr_grpo", "maxrl"], "grpo", label="objective"),
            "bonus": mo.ui.dropdown(
                {"counts (MERCI)": "count", "surprisal": "surprisal", "entropy": "entropy"}
                | {"random": "random"},
                value="counts (MERCI)",
                label="bonus",
            ),
        }
    )
    columns = [list(controls)[:5], list(controls)[5:]]
    mo.vstack(
        [
            mo.md("""
            ## 5. Two strategies, no language model

            A softmax policy chooses between a common and a rare strategy. Each is correct with a
            fixed probability. A step samples 16 groups, computes the objective's advantages, adds
            the bonus, and makes one policy-gradient step. The counts are exact: visits of each
            strategy so far, starting from 512 visits at the initial probabilities.
            """),
            mo.hstack([mo.vstack([controls[key] for key in column]) for column in columns]),
        ]
    )
    return (controls,)


@app.cell
def _(controls):
    toy = Toy(**controls.value)
    methods = {toy.objective: replace(toy, bonus="none"), f"{toy.objective} + {toy.bonus}": toy}
    curves, toy_rows = {}, []
    for label, method in methods.items():
        share_SR = simulate(method, runs=1000)
        path = [] if method.bonus == "random" else expected_path(method)
        curves[label] = share_SR, path
        row = summary(label, method, share_SR)
        if path:
            row["final share, expected updates"] = round(path[-1], 3)
        toy_rows.append(row)
    runs_figure = draw_runs_figure(curves)
    finals = [row["final share, mean"] for row in toy_rows]
    runs_text = f"final share of the rare strategy: {finals[0]} without, {finals[1]} with the bonus"
    mo.vstack(
        [
            mo.Html(f'<p id="share">{runs_text} (1000 runs each)</p>'),
            table(toy_rows),
            runs_figure,
            mo.md("""
            The expected updates are exact: all groups of G responses are enumerated. They show that
            without a bonus a better rare strategy grows too, only slowly. What the bonus changes is
            the time to adoption; chance, with 16 groups per step, does the rest.
            """),
        ]
    )
    return runs_figure, toy


@app.function
def resting_share(toy, step):
    """Where the expected update is 0 although the bonus pays the common strategy, because the rare
    one has more visits by now; 1 if it is above 0 everywhere. -> float
    """
    low, high = 1e-3, 1 - 1e-3
    if expected_update(toy, step, low, [1.0, 2.0]) < 0:
        return 0.0
    if expected_update(toy, step, high, [1.0, 2.0]) > 0:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if expected_update(toy, step, middle, [1.0, 2.0]) > 0:
            low = middle
        else:
            high = middle
    return low


@app.function
def draw_update_figure(toy):
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    shares = [i / 50 for i in range(1, 50)]
    plain = replace(toy, bonus="none")
    curves = {"no bonus": (plain, [2.0, 1.0], GREY)}
    if toy.bonus == "count":
        curves["bonus, rare one has fewer visits"] = (toy, [2.0, 1.0], GREEN)
        curves["bonus, rare one has more visits"] = (toy, [1.0, 2.0], RED)
    elif toy.bonus != "random":
        curves["bonus"] = (toy, [2.0, 1.0], GREEN)
    for name, (one, visits, colour) in curves.items():
        updates = [expected_update(one, 0, share, visits) for share in shares]
        axes.plot(shares, updates, color=colour, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="probability of the rare strategy", ylabel="expected update of its logit")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    return figure


@app.cell
def _(toy):
    update_figure = draw_update_figure(toy)
    resting = [resting_share(replace(toy, bonus="count"), step) for step in (0, toy.steps)]
    update_text = (
        f"with MERCI and more visits to the rare strategy its probability rests at "
        f"{resting[0]:.3f} at step 0 and at {resting[1]:.3f} at step {toy.steps}, when γ is "
        f"{merci.gamma_at(toy.steps, toy.gamma, toy.decay):.3f}"
    )
    print(update_text)
    mo.vstack(
        [
            mo.md("""
            ## 6. Why the bonus helps, and why it harms

            Between two strategies a z-score only depends on *which* was visited less, not on how
            much less. While the rare strategy has fewer visits, the bonus pushes it up (green). As
            soon as it has more, the bonus pays the other one, although that is worse (red): the
            probability stops where the red line crosses 0, until the visits have evened out again
            or γ has decayed.
            """),
            update_figure,
            mo.Html(f'<p id="update">{update_text}</p>'),
        ]
    )
    return (update_figure,)


@app.function
def phase_methods(toy):
    """The panels of the phase diagram. -> name -> Toy"""
    grpo_ = replace(toy, objective="grpo", bonus="none")
    return {
        "GRPO": grpo_,
        "GRPO + MERCI (counts)": replace(grpo_, bonus="count"),
        "MaxRL": replace(grpo_, objective="maxrl"),
        "GRPO + surprisal": replace(grpo_, bonus="surprisal"),
        "GRPO + entropy": replace(grpo_, bonus="entropy"),
        "GRPO + random": replace(grpo_, bonus="random"),
    }


@app.function
def phase_grid(toy):
    """Start frequencies and leads of the rare strategy, both as the edges of cells."""
    start = torch.logspace(math.log10(0.002), math.log10(0.4), 18)
    lead = torch.linspace(-0.2, 0.4, 16)
    return start, lead[(lead + toy.p_common >= 0) & (lead + toy.p_common <= 1)]


@app.function
def phase(toy, repeats, seed=0):
    """Final probability of the rare strategy in every cell. -> (leads, starts, repeats)"""
    start, lead = phase_grid(toy)
    start_S = (start[1:] * start[:-1]).sqrt()
    lead_L = (lead[1:] + lead[:-1]) / 2
    shape = len(lead_L), len(start_S), repeats
    start_R = start_S[None, :, None].expand(shape).flatten()
    p_rare_R = toy.p_common + lead_L[:, None, None].expand(shape).flatten()
    final_R = simulate(replace(toy, start=start_R, p_rare=p_rare_R), len(start_R), seed)[-1]
    return final_R.view(shape)


@app.function
def against_grpo(toy, share_LSR, grpo_LSR, least=0.1):
    """Cells in which the better strategy ends with a probability higher, or lower, than under GRPO
    by at least `least` and two standard errors. -> helps_LS, harms_LS, both bool
    """
    lead = phase_grid(toy)[1]
    sign_L1 = (lead[1:] + lead[:-1]).sign()[:, None]
    gain_LS = sign_L1 * (share_LSR - grpo_LSR).mean(2)
    error_LS = ((share_LSR.var(2) + grpo_LSR.var(2)) / share_LSR.shape[2]).sqrt()
    enough_LS = (2 * error_LS).clamp(min=least)
    return gain_LS >= enough_LS, gain_LS <= -enough_LS


@app.function
def phase_rows(toy, panels):
    """The phase diagram in numbers: cells helped and harmed, change of the success rate."""
    lead = phase_grid(toy)[1]
    lead_L1 = ((lead[1:] + lead[:-1]) / 2)[:, None]
    rows = []
    for name, share_LSR in panels.items():
        helps_LS, harms_LS = against_grpo(toy, share_LSR, panels["GRPO"])
        success_LS = (share_LSR - panels["GRPO"]).mean(2) * lead_L1
        rows.append(
            {
                "method": name,
                "cells": helps_LS.numel(),
                "helped": int(helps_LS.sum()),
                "harmed": int(harms_LS.sum()),
                "success rate, change where helped": mean_where(success_LS, helps_LS),
                "where harmed": mean_where(success_LS, harms_LS),
                "everywhere": round(float(success_LS.mean()), 4),
            }
        )
    return rows


@app.function
def mean_where(value_LS, chosen_LS):
    """Rounded, "-" where nothing is chosen."""
    if not chosen_LS.any():
        return "-"
    return round(float(value_LS[chosen_LS].mean()), 4)


@app.function
def draw_phase_figure(toy, panels):
    """Final share over start frequency and lead, one panel per method; marks against GRPO."""
    start, lead = phase_grid(toy)
    start_S, lead_L = (start[1:] * start[:-1]).sqrt(), (lead[1:] + lead[:-1]) / 2
    lead_LS, start_LS = torch.meshgrid(lead_L, start_S, indexing="ij")
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    all_axes = figure.subplots(2, 3, sharex=True, sharey=True)
    colours = {"cmap": "Blues", "vmin": 0, "vmax": 1}
    better = {"marker": "o", "facecolor": "white", "edgecolor": "black", "linewidth": 1.2, "s": 20}
    worse = {"marker": "x", "color": RED, "linewidth": 1.5, "s": 20}
    for axes, (name, share_LSR) in zip(all_axes.flat, panels.items(), strict=False):
        image = axes.pcolormesh(*(x.numpy() for x in (start, lead, share_LSR.mean(2))), **colours)
        for at_LS, style in zip(
            against_grpo(toy, share_LSR, panels["GRPO"]), (better, worse), strict=False
        ):
            axes.scatter(start_LS[at_LS].tolist(), lead_LS[at_LS].tolist(), **style)
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xscale="log")
        axes.set_xticks([0.003, 0.01, 0.03, 0.1, 0.3], ["0.3 %", "1 %", "3 %", "10 %", "30 %"])
        axes.minorticks_off()
    for axes in all_axes[1]:
        axes.set_xlabel("start frequency of the rare strategy")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("lead: p(rare) - p(common)")
    figure.colorbar(image, ax=all_axes, label=f"its final share after {toy.steps} steps")
    handles = [
        axes.scatter(
            [], [], label="better strategy ends higher than with GRPO (by ≥ 0.1)", **better
        ),
        axes.scatter([], [], label="lower (by ≥ 0.1)", **worse),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


@app.cell
def _():
    redraw = mo.ui.run_button(label="Draw it again with the sliders of part 5 (about 10 s)")
    mo.md(f"""
    ## 7. Where the bonus decides, and where it harms

    Each cell is a start frequency and a lead, p(rare) - p(common); the colour is the share that
    the rare strategy ends with. Counts of final answers and RND are left out: they would need a
    model of the answers and of a network.

    **The bonus decides in a band:** starting at 2 % with a lead of 0.1, the better strategy ends at
    0.94 with MERCI, 0.05 with GRPO and 0.07 with MaxRL. **Beside it the bonus harms:** starting at
    10 % with the same lead, it ends at 0.64 with MERCI and 0.93 with GRPO, and a strategy that is
    worse by 0.1 is raised from 2 % to 0.40 (GRPO: 0.01). It is a matter of time: after 400 steps,
    when γ has decayed, MERCI and GRPO differ by less than 0.05 in all three.

    {redraw}
    """)
    return (redraw,)


@app.cell
def _(redraw, toy):
    pictures = mo.cli_args().get("pictures")
    stored = Path(__file__).parent / "pictures" / "phase.png"
    if redraw.value or mo.app_meta().mode == "script" or not stored.exists():
        default = 8 if redraw.value else 3
        repeats = int(mo.cli_args().get("repeats") or default)
        panels = {name: phase(one, repeats) for name, one in phase_methods(toy).items()}
        phase_figure, phase_table = draw_phase_figure(toy, panels), phase_rows(toy, panels)
        shown_phase = mo.vstack([phase_figure, table(phase_table)])
    else:
        phase_figure, shown_phase = None, mo.image(stored.read_bytes())
    mo.vstack([shown_phase])
    return phase_figure, pictures


@app.cell
def _(
    coins_figure,
    filters_figure,
    merge_figure,
    phase_figure,
    pictures,
    runs_figure,
    update_figure,
):
    if pictures:
        for figure_name, one_figure in {
            "coins": coins_figure,
            "filters": filters_figure,
            "merge": merge_figure,
            "two_strategies": runs_figure,
            "expected_update": update_figure,
            "phase": phase_figure,
        }.items():
            one_figure.savefig(Path(pictures) / f"{figure_name}.png", dpi=110)
    return


if __name__ == "__main__":
    app.run()
