// A new task: the scene, and a form that is drawn from what the engine's definition says.

import { get, submit } from './api.js';
import { Part, attempt, bar, classMap, define, duration, empty, html, icon, kept, nothing, plural, size, unready } from './parts.js';
import { tasks } from './store.js';

/** The built-in types' rules, as the farm checks them (`farm.arguments.TYPES`). */
export const TYPES = {
  file: /^[a-zA-Z0-9_-]+\.[a-zA-Z0-9]{1,4}$/,
  path: /^(\/[a-zA-Z0-9_-]+)+\/?$/,
  extension: /^\.[a-zA-Z0-9]{1,4}$/,
  word: /^[A-Za-z0-9_]+$/,
  sentence: /^[a-zA-Z0-9\s,.!?'-]+$/,
  natural: /^\d+$/,
  integer: /^-?\d+$/,
  real: /^-?\d+(\.\d+)?$/,
};
const EXAMPLES = { file: 'a file name like scene.blend', path: 'a path like /textures/wood', extension: 'an extension like .png', word: 'one word of letters, digits and _', sentence: 'plain text', natural: 'a whole number, 0 or more', integer: 'a whole number', real: 'a number like 0.5' };
const MOST_FRAMES = 100_000;
const PART = /^(-?\d{1,10})(?:-(-?\d{1,10})(?:([xy:])(-?\d{1,10}))?)?$/;

/** How many frames a range names: a number, or what is wrong with it. */
export function framesOf(text) {
  const found = new Set();
  const parts = text.split(',').map((part) => part.replaceAll(' ', '').replaceAll('..', '-')).filter(Boolean);
  if (!parts.length) return 'Which frames? Like 1-250, 1-100x5 or 1,5,9.';
  for (const part of parts) {
    const match = PART.exec(part);
    if (!match) return `“${part}” is no range. Write 1-250, 1-100x5 (every fifth) or 1,5,9.`;
    const [first, last, way, by] = [Number(match[1]), Number(match[2] ?? match[1]), match[3], Number(match[4] ?? 1)];
    if (by === 0) return 'The step must not be 0.';
    if (Math.abs(last - first) > 2 * MOST_FRAMES) return `A task has at most ${MOST_FRAMES} frames.`;
    const sign = last < first ? -1 : 1;
    const step = Math.abs(by);
    const every = [];
    for (let frame = first; sign * frame <= sign * last; frame += sign) every.push(frame);
    if (way === 'y') every.filter((_, at) => at % step).forEach((frame) => found.add(frame));
    else if (way === ':') for (let stride = step; stride >= 1; stride--) every.filter((_, at) => at % stride === 0).forEach((frame) => found.add(frame));
    else every.filter((_, at) => at % step === 0).forEach((frame) => found.add(frame));
  }
  return found.size > MOST_FRAMES ? `A task has at most ${MOST_FRAMES} frames.` : found.size;
}

/** What is wrong with a value, "" when nothing is. */
export function wrongWith(argument, value) {
  if (argument.choices.length) return argument.choices.includes(value) ? '' : `One of ${argument.choices.join(', ')}.`;
  if (value === '' && argument.default === null) return 'This is needed.';
  const rule = argument.regex ? pattern(argument.regex) : TYPES[argument.type];
  const fits = !rule || (rule.test(value) && /^[\0-\x7f]*$/.test(value) && !/[\n\r]$/.test(value) && value.length <= 4096);
  return fits ? '' : argument.help && argument.regex ? argument.help : `It must be ${EXAMPLES[argument.type] ?? argument.type}.`;
}

function pattern(regex) {
  try { return new RegExp(`^(?:${regex})$`); } catch { return null; } // Python's own syntax: the farm checks it
}

class Submit extends Part {
  static properties = { me: {}, file: {}, engines: { state: true }, problem: { state: true }, sending: { state: true }, refused: { state: true } };
  #values = {};
  #engine = null;
  #form = { name: '', frames: '', priority: 50, chunk_size: 0, paused: false };
  #touched = new Set();
  #key = '';

  connectedCallback() {
    super.connectedCallback();
    this.load();
  }

  async load() {
    this.problem = null;
    try {
      this.engines = (await get('/engines')).items.filter((engine) => engine.is_enabled);
      this.#take(this.file);
    } catch (error) { this.problem = error; }
  }

  willUpdate(changed) {
    if (changed.has('file') && this.engines) this.#take(this.file);
  }

  /** A file was chosen: its extension says which engine renders it. */
  #take(file) {
    if (!file) return;
    this.file = file;
    this.refused = '';
    this.#key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    const fitting = this.#fitting();
    if (!fitting.includes(this.#engine)) this.#choose(fitting[0] ?? null);
    this.requestUpdate();
  }

  #fitting() {
    const name = this.file?.name.toLowerCase() ?? '';
    return (this.engines ?? []).filter((engine) => engine.extensions.some((one) => name.endsWith(one.toLowerCase())));
  }

  #choose(engine) {
    this.#engine = engine;
    this.#touched.clear();
    this.#values = Object.fromEntries((engine?.arguments ?? []).map((one) => [one.id, one.default ?? one.choices[0] ?? '']));
    const { first, last } = engine?.frames ?? {};
    this.#form.frames = first ? [this.#values[first], this.#values[last]].filter((one, at, both) => one && (at === 0 || one !== both[0])).join('-') || '1' : '';
    this.requestUpdate();
  }

  #arguments() {
    const engine = this.#engine;
    const given = engine.frames ? [engine.frames.first, engine.frames.last, engine.frames.step] : [];
    return engine.arguments.filter((one) => !given.includes(one.id));
  }

  #wrong() {
    const wrong = this.#arguments().map((one) => [one.id, wrongWith(one, this.#values[one.id])]).filter(([, text]) => text);
    const frames = this.#engine.frames ? framesOf(this.#form.frames) : 0;
    if (typeof frames === 'string') wrong.unshift(['frames', frames]);
    return new Map(wrong);
  }

  async #send(event) {
    event.preventDefault();
    const wrong = this.#wrong();
    if (wrong.size) {
      this.#touched = new Set(wrong.keys());
      this.requestUpdate();
      await this.updateComplete;
      this.querySelector('[aria-invalid=true]')?.focus();
      return;
    }
    const values = this.#arguments().filter((one) => this.#values[one.id] !== one.default).map((one) => [one.id, this.#values[one.id]]);
    const { frames, ...form } = this.#form;
    const request = { engine: this.#engine.name, arguments: Object.fromEntries(values), ...form, frames: this.#engine.frames ? frames : null };
    const stop = new AbortController();
    const begun = performance.now();
    this.sending = { sent: 0, total: this.file.size, seconds: 0, stop };
    this.refused = '';
    const progress = (sent, total) => { this.sending = { ...this.sending, sent, total, seconds: (performance.now() - begun) / 1000 }; };
    try {
      const task = await submit(request, this.file, { progress, signal: stop.signal, key: this.#key });
      tasks.put(task);
      this.dispatchEvent(new CustomEvent('ro-go', { bubbles: true, detail: { to: `/tasks/${task.task_id}` } }));
    } catch (error) {
      if (error.name !== 'AbortError') this.refused = error.message;
    }
    this.sending = null;
  }

  render() {
    if (!this.engines) return html`<div class="head"><h1>New task</h1></div>${unready(this)}`;
    if (!this.engines.length) return html`<div class="head"><h1>New task</h1></div>${empty('No engine yet', 'This farm has no renderer that is switched on. An administrator can add one.', this.me.permissions.includes('engines') ? html`<a class="button" href="/admin/engines">Engines</a>` : nothing, 'farm')}`;
    return html`<div class="head"><h1>New task</h1></div><form class="submit" @submit=${this.#send} novalidate>
      ${this.#scene()}${this.file && this.#engine && !this.sending ? this.#options() : nothing}</form>`;
  }

  #scene() {
    const kinds = [...new Set(this.engines.flatMap((engine) => engine.extensions))];
    if (this.sending) return this.#upload();
    return html`<section class="card scene ${classMap({ chosen: Boolean(this.file) })}">
      <label class="drop">${icon(this.file ? 'succeeded' : 'upload')}
        <span><strong>${this.file ? this.file.name : 'Drop the scene here, or choose a file'}</strong>
        <small>${this.file ? `${size(this.file.size)} – choose another` : kinds.join('  ')}</small></span>
        <input class="visually-hidden" type="file" aria-label="Scene file" @change=${(event) => this.#take(event.target.files[0])}></label>
      ${this.file && !this.#engine ? html`<p class="problem" role="alert">${icon('failed')}No engine of this farm renders ${this.file.name}. It takes ${kinds.join(', ')}.</p>` : nothing}</section>`;
  }

  #upload() {
    const { sent, total, seconds, stop } = this.sending;
    const speed = seconds > 0.5 ? sent / seconds : 0;
    const done = sent >= total;
    return html`<section class="card sending" aria-live="polite"><h2>${done ? 'Checking and storing' : 'Sending'} ${this.file.name}</h2>
      ${bar(total ? sent / total : 0, 'Upload')}<p>${size(sent)} of ${size(total)}${speed && !done ? ` · ${size(speed)}/s · ${duration((total - sent) / speed)} left` : ''}</p>
      <button type="button" @click=${() => stop.abort()}>Stop</button></section>`;
  }

  #options() {
    const engine = this.#engine;
    const fitting = this.#fitting();
    const wrong = this.#wrong();
    const frames = engine.frames ? framesOf(this.#form.frames) : null;
    const set = (name, read = (input) => input.value) => (event) => { this.#form[name] = read(event.target); this.#touched.add(name); this.requestUpdate(); };
    return html`${this.refused ? html`<p class="problem" role="alert">${icon('failed')}${this.refused}</p>` : nothing}
      <section class="card"><h2>What to render</h2><div class="fields">
        ${fitting.length > 1 ? html`<label>Engine <select @change=${(event) => this.#choose(fitting[event.target.selectedIndex])}>${fitting.map((one) => html`<option ?selected=${one === engine}>${one.label}</option>`)}</select></label>` : html`<p class="fact"><span>Engine</span>${engine.label}</p>`}
        ${engine.frames ? this.#field('frames', 'Frames', 'Like 1-250, 1-100x5 (every fifth) or 1,5,9.', wrong, html`<input id="frames" .value=${kept(this.#form.frames)} @input=${set('frames')} inputmode="text" autocomplete="off" aria-describedby="frames-help" aria-invalid=${wrong.has('frames') && this.#touched.has('frames') ? 'true' : nothing}>`, typeof frames === 'number' ? html`<output class="frames-count">= ${plural(frames, 'frame')}</output>` : nothing) : nothing}
      </div></section>
      ${this.#arguments().length ? html`<section class="card"><h2>${engine.label}</h2><div class="fields">${this.#arguments().map((one) => this.#argument(one, wrong))}</div></section>` : nothing}
      <section class="card"><h2>In the queue</h2><div class="fields">
        <label>Name <input maxlength="255" .value=${kept(this.#form.name)} placeholder=${this.file.name} @input=${set('name')}></label>
        <div><label for="priority">Priority</label><div class="slider"><input id="priority" type="range" min="0" max="100" step="5" .value=${kept(String(this.#form.priority))} @input=${set('priority', (input) => Number(input.value))}><output for="priority">${this.#form.priority}</output></div><p class="help">Higher is rendered first.</p></div>
        ${engine.split === 'frames' ? html`<label>Frames in a part <input type="number" min="0" max="100000" .value=${kept(String(this.#form.chunk_size))} @input=${set('chunk_size', (input) => Math.max(0, Math.trunc(Number(input.value) || 0)))}><span class="help">One machine renders a part at a time. 0: the farm decides.</span></label>` : nothing}
        <label class="check"><input type="checkbox" .checked=${kept(this.#form.paused)} @change=${set('paused', (input) => input.checked)}> Don't start yet</label>
      </div></section>
      <div class="buttons"><button class="primary large">${icon('upload')}Submit${typeof frames === 'number' ? ` ${plural(frames, 'frame')}` : ''}</button></div>`;
  }

  #field(id, label, help, wrong, input, more = nothing) {
    const said = wrong.has(id) && this.#touched.has(id) ? wrong.get(id) : '';
    return html`<div><label for=${id}>${label}</label><div class="with">${input}${more}</div>
      ${said ? html`<span class="wrong" id="${id}-help" role="alert">${said}</span>` : html`<span class="help" id="${id}-help">${help}</span>`}</div>`;
  }

  #argument(one, wrong) {
    const id = `argument-${one.id}`;
    const change = (event) => { this.#values[one.id] = event.target.value; this.#touched.add(one.id); this.requestUpdate(); };
    const invalid = wrong.has(one.id) && this.#touched.has(one.id) ? 'true' : nothing;
    const described = `${one.id}-help`;
    const value = this.#values[one.id];
    const input = one.choices.length
      ? html`<select id=${one.id} aria-describedby=${described} @change=${change} data-argument=${id}>${one.choices.map((choice) => html`<option ?selected=${choice === value}>${choice}</option>`)}</select>`
      : html`<input id=${one.id} aria-describedby=${described} aria-invalid=${invalid} .value=${kept(value)} inputmode=${one.type === 'natural' ? 'numeric' : one.type === 'real' ? 'decimal' : 'text'} autocomplete="off" @input=${change}>`;
    return this.#field(one.id, one.label || one.id, one.help, wrong, input);
  }
}

define('ro-submit', Submit);
