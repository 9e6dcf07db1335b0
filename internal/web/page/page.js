"use strict";
// Shows what /events sends. Text from the network is only ever set as text.
const page = document.body.dataset.page;
const $ = (id) => document.getElementById(id);

function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== undefined && c !== ""));
  return e;
}
function size(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return (i ? n.toFixed(1) : n) + " " + units[i];
}
function bar(label, value, max, state) {
  const full = state === "landed";
  return el("progress", { "aria-label": label, max: String(max || 1), value: String(full ? max || 1 : value) });
}
function table(heads, rows) {
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((h) => el("th", {}, h)))),
    el("tbody", {}, ...rows)));
}
function members(list) {
  $("members").replaceChildren(...list.map((m) => el("tr", {},
    ...[m.name, m.role, m.region, m.addr, m.state].map((v) => el("td", {}, v || "–")))));
}
function badPeers(list) {
  $("bad-peers").replaceChildren(...list.map((b) => el("tr", {},
    ...[b.name, b.region, b.addr, b.reason, b.since, b.until, String(b.times)].map((v) => el("td", {}, v || "–")))));
  $("bad").hidden = list.length === 0;
}
function showSeeder(s) {
  $("about").textContent = `${s.bucket} · ${s.executions.length} shown · ${s.members.length} members · ${s.version}`;
  $("executions").replaceChildren(...s.executions.map((e) => el("article", {},
    el("h3", {}, e.key + " ", el("span", { class: e.status }, e.status)),
    el("p", { class: "meta" }, `${size(e.size)} from ${e.sourceBucket} · ${e.phase}` +
      (e.phase === "pulling" ? ` ${size(e.pulledBytes)}` : "") + ` · ${e.executionId} · ${e.startTime}`),
    e.error ? el("p", { class: "error" }, e.error) : "",
    table(["bucket", "region", "state", "progress", "landed", "rate"], e.destinations.map((d) => el("tr", {},
      el("td", {}, d.bucket), el("td", {}, d.region || "–"),
      el("td", { class: d.state }, d.state, d.error ? el("div", { class: "error" }, d.error) : ""),
      el("td", {}, bar(`${e.key} to ${d.bucket}`, d.verifiedBytes, e.size, d.state)),
      el("td", { class: "num" }, size(d.state === "landed" ? e.size : d.landedBytes)),
      el("td", { class: "num" }, d.seconds ? d.seconds.toFixed(1) + " s" : size(d.rate) + "/s")))))));
  $("empty").hidden = s.executions.length > 0;
}
function showAgent(s) {
  $("about").textContent = `${s.region} · ${s.bucket} · ${s.node} · ${s.version}`;
  $("builds").replaceChildren(...s.builds.map((b) => el("article", {},
    el("h3", {}, b.key + " ", el("span", { class: b.state }, b.state)),
    el("p", { class: "meta" }, `${size(b.size)} · verified ${size(b.verifiedBytes)} · landed ${size(b.landedBytes)} · ` +
      `down ${size(b.downRate)}/s · up ${size(b.upRate)}/s · ${b.executionId}`),
    b.error ? el("p", { class: "error" }, b.error) : "",
    bar(b.key, b.verifiedBytes, b.size, b.state),
    b.peers.length ? table(["peer", "region", "pieces", "from it", "to it"], b.peers.map((p) => el("tr", {},
      el("td", {}, p.name), el("td", {}, p.region || "–"), el("td", { class: "num" }, String(p.pieces)),
      el("td", { class: "num" }, size(p.downloadedBytes)), el("td", { class: "num" }, size(p.uploadedBytes))))) : "")));
  $("empty").hidden = s.builds.length > 0;
}
const events = new EventSource("events");
events.onmessage = (m) => {
  const s = JSON.parse(m.data);
  members(s.members);
  badPeers(s.badPeers);
  (page === "seeder" ? showSeeder : showAgent)(s);
};
events.onerror = () => { $("about").textContent = "connection lost, trying again…"; };
