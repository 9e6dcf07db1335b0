// The seeder's page: the list of executions, and all about the one, or the service, that is
// chosen by the address (#executionId, #service/NAME).
import { $, Pace, ago, attribute, badPeers, bar, clock, connection, el, keyed, limits, members, percent, seconds, size, stage, text } from "./dom.js";
import { Feed } from "./feed.js";
import * as graph from "./graph.js";
import * as pieces from "./pieces.js";
import * as services from "./services.js";
import * as timeline from "./timeline.js";
import { authorized, get, refused } from "./token.js";

const states = { IN_PROGRESS: "in progress", COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled" };

// --- the list

// held are executions that came while the reader was at the list: they are let in by
// a press of the button, so that nothing moves under a finger.
const held = new Set();
let known = null; // ids that are shown; null before the first
let found = []; // by the search, of those that are not in the list

function reading() {
  const list = $("list");
  return list.scrollTop > 0 || list.getBoundingClientRect().top < 0 || list.matches(":hover") || list.contains(document.activeElement);
}

// listed are the entries as they were shown last, by id.
let listed = new Map();

function showList() {
  if (!feed.values.has("about")) return; // nothing is known yet
  const all = new Map([...feed.under("listed/")].map((l) => [l.id, l]));
  if (known === null) known = new Set(all.keys());
  const busy = reading();
  for (const id of all.keys()) {
    if (known.has(id)) continue;
    if (busy || held.size) held.add(id);
    else known.add(id);
  }
  for (const id of held) if (!all.has(id)) held.delete(id);
  for (const id of known) if (!all.has(id) && !listed.has(id)) known.delete(id);
  const wanted = $("search").value.trim().toLowerCase();
  const matches = (l) => !wanted || l.key.toLowerCase().includes(wanted) || l.id.toLowerCase().includes(wanted);
  const rows = [...all.values()].filter((l) => !held.has(l.id) && matches(l));
  // What was superseded stays as long as its successor is held.
  if (!wanted && held.size) rows.push(...[...listed.values()].filter((l) => !all.has(l.id)));
  if (wanted) rows.push(...found.filter((l) => !all.has(l.id) && matches(l)));
  rows.sort((a, b) => (a.id < b.id ? 1 : -1));
  if (!wanted) listed = new Map(rows.map((l) => [l.id, l]));
  keyed($("list"), rows, (l) => l.id, makeEntry, updateEntry);
  $("empty").hidden = all.size > 0;
  $("none").hidden = !wanted || rows.length > 0;
  $("fresh").hidden = held.size === 0;
  text($("fresh"), held.size === 1 ? "1 new execution" : `${held.size} new executions`);
}

function makeEntry(l) {
  const a = el("a", { href: "#" + l.id }, el("span", { class: "key" }), el("span", { class: "state" }), bar(l.key), el("span", { class: "meta" }), el("span", { class: "meta when" }));
  return el("li", {}, a);
}

function updateEntry(li, l) {
  const current = l.id === chosen();
  if (li.listed === l && li.current === current) return; // what has not changed is the same object
  li.listed = l;
  li.current = current;
  const [key, state, progress, meta, when] = li.firstChild.children;
  when.start = l.start;
  text(key, l.key);
  text(state, l.status === "IN_PROGRESS" ? (l.sick ? "trying again" : l.phase) : states[l.status]);
  attribute(state, "class", "state " + (l.sick ? "sick" : l.status));
  progress.show(l.done / 1000, l.done / 1000);
  text(meta, (l.high ? "high priority · " : "") + `${size(l.size)} · ${l.landed} of ${l.destinations} landed` + (l.failed ? `, ${l.failed} failed` : ""));
  text(when, ago(l.start));
  attribute(li.firstChild, "aria-current", current ? "true" : null);
}

let asked = 0;
async function search() {
  for (const id of held) known.add(id); // a search that is typed finds them, too
  held.clear();
  showList();
  const q = $("search").value.trim();
  const turn = ++asked;
  if (q === "") return;
  await new Promise((done) => setTimeout(done, 300));
  if (turn !== asked) return;
  try {
    const answer = await (await get("executions?" + new URLSearchParams({ q, limit: 50 }))).json();
    if (turn !== asked) return;
    found = answer.executions.map((e) => ({
      id: e.executionId, key: e.key, status: e.status, phase: e.phase, size: e.size, start: e.startTime, high: e.priority === "high",
      destinations: e.destinations.length, landed: e.destinations.filter((d) => d.state === "landed").length,
      failed: e.destinations.filter((d) => d.state === "failed").length, done: e.status === "COMPLETED" ? 1000 : 0,
    }));
    showList();
  } catch { /* the feed says that the connection is lost */ }
}

// --- the execution that is chosen

let shown = "";
let paces = new Map(); // by bucket
let lefts = new Map(); // seconds, by bucket

// chosen is the execution in the address; what is no ULID is none.
const chosen = () => (/^#[0-9A-Z]{26}$/.test(location.hash) ? location.hash.slice(1) : "");

function choose() {
  const id = chosen();
  const service = services.chosen();
  if (id !== shown) {
    shown = id;
    paces = new Map();
    lefts = new Map();
    for (const name of ["d-answer", "d-key", "d-status", "d-facts", "slowest"]) text($(name), "");
    for (const name of ["regions", "pieces", "times", "failures", "links"]) keyed($(name), [], String);
    graph.show($("graph"), { links: [], traffic: [], allLinks: 0 }, nameOf);
    $("detail").hidden = id === "";
  }
  services.choose(service);
  document.body.classList.toggle("chosen", id !== "" || service !== "");
  $("unchosen").hidden = id !== "" || service !== "";
  feed.open(id ? ["execution/" + id, "swarm/" + id] : service ? ["deployed/" + service] : []);
  showList();
  showDetail();
  services.show(feed);
}

async function missing(id) {
  const answer = await get("executions/" + encodeURIComponent(id));
  const body = await answer.json();
  if (answer.status === 410 && id === chosen()) location.hash = body.successor;
  else if (!answer.ok && id === chosen()) text($("d-status"), body.error);
}

let lookedFor = "";
function showDetail() {
  const id = chosen();
  if (!id) return;
  const e = feed.values.get("execution/" + id);
  const swarm = feed.values.get("swarm/" + id);
  $("cancel").hidden = e?.status !== "IN_PROGRESS";
  $("retry").hidden = !e || e.status === "COMPLETED" || e.status === "IN_PROGRESS" && !e.destinations.some((d) => d.state === "failed" || d.state === "cancelled" || d.error);
  if (!e) {
    // Superseded, or never known; but only once the values opened have come.
    if (feed.opened(id) && lookedFor !== id) {
      lookedFor = id;
      missing(id).catch(() => { lookedFor = ""; });
    }
    return;
  }
  text($("d-key"), e.key);
  text($("d-facts"), [e.priority ? e.priority + " priority" : "", size(e.size), "from " + e.sourceBucket, "execution " + e.executionId, "asked for at " + clock(e.startTime),
    e.sha256 ? "SHA-256 " + e.sha256.slice(0, 12) + "…" : "", e.sentBytes ? "the seeder sent " + size(e.sentBytes) : ""].filter(Boolean).join(" · "));
  keyed($("regions"), e.destinations, (d) => d.bucket, makeRegion, (li, d) => updateRegion(li, e, d));
  text($("d-status"), status(e));
  attribute($("d-status"), "class", e.error ? "sick" : e.status);
  timeline.show($("times"), $("slowest"), e);
  failures(e);
  if (!swarm) return;
  const landed = e.destinations.filter((d) => d.state === "landed" && d.agent).map((d) => d.agent);
  // Room is kept for what will come, so that nothing below moves then.
  const running = e.status === "IN_PROGRESS" && e.size > 0;
  $("pieces").hidden = swarm.pieces === 0 && !running;
  $("pieces").style.minHeight = running ? 1.35 * (2 + e.destinations.length) + 0.4 + "rem" : "";
  text($("no-pieces"), swarm.pieces ? `${swarm.pieces === 1 ? "1 piece" : swarm.pieces + " pieces"} of ${size(swarm.pieceLength)}. The stronger the colour, the more of a stretch is there.`
    : e.size === 0 ? "A build of 0 bytes has no pieces." : "The seeder does not have this build now.");
  pieces.show($("pieces"), swarm, swarm.pieces ? landed : [], nameOf);
  $("graph").classList.toggle("none", swarm.links.length === 0 && !running);
  text($("no-links"), swarm.links.length ? `${swarm.allLinks} links` : "Nothing has been sent, as far as the agents told since the seeder's start.");
  $("d-links").hidden = swarm.links.length === 0 && !running;
  text($("d-links").firstElementChild, swarm.links.length < swarm.allLinks ? `As a table, the ${swarm.links.length} strongest of ${swarm.allLinks}` : "As a table");
  if ($("graph").swarm !== swarm || $("graph").names !== names) {
    $("graph").swarm = swarm;
    $("graph").names = names;
    graph.show($("graph"), swarm, nameOf);
  }
  showLinks();
}

// nameOf is a member's region, with its id where the region has several agents.
let names = new Map();
const nameOf = (id) => names.get(id) ?? id;
function learnNames(list) {
  const agents = list.filter((m) => m.role === "agent").map((m) => ({ id: m.name.slice(0, -27), region: m.region })); // "-" and a ULID
  const count = new Map();
  for (const a of agents) count.set(a.region, (count.get(a.region) || 0) + 1);
  names = new Map(agents.map((a) => [a.id, count.get(a.region) > 1 ? `${a.region} (${a.id})` : a.region]));
  for (const m of list) if (m.role === "seeder") names.set(m.name.slice(0, -27), "seeder");
  if (list.filter((m) => m.role === "seeder").length > 1) for (const m of list) if (m.role === "seeder") names.set(m.name.slice(0, -27), m.name.slice(0, -27));
}

// showLinks fills the table, if somebody looks at it.
function showLinks() {
  const swarm = feed.values.get("swarm/" + chosen());
  if ($("d-links").open && swarm) graph.list($("links"), swarm.links, nameOf);
}

function status(e) {
  const landed = e.destinations.filter((d) => d.state === "landed").length;
  const of = `${landed} of ${e.destinations.length} ${e.destinations.length === 1 ? "region has" : "regions have"} it`;
  if (e.status === "COMPLETED") return `Completed in ${seconds((Date.parse(e.completedAt) - Date.parse(e.startTime)) / 1000)}: ${of}.`;
  if (e.status === "FAILED") return `Failed: ${of}.`;
  if (e.status === "CANCELLED") return `Cancelled: ${of}.`;
  if (e.phase === "pulling") return `Pulling from the global bucket: ${percent(e.pulledBytes / Math.max(1, e.size))}, ${size(e.pulledBytes)}.`;
  if (e.phase === "uploading") return `Going up to the global bucket, and to the regions meanwhile: ${percent(e.pulledBytes / Math.max(1, e.size))}, ${size(e.pulledBytes)}.`;
  if (e.phase === "queued") return "Waiting to be pulled.";
  const left = Math.max(...e.destinations.map((d) => (d.state === "failed" || d.state === "cancelled" ? 0 : lefts.get(d.bucket) ?? 0)));
  return `Distributing: ${of}${left > 0 ? `, ${seconds(left)} left` : ""}.`;
}

function makeRegion(d) {
  const li = el("li", {}, el("span", { class: "who" }), el("span", { class: "state" }), bar(d.region || d.bucket), el("span", { class: "num" }), el("span", { class: "meta" }));
  paces.set(d.bucket, new Pace());
  return li;
}

function updateRegion(li, e, d) {
  const [who, state, progress, number, meta] = li.children;
  const whole = Math.max(1, e.size);
  const done = d.state === "landed";
  text(who, d.region || d.bucket);
  text(state, stage(d.state, d.landedBytes, e.size, d.took?.recording > 0));
  attribute(state, "class", "state " + d.state);
  progress.show(done ? 1 : d.verifiedBytes / whole, done ? 1 : d.landedBytes / whole);
  text(number, percent(done ? 1 : (d.verifiedBytes + d.landedBytes) / 2 / whole));
  const left = paces.get(d.bucket).left(d.verifiedBytes + d.landedBytes, 2 * e.size);
  lefts.set(d.bucket, left);
  let says = d.region ? d.bucket : "";
  if (done) says += ` · landed in ${seconds(d.seconds || 0)}`;
  else if (d.error) says += ` · ${d.error}`;
  else says += (d.rate ? ` · ${size(d.rate)}/s` : "") + (left !== null ? ` · ${seconds(left)} left` : "");
  text(meta, says.replace(/^ · /, ""));
  attribute(meta, "class", d.error && !done ? "meta error" : "meta");
  attribute(meta, "title", d.error || null);
}

function failures(e) {
  const list = e.destinations.filter((d) => d.error && d.state !== "landed").map((d) => ({ who: d.region || d.bucket, ...d }));
  if (e.error) list.unshift({ bucket: "", who: "seeder", error: e.error, retryAt: e.retryAt, state: "" });
  $("no-failures").hidden = list.length > 0;
  keyed($("failures"), list, (f) => f.bucket, () => el("li", {}, el("strong"), el("span", { class: "error" }), el("span", { class: "meta" })), (li, f) => {
    text(li.children[0], f.who);
    text(li.children[1], f.error);
    li.children[2].retryAt = f.retryAt;
    text(li.children[2], again(f));
  });
}

function again(f) {
  if (f.state === "cancelled") return "“Send again” takes it up anew.";
  if (f.state === "failed") return "Given up; “Send again” tries anew, and so does an agent that comes back.";
  if (!f.retryAt) return "";
  const s = (Date.parse(f.retryAt) - Date.now()) / 1000;
  return s > 0 ? `Tried again in ${Math.ceil(s)} s.` : "Being tried again.";
}

// --- what a person can do

async function change(what) {
  const id = chosen();
  text($("d-answer"), "…");
  text($("d-answer"), await call("POST", `executions/${encodeURIComponent(id)}/${what}`, {}).then(() => (what === "retry" ? "Sent again." : "Cancelled."), (e) => e.message));
}

async function command(what, body, done) {
  const service = services.chosen();
  text($("s-answer"), "…");
  const said = await call("POST", `services/${encodeURIComponent(service)}/${what}`, body).then(() => done, (e) => e.message);
  if (service === services.chosen()) text($("s-answer"), said);
}

const call = (method, path, body) => authorized(async (token) => {
  const answer = await fetch(path, { method, headers: { "Content-Type": "application/json", ...token }, body: JSON.stringify(body) });
  const said = await answer.json();
  if (!answer.ok) throw refused(answer.status, said.error || answer.statusText);
  return said;
});

// upload sends a file with progress, which fetch does not tell.
const upload = (file, key) => authorized((token) => {
  return new Promise((done, failed) => {
    const r = new XMLHttpRequest();
    r.open("PUT", "uploads/" + key.split("/").map((p) => (/^\.\.?$/.test(p) ? p.replaceAll(".", "%2E") : encodeURIComponent(p))).join("/"));
    r.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    for (const name in token) r.setRequestHeader(name, token[name]);
    r.upload.onprogress = (e) => { $("p-progress").value = e.loaded / Math.max(1, e.total); };
    r.onload = () => {
      let said = {};
      try { said = JSON.parse(r.responseText); } catch { /* no JSON */ }
      r.status < 300 ? done(said) : failed(refused(r.status, said.error || r.statusText));
    };
    r.onerror = () => failed(new Error("the seeder does not answer"));
    r.send(file);
  });
});

async function publish(event) {
  event.preventDefault();
  const file = $("p-file").files[0];
  const key = $("p-key").value || file?.name;
  if (!key) {
    text($("p-answer"), "Choose a file, or name a key.");
    return;
  }
  $("p-send").disabled = true;
  try {
    if (file) {
      text($("p-answer"), "Uploading…");
      $("p-progress").hidden = false;
      await upload(file, key);
    }
    text($("p-answer"), "Asking for the distribution…");
    const boxes = [...$("p-destinations").querySelectorAll("input:checked")].map((b) => b.value);
    const e = await call("POST", "deploy", { sourceBucket: feed.values.get("about").bucket, sourceKey: key, destinationBuckets: boxes });
    $("publishing").close();
    $("publish-form").reset();
    text($("p-answer"), "");
    known.add(e.executionId); // asked for by this reader: let in at once
    held.delete(e.executionId);
    location.hash = e.executionId;
  } catch (e) {
    text($("p-answer"), e.message);
  }
  $("p-progress").hidden = true;
  $("p-send").disabled = false;
}

function openPublish() {
  const about = feed.values.get("about");
  if (!about) return;
  text($("p-bucket"), about.bucket);
  $("p-destinations").hidden = !about.destinations?.length;
  keyed($("p-destinations"), about.destinations || [], String, (b) => el("label", { class: "choice" }, el("input", { type: "checkbox", value: b, checked: true }), b, el("span", { class: "meta" })),
    (label, b) => text(label.lastChild, (about.unserved || []).some((u) => u.bucket === b) ? " no agent serves it" : ""));
  $("publishing").showModal();
}

// --- all of it

function patched(changed) {
  const about = feed.values.get("about");
  if (changed.has("about") && about) {
    $("insecure").hidden = !about.insecure;
    limits(about.limits);
    const unserved = about.unserved || [];
    $("unserved").hidden = unserved.length === 0;
    text($("unserved"), unserved.map((u) => `No agent serves ${u.bucket}${u.error ? `: ${u.error}` : ""}.`).join(" ") + " What is sent there waits.");
    text($("about"), `${about.bucket} · ${about.executions === 1 ? "1 execution" : about.executions + " executions"} · ${about.name} · ${about.version}`
      + (about.loading ? " · still reading the table" : "") + (about.skipped ? ` · ${about.skipped} items of the table skipped, see the log` : ""));
  }
  if (changed.has("members")) {
    members(feed.values.get("members"));
    learnNames(feed.values.get("members") || []);
  }
  if ([...changed].some((n) => n === "recalls" || n.startsWith("service/"))) services.list(feed);
  if (services.chosen()) services.show(feed);
  if (changed.has("badPeers")) badPeers(feed.values.get("badPeers"));
  showList();
  if ([...changed].some((n) => n === "members" || n.endsWith("/" + chosen()))) showDetail();
  else if (chosen() && !feed.values.get("execution/" + chosen())) showDetail();
}

// tick moves what changes with the clock alone.
function tick() {
  for (const when of document.querySelectorAll(".when")) if (when.start) text(when, ago(when.start));
  for (const li of $("failures").children) {
    const meta = li.children[2];
    if (meta.retryAt) text(meta, again(meta));
  }
}

const feed = new Feed(patched, connection);
$("search").addEventListener("input", search);
$("fresh").addEventListener("click", () => {
  for (const id of held) known.add(id);
  held.clear();
  $("list").scrollTop = 0;
  showList();
});
$("publish").addEventListener("click", openPublish);
$("publish-form").addEventListener("submit", publish);
$("p-close").addEventListener("click", () => $("publishing").close());
$("p-file").addEventListener("change", () => { if ($("p-file").files[0]) $("p-key").value = $("p-file").files[0].name; });
$("cancel").addEventListener("click", () => $("cancelling").showModal());
$("c-no").addEventListener("click", () => $("cancelling").close());
$("c-yes").addEventListener("click", () => { $("cancelling").close(); change("cancel"); });
$("retry").addEventListener("click", () => change("retry"));
$("pause").addEventListener("click", () => command("pause", {}, "Paused: no further host switches to the target."));
$("resume").addEventListener("click", () => command("resume", {}, "It goes on."));
$("rollback").addEventListener("click", () => {
  text($("b-what"), services.question(feed));
  $("b-now").checked = false;
  $("going-back").showModal();
});
$("b-no").addEventListener("click", () => $("going-back").close());
$("b-yes").addEventListener("click", () => command("rollback", { now: $("b-now").checked }, "It goes back."));
addEventListener("hashchange", () => {
  choose();
  if (chosen() || services.chosen()) $("main").focus();
});
$("d-links").addEventListener("toggle", showLinks);
setInterval(tick, 1000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showDetail); // what is drawn has colours of its own
choose();
