// What all pages share: elements that follow the farm, icons, words for states, times and sizes, questions, notes.

import { LitElement, html, nothing, ref, render, repeat } from '../vendor/lit.js';
import { live } from './api.js';

export { classMap, html, keyed, live as kept, nothing, ref, repeat } from '../vendor/lit.js';

/** An element without a shadow: the page's one style sheet reaches everything. */
export class Part extends LitElement {
  #following = [];
  #soon = 0;

  createRenderRoot() { return this; }

  /** Call `react(detail)` for each of these events as long as this element is on the page. */
  follow(names, react) {
    for (const name of names.split(' ')) {
      const heard = (event) => react.call(this, event.detail, name);
      live.addEventListener(name, heard);
      this.#following.push(() => live.removeEventListener(name, heard));
    }
  }

  /** Call `act` every `ms` while this element is on the page and seen. */
  every(ms, act) {
    const timer = setInterval(() => { if (!document.hidden) act.call(this); }, ms);
    this.#following.push(() => clearInterval(timer));
  }

  /** Show what changed, at most ten times a second. */
  changed() {
    this.#soon ||= setTimeout(() => { this.#soon = 0; this.requestUpdate(); }, 100);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    for (const end of this.#following.splice(0)) end();
  }
}

export const define = (name, type) => customElements.define(name, type);

// Icons, drawn on 16 x 16.
const PATHS = {
  queued: 'M8 2.5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11M8 5v3.2l2 1.6',
  running: 'M8 2.5a5.5 5.5 0 1 1-5.5 5.5',
  paused: 'M5.5 3.5v9M10.5 3.5v9',
  succeeded: 'M3 8.5l3.2 3.2L13 5',
  failed: 'M4 4l8 8M12 4l-8 8',
  canceled: 'M8 2.5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11M4.2 11.8l7.6-7.6',
  idle: 'M8 4.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7',
  draining: 'M8 2.5v8M4.5 7.5 8 11l3.5-3.5M3.5 13.5h9',
  offline: 'M2.5 2.5l11 11M5 11.5a4 4 0 0 1 0-7M11 4.5a4 4 0 0 1 .6 6.2',
  play: 'M5 3.2v9.6l7.5-4.8z',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  retry: 'M13 4v3.5H9.5M12.6 7.2A5 5 0 1 0 13 9.5',
  remove: 'M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5',
  download: 'M8 2.5v7.5M4.8 7 8 10.2 11.2 7M3 13.2h10',
  search: 'M7 3a4 4 0 1 1 0 8 4 4 0 0 1 0-8M10 10l3.5 3.5',
  plus: 'M8 3v10M3 8h10',
  close: 'M4 4l8 8M12 4l-8 8',
  previous: 'M10 3.5 5.5 8l4.5 4.5',
  next: 'M6 3.5 10.5 8 6 12.5',
  first: 'M4 3.5v9M11.5 3.5 7 8l4.5 4.5',
  last: 'M12 3.5v9M4.5 3.5 9 8l-4.5 4.5',
  upload: 'M8 10.5V3M4.8 6 8 2.8 11.2 6M3 13.2h10',
  compare: 'M2.5 3.5h11v9h-11zM8 2v12M4.5 9.5l2-2.5',
  film: 'M2.5 3.5h11v9h-11zM5 3.5v9M11 3.5v9M2.5 8h11',
  folder: 'M2.5 12.5v-9h4l1.5 2h5.5v7z',
  tasks: 'M2.5 3.5h3v3h-3zM8 5h5.5M2.5 9.5h3v3h-3zM8 11h5.5',
  farm: 'M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01',
  admin: 'M8 2.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5M3 13.5c0-2.8 2.2-4.5 5-4.5s5 1.7 5 4.5',
  info: 'M8 2.5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11M8 7.3v3.4M8 5.2h.01',
  fit: 'M6 2.5H2.5V6M10 2.5h3.5V6M6 13.5H2.5V10M10 13.5h3.5V10',
  out: 'M9.5 3h-6v10h6M7 8h6.5M11 5.5 13.5 8 11 10.5',
  loop: 'M4 6.5h8.5L10 4M12 9.5H3.5L6 12',
  warning: 'M8 2.2 14.4 13.2H1.6zM8 6.4v3.2M8 11.4h.01',
  key: 'M10 3a3 3 0 1 1-2.6 4.5L3 12v1.5h2V12h1.5v-1.5L8.4 8.6',
};
Object.assign(PATHS, { busy: PATHS.running, disabled: PATHS.canceled, waiting: PATHS.queued, assigned: PATHS.running });
Object.assign(PATHS, { timed_out: PATHS.failed, stalled: PATHS.failed, lost: PATHS.offline, missing: PATHS.failed });

export const icon = (name, label = '') => html`<svg class="icon ${name}" viewBox="0 0 16 16" role=${label ? 'img' : nothing}
  aria-label=${label || nothing} aria-hidden=${label ? nothing : 'true'}><path d=${PATHS[name] ?? PATHS.info}></path></svg>`;

/** The farm's mark: a grid of frames that fills. */
export const mark = () => html`<svg class="mark" viewBox="0 0 24 24" aria-hidden="true"><rect x="2" y="2" width="6" height="6" rx="1.6" opacity="1"/><rect x="9" y="2" width="6" height="6" rx="1.6" opacity="1"/><rect x="16" y="2" width="6" height="6" rx="1.6" opacity="1"/><rect x="2" y="9" width="6" height="6" rx="1.6" opacity="1"/><rect x="9" y="9" width="6" height="6" rx="1.6" opacity="0.62"/><rect x="16" y="9" width="6" height="6" rx="1.6" opacity="0.34"/><rect x="2" y="16" width="6" height="6" rx="1.6" opacity="0.62"/><rect x="9" y="16" width="6" height="6" rx="1.6" opacity="0.34"/><rect x="16" y="16" width="6" height="6" rx="1.6" opacity="0.16"/></svg>`;

const WORDS = { queued: 'Waiting', succeeded: 'Done', canceled: 'Canceled', timed_out: 'Timed out', assigned: 'Starting', unknown: 'Loading' };
export const word = (state) => WORDS[state] ?? state.charAt(0).toUpperCase() + state.slice(1);

/** A state as icon and word: never by colour alone. */
export const stateOf = (state, said = word(state)) => html`<span class="state ${state}">${icon(state)}<span>${said}</span></span>`;

/** What succeeded with warnings does not look like what simply succeeded. */
const warned = (task) => task.status === 'succeeded' && task.warnings?.length > 0;
export const statusOf = (task) => (warned(task) ? html`<span class="state succeeded warned">${icon('warning')}<span>${word(task.status)}</span></span>` : stateOf(task.status));
export const progressOf = (task, label) => bar(task.progress, label, warned(task) ? 'warned' : task.status);

/** What people must know of a task without opening it: that nothing of it can start, what is wrong with its pictures. */
export const chipsOf = (task) => html`${task.stuck ? html`<span class="chip" title=${task.stuck}>${icon('offline')}Can't start</span>` : nothing}${task.warnings?.length ? html`<span class="chip" title=${task.warnings.join('\n')}>${icon('warning')}${plural(task.warnings.length, 'warning')}</span>` : nothing}${uncheckedOf(task)}`;

/** That no machine looked at the scene of a task that has ended before it was rendered. */
export const uncheckedOf = (task) => (task.unchecked && ENDED.has(task.status) ? html`<span class="chip" title=${`No machine checked its scene first: ${task.unchecked}`}>${icon('info')}Not checked</span>` : nothing);

/** A sentence in which lines to type look like it. */
export const told = (text) => text.split(/(renderonline [a-z](?:[^.:;]|[.:;](?=\S))*)/).map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));

/** A bar that says its value in its name. */
export const bar = (value, label, state = '') => html`<progress class=${state} max="1" .value=${value ?? 0} aria-label=${label}></progress>`;

const NUMBER = new Intl.NumberFormat('en');
export const number = (value) => NUMBER.format(value);
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
export const percent = (value) => `${Math.floor(100 * value)} %`;

export function size(bytes) {
  const step = bytes >= 1e9 ? ['GB', 1e9] : bytes >= 1e6 ? ['MB', 1e6] : bytes >= 1e3 ? ['kB', 1e3] : ['B', 1];
  const [unit, of] = /** @type {[string, number]} */ (step);
  const value = bytes / of;
  return `${value.toFixed(value >= 10 || of === 1 ? 0 : 1)} ${unit}`;
}

export function duration(seconds) {
  if (seconds > 0 && seconds < 0.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole < 600 && whole % 60 ? ` ${whole % 60} s` : ''}`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

export function ago(moment) {
  if (!moment) return '–';
  const seconds = (Date.now() - Date.parse(moment)) / 1000;
  return seconds < 5 ? 'just now' : `${duration(seconds < 3600 ? Math.floor(seconds / 60) * 60 || seconds : seconds).replace(/ \d+ (min|h)$/, '')} ago`;
}

export const clock = (moment) => new Date(moment).toLocaleTimeString('en-GB');
export const when = (moment) => (moment ? new Date(moment).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' }) : '–');

export const ENDED = new Set(['succeeded', 'failed', 'canceled']);

/** Seconds until a task is done, by how it went so far; null when nobody can say. */
export function remaining(task) {
  if (task.status !== 'running' || !task.started || task.progress < 0.01) return null;
  return ((Date.now() - Date.parse(task.started)) / 1000) * (1 / task.progress - 1);
}

/** A short message that goes by itself; read out by screen readers. `undo`: what a button in it does. Gives what takes it away. */
export function note(text, kind = 'good', undo = null, ms = kind === 'good' ? 5000 : 9000) {
  let place = document.querySelector('.notes');
  if (!place) {
    place = Object.assign(document.createElement('div'), { className: 'notes' });
    place.setAttribute('role', 'status');
    document.body.append(place);
  }
  const line = Object.assign(document.createElement('p'), { className: kind, textContent: text });
  if (undo) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Undo' });
    button.addEventListener('click', () => { line.remove(); undo(); });
    line.append(button);
  }
  place.append(line);
  setTimeout(() => line.remove(), ms);
  return () => line.remove();
}

/** Do it; what goes wrong is told. Gives whether it went well. */
export async function attempt(act, good = '') {
  try {
    await act();
    if (good) note(good);
    return true;
  } catch (error) {
    if (error.name !== 'AbortError' && error.status !== 401) note(error.message, 'bad');
    return false;
  }
}

/** A dialog with this content; gives what it was closed with, "" for Escape. Focus returns to where it was. */
export function dialog(title, content, { wide = false } = {}) {
  return new Promise((closed) => {
    const box = document.createElement('dialog');
    box.className = wide ? 'wide' : '';
    box.setAttribute('aria-labelledby', 'dialog-title');
    render(html`<h2 id="dialog-title">${title}</h2>${content(box)}`, box);
    box.addEventListener('close', () => { box.remove(); closed(box.returnValue); });
    box.addEventListener('click', (event) => { if (event.target === box) box.close(''); });
    document.body.append(box);
    box.showModal();
  });
}

/** Ask before something that can't be undone. */
export async function sure(title, text, yes) {
  const said = await dialog(title, (box) => html`<p>${text}</p><div class="buttons end">
    <button type="button" autofocus @click=${() => box.close('')}>Keep</button>
    <button type="button" class="danger" @click=${() => box.close('yes')}>${yes}</button></div>`);
  return said === 'yes';
}

/** Something secret or long that is shown once, with a button that copies it. */
export const copied = (text, label) => html`<div class="copied"><code tabindex="0" role="region" aria-label=${label}>${text}</code>
  <button type="button" @click=${() => attempt(() => navigator.clipboard.writeText(text), 'Copied.')}>Copy</button></div>`;

/**
 * What stands where there is nothing: why, and what to do.
 * @param {string} title @param {string} text @param {any} action
 */
export const empty = (title, text, action = nothing, name = 'info') => html`<div class="empty">${icon(name)}<h2>${title}</h2><p>${text}</p>${action}</div>`;

/** What a page shows while it loads, and when loading failed. */
export function unready(page) {
  if (page.problem?.status === 403) return empty('Not for your account', page.problem.message, nothing, 'canceled');
  if (page.problem?.status === 404) return empty('Nothing here', page.problem.message, html`<a class="button" href="/">All tasks</a>`, 'search');
  if (page.problem) return empty('That did not work', page.problem.message, html`<button type="button" @click=${() => { page.problem = null; page.load(); }}>Try again</button>`, 'failed');
  return html`<div class="loading" role="status"><span class="visually-hidden">Loading</span>${[0, 1, 2, 3].map(() => html`<i></i>`)}</div>`;
}

/**
 * A long list of which only the visible part is in the document: `count` items of `height` pixels, as many beside each
 * other as `width` allows, drawn by `draw(index)`. Scrolls with the page, or by itself with the attribute `own`.
 */
class Windowed extends LitElement {
  static properties = { count: {}, height: {}, width: {}, draw: {}, label: {}, kind: {}, version: {} };
  #seen = '';
  #look = () => { if (this.#range().join() !== this.#seen) this.requestUpdate(); };
  #resized = new ResizeObserver(this.#look);

  constructor() {
    super();
    this.count = 0;
    this.height = 40;
    this.width = 0;
    /** @type {(index: number) => any} */
    this.draw = () => nothing;
    this.kind = 'list';
    this.label = '';
  }

  createRenderRoot() { return this; }

  connectedCallback() {
    super.connectedCallback();
    this.#scroller().addEventListener('scroll', this.#look, { passive: true });
    this.#resized.observe(this);
    addEventListener('resize', this.#look);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#scroller().removeEventListener('scroll', this.#look);
    this.#resized.disconnect();
    removeEventListener('resize', this.#look);
  }

  /** Show an item. */
  reveal(index) {
    const top = Math.floor(index / this.#columns()) * this.height;
    if (this.hasAttribute('own')) this.scrollTop = Math.max(0, top - this.clientHeight / 2);
    else scrollTo({ top: this.getBoundingClientRect().top + scrollY + top - innerHeight / 2 });
  }

  #scroller() { return this.hasAttribute('own') ? this : document; }
  #columns() { return this.width ? Math.max(1, Math.floor(this.clientWidth / this.width)) : 1; }

  #range() {
    const own = this.hasAttribute('own');
    const top = own ? this.scrollTop : -this.getBoundingClientRect().top;
    const view = own ? this.clientHeight : innerHeight;
    const columns = this.#columns();
    const from = Math.max(0, Math.floor(top / this.height) - 3) * columns;
    return [from, Math.max(from, Math.min(this.count, (Math.ceil((top + view) / this.height) + 3) * columns)), columns];
  }

  render() {
    const [from, to, columns] = this.#range();
    this.#seen = [from, to, columns].join();
    const rows = Math.ceil(this.count / columns);
    const set = (name, value) => ref((node) => /** @type {HTMLElement} */ (node)?.style.setProperty(name, value));
    return html`<div class="windowed" role=${this.kind} aria-label=${this.label || nothing}
      ${set('height', `${rows * this.height}px`)}><div class="window" role="presentation" ${set('transform', `translateY(${Math.floor(from / columns) * this.height}px)`)}
      ${set('--columns', columns)}>${repeat(Array.from({ length: to - from }, (_, at) => from + at), (index) => index, this.draw)}</div></div>`;
  }
}
define('ro-windowed', Windowed);
