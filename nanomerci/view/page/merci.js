// The numbers of nanomerci/merci.py and grpo.advantage, for the sliders of the page. A test holds these to Python's.
// One response is an array; a group is an array of responses or of numbers.
const merci = {
  // as nanomerci/merci.py: .3 of 10 is 3 also in floating point
  percentile(invn, top) {
    if (!invn.length) return [];
    const rank = Math.max(1, Math.ceil(top * invn.length - 1e-6)) - 1;
    const threshold = [...invn].sort((a, b) => b - a)[Math.min(rank, invn.length - 1)];
    return invn.map(x => x >= threshold);
  },
  coherent(kept, run) {
    const out = kept.map(() => false);
    for (let start = 0, t = 0; t <= kept.length; t++)
      if (!kept[t]) {
        if (t - start >= run) out.fill(true, start, t);
        start = t + 1;
      }
    return run <= 1 ? [...kept] : out;
  },
  suppress: (kept, noise) => kept.map((k, t) => k && !noise[t]),
  bonus(invn, kept) {
    const sum = invn.reduce((s, x, t) => s + (kept[t] ? x : 0), 0);
    return Math.sqrt(sum / Math.max(1, invn.length));
  },
  moments(values) {  // mean and sum of squared deviations
    const mean = values.reduce((s, x) => s + x, 0) / values.length;
    return [mean, values.reduce((s, x) => s + (x - mean) ** 2, 0)];
  },
  explorationAdvantage(bonus, floor = 0.01) {
    const [mean, squares] = merci.moments(bonus);
    const std = Math.max(Math.sqrt(squares / bonus.length), floor * mean, 1e-12);
    return bonus.map(b => Math.max(0, (b - mean) / std));
  },
  merge: (adv, expl, gamma, alpha) => Math.min(adv + gamma * expl, adv + alpha * Math.abs(adv)),
  advantage(reward, eps = 1e-6) {  // grpo.advantage: sample standard deviation
    const [mean, squares] = merci.moments(reward);
    const std = Math.sqrt(squares / Math.max(1, reward.length - 1));
    return reward.map(r => (r - mean) / (std + eps));
  },
  // everything the microscope shows of a group: samples [{invn, noise, reward}], options {top, run, gamma, alpha, suppress}
  microscope(samples, o) {
    const rows = samples.map(s => {
      const top = merci.percentile(s.invn, o.top), runs = merci.coherent(top, o.run);
      const kept = o.suppress === false ? runs : merci.suppress(runs, s.noise);
      const stage = s.invn.map((_, t) => kept[t] ? "kept" : runs[t] ? "noise" : top[t] ? "spike" : "below");
      return {stage, kept, bonus: merci.bonus(s.invn, kept)};
    });
    const expl = merci.explorationAdvantage(rows.map(r => r.bonus));
    const known = samples.every(s => s.reward !== null), adv = known ? merci.advantage(samples.map(s => s.reward)) : null;
    rows.forEach((r, i) => Object.assign(r, {
      expl: expl[i], before: adv && adv[i], after: adv && merci.merge(adv[i], expl[i], o.gamma, o.alpha)}));
    return rows;
  },
};
if (typeof module !== "undefined") module.exports = merci;
