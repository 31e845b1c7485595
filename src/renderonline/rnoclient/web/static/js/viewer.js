// The viewer: one frame after the other, zoomed, two compared, all of them as a flipbook, and the film.

import { call, download, fetched, V2 } from './api.js';
import { Part, attempt, define, html, icon, nothing, plural, size, word } from './parts.js';

/** What browsers show. */
export const PICTURES = /\.(png|jpe?g|webp|gif|avif|bmp)$/i;
export const FILMS = /\.(mp4|webm)$/i;
const MOST_PIXELS = 120e6;
/** A finger that moves so far shows the next frame. */
const SWIPE_PX = 24;

const named = (name) => name.split('/').map(encodeURIComponent).join('/');
export const pathOf = (taskId, result) => `/tasks/${taskId}/results/${named(result.name)}`;
/** A small JPEG that the machine has made of a result; its digest lets browsers keep it. */
export const previewOf = (taskId, result, kind) => `/tasks/${taskId}/previews/${named(result.name)}?size=${kind}&v=${result.digest}`;
/** What a cell of the grid is called: a file that is no frame as it is when it is downloaded. */
const titled = (cell) => (cell.frame === null ? cell.shown ?? cell.label : `Frame ${cell.label}`);

/** Looks at frames one by one or as a flipbook. */
class Viewer extends Part {
  static properties = { task: {}, cells: {}, at: {}, playing: { state: true }, zoom: { state: true }, fps: { state: true }, loop: { state: true }, keys: { state: true }, problem: { state: true }, beside: { state: true }, divide: { state: true }, film: { state: true } };
  #pictures = new Map();
  #pixels = 0;
  #loading = new Map();
  #pan = { x: 0, y: 0 };
  #shown = null;
  #other = null;
  /** How often playing has begun: an earlier run ends when there is a newer one. */
  #run = 0;

  constructor() {
    super();
    /** @type {any} */
    this.task = null;
    /** @type {any[]} */
    this.cells = [];
    this.at = '';
    /** @type {(label: string) => void} */
    this.chose = () => {};
    /** @type {(frames: string) => void} */
    this.again = () => {};
    this.closed = () => {};
    this.playing = false;
    /** Pixels of the screen for one of the picture; 0: it fits. */
    this.zoom = 0;
    /** 0: the scene's. */
    this.fps = 0;
    this.loop = true;
    this.keys = false;
    /** The frame that is compared with, "" when there is none. */
    this.beside = '';
    /** Where the line between two frames is, in hundredths. */
    this.divide = 50;
    this.film = '';
    this.problem = '';
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

  #there() { return this.cells.filter((cell) => cell.result && this.#source(cell.result)); }
  get #rate() { return this.fps || this.task.facts?.scenes?.[0]?.fps || 24; }
  get #cell() { return this.cells.find((cell) => cell.label === this.at) ?? this.cells[0]; }

  updated(changed) {
    if (changed.has('at') || changed.has('cells')) this.#show();
  }

  /** Where a picture comes from that a browser can show; "" when there is none. */
  #source(result) {
    if (PICTURES.test(result.name)) return pathOf(this.task.task_id, result);
    return result.preview ? previewOf(this.task.task_id, result, 'view') : '';
  }

  #key(cell) { return `${cell.result.name}/${cell.result.digest}`; }

  async #picture(cell) {
    if (!cell.result || !this.#source(cell.result)) return null;
    const key = this.#key(cell);
    const known = this.#pictures.get(key);
    if (known) { this.#pictures.delete(key); this.#pictures.set(key, known); return known; }
    if (!this.#loading.has(key)) {
      const load = async () => {
        const picture = await createImageBitmap(await (await fetched(this.#source(cell.result))).blob());
        this.#pictures.set(key, picture);
        this.#pixels += picture.width * picture.height;
        while (this.#pixels > MOST_PIXELS && this.#pictures.size > 2) {
          const [old, gone] = this.#pictures.entries().next().value;
          if (gone === this.#shown || gone === this.#other) break;
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
    this.problem = this.film = '';
    if (cell.result && FILMS.test(cell.result.name)) {
      this.#shown = null;
      await attempt(async () => { this.film = (await call('POST', '/session/tickets', { path: V2 + pathOf(this.task.task_id, cell.result) })).url; });
      return;
    }
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
    const canvas = /** @type {HTMLCanvasElement} */ (this.querySelector('.stage canvas'));
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
    const [x, y] = [Math.round((canvas.width - w) / 2 + this.#pan.x * dots), Math.round((canvas.height - h) / 2 + this.#pan.y * dots)];
    context.drawImage(this.#shown, x, y, w, h);
    this.scale = scale;
    if (!this.#other) return;
    const at = Math.round((canvas.width * this.divide) / 100);
    context.save();
    context.beginPath();
    context.rect(0, 0, at, canvas.height);
    context.clip();
    context.clearRect(0, 0, at, canvas.height);
    context.drawImage(this.#other, x, y, w, h);
    context.restore();
    context.fillStyle = '#fff';
    context.fillRect(at - dots, 0, 2 * dots, canvas.height);
  }

  /** Keep this frame beside those that follow, or no longer. */
  async #compare() {
    if (this.beside) { this.beside = ''; this.#other = null; this.#paint(); return; }
    const cell = this.#cell;
    await attempt(async () => { this.#other = await this.#picture(cell); });
    if (!this.#other) return;
    this.beside = cell.label;
    this.#go(this.#place() + (this.#place() < this.#there().length - 1 ? 1 : -1));
    this.#paint();
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
    const run = ++this.#run;
    let due = performance.now();
    while (this.playing && run === this.#run && this.isConnected) {
      due = Math.max(due + 1000 / this.#rate, performance.now());
      const there = this.#there();
      let next = this.#place() + 1;
      if (next >= there.length) {
        if (!this.loop) break;
        next = 0;
      }
      for (let ahead = 1; ahead <= 6; ahead++) this.#picture(there[(next + ahead) % there.length]).catch(() => {});
      await this.#picture(there[next]).catch(() => {}); // a film waits for its pictures instead of skipping them
      await new Promise((go) => setTimeout(go, Math.max(0, due - performance.now())));
      if (this.playing && run === this.#run) this.#go(next);
      await this.updateComplete;
    }
    if (this.isConnected && this.playing && run === this.#run) { this.playing = false; this.chose(this.at); }
  }

  #pressed(event) {
    if (event.target.matches('input[type=range], select, video') && !['Escape', '?', 'f', 'c'].includes(event.key)) return;
    const keys = {
      ' ': () => this.#play(), ArrowRight: () => this.#go(this.#place() + 1), ArrowLeft: () => this.#go(this.#place() - 1), Home: () => this.#go(0), End: () => this.#go(Infinity),
      f: () => this.#zoomTo(0), F: () => this.#zoomTo(0), 1: () => this.#zoomTo(1), '+': () => this.#zoomTo(this.scale * 1.25), '-': () => this.#zoomTo(this.scale / 1.25), c: () => this.#compare(), '?': () => { this.keys = !this.keys; },
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    if (event.key === ' ' && event.target.matches('button')) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** Move the picture, the line between two, or to other frames. */
  #drag(event) {
    if (event.button || this.film) return;
    const start = { x: event.clientX - this.#pan.x, y: event.clientY - this.#pan.y, place: this.#place() };
    const stage = event.currentTarget;
    stage.setPointerCapture(event.pointerId);
    stage.onpointermove = (moved) => {
      if (this.zoom) this.#pan = { x: moved.clientX - start.x, y: moved.clientY - start.y };
      else if (this.#other) this.divide = Math.min(100, Math.max(0, (100 * (moved.clientX - stage.getBoundingClientRect().left)) / stage.clientWidth));
      else this.#go(start.place - Math.trunc((moved.clientX - start.x) / SWIPE_PX));
      this.#paint();
    };
    stage.onpointerup = () => { stage.onpointermove = stage.onpointerup = null; };
  }

  render() {
    const cell = this.#cell;
    const there = this.#there();
    const place = this.#place();
    const { result } = cell;
    const facts = result ? [this.#shown ? `${this.#shown.width} × ${this.#shown.height}` : '', size(result.size), result.facts?.device ? `on ${result.facts.device}` : ''].filter(Boolean).join(' · ') : word(cell.state);
    const button = (name, label, act, more = '') => html`<button type="button" class="plain ${more}" aria-label=${label} title=${label} @click=${act}>${icon(name)}</button>`;
    return html`<dialog class="viewer" aria-label="${titled(cell)} of ${this.task.name}" @close=${() => this.closed()} @keydown=${this.#pressed}>
      <header><strong>${this.beside ? `Frames ${this.beside} | ${cell.label}` : titled(cell)}</strong><span class="soft">${facts}</span><span class="grow"></span>
        ${result ? html`<button type="button" class="plain" aria-label="Download" @click=${() => attempt(() => download(pathOf(this.task.task_id, result)))}>${icon('download')}<span>Download</span></button>` : nothing}
        ${cell.frame === null ? nothing : html`<button type="button" class="plain" aria-label="Render again" @click=${() => this.again(cell.label)}>${icon('retry')}<span>Render again</span></button>`}
        ${button('close', 'Close', () => this.box.close())}</header>
      ${this.task.warnings?.length ? html`<p class="alarm" role="note">${icon('warning')}<span>${this.task.warnings[0]}${this.task.warnings.length > 1 ? html` <b>and ${plural(this.task.warnings.length - 1, 'more warning')}</b>` : ''}</span></p>` : nothing}
      <div class="stage ${this.zoom ? 'zoomed' : ''}" tabindex="-1" @wheel=${(event) => { event.preventDefault(); this.#zoomTo(this.scale * (event.deltaY < 0 ? 1.15 : 1 / 1.15)); }} @pointerdown=${this.#drag} @dblclick=${() => this.#zoomTo(this.zoom ? 0 : 1)}>
        <canvas role="img" aria-label="Picture of ${cell.frame === null ? titled(cell) : `frame ${cell.label}`}${this.beside ? `, beside frame ${this.beside}` : ''}" ?hidden=${Boolean(this.film)}></canvas>
        ${this.film ? html`<video src=${this.film} controls autoplay loop muted playsinline aria-label="Film ${titled(cell)}"></video>` : this.problem || !result || !this.#source(result) ? html`<p>${this.problem || (result ? `A browser can’t show ${result.name.split('.').pop().toUpperCase()} files. Download it to look at it.` : cell.reason || word(cell.state))}</p>` : nothing}
        ${this.keys ? html`<dl class="keys"><div><dt>Space</dt><dd>play, pause</dd></div><div><dt>← →</dt><dd>previous, next</dd></div><div><dt>Home End</dt><dd>first, last</dd></div><div><dt>+ −</dt><dd>zoom</dd></div><div><dt>F, 1</dt><dd>fit, real size</dd></div><div><dt>C</dt><dd>compare two</dd></div><div><dt>Esc</dt><dd>close</dd></div></dl>` : nothing}</div>
      <footer ?hidden=${Boolean(this.film)}><input type="range" aria-label="Frame" min="0" max=${Math.max(0, there.length - 1)} .value=${String(place)} aria-valuetext="frame ${cell.label}" @input=${(event) => this.#go(Number(event.target.value))}>
        <div class="buttons">${button('first', 'First frame', () => this.#go(0), 'wide-only')}${button('previous', 'Previous frame', () => this.#go(place - 1))}
          <button type="button" class="primary" autofocus aria-label=${this.playing ? 'Pause' : 'Play'} @click=${this.#play}>${icon(this.playing ? 'pause' : 'play')}</button>
          ${button('next', 'Next frame', () => this.#go(place + 1))}${button('last', 'Last frame', () => this.#go(there.length - 1), 'wide-only')}
          <span class="soft position">${there.length ? place + 1 : 0} of ${there.length}</span><span class="grow"></span>
          ${this.beside ? html`<label class="inline"><span class="wide-only">Divide</span> <input type="range" aria-label="Divide" min="0" max="100" .value=${String(this.divide)} @input=${(event) => { this.divide = Number(event.target.value); this.#paint(); }}></label>` : html`<label class="inline wide-only">Frames per second <select @change=${(event) => { this.fps = Number(event.target.value); }}>${[...new Set([6, 12, 24, 25, 30, 60, this.#rate])].sort((one, other) => one - other).map((fps) => html`<option ?selected=${fps === this.#rate}>${fps}</option>`)}</select></label>
          <button type="button" class="plain wide-only" aria-pressed=${this.loop} @click=${() => { this.loop = !this.loop; }}>${icon('loop')}Loop</button>`}
          <button type="button" class="plain" aria-label="Compare" title="Compare two frames" aria-pressed=${Boolean(this.beside)} ?disabled=${there.length < 2} @click=${this.#compare}>${icon('compare')}</button>
          ${button('fit', 'Fit the window', () => this.#zoomTo(0))}<button type="button" class="plain" aria-label="Real size" title="Real size" @click=${() => this.#zoomTo(1)}>1:1</button>
          <button type="button" class="plain wide-only" aria-label="Keys" aria-pressed=${this.keys} @click=${() => { this.keys = !this.keys; }}>?</button></div></footer></dialog>`;
  }
}

define('ro-viewer', Viewer);
