// One task: its frames as they appear, its log, its parts, what is known of it, and why it waits or failed.

import { call, download, everyPage, get } from './api.js';
import './frames.js';
import './log.js';
import { FILMS } from './viewer.js';
import './timeline.js';
import { ENDED, Part, ago, attempt, define, dialog, duration, empty, html, icon, nothing, number, percent, plural, progressOf, remaining, size, stateOf, statusOf, told, uncheckedOf, unready, when, word } from './parts.js';
import { tasks } from './store.js';
import { ACTIONS, act } from './tasks.js';

const TABS = [['frames', 'Frames'], ['log', 'Log'], ['parts', 'Parts'], ['facts', 'Details']];
const MOST_ATTEMPTS = 5000;
/** Attempts or chunks that are asked for by their ids at once. */
const MOST_IDS = 200;
const MOST_WARNINGS = 5;
const RANGE = /^(-?\d+)(?:-(-?\d+)(?:x(\d+))?)?$/;

function expand(text) {
  const [, first, last = first, step = 1] = RANGE.exec(text) ?? [];
  const found = [];
  for (let frame = Number(first); frame <= Number(last); frame += Number(step)) found.push(frame);
  return found;
}

class Task extends Part {
  static properties = { taskId: {}, me: {}, problem: { state: true }, reasons: { state: true }, attempts: { state: true } };
  #chunks = new Map();
  #results = new Map();
  #rendering = new Map();
  /** Parts that were known to be done when a look for results began that is over: what such a part lacks is missing. */
  #looked = new Set();
  #cells = [];
  #dirty = true;
  /** Status and counts of the last event. */
  #known = null;
  /** Whether the next reading is of all chunks. */
  #all = false;
  #later = 0;
  #loading = null;
  #changed = () => this.#task();

  constructor() {
    super();
    this.taskId = 0;
    /** @type {any} */
    this.me = null;
    /** @type {any[] | null} */
    this.attempts = null;
  }

  connectedCallback() {
    super.connectedCallback();
    tasks.addEventListener('change', this.#changed);
    addEventListener('popstate', this.#changed);
    this.follow('result', (told) => { if (told.task_id === this.taskId) { this.#results.set(told.name, { called: this.#results.get(told.name)?.called, ...told }); this.#rendering.delete(told.frame); this.#redraw(); } });
    this.follow('progress', (told) => { if (told.task_id === this.taskId) this.#progress(told); });
    this.follow('task', (told) => { if (told.task_id === this.taskId && told.status === 'deleted') this.#gone(); });
    this.follow('resync', () => this.load());
    this.every(5000, () => { if (this.task?.stuck) this.#unstuck(); this.requestUpdate(); });
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    tasks.removeEventListener('change', this.#changed);
    removeEventListener('popstate', this.#changed);
    this.#loading?.abort();
    clearTimeout(this.#later);
  }

  willUpdate(changed) {
    if (!changed.has('taskId')) return;
    this.#chunks.clear();
    this.#results.clear();
    this.#looked.clear();
    this.problem = null;
    this.load();
  }

  get task() { return tasks.all.get(this.taskId); }

  async load() {
    this.#loading?.abort();
    const { signal } = (this.#loading = new AbortController());
    try {
      tasks.put(await get(`/tasks/${this.taskId}`, { signal }));
      await Promise.all([this.#readParts(signal), this.#readResults(signal), this.#why(signal)]);
      if (this.cells().some((cell) => cell.state === 'unknown')) await this.#readResults(signal);
      this.problem = null;
    } catch (error) {
      if (error.name !== 'AbortError') this.problem = error;
    }
  }

  async #readParts(signal) {
    const attempts = [];
    await everyPage(`/tasks/${this.taskId}/chunks`, (items) => {
      for (const one of items) {
        this.#chunks.set(one.chunk_id, one);
        if (one.state !== 'succeeded') this.#looked.delete(one.chunk_id);
      }
      this.#redraw();
    }, signal);
    try {
      await everyPage(`/tasks/${this.taskId}/attempts`, (items) => { attempts.push(...items); if (attempts.length >= MOST_ATTEMPTS) throw new RangeError('enough'); }, signal);
    } catch (error) { if (!(error instanceof RangeError)) throw error; }
    this.#know(attempts);
  }

  #know(attempts) {
    this.attempts = attempts;
    for (const one of attempts) if (one.state === 'running' || one.state === 'assigned') this.#chunks.get(one.chunk_id) && Object.assign(this.#chunks.get(one.chunk_id), { state: 'running' });
    this.#redraw();
  }

  /** What attempts changed since the last reading: the new ones, those that were live, and the chunks of both. */
  async #readChanges() {
    const known = new Map(this.attempts.map((one) => [one.attempt_id, one]));
    const newest = this.attempts[0]?.attempt_id ?? 0;
    const live = new Set(this.attempts.filter((one) => !one.outcome).map((one) => one.attempt_id));
    const changed = [];
    let cursor = '';
    do {
      const { items, next } = await get(`/tasks/${this.taskId}/attempts?limit=100${cursor && `&cursor=${cursor}`}`);
      for (const one of items) if (one.attempt_id > newest || live.delete(one.attempt_id)) changed.push(one);
      cursor = items.at(-1)?.attempt_id > newest ? next : null;
    } while (cursor);
    changed.push(...await this.#some('attempts', [...live]));
    for (const one of changed) known.set(one.attempt_id, one);
    for (const one of await this.#some('chunks', [...new Set(changed.map((attempt) => attempt.chunk_id))])) {
      this.#chunks.set(one.chunk_id, one);
      if (one.state !== 'succeeded') this.#looked.delete(one.chunk_id);
    }
    this.#know([...known.values()].sort((one, other) => other.attempt_id - one.attempt_id).slice(0, MOST_ATTEMPTS));
  }

  /** Those of a task's `chunks` or `attempts` with these ids. */
  async #some(what, ids) {
    const found = [];
    for (let at = 0; at < ids.length; at += MOST_IDS) {
      found.push(...(await get(`/tasks/${this.taskId}/${what}?limit=${MOST_IDS}&ids=${ids.slice(at, at + MOST_IDS)}`)).items);
    }
    return found;
  }

  async #readResults(signal) {
    // What lands while the list is on its way is told by an event and stands in no answer.
    const gone = new Set(this.#results.keys());
    const done = [...this.#chunks.values()].filter((one) => one.state === 'succeeded').map((one) => one.chunk_id);
    await everyPage(`/tasks/${this.taskId}/results`, (items) => { for (const one of items) { gone.delete(one.name); this.#results.set(one.name, one); } this.#redraw(); }, signal);
    for (const name of gone) this.#results.delete(name);
    for (const chunkId of done) this.#looked.add(chunkId);
    this.#redraw();
  }

  async #why(signal) {
    this.reasons = (await get(`/tasks/${this.taskId}/explain`, { signal })).reasons;
  }

  /** The task changed: what its parts are now is asked for soon, at once when its status is another. */
  #task() {
    const task = this.task;
    if (!task) return;
    const before = this.#known;
    this.changed();
    this.#known = { status: task.status, ...task.chunks };
    if (!before || Object.entries(this.#known).every(([name, value]) => before[name] === value)) return;
    // Attempts end chunks; that chunks leave an end, or are canceled, is a person's doing, which no attempt tells.
    const { succeeded, failed, canceled } = task.chunks;
    const same = before.status === task.status;
    this.#all ||= !same || succeeded < before.succeeded || failed < before.failed || canceled !== before.canceled;
    if (!this.#later) this.#later = setTimeout(() => { this.#later = 0; this.#again(); }, same ? 1500 : 60);
  }

  async #again() {
    const all = this.#all || !this.attempts;
    this.#all = false;
    try {
      await Promise.all([all ? this.#readParts() : this.#readChanges(), this.#why(), ...(ENDED.has(this.task?.status) ? [this.#readResults()] : [])]);
      if (this.cells().some((cell) => cell.state === 'unknown')) await this.#readResults();
    } catch { /* the next change asks again */ }
  }

  /** Whether it can start by now: no event of its own tells that a machine has come. */
  async #unstuck() {
    tasks.refresh(this.taskId);
    await this.#why().catch(() => {});
  }

  #gone() { this.dispatchEvent(new CustomEvent('ro-go', { bubbles: true, detail: { to: '/', replace: true } })); }

  #progress({ chunk_id: chunkId, frame, fraction }) {
    const chunk = this.#chunks.get(chunkId);
    if (chunk && chunk.state !== 'running') { chunk.state = 'running'; this.#redraw(); }
    for (const [other, one] of this.#rendering) if (one.chunkId === chunkId) this.#rendering.delete(other);
    if (frame !== null && frame !== undefined) this.#rendering.set(frame, { chunkId, fraction });
    this.#redraw();
  }

  #redraw() {
    this.#dirty = true;
    this.changed();
  }

  /** Every frame with its state and its file; of a task without frames its files. */
  cells() {
    if (!this.#dirty) return this.#cells;
    this.#dirty = false;
    const files = new Map();
    for (const result of this.#results.values()) if (result.frame !== null && !files.has(result.frame)) files.set(result.frame, result);
    const found = new Map();
    const besides = [...this.#results.values()].filter((one) => !FILMS.test(one.name));
    const unnumbered = besides.length > 0 && besides.every((one) => one.frame === null && (one.of_frame ?? null) === null); // nobody knows which frame is which
    for (const chunk of this.#chunks.values()) {
      if (chunk.frames === null || (unnumbered && chunk.state === 'succeeded')) continue;
      const lacking = this.#looked.has(chunk.chunk_id) ? 'missing' : 'unknown';
      for (const frame of expand(chunk.frames)) {
        const state = chunk.state === 'running' || chunk.state === 'assigned' ? (this.#rendering.has(frame) ? 'running' : 'assigned') : chunk.state;
        found.set(frame, { frame, label: String(frame), state: state === 'succeeded' ? lacking : state, reason: chunk.reason, result: null });
      }
    }
    for (const [frame, result] of files) found.set(frame, { frame, label: String(frame), state: 'succeeded', result });
    const others = [...this.#results.values()].filter((one) => one.frame === null || files.get(one.frame) !== one);
    this.#cells = [...found.values()].sort((one, other) => one.frame - other.frame);
    for (const result of others) this.#cells.push({ frame: null, label: result.name, shown: result.called, state: 'succeeded', result });
    return this.#cells;
  }

  #tab() { return new URLSearchParams(location.search).get('tab') ?? 'frames'; }

  #show(changes) {
    const asked = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) value ? asked.set(name, value) : asked.delete(name);
    history.replaceState(null, '', `${location.pathname}${asked.size ? `?${asked}` : ''}`);
    this.requestUpdate();
  }

  #tabKey(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    const at = TABS.findIndex(([name]) => name === this.#tab());
    this.#show({ tab: TABS[(at + way + TABS.length) % TABS.length][0] });
    this.updateComplete.then(() => /** @type {HTMLElement} */ (this.querySelector('[role=tab][aria-selected=true]')).focus());
  }

  render() {
    const task = this.task;
    const back = html`<a class="back" href="/">${icon('previous')}Tasks</a>`;
    if (!task || (this.problem && !this.#chunks.size)) return html`${back}<div class="head"><h1>Task ${this.taskId}</h1></div>${unready(this)}`;
    document.title = `${task.name} – RenderOnline`;
    const left = remaining(task);
    const running = this.attempts?.filter((one) => !one.outcome) ?? [];
    const tab = this.#tab();
    return html`${back}<div class="head task-head"><h1>${task.name}</h1><div class="buttons">${this.#buttons(task)}</div></div>
      <section class="card summary"><div class="line">${statusOf(task)}
        <span>${task.frames_total ? `${number(task.frames_done)} of ${plural(task.frames_total, 'frame')}` : percent(task.progress)}</span>
        ${left === null ? nothing : html`<span>${duration(left)} left</span>`}
        ${running.length ? html`<span>on ${[...new Set(running.map((one) => one.machine))].join(', ')}</span>` : nothing}
        ${ENDED.has(task.status) && task.started && task.ended ? html`<span>took ${duration((Date.parse(task.ended) - Date.parse(task.started)) / 1000)}</span>` : nothing}
        ${uncheckedOf(task)}<span class="soft">${task.email} · ${ago(task.queued)}</span></div>
        ${progressOf(task, 'Progress')}${this.#warned(task)}${this.#because(task)}</section>
      <div class="tabs" role="tablist" aria-label="About this task" @keydown=${this.#tabKey}>${TABS.map(([name, title]) => html`<button type="button" role="tab" id="tab-${name}" aria-selected=${tab === name}
        aria-controls="panel" tabindex=${tab === name ? 0 : -1} @click=${() => this.#show({ tab: name === 'frames' ? '' : name })}>${title}</button>`)}</div>
      <div id="panel" role="tabpanel" aria-labelledby="tab-${tab}">${this.#panel(tab, task)}</div>`;
  }

  #buttons(task) {
    const done = () => { this.load(); };
    return html`${task.frames_done || task.chunks.succeeded ? html`<button type="button" class="primary" @click=${() => attempt(() => download(`/tasks/${task.task_id}/download`))}>${icon('download')}Download all</button>` : nothing}
      ${this.#filmButton(task)}
      ${ACTIONS.filter(([, , , fits]) => fits(task)).map(([action, name, drawn]) => html`<button type="button" class=${action === 'delete' ? 'danger' : ''}
        @click=${async () => { if (await act(action, [task])) action === 'delete' ? this.#gone() : done(); }}>${icon(drawn)}${name}</button>`)}`;
  }

  #filmButton(task) {
    const film = [...this.#results.values()].find((one) => one.frame === null && FILMS.test(one.name));
    if (film) return html`<button type="button" @click=${() => this.#show({ tab: '', frame: film.name })}>${icon('film')}Play the film</button>`;
    if (task.frames_done < 2) return nothing;
    return html`<button type="button" @click=${() => this.#makeFilm(task)}>${icon('film')}Make a film</button>`;
  }

  async #makeFilm(task) {
    const fps = task.facts?.scenes?.[0]?.fps ?? 24;
    await dialog('Make a film', (box) => html`<form @submit=${async (event) => {
        event.preventDefault();
        const of = Object.fromEntries(new FormData(event.target));
        if (await attempt(() => call('POST', `/tasks/${task.task_id}/film`, { film: `${of.kind}@${of.fps}` }), 'The film is being made. It appears among the frames.')) { box.close(); this.load(); }
      }}><p>Of the frames that are there${task.frames_done < task.frames_total ? `, ${number(task.frames_done)} of ${number(task.frames_total)}` : ''}.</p>
      <label>Film <select name="kind"><option value="mp4">MP4 (H.264)</option><option value="webm">WebM (VP9)</option></select></label>
      <label>Frames per second <input name="fps" type="number" min="1" max="240" step="any" required .value=${String(fps)}></label>
      <div class="buttons end"><button type="button" @click=${() => box.close()}>Close</button><button class="primary">Make it</button></div></form>`);
  }

  /** What is wrong with its pictures, although nothing failed. */
  #warned({ warnings = [] }) {
    if (!warnings.length) return nothing;
    const line = (one) => html`<p>${one}</p>`;
    return html`<div class="alarm" role="status" aria-label="Warnings">${icon('warning')}<div>${warnings.length > 1 ? html`<strong>${plural(warnings.length, 'warning')}</strong>` : nothing}${warnings.slice(0, MOST_WARNINGS).map(line)}
      ${warnings.length > MOST_WARNINGS ? html`<details><summary>${plural(warnings.length - MOST_WARNINGS, 'more', 'more')}</summary>${warnings.slice(MOST_WARNINGS).map(line)}</details>` : nothing}</div></div>`;
  }

  #because(task) {
    const reasons = (this.reasons ?? []).filter((one) => !task.warnings?.includes(one));
    if (task.status === 'succeeded' || !reasons.length) return nothing;
    // What the state, the bar and the buttons say already is not said again.
    const said = reasons.filter((one) => !/^(?:It (?:failed|was canceled)\b|\d+ of its parts (?:is|are) being rendered|All machines that can take it are busy)/.test(one) || (task.status === 'queued' && one.startsWith('All')));
    if (!said.length) return nothing;
    const stuck = task.stuck && said[0] === task.stuck;
    const helping = [];
    if (stuck && this.me?.permissions.includes('machines')) helping.push(html`<a class="button" href="/farm">${icon('farm')}Machines</a>`);
    if (task.chunks.failed) helping.push(html`<button type="button" @click=${() => this.#show({ tab: 'log' })}>Look at the log</button>`);
    return html`<div class=${stuck ? 'because alarm' : `because ${task.status}`}>${icon(stuck ? 'offline' : task.status === 'failed' ? 'failed' : 'info')}<div>${stuck ? html`<strong>It can't start as things are.</strong>` : nothing}${said.map((one) => html`<p>${told(one)}</p>`)}</div>${helping}</div>`;
  }

  #panel(tab, task) {
    if (tab === 'log') return html`<ro-log .attempts=${this.attempts} .wanted=${Number(new URLSearchParams(location.search).get('attempt'))} .chose=${(id) => this.#show({ attempt: id })}></ro-log>`;
    if (tab === 'parts') return this.#parts();
    if (tab === 'facts') return this.#facts(task);
    return html`<ro-frames .task=${task} .cells=${this.cells()} .wanted=${new URLSearchParams(location.search).get('frame')} .chose=${(label) => this.#show({ frame: label })}
      .again=${(frames) => this.#requeue(frames)} .fetch=${(frames, names) => this.#fetch(frames, names)}></ro-frames>`;
  }

  async #requeue(frames) {
    await attempt(() => call('POST', `/tasks/${this.taskId}/requeue`, { frames }), /^-?\d+$/.test(frames) ? `Frame ${frames} is rendered again.` : `Frames ${frames} are rendered again.`);
    this.load();
  }

  /** Download some frames and files. */
  #fetch(frames, names) {
    const asked = new URLSearchParams(frames ? { frames } : {});
    for (const name of names) asked.append('name', name);
    return attempt(() => download(`/tasks/${this.taskId}/download`, asked));
  }

  #parts() {
    if (!this.attempts) return unready(this);
    if (!this.attempts.length) return empty('Nothing was tried yet', 'Here you see which machine rendered what, and how long it took.', nothing, 'queued');
    const begin = Math.min(...this.attempts.map((one) => Date.parse(one.started ?? one.assigned)));
    const end = Math.max(...this.attempts.map((one) => (one.ended ? Date.parse(one.ended) : Date.now())));
    const share = (moment) => (end > begin ? (100 * (moment - begin)) / (end - begin) : 0);
    return html`<ro-timeline .attempts=${this.attempts} .chose=${(id) => this.#show({ tab: 'log', attempt: id })}></ro-timeline><div class="table attempts" role="table" aria-label="Attempts"><div role="rowgroup" class="header"><div role="row">
        ${['State', 'Frames', 'Machine', 'Time', 'When'].map((name) => html`<span role="columnheader">${name}</span>`)}</div></div>
      <ro-windowed kind="rowgroup" .count=${this.attempts.length} .height=${64} .draw=${(index) => {
        const one = this.attempts[index];
        const from = Date.parse(one.started ?? one.assigned);
        const to = one.ended ? Date.parse(one.ended) : Date.now();
        const state = one.outcome ?? one.state;
        return html`<div role="row"><span role="cell">${stateOf(state)}</span><span role="cell">${one.frames ?? 'whole'}<small>${one.reason ?? ''}</small></span>
          <span role="cell">${one.machine || 'gone'}<small>${one.peak_memory_mib ? `up to ${size(one.peak_memory_mib * 1048576)}` : ''}</small></span>
          <span role="cell">${duration((to - from) / 1000)}</span>
          <span role="cell"><svg class="span ${state}" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="from ${when(one.started ?? one.assigned)}"><rect width="100" height="6" class="all"></rect><rect x=${share(from)} width=${Math.max(1, share(to) - share(from))} height="6"></rect></svg>
          <button type="button" class="plain" @click=${() => this.#show({ tab: 'log', attempt: String(one.attempt_id) })}>Log</button></span></div>`;
      }}></ro-windowed></div>`;
  }

  #facts(task) {
    const facts = [['Number', task.task_id], ['Engine', task.engine], ['Scene', `${task.file_name}, ${size(task.file_size)}`], ['Frames', task.frames || 'what the scene says'],
      ['Frames in a part', task.chunk_size || 'decided by the farm'], ['Rendered on', [...new Set([...this.#results.values()].map((one) => one.facts?.device).filter(Boolean))].slice(0, 5).join('; ')], ['Owner', task.email], ['Submitted', when(task.queued)], ['Started', when(task.started)], ['Ended', when(task.ended)], ['Not checked', task.unchecked],
      ['Parts', Object.entries(task.chunks).filter(([, count]) => count).map(([state, count]) => `${count} ${word(state).toLowerCase()}`).join(', ')]];
    return html`<div class="two"><section class="card"><h2>Task</h2><dl>${facts.filter(([name, value]) => value || !['Rendered on', 'Not checked'].includes(name)).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
        <div><dt><label for="task-priority">Priority</label></dt><dd class="slider"><input id="task-priority" type="range" min="0" max="100" step="5" .value=${String(task.priority)} ?disabled=${ENDED.has(task.status)}
          @change=${(event) => attempt(async () => tasks.put(await call('PATCH', `/tasks/${task.task_id}`, { priority: Number(event.target.value) })), 'Priority changed.')}><output>${task.priority}</output></dd></div></dl></section>
      <section class="card"><h2>Arguments</h2>${Object.keys(task.arguments).length ? html`<dl>${Object.entries(task.arguments).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>` : html`<p class="help">All as the engine has them.</p>`}</section>
      ${this.#scene(task.facts)}</div>`;
  }

  /** What the scene says of itself. */
  #scene(facts) {
    if (!facts?.version) return nothing;
    const of = facts.scenes?.[0];
    const missing = facts.missing_inputs ?? [];
    const rows = [['Saved by', facts.version], ...(of ? [['Scene', of.name], ['Frames', `${of.start}–${of.end}${of.step > 1 ? `, every ${of.step}th` : ''}`], ['Size', `${Math.round((of.width * of.percent) / 100)} × ${Math.round((of.height * of.percent) / 100)}`], ['Frames per second', of.fps], ['Renderer', of.engine], ['Format', of.format]] : []),
      ['External files', facts.external?.length ? number(facts.external_count ?? facts.external.length) : 'none'], ['Missing', missing.join(', ')]];
    return html`<section class="card"><h2>What the scene says</h2><dl>${rows.filter(([, value]) => value).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></section>`;
  }
}

define('ro-task', Task);
