// report.html of a run: charts as SVG drawn here, a browser for samples.jsonl, the configuration.
const HELP = {
  "reward/mean": "mean reward of the step's responses", "entropy": "minus mean log-prob of sampled tokens, nats", "length/mean": "tokens per response",
  "clip/low": "share of tokens whose ratio was clipped from below", "clip/high": "… and from above", "grad_norm": "before clipping",
  "merci/bonus": "mean trajectory bonus B", "merci/kept": "share of tokens the filters keep", "merci/gamma": "weight of the bonus",
  "merci/share": "share of the advantages that the bonus made", "cfn/invn": "mean 1/n of the states just visited, before counting them",
  "cfn/loss": "CFN loss; 1 = predicting zero", "kl": "k3 KL to the initial policy", "lr": "learning rate", "tokens_per_s": "tokens per second",
  "sampler/logp_gap": "mean |log-prob of sampler - of trainer|", "groups/used": "groups the policy learned from", "prompts": "prompts sampled so far",
};
// the ledger: what the bonus saw, what the filters left of it, where it went, and whether it is being gamed
const LEDGER = {
  "cfn/invn": "mean 1/n of the visited states: how novel they still are", "merci/kept_top": "share of tokens left by the first filter (percentile)",
  "merci/kept_run": "… by the second (coherence)", "merci/kept": "… by all three: their 1/n makes the bonus",
  "merci/bonus": "mean bonus B of a response", "merci/novelty_right": "… of correct responses", "merci/novelty_wrong": "… of incorrect responses",
  "merci/share": "share of all |advantage| that the bonus made", "merci/on_wrong": "share of the bonus that went to incorrect responses",
  "merci/length_corr": "correlation of length and bonus within a group; near 1: it rewards length", "text/repetition": "share of 4-grams that repeat within a response",
  "text/gibberish": "share of responses with characters that are no text", "merci/gamma": "weight of the exploration advantage",
};

const used = new Set(["time/step"]);
function metrics(title, help, names, options) {
  names.forEach(n => used.add(n));
  return chart(title, help, data.step, names.filter(n => data.series[n]).map(n => ({name: n, y: data.series[n]})), options);
}

function ledger() {  // the first tenth of the steps beside the last
  const names = Object.keys(LEDGER).filter(n => data.series[n]), part = Math.ceil(data.step.length / 10);
  const mean = values => { const v = values.filter(v => v !== null); return v.length ? number(v.reduce((s, x) => s + x, 0) / v.length) : "–"; };
  if (!names.some(n => n.startsWith("merci/"))) return;
  main.append(el("h2", {}, "Bonus ledger"), el("div", {class: "scroll"}, el("table", {class: "ledger"}, el("tr", {}, ...["mean of steps", `first ${part}`, `last ${part}`, ""].map(h => el("th", {}, h))),
    ...names.map(n => el("tr", {}, el("td", {}, n), el("td", {}, mean(data.series[n].slice(0, part))), el("td", {}, mean(data.series[n].slice(-part))), el("td", {class: "soft"}, LEDGER[n]))))), el("br"));
}

// ---- head: what, how far, and did it help
const done = data.steps !== undefined && data.steps !== null && data.last >= data.steps;
const old = Date.now() / 1000 - data.at, age = old < 90 ? `${Math.max(0, Math.round(old))} s ago` : `${Math.round(old / 60)} min ago${old > 900 ? "; has it stopped?" : ""}`;
main.append(el("h1", {}, data.run), el("p", {class: "soft"}, `${done ? "finished" : "so far"}: step ${data.last}${data.steps ? ` of ${data.steps}` : ""}, written ${data.written}${done ? "" : ` (${age})`}. `,
  [data.options.algo, data.options.bonus && data.options.bonus !== "none" && data.options.gamma ? `bonus ${data.options.bonus}, gamma ${data.options.gamma}, alpha ${data.options.alpha}` : "no bonus", data.options.task, data.options.model].filter(w => w).join(" · ")));
if (!done) {  // live: the run rewrites this file, so read it again now and then; place and step are kept
  const live = el("input", {type: "checkbox", checked: ""});
  live.checked = sessionStorage.live !== "off";
  live.addEventListener("change", () => sessionStorage.live = live.checked ? "on" : "off");
  main.append(el("label", {class: "soft"}, live, " read this page again every 30 s while the run goes on"));
  setInterval(() => live.checked && location.reload(), 30000);
}

const first = data.evals[0], last = data.evals[data.evals.length - 1], order = n => (n.includes("mean@") ? 0 : n.includes("@") ? +n.split("@")[1] : 1e9);
const evalNames = first ? Object.keys(first).filter(n => n.endsWith("_ci")).map(n => n.slice(0, -3)).sort((a, b) => order(a) - order(b)) : [];
const interval = (e, n) => [n, `${n}_ci`].every(k => e[k] !== undefined && e[k] !== null) ? `${e[n].toFixed(3)} [${e[n + "_ci"].map(v => v.toFixed(3)).join(", ")}]` : "–";
if (first) {
  const cells = evalNames.map(n => el("tr", {}, el("td", {}, n.slice(5)), ...[first, ...(last !== first ? [last] : [])].map(e => el("td", {}, interval(e, n)))));
  main.append(el("h2", {}, "Before and after"), el("p", {class: "soft"}, `${number(last["eval/problems"])} held-out problems; in brackets 95 % bootstrap intervals over problems.`),
    el("div", {class: "scroll"}, el("table", {}, el("tr", {}, el("th", {}), el("th", {}, `step ${first.step}`), last !== first ? el("th", {}, `step ${last.step}`) : null), ...cells)));
  const column = (e, n, i) => i === undefined ? e[n] ?? null : e[n + "_ci"]?.[i] ?? null;
  const passes = evalNames.filter(n => n.includes("@")), k = passes.map(n => n.includes("mean@") ? 1 : order(n));
  const curve = e => ({name: `step ${e.step}`, y: passes.map(n => column(e, n)), low: passes.map(n => column(e, n, 0)), high: passes.map(n => column(e, n, 1))});
  const path = n => ({name: n.slice(5), y: data.evals.map(e => column(e, n)), low: data.evals.map(e => column(e, n, 0)), high: data.evals.map(e => column(e, n, 1))});
  const over = [...new Set([passes[0], passes[passes.length - 1], ...evalNames.filter(n => !n.includes("@"))])];
  section("Held-out problems", null, chart("pass@k before and after", "over k, at k = 1 mean@K", k, last === first ? [curve(first)] : [curve(first), curve(last)], {log: true, points: true}),
    chart("over the run", "bands: 95 % intervals", data.evals.map(e => e.step), over.map(path), {points: true}));
}
section("Training", (data.step.length > 30 ? "Faint: each step; bold: a running mean; the numbers are those of the step. " : "") +
  (data.thinned ? `Curves show ${data.step.length} steps evenly chosen; ${data.thinned} are left out.` : "") || null,
  metrics("reward", HELP["reward/mean"], ["reward/mean"]), metrics("entropy", HELP.entropy, ["entropy"], {zero: true}), metrics("length", HELP["length/mean"], ["length/mean"]),
  metrics("group mix", "groups with mixed, all-correct and all-incorrect rewards", ["groups/mixed", "groups/all_right", "groups/all_wrong"], {stack: true}),
  metrics("clip fractions", "share of tokens whose ratio was clipped", ["clip/low", "clip/high"], {zero: true}),
  metrics("outcomes", "what the grader said", ["right", "wrong", "unparsable", "timeout", "unsafe", "error"].map(n => `outcome/${n}`), {stack: true}));
ledger();
section(null, null,
  metrics("bonus B", "of correct and of incorrect responses, and their mean", ["merci/novelty_right", "merci/novelty_wrong", "merci/bonus"], {zero: true}),
  metrics("filters", "share of tokens each filter leaves", ["merci/kept_top", "merci/kept_run", "merci/kept"], {zero: true}),
  metrics("where it went", "shares: of |advantage| that the bonus made; of the bonus that incorrect responses got", ["merci/share", "merci/on_wrong"], {zero: true}),
  metrics("is it gamed?", "correlation with length; repeated 4-grams; characters that are no text", ["merci/length_corr", "text/repetition", "text/gibberish"], {zero: true}),
  metrics("gamma", HELP["merci/gamma"], ["merci/gamma"], {zero: true}));
const bins = (data.calibration?.bins ?? []).filter(b => b.n > 0), fresh = data.calibration?.bins?.find(b => b.n === 0);
const doublings = x => x > 0 ? -Math.log2(x) : null, n = bins.map(b => b.n);
section("Counter", "The counter's estimates at the visited states.", metrics("mean 1/n", HELP["cfn/invn"], ["cfn/invn"], {zero: true}),
  metrics("coin loss", "before each update, on new and replayed visits; 1 - 1/n on known states, 1 + 1/n on new coins, so near 1", ["cfn/loss"]),
  bins.length ? chart(`calibration, step ${data.calibration.step}`, "times a prefix was visited, in doublings (log2 n): exactly, and by the counter (median, quartiles)" +
    (fresh ? `; never visited: 1/n ${number(fresh.quartiles[1])}` : ""), n.map(Math.log2), [
    {name: "counter", y: bins.map(b => doublings(b.quartiles[1])), low: bins.map(b => doublings(b.quartiles[2])), high: bins.map(b => doublings(b.quartiles[0]))},
    {name: "exact", y: n.map(v => Math.log2(1.5 * v - .5)), low: n.map(Math.log2), high: n.map(v => Math.log2(2 * v - 1))}], {points: true, unit: "log2 n"}) : null,
  ...Object.keys(data.series).filter(n => n.startsWith("oracle/")).map(n => metrics(n, "against exact counts", [n], {zero: true})));
section("Cost", null, metrics("time per phase, seconds per step", "on one another", Object.keys(data.series).filter(n => n.startsWith("time/") && n !== "time/step" && n !== "time/eval"), {stack: true}));
const rest = Object.keys(data.series).filter(n => !used.has(n)).map(n => metrics(n, HELP[n], [n], {zero: true})).filter(c => c);
if (rest.length) {
  const box = el("details", {}, el("summary", {}, `The rest: ${rest.length} more curves`), el("div", {class: "grid"}, ...rest));
  box.open = sessionStorage.rest === "open";
  box.addEventListener("toggle", () => sessionStorage.rest = box.open ? "open" : "");
  main.append(box);
}

// ---- samples
const groups = data.samples, tokens = g => g.tokens && g.invn;
if (groups.length) {
  const slider = el("input", {type: "range", min: 0, max: groups.length - 1, value: groups.length - 1, id: "step", "aria-label": "step", style: "width:100%;max-width:420px;display:block"}), head = el("p"), body = el("div", {class: "columns"});
  const show = () => {
    const g = groups[+slider.value], s = tokens(g) ? scale(g.invn.flat(), true) : null;
    sessionStorage.step = g.step;
    head.replaceChildren(el("b", {}, `step ${g.step}`), " ", el("span", {class: "soft"}, text(g.id ?? "")), el("div", {class: "text", dir: "auto"}, text(g.prompt)),
      s ? colourBar(s.low, s.high, "1/n") : "");
    body.replaceChildren(...g.answers.map((answer, i) => {
      const outcome = g.outcomes?.[i] ?? "unknown", known = outcome === "right" ? "right" : "wrong";
      const words = s ? [...g.tokens[i].map((word, t) => { const node = el("span", {class: `tok${g.kept?.[i][t] === "x" ? " kept" : ""}`, title: `1/n ${number(g.invn[i][t])}`}, text(word)); paint(node, s.at(g.invn[i][t])); return node; }), ...(g.cut?.[i] ? [el("span", {class: "soft"}, ` [… ${g.cut[i]} more tokens]`)] : [])] : [text(answer)];
      return el("div", {class: "card"}, el("span", {class: `mark ${known}`}, `${known === "right" ? "✓" : "✗"} ${text(outcome)}`), " ",
        el("span", {class: "soft"}, [["bonus", g.bonus], ["advantage", g.advantage]].filter(([, v]) => v).map(([n, v]) => `${n} ${number(v[i])}`).join(", ")),
        el("div", {class: "text", dir: "auto"}, ...words));
    }));
  };
  slider.addEventListener("input", show);
  dark.addEventListener("change", show);
  main.append(el("h2", {}, "Samples"), el("p", {class: "soft"}, "One whole group per step; the advantage is the one the policy learned from, the bonus included." + (groups.some(tokens) ? " Red is novel; underlined: what the filters kept for the bonus." : "")), slider, head, body);
  const before = groups.findIndex(g => String(g.step) === sessionStorage.step);
  if (before >= 0) slider.value = before;
  show();
}

// ---- how to make it again
main.append(el("h2", {}, "Make it again"), el("p", {class: "soft"}, "From the configuration beside this page, or from the recipe nearest to it:"),
  ...data.commands.map(c => el("pre", {}, text(c))), el("h2", {}, "Configuration"),
  el("div", {class: "options"}, ...Object.entries(data.options).map(([k, v]) => el("div", {}, el("span", {class: "soft"}, `${k} `), el("code", {}, text(v === "" ? '""' : v))))));
