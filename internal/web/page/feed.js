// The state of the page, as /events tells it: values by name, of which only what
// changed is sent. One connection, however much of the page is open; where a proxy
// lets no stream through, or a token is asked for, which a stream cannot bring, /changes is
// asked instead.
import { get } from "./token.js";

const pollEvery = 2000; // ms
const patience = 3; // streams that fail without a word before asking instead
const tryStreamEvery = 60_000; // ms

export class Feed {
  values = new Map();
  #version = "";
  #open = [];
  #source = null;
  #timer = 0;
  #failures = 0;
  #turn = 0; // of the connection that there is; what comes of an older one is not heard
  #answered = ""; // what was open when the newest patch came
  #onPatch;
  #onStatus;

  // onPatch(names) hears which values changed or went, onStatus(text) how the
  // connection is: "live", "polling" or "lost".
  constructor(onPatch, onStatus) {
    this.#onPatch = onPatch;
    this.#onStatus = onStatus;
    this.#connect();
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", (e) => { if (e.persisted) this.#connect(); });
  }

  // open asks for these values beside those that everybody gets.
  open(names) {
    if (names.join() === this.#open.join()) return;
    this.#open = names;
    this.#connect();
  }

  #query() {
    const q = new URLSearchParams({ since: this.#version });
    for (const name of this.#open) q.append("open", name);
    return "?" + q;
  }

  #close() {
    this.#turn++;
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
  }

  #connect() {
    this.#close();
    if (this.#failures >= patience) {
      this.#poll(Date.now());
      return;
    }
    const source = new EventSource("events" + this.#query());
    this.#source = source;
    source.onmessage = (m) => {
      this.#failures = 0;
      this.#onStatus("live");
      this.#apply(JSON.parse(m.data));
    };
    source.onopen = () => { if (this.#version) this.#onStatus("live"); };
    source.onerror = () => {
      this.#failures++;
      if (source.readyState === EventSource.CLOSED && !this.#version) this.#failures = patience; // it was refused
      this.#onStatus("lost");
      if (this.#failures >= patience) this.#connect();
      else if (source.readyState === EventSource.CLOSED) {
        this.#timer = setTimeout(() => this.#connect(), pollEvery);
      }
    };
  }

  async #poll(since) {
    const turn = this.#turn;
    let patch = null, wait = pollEvery;
    try {
      const answer = await get("changes" + this.#query());
      if (answer.ok) patch = await answer.json();
    } catch (e) { // lost, as below
      if (e.status === 401) wait = tryStreamEvery; // nobody has a token now
    }
    if (turn !== this.#turn) return;
    this.#onStatus(patch ? "polling" : "lost");
    if (patch) this.#apply(patch);
    this.#timer = setTimeout(() => {
      if (Date.now() - since < tryStreamEvery && this.#failures >= patience) {
        this.#poll(since);
        return;
      }
      this.#failures = patience - 1; // one more try
      this.#connect();
    }, wait);
  }

  #apply(patch) {
    const names = new Set(Object.keys(patch.set));
    if (patch.full) {
      for (const name of this.values.keys()) if (!(name in patch.set)) names.add(name);
      this.values.clear();
    }
    for (const [name, value] of Object.entries(patch.set)) this.values.set(name, value);
    for (const name of patch.gone || []) {
      this.values.delete(name);
      names.add(name);
    }
    this.#version = patch.version;
    this.#answered = this.#open.join("\n");
    this.#onPatch(names);
  }

  // opened reports whether the values opened, of this id, have come if they exist.
  opened(id) {
    return this.#answered !== "" && this.#answered.split("\n").some((name) => name.endsWith("/" + id));
  }

  // under returns the values whose name begins with prefix.
  *under(prefix) {
    for (const [name, value] of this.values) if (name.startsWith(prefix)) yield value;
  }
}
