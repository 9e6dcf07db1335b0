// The map of the pieces: a row for the copies that there are of each stretch, one for
// the seeder and one for each agent, left to right from the first piece to the last.
import { attribute, el, keyed, percent, text } from "./dom.js";

const levels = 9; // of a digit of a Fill

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// share is how much of the build a Fill has.
export function share(fill) {
  let sum = 0;
  for (const c of fill) sum += Number(c);
  return fill.length ? sum / levels / fill.length : 0;
}

function row(item) {
  return el("li", {}, el("span", { class: "who" }), el("canvas", { role: "img", width: 800, height: 12 }), el("span", { class: "num" }));
}

function draw(canvas, shades, of) {
  const mark = shades + of + matchMedia("(prefers-color-scheme: dark)").matches;
  if (canvas.mark === mark) return;
  canvas.mark = mark;
  const c = canvas.getContext("2d");
  const n = shades.length || 1;
  c.clearRect(0, 0, canvas.width, canvas.height);
  c.fillStyle = colour("--empty");
  c.fillRect(0, 0, canvas.width, canvas.height);
  c.fillStyle = colour(of);
  for (let i = 0; i < shades.length; ) {
    let end = i + 1;
    while (end < shades.length && shades[end] === shades[i]) end++;
    c.globalAlpha = shades[i];
    const left = Math.round((i * canvas.width) / n);
    c.fillRect(left, 0, Math.round((end * canvas.width) / n) - left, canvas.height);
    i = end;
  }
  c.globalAlpha = 1;
}

// show draws the map of an execution's swarm into a list. landed names the agents
// whose bucket has everything, and who may have hung up since.
export function show(list, swarm, landed, nameOf) {
  const rows = [];
  const length = swarm.seeder.length;
  const holders = swarm.holders.map((h) => ({ who: nameOf(h.agent), fill: h.fill }));
  for (const who of landed.map(nameOf)) {
    if (!holders.some((h) => h.who === who)) holders.push({ who, fill: "9".repeat(length) });
  }
  holders.sort((a, b) => a.who.localeCompare(b.who));
  // Beside the seeder's own, which is whole as a rule.
  const copies = Array.from({ length }, (_, i) => holders.reduce((n, h) => n + Number(h.fill[i] || 0) / levels, 0));
  const rarest = copies.length ? Math.min(...copies) : 0;
  rows.push({ who: "copies among agents", shades: copies.map((n) => n / Math.max(1, holders.length)), of: "--copies",
    says: `${rarest.toFixed(1)} of ${holders.length} at the rarest`, number: `≥ ${rarest.toFixed(1)} ×` });
  for (const h of [{ who: "seeder", fill: swarm.seeder }, ...holders]) {
    rows.push({ who: h.who, shades: [...h.fill].map((d) => Number(d) / levels), of: "--verified",
      says: `${percent(share(h.fill))} of the pieces`, number: percent(share(h.fill)) });
  }
  keyed(list, rows, (r) => r.who, row, (li, r) => {
    const [who, canvas, number] = li.children;
    text(who, r.who);
    text(number, r.number);
    attribute(canvas, "aria-label", `${r.who}: ${r.says}`);
    draw(canvas, r.shades, r.of);
  });
}
