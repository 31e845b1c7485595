// A task's frames as a grid that fills: small pictures, and what is done with those that one has chosen.

import { fetched } from './api.js';
import { Part, define, empty, html, icon, nothing, number, plural, word } from './parts.js';
import { FILMS, PICTURES, pathOf, previewOf } from './viewer.js';

const THUMB_PX = 240;
const MOST_THUMBS = 600;
const AT_ONCE = 4;
/** A picture is asked for when scrolling has paused so long: what flies by is not worth fetching. */
const PAUSE_MS = 110;

/** Pictures made small, newest wish first, a few at a time; the least recently seen are forgotten. */
class Thumbs {
  #known = new Map();
  #waiting = [];
  #busy = 0;

  get(key) {
    const found = this.#known.get(key);
    if (found) { this.#known.delete(key); this.#known.set(key, found); }
    return found;
  }

  ask(key, path, shown) {
    const wish = { key, path, shown, stop: new AbortController() };
    this.#waiting.push(wish);
    this.#next();
    return wish;
  }

  drop(wish) {
    wish.stop.abort();
    this.#waiting = this.#waiting.filter((one) => one !== wish);
  }

  async #next() {
    if (this.#busy >= AT_ONCE || !this.#waiting.length) return;
    const { key, path, shown, stop } = this.#waiting.pop();
    this.#busy++;
    try {
      const blob = await (await fetched(path, { signal: stop.signal })).blob();
      const picture = this.get(key) ?? (await createImageBitmap(blob, path.includes('/previews/') ? undefined : { resizeWidth: THUMB_PX, resizeQuality: 'medium' }));
      this.#known.set(key, picture);
      if (this.#known.size > MOST_THUMBS) this.#known.delete(this.#known.keys().next().value);
      shown(picture);
    } catch (error) {
      if (error.name !== 'AbortError') shown(null);
    }
    this.#busy--;
    this.#next();
  }
}

const thumbs = new Thumbs();

/** One small picture. */
class Thumb extends HTMLElement {
  #of = '';
  #path = '';
  #wish = null;
  #timer = 0;

  set of([key, path]) {
    if (key === this.#of) return;
    this.#of = key;
    this.#path = path;
    if (this.isConnected) this.#begin();
  }

  connectedCallback() { this.#begin(); }
  disconnectedCallback() { this.#end(); }

  #begin() {
    this.#end();
    const known = thumbs.get(this.#of);
    if (known) { this.#draw(known); return; }
    this.replaceChildren();
    this.#timer = setTimeout(() => { this.#wish = thumbs.ask(this.#of, this.#path, (picture) => this.#draw(picture)); }, PAUSE_MS);
  }

  #end() {
    clearTimeout(this.#timer);
    if (this.#wish) thumbs.drop(this.#wish);
    this.#wish = null;
  }

  #draw(picture) {
    this.#wish = null;
    const canvas = document.createElement('canvas');
    if (picture) {
      Object.assign(canvas, { width: picture.width, height: picture.height });
      canvas.getContext('2d').drawImage(picture, 0, 0);
    } else {
      this.classList.add('broken');
    }
    this.replaceChildren(canvas);
  }
}

/** Frames as people write them. */
function rangeOf(frames) {
  const parts = [];
  for (const frame of [...frames].sort((one, other) => one - other)) {
    const last = parts.at(-1);
    if (last && last[1] + 1 === frame) last[1] = frame;
    else parts.push([frame, frame]);
  }
  return parts.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(',');
}

class Frames extends Part {
  static properties = { task: {}, cells: {}, wanted: {}, chose: {}, again: {}, fetch: {}, only: { state: true }, choosing: { state: true } };
  #chosen = new Set();
  #anchor = -1;

  constructor() {
    super();
    /** @type {any} */
    this.task = null;
    /** Every frame with its state and its file. @type {any[]} */
    this.cells = [];
    /** The frame that the viewer shows. @type {string | null} */
    this.wanted = null;
    /** @type {(label: string) => void} */
    this.chose = () => {};
    /** Render frames again. @type {(frames: string) => void} */
    this.again = () => {};
    /** Download frames and files. @type {(frames: string, names: string[]) => void} */
    this.fetch = () => {};
  }

  updated() {
    const viewer = /** @type {any} */ (this.querySelector('ro-viewer'));
    if (this.wanted && !viewer) this.#open();
    if (viewer) viewer.cells = this.cells;
  }

  #open() {
    if (!this.cells.some((cell) => cell.label === this.wanted)) return;
    const viewer = /** @type {any} */ (document.createElement('ro-viewer'));
    Object.assign(viewer, { task: this.task, cells: this.cells, at: this.wanted, chose: this.chose, again: this.again });
    viewer.closed = () => { viewer.remove(); this.chose(''); /** @type {HTMLElement} */ (this.querySelector(`[data-frame="${CSS.escape(viewer.at)}"]`))?.focus(); };
    this.append(viewer);
  }

  #press(cell, shown, event) {
    if (!this.choosing) { this.chose(cell.label); return; }
    const at = shown.indexOf(cell);
    const from = event.shiftKey && this.#anchor >= 0 ? this.#anchor : at;
    const on = !this.#chosen.has(cell.label);
    for (const one of shown.slice(Math.min(at, from), Math.max(at, from) + 1)) this.#chosen[on ? 'add' : 'delete'](one.label);
    this.#anchor = at;
    this.requestUpdate();
  }

  #choose(on) {
    this.choosing = on;
    this.#chosen.clear();
    this.#anchor = -1;
  }

  render() {
    const { cells, task } = this;
    if (!cells.length) return empty('No frames yet', 'They appear here one by one as they are rendered.', nothing, 'queued');
    const counts = Object.groupBy(cells, (cell) => cell.state);
    const shown = this.only && counts[this.only] ? counts[this.only] : cells;
    const states = ['succeeded', 'running', 'assigned', 'waiting', 'failed', 'missing', 'canceled'].filter((state) => counts[state]);
    return html`<div class="frames-head">${states.length > 1 ? html`<div class="chips" role="group" aria-label="Show frames">${['', ...states].map((state) => html`<button type="button" aria-pressed=${(this.only ?? '') === state} @click=${() => { this.only = state; this.#anchor = -1; }}>
        ${state ? html`${icon(state)}${word(state)}` : 'All'} <span class="count">${number(state ? counts[state].length : cells.length)}</span></button>`)}</div>` : html`<span class="grow"></span>`}
        <button type="button" class="plain" aria-pressed=${Boolean(this.choosing)} @click=${() => this.#choose(!this.choosing)}>${icon('succeeded')}Choose</button></div>
      <ro-windowed class="frames ${this.choosing ? 'choosing' : ''}" label="Frames" .count=${shown.length} .height=${128} .width=${150} .draw=${(index) => this.#cell(shown[index], task, shown)}></ro-windowed>
      ${this.choosing ? this.#bulk(shown) : nothing}`;
  }

  #bulk(shown) {
    const chosen = this.cells.filter((cell) => this.#chosen.has(cell.label));
    const frames = chosen.filter((cell) => cell.frame !== null).map((cell) => cell.frame);
    const there = chosen.filter((cell) => cell.result);
    return html`<div class="bulk" role="toolbar" aria-label="With the chosen frames"><strong>${chosen.length ? plural(chosen.length, 'frame') : 'Choose frames'}</strong>
      <button type="button" @click=${() => { for (const cell of shown) this.#chosen.add(cell.label); this.requestUpdate(); }}>All</button>
      <button type="button" ?disabled=${!there.length} @click=${() => this.fetch(rangeOf(there.filter((cell) => cell.frame !== null).map((cell) => cell.frame)), there.filter((cell) => cell.frame === null).map((cell) => cell.label))}>${icon('download')}<span>Download</span></button>
      <button type="button" ?disabled=${!frames.length} @click=${() => { this.again(rangeOf(frames)); this.#choose(false); }}>${icon('retry')}<span>Render again</span></button>
      <button type="button" class="plain" aria-label="Clear the selection" @click=${() => this.#choose(false)}>${icon('close')}</button></div>`;
  }

  #cell(cell, task, shown) {
    if (!cell) return nothing;
    const { result } = cell;
    const small = result?.preview ? previewOf(task.task_id, result, 'thumb') : result && PICTURES.test(result.name) ? pathOf(task.task_id, result) : '';
    const chosen = this.choosing ? this.#chosen.has(cell.label) : null;
    const look = result || cell.state === 'failed' || cell.state === 'missing';
    return html`<div role="listitem" class="cell ${cell.state} ${chosen ? 'chosen' : ''}"><button type="button" data-frame=${cell.label} aria-label="${cell.frame === null ? (FILMS.test(cell.label) ? 'Film' : 'File') : 'Frame'} ${cell.shown ?? cell.label}, ${word(cell.state)}" title=${cell.reason ?? nothing}
      aria-pressed=${chosen === null ? nothing : chosen} ?disabled=${!look && !this.choosing} @click=${(event) => this.#press(cell, shown, event)}>
      ${small ? html`<ro-thumb .of=${[`${task.task_id}/${result.name}/${result.digest}`, small]}></ro-thumb>` : html`<span class="blank">${result ? (FILMS.test(result.name) ? icon('film') : html`<b>${result.name.split('.').pop()}</b>`) : cell.state === 'unknown' ? nothing : icon(cell.state)}</span>`}
      <span class="label">${cell.shown ?? cell.label}</span></button></div>`;
  }
}

define('ro-thumb', Thumb);
define('ro-frames', Frames);
