// Services: their list, and all about the one that is chosen by the address
// (#service/NAME): its goal, its waves, where its hosts are in which state, why they fail.
// Hosts come as counts alone, so that a hundred thousand are no more to draw than ten.
import { $, ago, attribute, clock, el, keyed, percent, table, text } from "./dom.js";

// states are those of a host, in the order of a deployment; what they mean is in words below.
const states = ["healthy", "switching", "ready", "waiting", "sick", "absent", "failed"];
const meaning = {
  healthy: "run the target, and their check says so", switching: "have leave to switch", ready: "hold the target, and run what they are to run",
  waiting: "do not hold the target yet", sick: "were unhealthy before they were told to switch", absent: "are not heard of", failed: "were told to switch, and could not",
};
const many = (n) => n.toLocaleString("en");
const hosts = (n) => (n === 1 ? "1 host" : many(n) + " hosts");

export const chosen = () => location.hash.match(/^#service\/([a-z0-9_-][a-z0-9._-]{0,62})$/)?.[1] ?? "";

// --- the list

export function list(feed) {
  const rows = [...feed.under("service/")].sort((a, b) => (a.service < b.service ? -1 : 1));
  const recalls = feed.values.get("recalls");
  $("services-section").hidden = rows.length === 0 && !recalls;
  recalled(recalls);
  keyed($("services"), rows, (s) => s.service, (s) => {
    const tr = el("tr", {}, ...Array.from({ length: 9 }, () => el("td")));
    tr.firstChild.append(el("a", { href: "#service/" + s.service }, s.service));
    return tr;
  }, (tr, s) => {
    attribute(tr.firstChild.firstChild, "aria-current", s.service === chosen() ? "true" : null);
    [s.target, s.stable, s.state ? stands(s.state, s.wave, s.waves) : "none",
      many(s.hosts.total), many(s.hosts.target), many(s.hosts.switching), many(s.hosts.failed), s.reason]
      .forEach((v, i) => text(tr.children[i + 1], v || "–"));
  });
}

// recalled shows the newest of the builds that must run nowhere, for who opens it.
function recalled(r) {
  $("recalled").hidden = !r;
  if (!r) return;
  const rest = r.all - r.newest.length;
  text($("recalled").firstChild, `${r.all === 1 ? "1 build is" : many(r.all) + " builds are"} recalled` + (rest > 0 ? `, the newest ${r.newest.length} here, all of them by seeder recall` : ""));
  table($("recalls"), r.newest.map((b) => [b.key || "–", b.sha256, ago(b.at), b.by || "–"]), (row) => row[1]);
}

// stands is a deployment's state, and at which wave.
function stands(state, wave, waves) {
  const at = wave && !goesBack(state) ? `wave ${wave} of ${waves ?? 0}` : "";
  return state === "wave" && at ? at : at ? `${state}, ${at}` : state;
}

const goesBack = (state) => state === "going back" || state === "went back";

// --- the service that is chosen

let shown = "";

// choose shows the article of a service, empty until its value has come; none for "".
export function choose(name) {
  if (name === shown) return;
  shown = name;
  for (const id of ["s-name", "s-status", "s-facts", "s-answer", "no-waves"]) text($(id), "");
  for (const id of ["waves", "states", "s-regions", "reasons"]) keyed($(id), [], String);
  for (const id of ["pause", "resume", "rollback", "held"]) $(id).hidden = true;
  $("service").hidden = name === "";
  text($("s-name"), name);
}

const backwards = (d) => goesBack(d?.state);
const ended = (d) => ["done", "stopped", "went back"].includes(d.state);

export function show(feed) {
  if (!shown) return;
  for (const a of $("services").querySelectorAll("a")) attribute(a, "aria-current", a.textContent === shown ? "true" : null);
  const s = feed.values.get("deployed/" + shown);
  if (!s) {
    if (feed.opened(shown)) text($("s-status"), "There is no service of this name.");
    return;
  }
  const d = s.deployment;
  text($("s-status"), status(s, d));
  attribute($("s-status"), "class", s.error || d?.state === "stopped" ? "error" : d?.state === "paused" || backwards(d) ? "sick" : null);
  text($("s-facts"), [
    s.target && "target " + s.target.key, s.stable && "stable " + s.stable.key,
    s.version && `goal ${s.version} of ${clock(s.issued)}` + (s.by ? " by " + s.by : ""),
    d && `deployment ${d.deploymentId}, begun ${ago(d.startedAt)}` + (d.by ? " by " + d.by : ""),
    s.held?.length && hosts(s.held.length) + " held",
  ].filter(Boolean).join(" · "));
  $("pause").hidden = !d || !["waiting for the gate", "wave", "baking"].includes(d.state);
  $("resume").hidden = d?.state !== "paused";
  $("rollback").hidden = !d?.from || backwards(d);
  waves(s, d);
  where(s);
  const held = s.held || [];
  $("held").hidden = held.length === 0;
  text($("held").firstChild, held.length === 1 ? "1 host is held" : held.length + " hosts are held");
  text($("held-names"), held.join(", "));
  reasons(s.failures || []);
}

function status(s, d) {
  if (s.error) return s.error;
  if (!d) return "Nothing was deployed yet.";
  const on = `${many(s.hosts.target)} of ${hosts(s.hosts.total)} run ${s.target?.key ?? "the target"}`;
  const state = stands(d.state, d.wave, d.policy.waves?.length);
  const waits = d.state === "waiting for the gate" && d.waitsFor?.length ? `; the build has still to arrive in ${d.waitsFor.join(", ")}` : "";
  return `${state[0].toUpperCase()}${state.slice(1)}: ${on}${d.reason ? "; " + d.reason : ""}${waits}.`;
}

// question is what is asked before a roll-back.
export function question(feed) {
  const s = feed.values.get("deployed/" + shown);
  const back = s?.deployment?.from?.key ?? "the stable build";
  const total = s?.hosts.total ?? 0, held = s?.hosts.stable ?? 0;
  return `${many(s?.hosts.target ?? 0)} of ${hosts(total)} of ${shown} run ${s?.target?.key ?? "the target"}. ${many(held)} hold ${back}, ${many(total - held)} must fetch it. All of them are told to run ${back}: through no gate and no wave, and no more at a time than --max-unavailable says.`;
}

// ofShare is how many of n hosts a share such as "10%" or "3" is, at least one, as the
// seeder counts.
function ofShare(share, n) {
  const part = share.endsWith("%") ? Math.floor((n * parseFloat(share)) / 100 + 1e-9) : parseInt(share, 10);
  return Math.min(n, parseFloat(share) > 0 ? Math.max(1, part) : 0);
}

// waves draws a bar for each: how many of the hosts that are to run the target after it do.
function waves(s, d) {
  const shares = d && !backwards(d) ? d.policy.waves || [] : [];
  const regions = s.regions.filter((r) => !r.skipped);
  const rows = shares.map((share, i) => {
    const of = regions.reduce((n, r) => n + ofShare(share, r.hosts.total), 0);
    const on = regions.reduce((n, r) => n + Math.min(r.hosts.target, ofShare(share, r.hosts.total)), 0);
    const is = i + 1 < d.wave || d.state === "done" ? "over" : i + 1 > d.wave ? "to come" : ended(d) || d.state === "paused" ? d.state : d.state === "baking" ? "baking" : "under way";
    return { share, i, of, on, is };
  });
  if (backwards(d)) rows.push({ share: "", i: -1, of: s.hosts.total, on: s.hosts.target, is: d.state });
  keyed($("waves"), rows, (w) => String(w.i), () => el("li", {}, el("span", { class: "who" }),
    el("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, el("div", { class: "landed" })), el("span", { class: "num" }), el("span", { class: "meta" })), (li, w) => {
    const [who, bar, number, meta] = li.children;
    const done = w.of ? w.on / w.of : 0;
    text(who, w.i < 0 ? "all, back" : `${w.i + 1}: ${w.share.endsWith("%") ? w.share.slice(0, -1) + " %" : w.share + " a region"}`);
    attribute(bar, "aria-label", w.i < 0 ? "Hosts that run the stable build again" : "Wave " + (w.i + 1));
    attribute(bar, "aria-valuenow", Math.floor(100 * done));
    attribute(bar, "aria-valuetext", `${many(w.on)} of ${hosts(w.of)}`);
    bar.firstChild.style.width = 100 * done + "%";
    text(number, percent(done));
    text(meta, `${many(w.on)} of ${hosts(w.of)}, ${w.is}`);
  });
  text($("no-waves"), rows.length ? "" : "None.");
}

// where draws the hosts of each region by state, and of its zones for who opens it.
function where(s) {
  keyed($("states"), states.filter((state) => s.hosts[state] > 0), String, (state) => el("li", { class: state, title: "Hosts that " + meaning[state] }), (li, state) => {
    text(li, `${many(s.hosts[state])} ${state}`);
  });
  $("no-hosts").hidden = s.regions.length > 0;
  keyed($("s-regions"), s.regions, (r) => r.region, (r) => {
    const zones = el("details", {}, el("summary"), el("ul", { class: "places" }));
    return el("li", {}, ...place(), zones);
  }, (li, r) => {
    update(li, r.region, r.hosts, [
      !r.countedAt ? "not heard of" : "", r.skipped ? "skipped" : r.open ? `gate open, ${percent(r.share)} may switch` : "gate closed",
    ]);
    const zones = zonesOf(r);
    const details = li.lastChild;
    details.hidden = zones.length === 0;
    text(details.firstChild, zones.length === 1 ? "1 zone" : zones.length + " zones");
    keyed(details.lastChild, zones, (z) => z.zone, () => el("li", {}, ...place()), (row, z) => update(row, z.name, z.hosts, []));
  });
}

// zonesOf are a region's zones, and one for the hosts that are in none of them.
function zonesOf(r) {
  if (!r.zones) return [];
  const rest = { ...r.hosts };
  for (const z of r.zones) for (const k in rest) rest[k] = Math.max(0, rest[k] - z.hosts[k]);
  const zones = r.zones.map((z) => ({ zone: "in " + z.zone, name: z.zone || "no zone", hosts: z.hosts }));
  if (rest.total > 0) zones.push({ zone: "others", name: "other zones", hosts: rest });
  return zones;
}

const place = () => [el("span", { class: "who" }), el("div", { class: "stack", role: "img" }), el("span", { class: "num" }), el("span", { class: "meta" })];

function update(li, name, counts, more) {
  const [who, stack, number, meta] = li.children;
  const there = states.filter((state) => counts[state] > 0);
  const words = there.map((state) => `${many(counts[state])} ${state}`).join(", ");
  text(who, name);
  text(number, many(counts.total));
  text(meta, [words || "no hosts", ...more].filter(Boolean).join(" · "));
  attribute(stack, "aria-label", `${name}: ${words || "no hosts"}`);
  keyed(stack, there, String, (state) => el("div", { class: state }), (e, state) => {
    e.style.flexGrow = counts[state];
    attribute(e, "title", `${many(counts[state])} ${state}: they ${meaning[state]}`);
  });
}

function reasons(groups) {
  $("no-reasons").hidden = groups.length > 0;
  keyed($("reasons"), groups, (g) => g.phase + "\n" + g.error, () => el("li", {}, el("strong"), el("span", { class: "error" }), el("span", { class: "meta" }), el("pre")), (li, g) => {
    const [count, error, meta, output] = li.children;
    text(count, hosts(g.hosts));
    text(error, (g.phase ? g.phase + ": " : "") + g.error);
    text(meta, g.example ? `such as ${g.example}` + (g.output ? ", whose hook said:" : "") : "");
    output.hidden = !g.output;
    text(output, g.output || "");
  });
}
