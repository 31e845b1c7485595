// What the farm did: slots in use, tasks that wait, how long frames take, and what one machine did.

import { everyPage } from './api.js';
import './charts.js';
import { Part, define, duration, empty, html, icon, nothing, number, plural, stateOf, unready, when } from './parts.js';
import { tasks } from './store.js';
import './timeline.js';

const WINDOWS = [['1 hour', 3600], ['24 hours', 86_400], ['7 days', 604_800]];
const STEPS = 60;
const MOST = 20_000;
/** Bars of the histogram: up to so many seconds a frame. */
const EDGES = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600, Infinity];

/** Attempts since a moment, newest first. @param {number} since milliseconds @param {any[]} known of an earlier look */
async function attemptsSince(since, known, signal) {
  const over = new Map(known.filter((one) => one.ended).map((one) => [one.attempt_id, one]));
  const found = [];
  try {
    await everyPage('/attempts', (items) => {
      found.push(...items);
      const last = items.at(-1);
      if (!last || Date.parse(last.assigned) < since || found.length > MOST) throw new RangeError('enough');
    }, signal);
  } catch (error) { if (!(error instanceof RangeError)) throw error; }
  for (const one of found) over.delete(one.attempt_id);
  return [...found, ...over.values()].filter((one) => !one.ended || Date.parse(one.ended) >= since);
}

const countOf = (frames) => {
  const [, first, last, step] = /^(-?\d+)(?:-(-?\d+)(?:x(\d+))?)?$/.exec(frames ?? '') ?? [];
  return first === undefined ? 1 : last === undefined ? 1 : Math.floor((Number(last) - Number(first)) / Number(step ?? 1)) + 1;
};
const secondsOf = (one) => (Date.parse(one.ended) - Date.parse(one.started)) / 1000;

/** How much of each step lies inside of some spans, as an average. */
function overlap(spans, from, step) {
  const found = new Array(STEPS).fill(0);
  for (const [begin, end] of spans) {
    for (let at = Math.max(0, Math.floor((begin - from) / step)); at < STEPS && from + at * step < end; at++) {
      found[at] += Math.max(0, Math.min(end, from + (at + 1) * step) - Math.max(begin, from + at * step)) / step;
    }
  }
  return found;
}

class History extends Part {
  static properties = { slots: {}, span: { state: true }, attempts: { state: true }, problem: { state: true } };
  #loading = null;
  #changed = () => this.changed();

  constructor() {
    super();
    this.slots = 0;
    this.span = WINDOWS[0][1];
    /** @type {any[] | null} */
    this.attempts = null;
    this.problem = null;
  }

  connectedCallback() {
    super.connectedCallback();
    tasks.addEventListener('change', this.#changed);
    this.every(20_000, () => this.load());
    this.load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    tasks.removeEventListener('change', this.#changed);
    this.#loading?.abort();
  }

  async load() {
    this.#loading?.abort();
    const { signal } = (this.#loading = new AbortController());
    this.problem = null;
    try { this.attempts = await attemptsSince(Date.now() - 1000 * Number(this.span), this.attempts ?? [], signal); } catch (error) { if (!signal.aborted) this.problem = error; }
  }

  render() {
    const chips = html`<div class="chips" role="group" aria-label="Look back">${WINDOWS.map(([name, seconds]) => html`<button type="button" aria-pressed=${this.span === seconds} @click=${() => { this.span = seconds; this.attempts = null; this.load(); }}>${name}</button>`)}</div>`;
    if (!this.attempts) return html`${chips}${unready(this)}`;
    const now = Date.now();
    const step = (1000 * Number(this.span)) / STEPS;
    const from = Math.floor(now / step) * step - (STEPS - 1) * step;
    const x = Array.from({ length: STEPS }, (_, at) => (from + at * step) / 1000);
    const names = x.map((at) => when(new Date(1000 * at).toISOString()));
    return html`${chips}<div class="charts">${[this.#used(from, step, x, names, now), this.#queue(from, step, x, names, now), this.#frames()].map((spec) => html`<ro-chart .spec=${spec}></ro-chart>`)}</div>`;
  }

  #used(from, step, x, names, now) {
    const values = overlap(this.attempts.filter((one) => one.started).map((one) => [Date.parse(one.started), one.ended ? Date.parse(one.ended) : now]), from, step);
    const mean = values.reduce((sum, one) => sum + one, 0) / STEPS;
    return { title: 'Slots in use', told: `${mean > 0 && mean < 0.1 ? 'Less than 0.1' : number(Math.round(10 * mean) / 10)} of ${plural(this.slots, 'slot')} on average.`, kind: 'lines', head: 'Time', x, names, series: [{ label: 'Slots in use', values, most: this.slots }] };
  }

  #queue(from, step, x, names, now) {
    const all = [...tasks.all.values()].filter((one) => one.queued);
    const begun = (one) => (one.started ? Date.parse(one.started) : one.ended ? Date.parse(one.ended) : now);
    const waiting = overlap(all.filter((one) => one.status !== 'paused').map((one) => [Date.parse(one.queued), begun(one)]), from, step);
    const running = overlap(all.filter((one) => one.started).map((one) => [Date.parse(one.started), one.ended ? Date.parse(one.ended) : now]), from, step);
    return { title: 'Tasks in the queue', told: `At most ${number(Math.ceil(Math.max(...waiting)))} waited, and ${number(Math.ceil(Math.max(...running)))} were rendered at once.`, kind: 'lines', head: 'Time', x, names, series: [{ label: 'Waiting', values: waiting }, { label: 'Running', values: running }] };
  }

  #frames() {
    const counts = new Array(EDGES.length).fill(0);
    const times = [];
    for (const one of this.attempts) {
      if (one.outcome !== 'succeeded' || !one.started) continue;
      const [count, seconds] = [countOf(one.frames), secondsOf(one)];
      counts[EDGES.findIndex((edge) => seconds / count <= edge)] += count;
      times.push(...new Array(Math.min(count, 1000)).fill(seconds / count));
    }
    times.sort((one, other) => one - other);
    const [first, last] = [counts.findIndex(Boolean), counts.findLastIndex(Boolean)];
    const places = first < 0 ? [] : EDGES.map((_, at) => at).slice(first, last + 1);
    const name = (edge) => (edge === Infinity ? 'longer' : edge < 60 ? `${edge} s` : duration(edge));
    return { title: 'Time of a frame', told: times.length ? `Half of ${plural(times.length, 'frame')} took less than ${duration(times[Math.floor(times.length / 2)])}.` : 'No frame was rendered in this time.', kind: 'bars', head: 'Up to', x: places.map((_, at) => at), names: places.map((at) => name(EDGES[at])), series: [{ label: 'Frames', values: places.map((at) => counts[at]) }] };
  }
}

/** What one machine did lately. */
class MachineHistory extends Part {
  static properties = { machine: {}, attempts: { state: true }, problem: { state: true } };

  constructor() {
    super();
    /** @type {any} */
    this.machine = null;
    /** @type {any[] | null} */
    this.attempts = null;
    this.problem = null;
  }

  connectedCallback() {
    super.connectedCallback();
    this.load();
  }

  async load() {
    this.problem = null;
    try { this.attempts = (await attemptsSince(Date.now() - 86_400_000, [])).filter((one) => one.machine_id === this.machine.machine_id); } catch (error) { this.problem = error; }
  }

  render() {
    if (!this.attempts) return unready(this);
    if (!this.attempts.length) return empty('Nothing in the last 24 hours', 'What it renders stands here then.', nothing, 'queued');
    const done = this.attempts.filter((one) => one.outcome === 'succeeded');
    const frames = done.reduce((sum, one) => sum + countOf(one.frames), 0);
    const seconds = done.reduce((sum, one) => sum + secondsOf(one), 0);
    return html`<p class="help">The last 24 hours: ${plural(frames, 'frame')}${frames ? `, ${duration(seconds / frames)} each` : ''}, ${plural(this.attempts.filter((one) => one.outcome && one.outcome !== 'succeeded' && one.outcome !== 'canceled').length, 'failure')}.</p>
      <ro-timeline .attempts=${this.attempts} .chose=${() => {}}></ro-timeline>
      <ul class="rows history" tabindex="0" aria-label="Attempts">${this.attempts.slice(0, 50).map((one) => html`<li><span><a href="/tasks/${one.task_id}?tab=log&attempt=${one.attempt_id}"><strong>${tasks.all.get(one.task_id)?.name ?? `Task ${one.task_id}`}</strong></a><small>${one.frames ? `frames ${one.frames}` : 'whole'} · ${when(one.started ?? one.assigned)}${one.reason ? ` · ${one.reason}` : ''}</small></span>${stateOf(one.outcome ?? one.state)}</li>`)}</ul>
      ${this.attempts.length > 50 ? html`<p class="help">${icon('info')} and ${number(this.attempts.length - 50)} more</p>` : nothing}`;
  }
}

define('ro-history', History);
define('ro-machine-history', MachineHistory);
