// Small things both pages use. Whatever a model wrote goes through text(), never through innerHTML.
const data = JSON.parse(document.getElementById("data").textContent), SVG = "http://www.w3.org/2000/svg";
const main = document.getElementById("main");
main.replaceChildren();

function el(name, attributes = {}, ...children) {
  const node = ["svg", "path", "line", "text", "circle", "rect"].includes(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  node.append(...children.filter(c => c !== null).map(c => typeof c === "object" ? c : String(c)));
  return node;
}

// control characters, and those that turn the direction of text around, are shown instead of obeyed
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/gu;
function text(written) {
  return String(written).replace(HIDDEN, c => {
    const code = c.codePointAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `\u27e8${code.toString(16).padStart(4, "0")}\u27e9`;
  });
}

function number(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  if (x === 0 || Number.isInteger(x)) return String(x);
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(digits - 1) : String(+x.toPrecision(size >= 100 ? 4 : digits));
}

// blue - white - red (blue - charcoal - red in the dark): where between 0 and 1 -> colours that go on one another
const dark = matchMedia("(prefers-color-scheme: dark)");
const RAMP = () => dark.matches ? [[78, 150, 222], [44, 50, 57], [226, 88, 72]] : [[67, 132, 196], [247, 247, 247], [202, 54, 48]];
function shade(where) {
  const [low, middle, high] = RAMP(), w = Math.min(1, Math.max(0, where)), far = Math.abs(2 * w - 1), end = w < .5 ? low : high;
  const rgb = middle.map((m, i) => Math.round(m + (end[i] - m) * far));
  const light = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const luminance = .2126 * light[0] + .7152 * light[1] + .0722 * light[2];
  return {background: `rgb(${rgb})`, color: luminance > .179 ? "#000000" : "#ffffff"};
}
function paint(node, where) {
  if (where === null) node.style.background = node.style.color = "";
  else Object.assign(node.style, shade(where));
}
function colourBar(low, high, name) {
  const stops = Array.from({length: 11}, (_, i) => shade(i / 10).background).join(",");
  return el("div", {class: "bar-box"}, el("span", {}, number(low)), el("div", {class: "bar", style: `background:linear-gradient(90deg,${stops})`}),
    el("span", {}, number(high)), el("span", {class: "soft"}, name));
}
// the scale of a heat map: from the 2nd to the 98th percentile, so that one outlier does not bleach the rest
function scale(values, log = false) {
  const sorted = values.filter(v => v !== null && (!log || v > 0)).sort((a, b) => a - b);
  if (!sorted.length) return {low: 0, high: 1, at: () => .5};
  const pick = q => sorted[Math.round(q * (sorted.length - 1))], low = pick(.02), high = pick(.98), f = log ? Math.log : x => x;
  return {low, high, at: v => v === null ? null : high === low ? .5 : (f(Math.max(v, log ? low : -Infinity)) - f(low)) / (f(high) - f(low))};
}
