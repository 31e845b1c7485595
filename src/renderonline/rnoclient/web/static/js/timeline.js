// Attempts as bars on a line of time, a row for each machine; the table beside it says the same in words.

import { svg } from '../vendor/lit.js';
import { Part, clock, define, duration, html, nothing, plural, word } from './parts.js';

const LANE_PX = 14;
/** Below so much of the line there is one time of day. */
const LABEL_PX = 84;
const MOST_LABELS = 8;
const DAY_MS = 86_400_000;
const STEPS_S = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800];

const day = (moment) => new Date(moment).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' });
const begun = (one) => Date.parse(one.started ?? one.assigned);
const ended = (one) => (one.ended ? Date.parse(one.ended) : Date.now());

/** Attempts of each machine in lanes, so that none covers another. */
function lanesOf(attempts) {
  const machines = new Map();
  for (const one of [...attempts].sort((a, b) => begun(a) - begun(b))) {
    const name = one.machine || 'gone';
    const lanes = machines.get(name) ?? machines.set(name, []).get(name);
    const free = lanes.find((lane) => ended(lane.at(-1)) <= begun(one));
    if (free) free.push(one);
    else lanes.push([one]);
  }
  return [...machines].sort(([one], [other]) => one.localeCompare(other));
}

const svgLine = (x, height) => svg`<line x1="${x}%" x2="${x}%" y1="0" y2=${height}></line>`;
/** A time of day below its place; at the ends it stays inside of the line. */
const label = (x, text, width) => {
  const edge = (50 * LABEL_PX) / Math.max(width, 2 * LABEL_PX);
  return svg`<text x="${x}%" y="12" text-anchor=${x < edge ? 'start' : x > 100 - edge ? 'end' : 'middle'}>${text}</text>`;
};
const bar = (one, from, to, y, chose) => svg`<rect class=${one.outcome ?? one.state} x="${from}%" width="${Math.max(0.15, to - from)}%" y=${y + 2} height=${LANE_PX - 4} rx="2" @click=${() => chose(String(one.attempt_id))}><title>${one.frames ? `Frames ${one.frames}` : 'Whole'}: ${word(one.outcome ?? one.state)}, ${duration((ended(one) - begun(one)) / 1000)}${one.reason ? ` – ${one.reason}` : ''}</title></rect>`;

class Timeline extends Part {
  static properties = { attempts: {}, chose: {}, width: { state: true } };
  #sized = new ResizeObserver(([entry]) => { this.width = entry.contentRect.width; });

  constructor() {
    super();
    /** @type {any[]} */
    this.attempts = [];
    /** @type {(id: string) => void} */
    this.chose = () => {};
    /** Of the line, in pixels; as wide as a phone until it is measured. */
    this.width = 0;
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#sized.disconnect();
  }

  updated() { this.#sized.observe(this.querySelector('.times > div')); }

  connectedCallback() {
    super.connectedCallback();
    this.every(2000, () => { if (this.attempts.some((one) => !one.ended)) this.requestUpdate(); });
  }

  render() {
    const from = this.attempts.reduce((least, one) => Math.min(least, begun(one)), Infinity);
    const to = Math.max(from + 1000, this.attempts.reduce((most, one) => Math.max(most, ended(one)), 0));
    const place = (moment) => Math.round((100_000 * (moment - from)) / (to - from)) / 1000;
    const room = Math.min(MOST_LABELS, Math.max(2, Math.floor(this.width / LABEL_PX)));
    const step = 1000 * (STEPS_S.find((one) => (to - from) / 1000 / one <= room) ?? STEPS_S.at(-1));
    const ticks = [];
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
    const machines = lanesOf(this.attempts);
    return html`<section class="card timeline" aria-label="Who rendered when"><p class="help">${plural(machines.length, 'machine')}, ${duration((to - from) / 1000)} from ${clock(from)} to ${clock(to)}</p>
      ${machines.map(([name, lanes]) => html`<div class="line"><span>${name}</span><svg width="100%" height=${lanes.length * LANE_PX} role="img" aria-label="${name}: ${plural(lanes.flat().length, 'attempt')}">
        ${ticks.map((at) => svgLine(place(at), lanes.length * LANE_PX))}
        ${lanes.map((lane, index) => lane.map((one) => bar(one, place(begun(one)), place(ended(one)), index * LANE_PX, this.chose)))}</svg></div>`)}
      <div class="line times" aria-hidden="true"><span></span><div>${ticks.length ? html`<svg width="100%" height="16">${ticks.map((at) => label(place(at), step < DAY_MS ? clock(at).slice(0, step >= 60_000 ? 5 : 8) : day(at), this.width))}</svg>` : nothing}</div></div></section>`;
  }
}

define('ro-timeline', Timeline);
