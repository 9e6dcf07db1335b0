// Who sends to whom: the members on a circle, an arrow for each pair, as wide as what
// was sent is much, and strong while bytes move.
import { keyed, el, size, svg, text } from "./dom.js";

const width = 760, height = 440, radius = 7;

// bent is the way from a to b, bent to its right so that both directions are seen, up
// to just before the circle at its end.
function bent(a, b) {
  const mx = (a.x + b.x) / 2 - (b.y - a.y) * 0.12, my = (a.y + b.y) / 2 + (b.x - a.x) * 0.12;
  const far = Math.hypot(b.x - mx, b.y - my) || 1, short = (radius + 3) / far;
  return `M${a.x} ${a.y} Q${mx} ${my} ${b.x - (b.x - mx) * short} ${b.y - (b.y - my) * short}`;
}

// show draws a swarm's links into an svg. nameOf makes a member's id readable.
export function show(picture, swarm, nameOf) {
  const links = swarm.links;
  const ids = swarm.traffic.map((t) => t.member).sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  const at = new Map(ids.map((id, i) => {
    const turn = (2 * Math.PI * i) / ids.length - Math.PI / 2;
    return [id, { x: width / 2 + (width / 2 - 190) * Math.cos(turn), y: height / 2 + (height / 2 - 50) * Math.sin(turn), turn }];
  }));
  for (const t of swarm.traffic) Object.assign(at.get(t.member), { up: t.upRate, down: t.downRate });
  const widest = Math.max(1, ...links.map((l) => l.bytes));
  const arrows = links.map((l) => {
    const says = svg("title");
    says.textContent = `${nameOf(l.from)} to ${nameOf(l.to)}: ${size(l.bytes)}, ${size(l.rate)}/s`;
    return svg("path", { d: bent(at.get(l.from), at.get(l.to)), class: l.rate ? "moving" : "still",
      "stroke-width": (0.5 + 3 * (l.bytes / widest)).toFixed(1), "marker-end": l.rate ? "url(#arrow)" : "" }, says);
  });
  const crowded = ids.length > 16;
  const nodes = ids.map((id) => {
    const p = at.get(id), right = Math.cos(p.turn);
    const anchor = Math.abs(right) < 0.3 ? "middle" : right > 0 ? "start" : "end";
    const x = p.x + (anchor === "middle" ? 0 : anchor === "start" ? 14 : -14);
    const y = p.y + (anchor !== "middle" ? (crowded ? 4 : -2) : Math.sin(p.turn) > 0 ? 24 : crowded ? -14 : -30);
    const label = svg("text", { x, y, "text-anchor": anchor });
    const name = nameOf(id);
    label.append(crowded && name.length > 18 ? name.slice(0, 17) + "…" : name);
    if (!crowded) {
      const rates = svg("tspan", { x, dy: "1.25em", class: "rates" });
      rates.textContent = p.up || p.down ? `↑ ${size(p.up)}/s  ↓ ${size(p.down)}/s` : "";
      label.append(rates);
    }
    return svg("g", {}, svg("circle", { cx: p.x, cy: p.y, r: radius }), label);
  });
  picture.querySelector("g").replaceChildren(...arrows, ...nodes);
  const moving = links.filter((l) => l.rate).length;
  picture.setAttribute("aria-label", `${ids.length} members, ${swarm.allLinks} links, ${moving} of the strongest moving; the table below lists them`);
}

// list lists them in the body of a table, in an order that does not change while
// somebody reads.
export function list(body, links, nameOf) {
  keyed(body, links, (l) => l.from + "\n" + l.to, () => el("tr", {}, el("td"), el("td"), el("td", { class: "num" }), el("td", { class: "num" })),
    (tr, l) => [nameOf(l.from), nameOf(l.to), size(l.bytes), l.rate ? size(l.rate) + "/s" : "–"].forEach((v, i) => text(tr.children[i], v)));
}
