// Elements, and numbers for people. Text from the network is only ever set as text.

export const $ = (id) => document.getElementById(id);

// el makes an element; attributes that are null or false are left out.
export function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) {
    if (v !== null && v !== false && v !== undefined) e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return e;
}

export function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// text and attribute touch the page only where something is different, so that a
// selection or a screen reader is left in peace.
export function text(e, value) {
  if (e.textContent !== value) e.textContent = value;
}
export function attribute(e, name, value) {
  if (value === null || value === false) {
    if (e.hasAttribute(name)) e.removeAttribute(name);
  } else if (e.getAttribute(name) !== String(value)) e.setAttribute(name, value);
}

const rowsOf = new WeakMap(); // parent → key → row

// keyed brings the children of parent in line with the list: one for each item, known
// again by its key, made once and updated after that.
export function keyed(parent, list, keyOf, make, update) {
  let rows = rowsOf.get(parent);
  if (!rows) rowsOf.set(parent, (rows = new Map()));
  const keep = new Set(list.map(keyOf));
  // First what goes: a row that is put elsewhere loses the focus.
  for (const [key, row] of rows) {
    if (!keep.has(key)) {
      row.remove();
      rows.delete(key);
    }
  }
  let place = parent.firstElementChild;
  for (const item of list) {
    const key = keyOf(item);
    let row = rows.get(key);
    if (!row) rows.set(key, (row = make(item)));
    update(row, item);
    if (row === place) place = place.nextElementSibling;
    else parent.insertBefore(row, place);
  }
}

export function size(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return (i && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
}

export function seconds(s) {
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 100) return Math.round(s) + " s";
  if (s < 5400) return `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return Math.round(s / 86400) + " days";
}

export function ago(time) {
  const s = (Date.now() - Date.parse(time)) / 1000;
  return s < 1 ? "now" : seconds(Math.round(s)) + " ago";
}

export function clock(time) {
  return new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function percent(share) {
  return (share >= 1 ? 100 : Math.min(99, Math.floor(share * 100))) + " %";
}

// stage is a state in a word: when all parts of a landing are up, S3 has to put them
// together, and the arrival has to be recorded.
export function stage(state, landed, whole, recording) {
  return state !== "landing" || landed < whole ? state : recording ? "recording" : "completing";
}

// bar is a progress bar of two layers: what is verified here, and what has landed.
export function bar(label) {
  const e = el("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label },
    el("div", { class: "verified" }), el("div", { class: "landed" }));
  e.show = (verified, landed) => {
    e.children[0].style.width = 100 * verified + "%";
    e.children[1].style.width = 100 * landed + "%";
    attribute(e, "aria-valuenow", Math.floor(100 * landed));
    attribute(e, "aria-valuetext", `${percent(verified)} downloaded, ${percent(landed)} landed`);
  };
  return e;
}

// Pace finds the rate of something that grows, and from it the time left.
export class Pace {
  #last = null;
  #rate = 0;

  // left returns the seconds until goal, null while there is nothing to go by.
  left(value, goal) {
    const now = performance.now() / 1000;
    if (!this.#last || value < this.#last.value) {
      this.#last = { value, now };
      this.#rate = 0;
    } else if (now - this.#last.now > 0.5) {
      const rate = (value - this.#last.value) / (now - this.#last.now);
      this.#rate = this.#rate ? this.#rate + 0.2 * (rate - this.#rate) : rate;
      this.#last = { value, now };
    }
    return this.#rate > 0 && value < goal ? (goal - value) / this.#rate : null;
  }
}

// table fills a tbody.
export function table(body, rows, keyOf) {
  keyed(body, rows, keyOf, (row) => el("tr", {}, ...row.map(() => el("td"))), (tr, row) => {
    row.forEach((v, i) => text(tr.children[i], v || "–"));
  });
}

// limits says which limits there are of how fast bytes may pass.
export function limits(l) {
  const said = Object.entries({ upload: l?.uploadRate, download: l?.downloadRate, source: l?.sourceRate, landing: l?.landingRate })
    .filter(([, rate]) => rate > 0).map(([name, rate]) => `${name} ${size(rate)}/s`);
  $("limits").hidden = said.length === 0;
  text($("limits"), "Limited: " + said.join(", "));
}

// shared shows what both pages have: members, bad peers, the connection.
export function members(list) {
  table($("members"), (list || []).map((m) => [m.name, m.role, m.region, m.addr, m.state]), (r) => r[0]);
}
export function badPeers(list) {
  const rows = (list || []).map((b) => [b.name, b.region, b.addr, b.reason, clock(b.since), b.until ? clock(b.until) : "", String(b.times)]);
  table($("bad-peers"), rows, (r) => r[0] + r[2]);
  $("bad").hidden = rows.length === 0;
}
export function connection(status) {
  const words = { live: "live", polling: "live, by asking", lost: "connection lost, trying again…" };
  text($("connection"), words[status]);
  attribute($("connection"), "data-status", status);
}
