// The agent's page: its builds with their peers, its cache, the members.
import { $, Pace, attribute, badPeers, bar, clock, connection, el, keyed, limits, members, percent, seconds, size, stage, table, text } from "./dom.js";
import { Feed } from "./feed.js";

const paces = new Map();

function makeBuild(b) {
  paces.set(b.executionId, new Pace());
  return el("li", {},
    el("h3", {}, el("span", { class: "key" }), " ", el("span", { class: "state" })),
    bar(b.key),
    el("p", { class: "meta" }),
    el("p", { class: "meta error" }),
    el("details", {}, el("summary"),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Peers of " + b.key },
        el("table", {}, el("thead", {}, el("tr", {}, ...["peer", "region", "pieces", "from it", "rate", "to it"].map((h) => el("th", { scope: "col" }, h)))), el("tbody")))));
}

function updateBuild(li, b) {
  if (li.build === b) return; // what has not changed is the same object
  li.build = b;
  const [head, progress, meta, error, details] = li.children;
  const whole = Math.max(1, b.size), done = b.state === "landed";
  text(head.children[0], b.key);
  text(head.children[1], b.waiting ? "waiting for the source" : stage(b.state, b.landedBytes, b.size, b.recording));
  attribute(head.children[1], "class", "state " + b.state);
  progress.show(done ? 1 : b.verifiedBytes / whole, done ? 1 : b.landedBytes / whole);
  const left = paces.get(b.executionId).left(b.verifiedBytes + b.landedBytes, 2 * b.size);
  text(meta, [b.priority ? b.priority + " priority" : "", size(b.size), done ? "landed at " + clock(b.landedAt) : percent(b.verifiedBytes / whole) + " verified",
    done ? "" : percent(b.landedBytes / whole) + " landed", b.downRate ? "down " + size(b.downRate) + "/s" : "", b.upRate ? "up " + size(b.upRate) + "/s" : "",
    left !== null && !done ? seconds(left) + " left" : "", "received " + size(b.downloadedBytes), "sent " + size(b.uploadedBytes),
    b.sourceBytes ? size(b.sourceBytes) + " from the source bucket" : "", "execution " + b.executionId].filter(Boolean).join(" · "));
  text(error, b.error ? b.error + (b.retryAt ? ` (tried again at ${clock(b.retryAt)})` : "") : "");
  const peers = b.peers || [];
  details.hidden = peers.length === 0;
  text(details.children[0], peers.length === 1 ? "1 peer" : `${peers.length} peers`);
  table(details.querySelector("tbody"), peers.map((p) => [p.name, p.region, String(p.pieces), size(p.downloadedBytes), size(p.downRate) + "/s", size(p.uploadedBytes)]), (r) => r[0]);
}

function patched(names) {
  const about = feed.values.get("about");
  if (names.has("about") && about) text($("about"), `${about.region} · ${about.bucket} · ${about.node} · ${about.version}`);
  if (names.has("about") && about) limits(about.limits);
  if (names.has("members")) members(feed.values.get("members"));
  if (names.has("badPeers")) badPeers(feed.values.get("badPeers"));
  if (names.has("cache")) showCache(feed.values.get("cache"));
  const builds = [...feed.under("build/")].sort((a, b) => (a.executionId < b.executionId ? 1 : -1));
  for (const id of paces.keys()) if (!feed.values.has("build/" + id)) paces.delete(id);
  keyed($("builds"), builds, (b) => b.executionId, makeBuild, updateBuild);
  $("empty").hidden = builds.length > 0;
}

function showCache(c) {
  if (!c) return;
  text($("cache-sum"), `${size(c.bytes)} in ${c.entries.length === 1 ? "1 build" : c.entries.length + " builds"}; finished ones go above ${size(c.limit)}. ${size(c.free)} are free on the disk.`);
  const keys = new Map([...feed.under("build/")].map((b) => [b.infohash, b.key]));
  table($("cache"), c.entries.map((e) => [keys.get(e.infohash) ? `${keys.get(e.infohash)} (${e.infohash.slice(0, 10)}…)` : e.infohash, size(e.size),
    percent(e.verifiedBytes / Math.max(1, e.size)), e.pinned ? "yes" : "no", clock(e.usedAt)]), (r) => r[0]);
}

const feed = new Feed(patched, connection);
