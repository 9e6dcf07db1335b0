// Where the time went: a row for each destination, from when the seeder took the
// execution up to the recorded arrival. What the seeder did is on its clock; what an
// agent did are the durations that it told, one after the other, so that its clock does
// not matter.
import { attribute, el, keyed, seconds, text } from "./dom.js";

const words = {
  waiting: "waiting", pulling: "pulling", announcing: "announcing",
  queued: "waiting at the agent", swarm: "swarm", landing: "landing", recording: "recording",
};

// spans returns [what, seconds] of a destination; only those of which something is
// known.
export function spans(execution, destination) {
  const at = (t) => (t ? Date.parse(t) / 1000 : null);
  const out = [];
  let from = at(execution.takenUpAt); // null where another start of the seeder has carried it
  for (const [what, until] of [["waiting", execution.pullBeganAt], ["pulling", execution.pulledAt], ["announcing", execution.announcedAt]]) {
    if (from === null || at(until) === null) continue;
    out.push([what, Math.max(0, at(until) - from)]);
    from = at(until);
  }
  for (const what of ["queued", "swarm", "landing", "recording"]) {
    if (destination.took?.[what]) out.push([what, destination.took[what]]);
  }
  return out;
}

const sum = (list) => list.reduce((n, [, s]) => n + s, 0);
const tell = (list) => list.filter(([, s]) => s >= 0.05).map(([what, s]) => `${words[what]} ${seconds(s)}`).join(", ");

// show draws the rows into a list and says in words what the slowest one waited for.
export function show(list, summary, execution) {
  const rows = execution.destinations.map((d) => ({ who: d.region || d.bucket, key: d.bucket, spans: spans(execution, d) }));
  const longest = Math.max(0.001, ...rows.map((r) => sum(r.spans)));
  keyed(list, rows, (r) => r.key, () => el("li", {}, el("span", { class: "who" }), el("div", { class: "spans", role: "img" }), el("span", { class: "num" })), (li, r) => {
    const [who, line, number] = li.children;
    text(who, r.who);
    text(number, r.spans.length ? seconds(sum(r.spans)) : "–");
    attribute(line, "aria-label", `${r.who}: ${tell(r.spans) || "nothing known"}`);
    keyed(line, r.spans, ([what]) => what, ([what]) => el("div", { class: what }), (e, [what, s]) => {
      e.style.width = (100 * s) / longest + "%";
      attribute(e, "title", `${words[what]} ${seconds(s)}`);
    });
  });
  const known = rows.filter((r) => r.spans.some(([what]) => what in { swarm: 1, landing: 1 }));
  const slowest = known.sort((a, b) => sum(b.spans) - sum(a.spans))[0];
  text(summary, slowest ? `Slowest: ${slowest.who}, ${seconds(sum(slowest.spans))}${tell(slowest.spans) && ` (${tell(slowest.spans)})`}.`
    : execution.status === "IN_PROGRESS" ? "No agent has told anything yet." : "What took how long is known only for what the seeder saw since its start.");
}
