// Who sends to whom: the members on a circle, an arrow for each pair, as wide as what
// was sent is much, and strong while bytes move.
import { keyed, el, size, svg, text } from "./dom.js";

const most = 150; // arrows drawn; the table has all
const width = 640, height = 420;

// show draws links into an svg, and lists them in the body of a table.
export function show(picture, body, links) {
  const names = [...new Set(links.flatMap((l) => [l.from, l.to]))].sort();
  const at = new Map(names.map((name, i) => {
    const turn = (2 * Math.PI * i) / names.length - Math.PI / 2;
    return [name, { x: width / 2 + (width / 2 - 110) * Math.cos(turn), y: height / 2 + (height / 2 - 40) * Math.sin(turn), turn }];
  }));
  const sorted = [...links].sort((a, b) => b.rate - a.rate || b.bytes - a.bytes);
  const widest = Math.max(1, ...links.map((l) => l.bytes));
  const arrows = sorted.slice(0, most).map((l) => {
    const a = at.get(l.from), b = at.get(l.to);
    // Bent to the right of its way, so that both directions are seen.
    const mx = (a.x + b.x) / 2 - (b.y - a.y) * 0.12, my = (a.y + b.y) / 2 + (b.x - a.x) * 0.12;
    return svg("path", { d: `M${a.x} ${a.y} Q${mx} ${my} ${b.x} ${b.y}`, class: l.rate ? "moving" : "still",
      "stroke-width": (0.5 + 5 * (l.bytes / widest)).toFixed(1), "marker-end": l.rate ? "url(#arrow)" : "" });
  });
  const nodes = names.map((name) => {
    const p = at.get(name);
    const anchor = Math.abs(Math.cos(p.turn)) < 0.3 ? "middle" : Math.cos(p.turn) > 0 ? "start" : "end";
    const dx = anchor === "middle" ? 0 : anchor === "start" ? 10 : -10;
    const dy = anchor === "middle" ? (Math.sin(p.turn) > 0 ? 20 : -12) : 4;
    const label = svg("text", { x: p.x + dx, y: p.y + dy, "text-anchor": anchor });
    label.textContent = names.length > 24 && name.length > 14 ? name.slice(0, 13) + "…" : name;
    return svg("g", {}, svg("circle", { cx: p.x, cy: p.y, r: 6 }), label);
  });
  picture.querySelector("g").replaceChildren(...arrows, ...nodes);
  const moving = links.filter((l) => l.rate).length;
  picture.setAttribute("aria-label", `${names.length} members, ${links.length} links, ${moving} of them moving; the table below lists them`);
  keyed(body, sorted, (l) => l.from + "\n" + l.to, (l) => el("tr", {}, el("td"), el("td"), el("td", { class: "num" }), el("td", { class: "num" })),
    (tr, l) => [l.from, l.to, size(l.bytes), l.rate ? size(l.rate) + "/s" : "–"].forEach((v, i) => text(tr.children[i], v)));
}
