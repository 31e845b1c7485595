// A new task: the scene, which travels while one fills in a form that is drawn from what the engine's definition says.

import { get } from './api.js';
import * as fields from './fields.js';
import { ENDED, Part, ago, attempt, bar, define, dialog, duration, empty, html, icon, kept, note, nothing, number, percent, plural, size, unready } from './parts.js';
import { tasks } from './store.js';
import { ORDERS, PLAIN, WISHES, arranged, framesOf, wished, wrongWith } from './rules.js';
import { picked, uploads } from './uploads.js';

const PRESETS = 'renderonline-presets';
const SHOWN_FILES = 100;
/** What there is to a new task beside the engine's arguments. */
const FORM = { name: '', frames: '', priority: 50, chunk_size: 0, paused: false, order: 'forward', film: '', fps: '', ...Object.fromEntries(Object.entries(WISHES).map(([name, [first]]) => [name, first])) };
/** What belongs to one task only, and to no preset. */
const OWN = new Set(['name', 'frames', 'paused', 'waits_for']);

/** What an engine's argument is called among what was touched: it may have the name of one of the form's own fields. */
const its = (id) => `argument-${id}`;

function presets() {
  try { return JSON.parse(localStorage.getItem(PRESETS) ?? '{}'); } catch { return {}; }
}

class Submit extends Part {
  static properties = { me: {}, files: {}, engines: { state: true }, problem: { state: true }, refused: { state: true }, facts: { state: true }, earlier: { state: true }, limit: { state: true }, mails: { state: true } };
  #values = {};
  #engine = null;
  #form = { ...FORM };
  #touched = new Set();
  #key = '';
  #scene = '';
  #preset = '';
  #factsOf = '';
  #saving = 0;
  #changed = () => { this.#learn(); this.changed(); };
  /** What is typed is not lost with the page. */
  #leaving = () => { if (this.#upload) this.#keep(); };

  constructor() {
    super();
    /** @type {any} */
    this.me = null;
    /** Files that were dropped on another page. @type {import('./uploads.js').Chosen[] | null} */
    this.files = null;
  }

  connectedCallback() {
    super.connectedCallback();
    uploads.addEventListener('change', this.#changed);
    tasks.addEventListener('change', this.#changed);
    addEventListener('pagehide', this.#leaving);
    if (tasks.loaded === null) tasks.load();
    this.load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    uploads.removeEventListener('change', this.#changed);
    tasks.removeEventListener('change', this.#changed);
    removeEventListener('pagehide', this.#leaving);
    clearTimeout(this.#saving);
    this.#leaving();
  }

  get #upload() { return uploads.draft; }

  async load() {
    this.problem = null;
    try {
      this.engines = (await get('/engines')).items.filter((engine) => engine.is_enabled);
    } catch (error) { this.problem = error; return; }
    if (this.files) this.#take(this.files);
    else if (this.#upload) this.#show();
    const account = await get('/me').catch(() => this.me);
    this.limit = account.queue_limit ?? null;
    this.mails = account.sends_mail ?? false;
    this.earlier = await uploads.unfinished(this.me.email).catch(() => []);
  }

  willUpdate(changed) {
    if (changed.has('files') && this.engines && this.files) this.#take(this.files);
  }

  /** Files were chosen: they begin to travel, and the form is drawn for them. */
  #take(files) {
    this.files = null;
    if (!files.length) return;
    const old = this.#upload;
    if (old && !old.then) old.stop();
    uploads.draft = uploads.add(files, this.me.email);
    this.earlier = (this.earlier ?? []).filter((one) => one.mark !== uploads.draft.mark);
    this.#show();
  }

  /** Draw the form for the upload: as it was before, or anew. */
  #show() {
    const draft = this.#upload.draft ?? uploads.draftOf(this.#upload);
    this.refused = this.#upload.refusal ?? '';
    this.#preset = '';
    this.#factsOf = '';
    this.facts = null;
    this.#key = draft?.key ?? crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    const scenes = this.#scenes();
    this.#scene = scenes.includes(draft?.scene) ? draft.scene : (scenes[0] ?? '');
    const fitting = this.#fitting();
    const engine = this.engines.find((one) => one.name === draft?.engine);
    if (engine && fitting.includes(engine)) {
      this.#engine = engine;
      this.#values = { ...this.#defaults(engine), ...draft.values };
      this.#form = { ...FORM, ...draft.form };
      this.#touched = new Set(draft.touched.map((id) => (id in this.#values && !(id in FORM) ? its(id) : id))); // as older pages kept them
    } else if (!fitting.includes(this.#engine) || !this.#touched.size) {
      this.#choose(fitting[0] ?? null);
    }
    if (!fitting.length) this.#upload.pause();
    this.#keep();
    this.#learn();
    this.requestUpdate();
  }

  /** Remember the form with its upload. */
  #keep() {
    if (!this.#engine) return;
    this.#upload.draft = { key: this.#key, scene: this.#scene, engine: this.#engine.name, values: this.#values, form: this.#form, touched: [...this.#touched] };
    this.#upload.keep();
  }

  #edited() {
    clearTimeout(this.#saving);
    this.#saving = setTimeout(this.#leaving, 400);
    this.requestUpdate();
  }

  get #packed() { return this.#upload.files.length === 1 && this.#upload.files[0].name.toLowerCase().endsWith('.zip') && !this.engines.some((engine) => engine.extensions.includes('.zip')); }

  /** The files that an engine renders, those outside of folders first. */
  #scenes() {
    if (!this.#upload) return [];
    if (this.#packed) return [this.#upload.files[0].name];
    const takes = (name) => this.engines.some((engine) => engine.extensions.some((one) => name.toLowerCase().endsWith(one.toLowerCase())));
    const depth = (name) => name.split('/').length;
    return this.#upload.files.map((one) => one.name).filter(takes).sort((one, other) => depth(one) - depth(other) || one.localeCompare(other));
  }

  #fitting() {
    const name = this.#scene.toLowerCase();
    if (!name) return [];
    if (this.#packed) return this.engines ?? [];
    return (this.engines ?? []).filter((engine) => engine.extensions.some((one) => name.endsWith(one.toLowerCase())));
  }

  #defaults(engine) { return Object.fromEntries((engine?.arguments ?? []).map((one) => [one.id, this.#default(one)])); }

  #choose(engine) {
    this.#engine = engine;
    this.#touched.clear();
    this.#values = this.#defaults(engine);
    this.#form.frames = this.#range();
    this.#apply();
    this.requestUpdate();
  }

  /** What the scene says of itself, once it is on the farm. */
  async #learn() {
    const upload = this.#upload;
    const wanted = `${upload?.id} ${this.#scene}`;
    if (!upload?.id || upload.state !== 'complete' || !this.#scene || !this.#engine?.facts || this.#factsOf === wanted) return;
    this.#factsOf = wanted;
    try {
      const facts = await get(`/uploads/${upload.id}/facts?name=${encodeURIComponent(this.#scene)}`);
      if (this.#factsOf !== wanted) return;
      this.facts = facts;
      this.#apply();
    } catch { /* an engine whose scenes nobody reads, or a scene that can't be read: submitting it says why */ }
  }

  /** The scene that is rendered of those in the file. */
  get #within() { return this.facts?.scenes?.find((one) => one.name === this.#values.scene) ?? this.facts?.scenes?.[0]; }

  /** What the engine, or else its definition, says of an argument's value. */
  #default(one) {
    if (one.default === '') return ''; // which means: as the scene says
    const said = one.fact && this.#within?.[one.fact];
    const fits = said !== undefined && said !== '' && said !== null && (!one.choices.length || one.choices.includes(String(said)));
    return fits ? String(said) : (one.default ?? one.choices[0] ?? '');
  }

  /** The scene's facts are the defaults of what nobody has filled in. */
  #apply() {
    const engine = this.#engine;
    if (!this.#within || !engine) return;
    for (const one of engine.arguments) if (!this.#touched.has(its(one.id))) this.#values[one.id] = this.#default(one);
    if (!this.#touched.has('frames')) this.#form.frames = this.#range();
    if (!this.#touched.has('fps') && this.#within.fps) this.#form.fps = String(this.#within.fps);
    this.requestUpdate();
  }

  /** The frames that the scene, or else the engine, has; "" as long as the scene has not said them. */
  #range() {
    if (!this.#engine?.frames || (this.#engine.facts && !this.#within)) return '';
    const { first, last, step } = this.#engine.frames;
    const [from, to, by] = [first, last, step].map((id) => this.#values[id] ?? '');
    return from === '' ? '1' : from === to || to === '' ? from : `${from}-${to}${Number(by) > 1 ? `x${by}` : ''}`;
  }

  /** How many frames there will be: a number, what is wrong with what one typed, or null: all that the scene has. */
  #count() {
    const typed = this.#form.frames.trim();
    if (typed || !this.#engine.facts) return framesOf(this.#form.frames);
    if (this.#within) return framesOf(this.#range());
    return this.facts ? 'Nobody could read which frames the scene has. Which ones? Like 1-250, 1-100x5 or 1,5,9.' : null;
  }

  #arguments() {
    const engine = this.#engine;
    const given = engine.frames ? [engine.frames.first, engine.frames.last, engine.frames.step] : [];
    return engine.arguments.filter((one) => !given.includes(one.id));
  }

  #wrong() {
    const wrong = this.#arguments().map((one) => [its(one.id), wrongWith(one, this.#values[one.id])]).filter(([, text]) => text);
    const frames = this.#engine.frames ? this.#count() : 0;
    if (typeof frames === 'string') wrong.unshift(['frames', frames]);
    if (this.#form.film && !(Number(this.#form.fps || 24) > 0 && Number(this.#form.fps || 24) <= 240)) wrong.push(['fps', 'More than 0 and at most 240.']);
    for (const [name, [, check]] of Object.entries(WISHES)) if (check(this.#form[name])) wrong.push([name, check(this.#form[name])]);
    return new Map(wrong);
  }

  /** What nobody has touched is not in it: the scene or the engine says it, also when its facts are not here yet. */
  #request() {
    const chosen = this.#arguments().filter((one) => this.#touched.has(its(one.id)) && !(one.default === '' && this.#values[one.id] === ''));
    const { name, priority, chunk_size, paused, frames, order, film, fps } = this.#form;
    const [, first, last] = PLAIN.exec(frames) ?? [];
    const said = frames.trim() && (this.#touched.has('frames') || (first && order !== 'forward'));
    /** @type {any} */
    const request = { engine: this.#engine.name, arguments: Object.fromEntries(chosen.map((one) => [one.id, this.#values[one.id]])), name, priority, chunk_size, paused, ...wished(this.#form) };
    if (this.#engine.frames && said) request.frames = first ? ORDERS[order][1](first, last) : frames;
    if (film && this.#engine.frames) request.film = film + (fps && this.#touched.has('fps') ? `@${fps}` : '');
    if (this.#packed) request.unpack = true;
    else if (this.#upload.files.length > 1) request.scene = this.#scene;
    return request;
  }

  /** Submit it now, or as soon as everything is there; the upload does that also when one looks at another page. */
  async #send(event) {
    event.preventDefault();
    const wrong = this.#wrong();
    if (wrong.size) {
      this.#touched = new Set([...this.#touched, ...wrong.keys()]);
      this.requestUpdate();
      await this.updateComplete;
  /** @type {HTMLElement} */ (this.querySelector('[aria-invalid=true]'))?.focus();
      return;
    }
    const [upload, request, key] = [this.#upload, this.#request(), this.#key];
    this.refused = upload.refusal = '';
    upload.then = async () => {
      try {
        const task = await upload.submit(request, key);
        tasks.put(task);
        const missing = task.missing_inputs ?? [];
        if (missing.length) note(`Not there: ${missing.slice(0, 3).join(', ')}${missing.length > 3 ? ` and ${missing.length - 3} more` : ''}.`, 'bad');
        if (this.isConnected) this.dispatchEvent(new CustomEvent('ro-go', { bubbles: true, detail: { to: `/tasks/${task.task_id}` } }));
        else note(`“${task.name}” is submitted.`);
      } catch (error) {
        upload.then = null;
        upload.refusal = error.message;
        if (error.code === 'incomplete') upload.start();
        if (this.isConnected) this.refused = error.message;
        else note(`${upload.name}: ${error.message}`, 'bad');
        upload.say();
      }
    };
    this.requestUpdate();
    if (upload.state === 'complete') await upload.then();
    else if (!upload.busy) upload.start();
  }

  async #savePreset() {
    let name = '';
    const said = await dialog('Save as preset', (box) => html`<form @submit=${(event) => { event.preventDefault(); name = event.target.elements.name.value.trim(); box.close('saved'); }}>
      <label>Name <input name="name" required maxlength="60" autofocus .value=${this.#preset}></label><p class="help">Kept in this browser: the values that you changed, priority, order, parts, film and what machines must have. Not the frames.</p>
      <div class="buttons end"><button type="button" @click=${() => box.close()}>Close</button><button class="primary">Save</button></div></form>`);
    if (said !== 'saved' || !name) return;
    const all = presets();
    const values = Object.fromEntries(Object.entries(this.#values).filter(([id]) => this.#touched.has(its(id))));
    const form = Object.fromEntries(Object.entries(this.#form).filter(([id]) => !OWN.has(id) && (id !== 'fps' || this.#touched.has('fps'))));
    all[this.#engine.name] = { ...all[this.#engine.name], [name]: { values, form } };
    if (await attempt(() => localStorage.setItem(PRESETS, JSON.stringify(all)), 'Saved.')) this.#preset = name;
    this.requestUpdate();
  }

  #usePreset(name) {
    this.#preset = name;
    const preset = presets()[this.#engine.name]?.[name];
    const known = this.#defaults(this.#engine);
    const values = Object.fromEntries(Object.entries(preset?.values ?? {}).filter(([id]) => id in known));
    const own = Object.fromEntries([...OWN].map((id) => [id, this.#form[id]]));
    this.#values = { ...known, ...values };
    this.#touched = new Set([...[...this.#touched].filter((id) => OWN.has(id)), ...Object.keys(values).map(its), ...(preset?.form?.fps ? ['fps'] : [])]);
    this.#form = { ...FORM, ...preset?.form, ...own };
    this.#apply();
    this.#edited();
  }

  #forgetPreset() {
    const all = presets();
    delete all[this.#engine.name][this.#preset];
    localStorage.setItem(PRESETS, JSON.stringify(all));
    this.#preset = '';
    this.requestUpdate();
  }

  render() {
    const head = html`<div class="head"><h1>New task</h1></div>`;
    if (!this.engines) return html`${head}${unready(this)}`;
    if (!this.engines.length) return html`${head}${empty('No engine yet', 'This farm has no renderer that is switched on. An administrator can add one.', this.me.permissions.includes('engines') ? html`<a class="button" href="/admin/engines">Engines</a>` : nothing, 'farm')}`;
    const upload = this.#upload;
    return html`${head}<form class="submit" @submit=${this.#send} novalidate>
      ${upload ? this.#chosen(upload) : this.#drop()}${upload && this.#engine ? (upload.then ? this.#waiting(upload) : this.#options(upload)) : nothing}</form>`;
  }

  #kinds() { return [...new Set(this.engines.flatMap((engine) => engine.extensions))]; }

  #input(folder = false) {
    return html`<input class="visually-hidden" type="file" multiple ?webkitdirectory=${folder} aria-label=${folder ? 'Folder with the scene' : 'Scene file'} @change=${(event) => { this.#take(picked(event.target.files)); event.target.value = ''; }}>`;
  }

  #drop() {
    return html`<section class="card scene"><label class="drop">${icon('upload')}
        <span><strong>Drop the scene here, or choose a file</strong><small>${this.#kinds().join('  ')}</small><small>Or everything that belongs to it: its textures and libraries, the whole folder, or a ZIP.</small></span>${this.#input()}</label>
        <label class="button folder">${icon('folder')}Choose a folder${this.#input(true)}</label></section>
      ${this.earlier?.length ? html`<section class="card earlier"><h2>Not finished</h2><p class="help">Choose or drop the same again, and it goes on where it stopped.</p>
        <ul class="rows">${this.earlier.map((one) => html`<li><span><strong>${one.name}</strong><small>${size(one.sent)} of ${size(one.size)} · ${ago(new Date(one.at).toISOString())}</small></span>
          ${bar(one.size ? one.sent / one.size : 0, `Sent of ${one.name}`, 'paused')}<button type="button" class="plain" aria-label="Discard ${one.name}" @click=${async () => { await uploads.discard(one.id); this.earlier = this.earlier.filter((other) => other !== one); }}>${icon('close')}</button></li>`)}</ul></section>` : nothing}`;
  }

  #chosen(upload) {
    const scenes = this.#scenes();
    const many = upload.files.length > 1;
    return html`<section class="card scene chosen"><div class="what">${icon(upload.state === 'complete' ? 'succeeded' : 'upload')}
        <span class="grow"><strong>${many ? this.#scene || upload.name : upload.files[0].name}</strong><small>${many ? `${plural(upload.files.length, 'file')}, ` : ''}${size(upload.size)}</small></span>
        <label class="button plain">Choose another${this.#input()}</label></div>
      ${upload.state === 'complete' ? nothing : this.#travel(upload)}
      ${scenes.length > 1 ? html`<label class="which">Scene <select @change=${(event) => { this.#scene = scenes[event.target.selectedIndex]; const fitting = this.#fitting(); if (!fitting.includes(this.#engine)) this.#choose(fitting[0]); this.facts = null; this.#learn(); this.#edited(); }}>${scenes.map((one) => html`<option ?selected=${one === this.#scene}>${one}</option>`)}</select></label>` : nothing}
      ${many ? html`<details class="files"><summary>All files</summary><ul>${upload.files.slice(0, SHOWN_FILES).map((one) => html`<li><span>${one.name}</span><small>${size(one.size)}</small></li>`)}${upload.files.length > SHOWN_FILES ? html`<li>and ${number(upload.files.length - SHOWN_FILES)} more</li>` : nothing}</ul></details>` : nothing}
      ${this.#engine ? this.#told() : html`<p class="problem" role="alert">${icon('failed')}No engine of this farm renders ${many ? 'any of these files' : upload.files[0].name}. It takes ${this.#kinds().join(', ')}.</p>`}</section>`;
  }

  #travel(upload) {
    const { sent, state, speed, before } = upload;
    const total = upload.size;
    const left = speed && state === 'sending' ? ` · ${size(speed)}/s · ${duration((total - sent) / speed)} left` : '';
    const told = { starting: 'Beginning …', waiting: `${upload.problem} It goes on by itself.`.replace('itself. It goes on by itself.', 'itself.'), paused: upload.problem || 'Paused.' }[state] ?? '';
    const there = before ? ` · ${size(before)} were there already` : '';
    if (state === 'refused') return html`<p class="problem" role="alert">${icon('failed')}<span>${upload.problem}</span></p><div class="buttons"><button type="button" @click=${() => upload.start()}>${icon('retry')}Try again</button></div>`;
    return html`<div class="sending ${state}">${bar(total ? sent / total : 0, 'Upload', state === 'sending' ? '' : 'paused')}
      <p class="soft"><span>${percent(total ? sent / total : 0)} · ${size(sent)} of ${size(total)}${left}${there}</span>${told ? html` <span role="status">${told}</span>` : nothing}</p>
      <div class="buttons">${upload.busy ? html`<button type="button" @click=${() => upload.pause()}>${icon('pause')}Pause</button>` : html`<button type="button" @click=${() => upload.start()}>${icon('play')}Go on</button>`}
        <button type="button" class="plain" @click=${() => upload.stop()}>Stop</button></div></div>`;
  }

  /** The scene's facts in a line, and what one must know before one submits it. */
  #told() {
    const facts = this.facts;
    if (!facts) return nothing;
    const of = this.#within;
    const [width, height] = of ? [of.width, of.height].map((one) => Math.round((one * (of.percent ?? 100)) / 100)) : [];
    const said = [facts.version ? `${this.#engine.label} ${facts.version}` : '', of ? `frames ${of.start}–${of.end}` : '', width ? `${width} × ${height}` : '', of?.fps ? `${Math.round(of.fps * 100) / 100} fps` : '', of?.engine ?? '', of?.format ?? ''].filter(Boolean);
    return html`<p class="facts" aria-label="What the scene says">${said.map((one) => html`<span>${one}</span>`)}</p>${this.#trouble ? this.#warned(facts) : nothing}`;
  }

  /** How many things are wrong with the scene as it is here. */
  get #trouble() { return (this.facts?.missing_inputs?.length ?? 0) + (this.facts?.warnings?.length ?? 0) + (this.#cold ? 1 : 0); }

  get #unbaked() { return this.#within?.unbaked ?? []; }

  /** Simulations that are not baked begin anew in each part: whether there are several. */
  get #cold() {
    const frames = this.#engine?.frames ? this.#count() : 0;
    return this.#engine?.split === 'frames' && this.#unbaked.length > 0 && !(this.#form.chunk_size >= (Number(frames) || 2));
  }

  #warned({ missing_inputs: missing = [], warnings = [] }) {
    const unbaked = this.#unbaked;
    const once = () => { this.#form.chunk_size = 100_000; this.#touched.add('chunk_size'); this.#edited(); };
    return html`<div class="alarm" role="alert">${icon('warning')}<div><strong>This scene may not look as you mean it.</strong>
      ${warnings.map((one) => html`<p>${one.charAt(0).toUpperCase()}${one.slice(1).replace(/[^.!?]$/, '$&.')}</p>`)}
      ${this.#cold ? html`<p>Not baked: ${unbaked.slice(0, 5).join(', ')}${unbaked.length > 5 ? ` and ${unbaked.length - 5} more` : ''}. Each part would begin it anew: bake it, or render all frames in one part.</p><p><button type="button" @click=${once}>Render in one part</button></p>` : nothing}
      ${missing.length ? html`<p>It names files that are not here: choose them together with it, or its whole folder.</p>
        <ul>${missing.slice(0, 10).map((one) => html`<li><code>${one}</code></li>`)}${missing.length > 10 ? html`<li>and ${missing.length - 10} more</li>` : nothing}</ul>` : nothing}</div></div>`;
  }

  #waiting(upload) {
    return html`<section class="card armed" role="status"><p>${upload.state === 'complete' ? 'Checking and storing …' : 'The task begins as soon as everything is there. You may look at other pages meanwhile.'}</p>
      ${upload.state === 'complete' ? nothing : html`<button type="button" @click=${() => { upload.then = null; upload.say(); }}>Change something</button>`}</section>`;
  }

  #options(upload) {
    const engine = this.#engine;
    const fitting = this.#fitting();
    const wrong = this.#wrong();
    const form = this.#form;
    const bad = (name) => (this.#touched.has(name) ? (wrong.get(name) ?? '') : '');
    const set = (name, read = (input) => input.value) => (event) => { form[name] = read(event.target); this.#touched.add(name); this.#edited(); };
    const saved = Object.keys(presets()[engine.name] ?? {});
    const [shown, folded] = arranged(this.#arguments(), this.facts, this.#within);
    return html`${this.refused ? html`<p class="problem" role="alert">${icon('failed')}${this.refused}</p>` : nothing}
      <section class="card"><h2>What to render</h2><div class="fields">
        ${fitting.length > 1 ? fields.field('engine', 'Engine', '', '', html`<select id="engine" @change=${(event) => { this.#choose(fitting[event.target.selectedIndex]); this.#edited(); }}>${fitting.map((one) => html`<option ?selected=${one === engine}>${one.label}</option>`)}</select>`) : html`<p class="fact"><span>Engine</span>${engine.label}</p>`}
        ${engine.frames ? this.#frames(bad, set) : nothing}
      </div></section>
      ${shown.length ? html`<section class="card"><div class="card-head"><h2>${engine.label}</h2><span class="grow"></span>
        ${saved.length ? html`<label class="inline"><span>Preset</span><select @change=${(event) => this.#usePreset(event.target.value)}><option value="" ?selected=${!this.#preset}>As the engine has it</option>${saved.map((one) => html`<option ?selected=${one === this.#preset}>${one}</option>`)}</select></label>` : nothing}
        ${this.#preset ? html`<button type="button" class="plain" aria-label="Forget the preset ${this.#preset}" @click=${this.#forgetPreset}>${icon('remove')}</button>` : nothing}
        <button type="button" @click=${this.#savePreset}>Save as preset</button></div><div class="fields">${shown.map((one) => this.#argument(one, bad))}</div>
        ${this.#folded(`More of ${engine.label}`, folded.map((one) => its(one.id)), html`<div class="fields">${folded.map((one) => this.#argument(one, bad))}</div>`)}</section>` : nothing}
      <section class="card"><h2>In the queue</h2><div class="fields">
        <label>Name <input maxlength="255" .value=${kept(form.name)} placeholder=${this.#scene} @input=${set('name')}></label>
        <div><label for="priority">Priority</label><div class="slider"><input id="priority" type="range" min="0" max="100" step="5" .value=${kept(String(form.priority))} @input=${set('priority', (input) => Number(input.value))}><output for="priority">${form.priority}</output></div><p class="help">Higher is rendered first.</p></div>
        ${engine.split === 'frames' ? html`<label>Frames in a part <input type="number" min="0" max="100000" .value=${kept(String(form.chunk_size))} @input=${set('chunk_size', (input) => Math.max(0, Math.trunc(Number(input.value) || 0)))}><span class="help">One machine renders a part at a time. 0: the farm decides.</span></label>` : nothing}
        <label class="check"><input type="checkbox" .checked=${kept(form.paused)} @change=${set('paused', (input) => input.checked)}> Don't start yet</label></div>
        ${this.#folded('More: which machines, when, which names', Object.keys(WISHES), html`<h3>Machines</h3><div class="fields">${fields.machines(form, bad, set)}</div><h3>Order</h3><div class="fields">${fields.order(form, bad, set, this.mails)}</div><h3>Results</h3><div class="fields">${fields.results(form, bad, set)}</div>`)}</section>
      ${this.#ending(upload)}`;
  }

  #frames(bad, set) {
    const form = this.#form;
    const frames = this.#count();
    const typing = (event) => { form.frames = event.target.value; this.#touched[form.frames.trim() || !this.#engine.facts ? 'add' : 'delete']('frames'); this.#edited(); };
    const like = 'Like 1-250, 1-100x5 (every fifth) or 1,5,9.';
    const counted = typeof frames === 'string' ? nothing : html`<output class="frames-count">= ${frames === null ? 'all frames of the scene' : plural(frames, 'frame')}</output>`;
    const fps = this.#within?.fps && !this.#touched.has('fps') ? 'As the scene says.' : 'Empty: as the scene says, or 24.';
    return html`${fields.text('frames', 'Frames', this.#engine.facts && !this.#touched.has('frames') ? `As the scene says. ${like}` : like, bad('frames'), form.frames, typing, { hint: this.#engine.facts ? this.#range() || 'As the scene says' : '', more: counted })}
      <label>Order <select ?disabled=${!PLAIN.test(form.frames)} @change=${set('order')}>${Object.entries(ORDERS).map(([key, [told]]) => html`<option value=${key} ?selected=${key === form.order}>${told}</option>`)}</select></label>
      ${fields.field('film', 'Film', 'Made of the frames when they are there.', '', html`<select id="film" aria-describedby="film-help" @change=${set('film')}>${[['', 'None'], ['mp4', 'MP4 (H.264)'], ['webm', 'WebM (VP9)']].map(([key, told]) => html`<option value=${key} ?selected=${key === form.film}>${told}</option>`)}</select>`)}
      ${form.film ? fields.text('fps', 'Frames per second', fps, bad('fps'), form.fps, set('fps', (input) => input.value.trim()), { kind: 'decimal' }) : nothing}`;
  }

  #argument(one, bad) {
    const change = (event) => {
      const chosen = event.target.value;
      const left = chosen === '' && one.default !== '' && one.fact; // to the scene
      this.#values[one.id] = left ? this.#default(one) : chosen;
      this.#touched[left ? 'delete' : 'add'](its(one.id));
      if (one.id === 'scene') this.#apply(); // another scene of the file has frames and cameras of its own
      this.#edited();
    };
    const untold = one.fact && this.#engine.facts && !this.#within && !this.#touched.has(its(one.id));
    return fields.argument(one, untold ? '' : this.#values[one.id], bad(its(one.id)), change, this.facts, this.#within);
  }

  /** What few people need; it is open when something in it was chosen or is wrong. */
  #folded(title, names, content) {
    const chosen = names.filter((name) => this.#touched.has(name)).length;
    return names.length ? html`<details class="more" ?open=${chosen > 0}><summary>${title}</summary>${content}</details>` : nothing;
  }

  /** The button, which is loud only when nothing is wrong with the scene. */
  #ending(upload) {
    const frames = this.#engine.frames ? this.#count() : 0;
    const what = frames === null ? ' all frames of the scene' : frames && typeof frames === 'number' ? ` ${plural(frames, 'frame')}` : '';
    const used = [...tasks.all.values()].filter((task) => task.email === this.me.email && !ENDED.has(task.status)).length;
    return html`<div class="buttons"><button class="large ${this.#trouble ? '' : 'primary'}">${icon(this.#trouble ? 'warning' : 'upload')}Submit${what}${this.#trouble ? ' anyway' : ''}${upload.state === 'complete' ? '' : ' when the upload ends'}</button>
      ${this.limit ? html`<span class="soft ${used >= this.limit ? 'bad' : ''}">Queue: ${number(used)} of ${number(this.limit)} used</span>` : nothing}</div>`;
  }
}

define('ro-submit', Submit);
