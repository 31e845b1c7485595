// A task's frames as a grid that fills, and the viewer: zoom, next and previous, the flipbook.

import { download, fetched } from './api.js';
import { Part, attempt, define, empty, html, icon, nothing, number, ref, size, word } from './parts.js';

const PICTURES = /\.(png|jpe?g|webp|gif|avif|bmp)$/i;
const THUMB_PX = 240;
const MOST_THUMBS = 400;
const AT_ONCE = 4;
/** A picture is asked for when scrolling has paused so long: what flies by is not worth fetching. */
const PAUSE_MS = 110;
const MOST_PIXELS = 120e6;

const pathOf = (taskId, result) => `/tasks/${taskId}/results/${result.name.split('/').map(encodeURIComponent).join('/')}`;

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
      const picture = this.get(key) ?? (await createImageBitmap(blob, { resizeWidth: THUMB_PX, resizeQuality: 'medium' }));
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

class Frames extends Part {
  static properties = { task: {}, cells: {}, wanted: {}, chose: {}, again: {}, only: { state: true } };

  updated() {
    const viewer = this.querySelector('ro-viewer');
    if (this.wanted && !viewer) this.#open();
    if (viewer) viewer.cells = this.cells;
  }

  #open() {
    if (!this.cells.some((cell) => cell.label === this.wanted)) return;
    const viewer = document.createElement('ro-viewer');
    Object.assign(viewer, { task: this.task, cells: this.cells, at: this.wanted, chose: this.chose, again: this.again });
    viewer.closed = () => { viewer.remove(); this.chose(''); this.querySelector(`[data-frame="${CSS.escape(viewer.at)}"]`)?.focus(); };
    this.append(viewer);
  }

  render() {
    const { cells, task } = this;
    if (!cells.length) return empty('No frames yet', 'They appear here one by one as they are rendered.', nothing, 'queued');
    const counts = Object.groupBy(cells, (cell) => cell.state);
    const shown = this.only && counts[this.only] ? counts[this.only] : cells;
    const states = ['succeeded', 'running', 'assigned', 'waiting', 'failed', 'missing', 'canceled'].filter((state) => counts[state]);
        return html`${states.length > 1 ? html`<div class="chips" role="group" aria-label="Show frames">${['', ...states].map((state) => html`<button type="button" aria-pressed=${(this.only ?? '') === state} @click=${() => { this.only = state; }}>
        ${state ? html`${icon(state)}${word(state)}` : 'All'} <span class="count">${number(state ? counts[state].length : cells.length)}</span></button>`)}</div>` : nothing}
      <ro-windowed class="frames" label="Frames" .count=${shown.length} .height=${128} .width=${150} .draw=${(index) => this.#cell(shown[index], task)}></ro-windowed>`;
  }

  #cell(cell, task) {
    if (!cell) return nothing;
    const { result } = cell;
    const seen = result && PICTURES.test(result.name);
    return html`<div role="listitem" class="cell ${cell.state}"><button type="button" data-frame=${cell.label} aria-label="${cell.frame === null ? 'File' : 'Frame'} ${cell.label}, ${word(cell.state)}" title=${cell.reason ?? nothing}
      ?disabled=${!result && cell.state !== 'failed' && cell.state !== 'missing'} @click=${() => this.chose(cell.label)}>
      ${seen ? html`<ro-thumb .of=${[`${task.task_id}/${result.name}/${result.digest}`, pathOf(task.task_id, result)]}></ro-thumb>` : html`<span class="blank">${result ? html`<b>${result.name.split('.').pop()}</b>` : icon(cell.state)}</span>`}
      <span class="label">${cell.label}</span></button></div>`;
  }
}

/** Looks at frames one by one or as a film. */
class Viewer extends Part {
  static properties = { task: {}, cells: {}, at: {}, playing: { state: true }, zoom: { state: true }, fps: { state: true }, loop: { state: true }, keys: { state: true }, problem: { state: true } };
  #pictures = new Map();
  #pixels = 0;
  #loading = new Map();
  #pan = { x: 0, y: 0 };
  #shown = null;

  constructor() {
    super();
    Object.assign(this, { playing: false, zoom: 0, fps: 24, loop: true, keys: false });
  }

  connectedCallback() {
    super.connectedCallback();
    this.resized = new ResizeObserver(() => this.#paint());
    this.updateComplete.then(() => {
      this.box = this.querySelector('dialog');
      this.box.showModal();
      this.resized.observe(this.querySelector('.stage'));
    });
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.playing = false;
    this.resized.disconnect();
    for (const picture of this.#pictures.values()) picture.close();
    this.#pictures.clear();
  }

  #there() { return this.cells.filter((cell) => cell.result); }
  get #cell() { return this.cells.find((cell) => cell.label === this.at) ?? this.cells[0]; }

  updated(changed) {
    if (changed.has('at') || changed.has('cells')) this.#show();
  }

  #key(cell) { return `${cell.result.name}/${cell.result.digest}`; }

  async #picture(cell) {
    if (!cell.result || !PICTURES.test(cell.result.name)) return null;
    const key = this.#key(cell);
    const known = this.#pictures.get(key);
    if (known) { this.#pictures.delete(key); this.#pictures.set(key, known); return known; }
    if (!this.#loading.has(key)) {
      const load = async () => {
        const picture = await createImageBitmap(await (await fetched(pathOf(this.task.task_id, cell.result))).blob());
        this.#pictures.set(key, picture);
        this.#pixels += picture.width * picture.height;
        while (this.#pixels > MOST_PIXELS && this.#pictures.size > 2) {
          const [old, gone] = this.#pictures.entries().next().value;
          if (gone === this.#shown) break;
          this.#pictures.delete(old);
          this.#pixels -= gone.width * gone.height;
          gone.close();
        }
        return picture;
      };
      this.#loading.set(key, load().finally(() => this.#loading.delete(key)));
    }
    return this.#loading.get(key);
  }

  async #show() {
    const cell = this.#cell;
    this.problem = '';
    try {
      const picture = await this.#picture(cell);
      if (cell !== this.#cell && cell.label !== this.at) return;
      this.#shown = picture;
      this.#paint();
    } catch {
      this.#shown = null;
      this.problem = 'This picture can’t be shown here. Download it to look at it.';
      this.#paint();
    }
    this.requestUpdate();
    const there = this.#there();
    const at = there.indexOf(cell);
    for (const beside of [1, 2, -1]) if (there[at + beside]) this.#picture(there[at + beside]).catch(() => {});
  }

  #paint() {
    const canvas = this.querySelector('.stage canvas');
    if (!canvas) return;
    const { clientWidth: width, clientHeight: height } = canvas.parentElement;
    const dots = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dots) || canvas.height !== Math.round(height * dots)) Object.assign(canvas, { width: Math.round(width * dots), height: Math.round(height * dots) });
    const context = canvas.getContext('2d');
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.#shown) return;
    const fit = Math.min(canvas.width / this.#shown.width, canvas.height / this.#shown.height);
    const scale = this.zoom ? this.zoom : fit;
    const [w, h] = [this.#shown.width * scale, this.#shown.height * scale];
    if (!this.zoom) this.#pan = { x: 0, y: 0 };
    context.imageSmoothingEnabled = scale < 2;
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.#shown, Math.round((canvas.width - w) / 2 + this.#pan.x * dots), Math.round((canvas.height - h) / 2 + this.#pan.y * dots), w, h);
    this.scale = scale;
  }

  #zoomTo(zoom) {
    this.zoom = zoom && Math.min(16, Math.max(0.05, zoom));
    this.#paint();
  }

  #go(to) {
    const there = this.#there();
    if (!there.length) return;
    const cell = there[Math.min(there.length - 1, Math.max(0, to))];
    this.at = cell.label;
    if (!this.playing) this.chose(cell.label);
  }

  /** The place among those that are there, before or after a frame that is not. */
  #place() {
    const there = this.#there();
    const at = there.findIndex((cell) => cell.label === this.at);
    return at >= 0 ? at : Math.max(0, there.findIndex((cell) => cell.frame > this.#cell.frame));
  }

  async #play() {
    this.playing = !this.playing;
    if (!this.playing) { this.chose(this.at); return; }
    if (this.#place() === this.#there().length - 1) this.#go(0);
    let due = performance.now();
    while (this.playing && this.isConnected) {
      due = Math.max(due + 1000 / this.fps, performance.now());
      const there = this.#there();
      let next = this.#place() + 1;
      if (next >= there.length) {
        if (!this.loop) break;
        next = 0;
      }
      for (let ahead = 1; ahead <= 6; ahead++) this.#picture(there[(next + ahead) % there.length]).catch(() => {});
      await this.#picture(there[next]).catch(() => {}); // a film waits for its pictures instead of skipping them
      await new Promise((go) => setTimeout(go, Math.max(0, due - performance.now())));
      if (this.playing) this.#go(next);
      await this.updateComplete;
    }
    if (this.isConnected && this.playing) { this.playing = false; this.chose(this.at); }
  }

  #pressed(event) {
    if (event.target.matches('input[type=range], select') && !['Escape', '?', 'f'].includes(event.key)) return;
    const keys = {
      ' ': () => this.#play(), ArrowRight: () => this.#go(this.#place() + 1), ArrowLeft: () => this.#go(this.#place() - 1), Home: () => this.#go(0), End: () => this.#go(Infinity),
      f: () => this.#zoomTo(0), F: () => this.#zoomTo(0), 1: () => this.#zoomTo(1), '+': () => this.#zoomTo(this.scale * 1.25), '-': () => this.#zoomTo(this.scale / 1.25), '?': () => { this.keys = !this.keys; },
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    if (event.key === ' ' && event.target.matches('button')) return;
    event.preventDefault();
    keys[event.key]();
  }

  #drag(event) {
    if (!this.zoom || event.button) return;
    const start = { x: event.clientX - this.#pan.x, y: event.clientY - this.#pan.y };
    const stage = event.currentTarget;
    stage.setPointerCapture(event.pointerId);
    stage.onpointermove = (moved) => { this.#pan = { x: moved.clientX - start.x, y: moved.clientY - start.y }; this.#paint(); };
    stage.onpointerup = () => { stage.onpointermove = stage.onpointerup = null; };
  }

  render() {
    const cell = this.#cell;
    const there = this.#there();
    const place = this.#place();
    const { result } = cell;
    const facts = result ? [this.#shown ? `${this.#shown.width} × ${this.#shown.height}` : '', size(result.size)].filter(Boolean).join(' · ') : word(cell.state);
    const button = (name, label, act, more = '') => html`<button type="button" class="plain ${more}" aria-label=${label} title=${label} @click=${act}>${icon(name)}</button>`;
    return html`<dialog class="viewer" aria-label="Frame ${cell.label} of ${this.task.name}" @close=${() => this.closed()} @keydown=${this.#pressed}>
      <header><strong>${cell.frame === null ? cell.label : `Frame ${cell.label}`}</strong><span class="soft">${facts}</span><span class="grow"></span>
        ${result ? html`<button type="button" class="plain" aria-label="Download" @click=${() => attempt(() => download(pathOf(this.task.task_id, result)))}>${icon('download')}<span>Download</span></button>` : nothing}
        ${cell.frame === null ? nothing : html`<button type="button" class="plain" aria-label="Render again" @click=${() => this.again(cell.label)}>${icon('retry')}<span>Render again</span></button>`}
        ${button('close', 'Close', () => this.box.close())}</header>
      <div class="stage ${this.zoom ? 'zoomed' : ''}" @wheel=${(event) => { event.preventDefault(); this.#zoomTo(this.scale * (event.deltaY < 0 ? 1.15 : 1 / 1.15)); }} @pointerdown=${this.#drag} @dblclick=${() => this.#zoomTo(this.zoom ? 0 : 1)}>
        <canvas role="img" aria-label="Picture of ${cell.frame === null ? cell.label : `frame ${cell.label}`}"></canvas>
        ${this.problem || !result || !PICTURES.test(result.name) ? html`<p>${this.problem || (result ? `A browser can’t show ${result.name.split('.').pop().toUpperCase()} files. Download it to look at it.` : cell.reason || word(cell.state))}</p>` : nothing}
        ${this.keys ? html`<dl class="keys"><div><dt>Space</dt><dd>play, pause</dd></div><div><dt>← →</dt><dd>previous, next</dd></div><div><dt>Home End</dt><dd>first, last</dd></div><div><dt>+ −</dt><dd>zoom</dd></div><div><dt>F, 1</dt><dd>fit, real size</dd></div><div><dt>Esc</dt><dd>close</dd></div></dl>` : nothing}</div>
      <footer><input type="range" aria-label="Frame" min="0" max=${Math.max(0, there.length - 1)} .value=${String(place)} aria-valuetext="frame ${cell.label}" @input=${(event) => this.#go(Number(event.target.value))}>
        <div class="buttons">${button('first', 'First frame', () => this.#go(0), 'wide-only')}${button('previous', 'Previous frame', () => this.#go(place - 1))}
          <button type="button" class="primary" autofocus aria-label=${this.playing ? 'Pause' : 'Play'} @click=${this.#play}>${icon(this.playing ? 'pause' : 'play')}</button>
          ${button('next', 'Next frame', () => this.#go(place + 1))}${button('last', 'Last frame', () => this.#go(there.length - 1), 'wide-only')}
          <span class="soft position">${there.length ? place + 1 : 0} of ${there.length}</span><span class="grow"></span>
          <label class="inline wide-only">Frames per second <select @change=${(event) => { this.fps = Number(event.target.value); }}>${[6, 12, 24, 25, 30, 60].map((fps) => html`<option ?selected=${fps === this.fps}>${fps}</option>`)}</select></label>
          <button type="button" class="plain wide-only" aria-pressed=${this.loop} @click=${() => { this.loop = !this.loop; }}>${icon('loop')}Loop</button>
          ${button('fit', 'Fit the window', () => this.#zoomTo(0))}<button type="button" class="plain" aria-label="Real size" title="Real size" @click=${() => this.#zoomTo(1)}>1:1</button>
          <button type="button" class="plain wide-only" aria-label="Keys" aria-pressed=${this.keys} @click=${() => { this.keys = !this.keys; }}>?</button></div></footer></dialog>`;
  }
}

define('ro-thumb', Thumb);
define('ro-frames', Frames);
define('ro-viewer', Viewer);
