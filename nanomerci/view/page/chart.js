// Charts as SVG: lines with bands, stacked areas, a legend that follows the pointer. For the report and for comparisons.
const DASH = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 1"];
const sampleLine = (i, area) => el("svg", {width: 26, height: 8}, area ? el("rect", {width: 26, height: 8, style: `fill:var(--c${i % 7});opacity:.6`}) : el("line", {x1: 0, x2: 26, y1: 4, y2: 4, style: `stroke:var(--c${i % 7})`, "stroke-width": 2.5, "stroke-dasharray": DASH[i % 7]}));

function runningMean(y, most = Math.ceil(y.length / 25)) {  // over so many steps on either side
  return y.map((v, i) => {
    const near = y.slice(Math.max(0, i - most), i + most + 1).filter(w => w !== null);
    return v === null ? null : near.reduce((s, w) => s + w, 0) / near.length;
  });
}
const tickText = (v, tick) => tick < 1e-4 || tick >= 1e5 ? number(+v.toPrecision(6)) : v.toFixed(Math.max(0, -Math.floor(Math.log10(tick) + 1e-9)));

// lines: [{name, y, low?, high?}] over x; stack: areas on one another; log: x in powers of two
function chart(title, help, x, lines, {stack = false, log = false, points = false, zero = false, unit: xUnit = log ? "k" : "step"} = {}) {
  lines = lines.filter(l => l.y.some(v => v !== null && !(stack && v === 0)));
  if (!lines.length) return null;
  const W = 370, H = 190, L = 46, R = 10, T = 8, B = 22, f = log ? Math.log2 : v => v;
  let base = x.map(() => 0);
  const layers = lines.map(l => ({...l, y0: stack ? base : null, y: stack ? base = base.map((b, i) => b + (l.y[i] ?? 0)) : l.y}));
  const all = layers.flatMap(l => [...l.y, ...(l.low ?? []), ...(l.high ?? [])]).filter(v => v !== null);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (stack || zero) low = Math.min(0, low);
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) [low, high] = low ? [Math.min(low, 0), Math.max(high, 0)] : [0, 1];
  const x0 = f(x[0]), x1 = f(x[x.length - 1]), pad = points ? .04 * (W - L - R) : 0;
  const X = v => x1 === x0 ? (L + W - R) / 2 : L + pad + (f(v) - x0) / (x1 - x0) * (W - L - R - 2 * pad), Y = v => H - B - (v - low) / (high - low) * (H - B - T);
  const svg = el("svg", {viewBox: `0 0 ${W} ${H}`, class: "plot", role: "img", "aria-label": title});
  const unit = 10 ** Math.floor(Math.log10((high - low) / 3)), tick = [1, 2, 5, 10].map(m => m * unit).find(s => (high - low) / s <= 5) ?? 10 * unit;
  for (let v = Math.ceil(low / tick - 1e-9) * tick; v <= high + tick * 1e-6; v += tick)
    svg.append(el("line", {x1: L, x2: W - R, y1: Y(v), y2: Y(v), class: "grid-line"}), el("text", {x: L - 5, y: Y(v) + 4, "text-anchor": "end"}, tickText(v, tick)));
  const marks = log ? x : [...new Set([x[0], x[Math.floor((x.length - 1) / 2)], x[x.length - 1]])];
  for (const v of marks) svg.append(el("text", {x: X(v), y: H - 6, "text-anchor": v === x[x.length - 1] && String(v).length > 3 ? "end" : "middle"}, v));
  const path = (ys, back) => x.map((v, i) => ys[i] === null ? null : `${X(v).toFixed(1)},${Y(ys[i]).toFixed(1)}`).filter(p => p).reduce((d, p, i) => d + (i || back ? "L" : "M") + p, "");
  const area = (top, bottom) => path(top) + [...x.keys()].reverse().filter(i => bottom[i] !== null).map(i => `L${X(x[i]).toFixed(1)},${Y(bottom[i]).toFixed(1)}`).join("") + "Z";
  layers.forEach((l, i) => {
    const style = `stroke:var(--c${i % 7});fill:none;stroke-width:2`, fill = `fill:var(--c${i % 7});stroke:none;opacity:`;
    if (stack) svg.append(el("path", {d: area(l.y, l.y0), style: fill + .45}));
    if (l.low) svg.append(el("path", {d: area(l.high, l.low), style: fill + .16}));
    const noisy = !stack && !points && x.length > 30;  // then the steps are faint, and their running mean is the line
    if (noisy) svg.append(el("path", {d: path(l.y), style: `stroke:var(--c${i % 7});fill:none;stroke-width:1;opacity:.4`}));
    svg.append(el("path", {d: path(noisy ? runningMean(l.y) : l.y), style, "stroke-dasharray": stack ? "" : DASH[i % 7], "stroke-linejoin": "round"}));
    if (points || l.y.filter(v => v !== null).length < 5)
      x.forEach((v, t) => l.y[t] !== null && svg.append(el("circle", {cx: X(v), cy: Y(l.y[t]), r: 3, style: `fill:var(--c${i % 7})`})));
  });
  const cursor = el("line", {y1: T, y2: H - B, style: "stroke:var(--soft);visibility:hidden"}), keys = el("div", {class: "keys"});
  svg.append(cursor);
  const legend = at => keys.replaceChildren(...lines.map((l, i) => el("span", {}, sampleLine(i, stack), l.name + " ", el("b", {}, number(l.y[at])),
    l.low && l.low[at] !== null ? ` [${number(l.low[at])}, ${number(l.high[at])}]` : "")), el("span", {class: "soft"}, `at ${xUnit} ${x[at]}`));
  legend(x.length - 1);
  svg.addEventListener("pointermove", event => {
    const mouse = (event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width * W;
    const at = x.reduce((best, v, i) => Math.abs(X(v) - mouse) < Math.abs(X(x[best]) - mouse) ? i : best, 0);
    cursor.setAttribute("x1", X(x[at])); cursor.setAttribute("x2", X(x[at])); cursor.style.visibility = "visible";
    legend(at);
  });
  svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; legend(x.length - 1); });
  return el("div", {class: "card"}, el("h3", {}, title), help ? el("p", {class: "soft"}, help) : null, svg, keys);
}

const section = (title, help, ...cards) => {
  cards = cards.filter(c => c);
  if (cards.length) main.append(title ? el("h2", {}, title) : "", help ? el("p", {class: "soft"}, help) : "", el("div", {class: "grid"}, ...cards));
};
