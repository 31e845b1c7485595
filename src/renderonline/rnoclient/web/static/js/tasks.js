// All tasks: a live table with search, filters in the address, and actions on many at once.

import { call, download } from './api.js';
import { ENDED, Part, attempt, bar, chipsOf, classMap, ago, define, duration, empty, html, icon, kept, note, nothing, number, percent, plural, progressOf, remaining, size, statusOf, sure, unready, when, word } from './parts.js';
import { tasks } from './store.js';
import { uploads } from './uploads.js';

const FILTERS = ['running', 'queued', 'paused', 'failed', 'succeeded', 'canceled'];
const COLUMNS = [['status', 'State'], ['name', 'Task'], ['progress', 'Progress'], ['remaining', 'Time left'], ['email', 'Owner'], ['queued', 'Submitted']];
const ORDER = Object.fromEntries(FILTERS.map((state, at) => [state, at]));
const KEYS = { status: (task) => ORDER[task.status], name: (task) => task.low, remaining: (task) => remaining(task) ?? Infinity };

/**
 * What may be done with a task: the call, how it is called, its icon, and when it makes sense.
 * @type {[string, string, string, (task: any) => boolean][]}
 */
export const ACTIONS = [
  ['pause', 'Pause', 'pause', (task) => !ENDED.has(task.status) && !task.paused],
  ['resume', 'Resume', 'play', (task) => task.paused && !ENDED.has(task.status)],
  ['retry', 'Retry', 'retry', (task) => task.status === 'failed' || task.status === 'canceled' || task.chunks.failed > 0],
  ['cancel', 'Cancel', 'canceled', (task) => !ENDED.has(task.status)],
  ['delete', 'Delete', 'remove', () => true],
];

const DONE = { pause: 'Paused', resume: 'Resumed', retry: 'Started again', cancel: 'Canceled' };
/** On a phone rows are cards. */
const PHONE = matchMedia('(max-width: 760px)');
/** Tasks that can't start are asked for again: no event of theirs tells that a machine has come. */
const STUCK_MS = 15_000;
const MOST_STUCK = 20;
/** So long one may change one's mind about deleting. */
const UNDO_MS = 8000;

/** Delete tasks, a little later than it looks: until then it can be undone. */
function remove(some, named) {
  const back = tasks.hide(some);
  let over = false;
  const gone = async () => {
    if (over) return;
    over = true;
    removeEventListener('pagehide', gone);
    const failed = [];
    const work = async () => {
      for (let task = rest.shift(); task; task = rest.shift()) {
        try { await call('DELETE', `/tasks/${task.task_id}`, undefined, { keepalive: true }); } catch (error) {
          if (error.status !== 404) { failed.push(task); note(`${task.name}: ${error.message}`, 'bad'); }
        }
      }
    };
    const rest = [...some];
    await Promise.all([work(), work(), work(), work()]);
    back(failed);
  };
  const timer = setTimeout(gone, UNDO_MS);
  addEventListener('pagehide', gone); // who closes the page has not changed their mind
  note(`Deleted ${named}.`, 'good', () => { if (!over) { over = true; clearTimeout(timer); removeEventListener('pagehide', gone); back(); } }, UNDO_MS);
}

/** Do something with some tasks, after asking if it can't be undone; tells how it went. Gives whether it was done. */
export async function act(action, some) {
  const named = some.length === 1 ? `“${some[0].name}”` : plural(some.length, 'task');
  if (action === 'delete') {
    if (!(await sure(`Delete ${named}?`, `${some.length === 1 ? 'Its' : 'Their'} scene, frames and logs are removed.`, 'Delete'))) return false;
    remove(some, named);
    return true;
  }
  if (action === 'cancel' && !(await sure(`Cancel ${named}?`, 'What is being rendered is stopped. Frames that are there stay; you can start it again with Retry.', 'Cancel it'))) return false;
  const failed = [];
  const rest = [...some];
  const work = async () => {
    for (let task = rest.shift(); task; task = rest.shift()) {
      try {
        tasks.put(await call('POST', `/tasks/${task.task_id}/${action}`));
      } catch (error) {
        failed.push(`${task.name}: ${error.message}`);
      }
    }
  };
  await Promise.all([work(), work(), work(), work()]);
  if (failed.length < some.length) note(`${DONE[action]} ${failed.length ? plural(some.length - failed.length, 'task') : named}.`);
  if (failed.length) note(failed.slice(0, 3).join(' ') + (failed.length > 3 ? ` And ${failed.length - 3} more.` : ''), 'bad');
  return failed.length === 0;
}

class TasksPage extends Part {
  static properties = { me: {} };
  #chosen = new Set();
  #anchor = null;
  #shown = [];
  /** @type {Promise<any> | null} */
  #guiding = null;
  #changed = () => this.requestUpdate();
  #sending = () => this.changed();

  constructor() {
    super();
    /** @type {any} */
    this.me = null;
  }

  connectedCallback() {
    super.connectedCallback();
    tasks.addEventListener('change', this.#changed);
    addEventListener('popstate', this.#changed);
    PHONE.addEventListener('change', this.#changed);
    uploads.addEventListener('change', this.#sending);
    this.every(5000, () => this.requestUpdate());
    this.every(STUCK_MS, () => { for (const task of this.#shown.filter((one) => one.stuck).slice(0, MOST_STUCK)) tasks.refresh(task.task_id); });
    if (tasks.loaded === null) tasks.load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    tasks.removeEventListener('change', this.#changed);
    removeEventListener('popstate', this.#changed);
    PHONE.removeEventListener('change', this.#changed);
    uploads.removeEventListener('change', this.#sending);
  }

  load() { this.requestUpdate(); tasks.load(); }

  get problem() { return tasks.problem; }
  set problem(problem) { tasks.problem = problem; }

  #asked() {
    const asked = new URLSearchParams(location.search);
    const sort = asked.get('sort') ?? '-queued';
    return { status: asked.get('status') ?? '', q: asked.get('q') ?? '', sort: sort.replace('-', ''), down: sort.startsWith('-') };
  }

  /** Filters live in the address, so that a link shows the same. */
  #ask(changes) {
    const asked = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) value ? asked.set(name, value) : asked.delete(name);
    history.replaceState(null, '', `${location.pathname}${asked.size ? `?${asked}` : ''}`);
    this.requestUpdate();
  }

  #find({ status, q, sort, down }) {
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (task) => words.every((one) => task.text.includes(one) || String(task.task_id) === one);
    const found = words.length ? [...tasks.all.values()].filter(fits) : [...tasks.all.values()];
    const counts = Object.groupBy(found, (task) => task.status);
    const key = KEYS[sort] ?? ((task) => task[sort] ?? '');
    const keyed = (status ? (counts[status] ?? []) : found).map((task) => [key(task), task]);
    const way = down ? -1 : 1;
    keyed.sort(([a, one], [b, other]) => way * (a < b ? -1 : a > b ? 1 : 0) || other.task_id - one.task_id);
    return { found, counts, shown: keyed.map(([, task]) => task) };
  }

  #choose(task, event) {
    const at = this.#shown.indexOf(task);
    const from = event.shiftKey && this.#anchor !== null ? this.#shown.findIndex((one) => one.task_id === this.#anchor) : at;
    const on = event.target.checked;
    for (const one of this.#shown.slice(Math.min(at, Math.max(from, 0)), Math.max(at, from) + 1)) this.#chosen[on ? 'add' : 'delete'](one.task_id);
    this.#anchor = task.task_id;
    this.requestUpdate();
  }

  render() {
    const asked = this.#asked();
    if (tasks.loaded === null || (tasks.problem && !tasks.all.size)) return html`${this.#head(asked, null)}${unready(this)}`;
    const { found, counts, shown } = this.#find(asked);
    this.#shown = shown;
    this.#chosen = new Set([...this.#chosen].filter((id) => tasks.all.has(id)));
    return html`${this.#head(asked, counts, found.length)}${this.#uploads()}${this.#body(asked, shown)}${this.#chosen.size ? this.#bulk() : nothing}`;
  }

  #head(asked, counts, total = 0) {
    return html`<div class="head"><h1>Tasks</h1>
      <label class="search">${icon('search')}<span class="visually-hidden">Search tasks</span><input type="search" placeholder="Name, owner, engine, number" .value=${kept(asked.q)}
        @input=${(event) => this.#ask({ q: event.target.value })}></label>
      <a class="button primary" href="/submit">${icon('plus')}New task</a></div>
      <div class="chips" role="group" aria-label="Show">${['', ...FILTERS].map((state) => html`<button type="button" aria-pressed=${asked.status === state}
        @click=${() => this.#ask({ status: state })}>${state ? html`${icon(state)}${word(state)}` : 'All'}${counts ? html` <span class="count">${number(state ? (counts[state]?.length ?? 0) : total)}</span>` : nothing}</button>`)}</div>`;
  }

  /** What is on its way to the farm. */
  #uploads() {
    if (!uploads.all.length) return nothing;
    return html`<ul class="card rows uploads" aria-label="Uploads">${uploads.all.map((one) => html`<li><span><a href="/submit" @click=${() => { uploads.draft = one; }}><strong>${one.name}</strong></a>
      <small>${one.state === 'complete' ? (one.then ? 'Checking and storing' : 'Waits for you to submit it') : one.state === 'refused' || one.state === 'waiting' ? one.problem : `${size(one.sent)} of ${size(one.size)}${one.state === 'paused' ? ', paused' : one.speed ? ` · ${size(one.speed)}/s` : ''}`}</small></span>
      ${bar(one.size ? one.sent / one.size : 1, `Upload of ${one.name}`, one.state === 'sending' ? '' : one.state === 'complete' ? 'succeeded' : 'paused')}
      ${one.state === 'complete' ? nothing : html`<button type="button" class="plain" aria-label="${one.busy ? 'Pause' : 'Go on with'} ${one.name}" @click=${() => (one.busy ? one.pause() : one.start())}>${icon(one.busy ? 'pause' : 'play')}</button>`}
      <button type="button" class="plain" aria-label="Stop ${one.name}" @click=${() => one.stop()}>${icon('close')}</button></li>`)}</ul>`;
  }

  #body(asked, shown) {
    if (!tasks.all.size) return html`${empty('No tasks yet', 'Drop a scene anywhere on this page, or choose a file: you will see its frames appear as they are rendered.', html`<a class="button primary" href="/submit">${icon('plus')}New task</a>`, 'upload')}${this.#guide()}`;
    if (!shown.length) return empty('Nothing matches', 'No task is like that.', html`<button type="button" @click=${() => this.#ask({ q: '', status: '' })}>Show all tasks</button>`, 'search');
    const all = shown.length && shown.every((task) => this.#chosen.has(task.task_id));
    return html`<div class="table tasks" role="table" aria-label="Tasks" aria-rowcount=${shown.length + 1}>
      <div role="rowgroup" class="header"><div role="row"><span role="columnheader" class="tick"><input type="checkbox" aria-label="Select all shown" .checked=${kept(Boolean(all))}
        @change=${(event) => { this.#chosen = new Set(event.target.checked ? shown.map((task) => task.task_id) : []); this.requestUpdate(); }}></span>
        ${COLUMNS.map(([key, name]) => html`<span role="columnheader" class=${key} aria-sort=${asked.sort === key ? (asked.down ? 'descending' : 'ascending') : nothing}>
          <button type="button" @click=${() => this.#ask({ sort: asked.sort === key && !asked.down ? `-${key}` : key })}>${name}<i aria-hidden="true">${asked.sort === key ? (asked.down ? '↓' : '↑') : ''}</i></button></span>`)}</div></div>
      <ro-windowed kind="rowgroup" .count=${shown.length} .height=${PHONE.matches ? 116 : 60} .draw=${(index) => this.#row(shown[index], index)}></ro-windowed></div>`;
  }

  /** The first steps, for those who look after the farm; it is fetched when it is wanted. */
  #guide() {
    if (!this.me.permissions.includes('machines')) return nothing;
    this.#guiding ??= import('./guide.js').catch(() => { this.#guiding = null; }); // the next drawing asks again
    return html`<ro-guide .me=${this.me}></ro-guide>`;
  }

  #row(task, index) {
    if (!task) return nothing;
    const left = remaining(task);
    const total = task.frames_total;
    const failed = task.chunks.failed;
    return html`<div role="row" aria-rowindex=${index + 2} class=${classMap({ chosen: this.#chosen.has(task.task_id) })} data-task=${task.task_id}>
      <span role="cell" class="tick"><input type="checkbox" aria-label="Select ${task.name}" .checked=${kept(this.#chosen.has(task.task_id))} @click=${(event) => this.#choose(task, event)}></span>
      <span role="cell" class="status">${statusOf(task)}</span>
      <span role="cell" class="name"><a href="/tasks/${task.task_id}">${task.name}</a><small>${chipsOf(task)}${task.engine}${task.frames ? ` · frames ${task.frames}` : ''}${task.name === task.file_name ? '' : ` · ${task.file_name}`}</small></span>
      <span role="cell" class="progress">${progressOf(task, `Progress of ${task.name}`)}<small>${total ? `${number(task.frames_done)} of ${number(total)}` : percent(task.progress)}${failed ? html` · <b class="bad">${plural(failed, 'part')} failed</b>` : nothing}</small></span>
      <span role="cell" class="remaining">${left === null ? (ENDED.has(task.status) && task.started && task.ended ? html`<small>took ${duration((Date.parse(task.ended) - Date.parse(task.started)) / 1000)}</small>` : html`<small>–</small>`) : `${duration(left)}`}</span>
      <span role="cell" class="email">${task.email}</span>
      <span role="cell" class="queued" title=${when(task.queued)}>${ago(task.queued)}</span></div>`;
  }

  #bulk() {
    const some = [...this.#chosen].map((id) => tasks.all.get(id));
    const there = some.filter((task) => task.frames_done || task.chunks.succeeded);
    const fetch = async () => { for (const task of there) await download(`/tasks/${task.task_id}/download`); };
    const run = async (action, fitting) => { if (await act(action, fitting)) { this.#chosen = new Set(); this.requestUpdate(); } };
    return html`<div class="bulk" role="toolbar" aria-label="With the selected tasks"><strong>${plural(some.length, 'task')}</strong>
      <button type="button" ?disabled=${!there.length} @click=${() => attempt(fetch)}>${icon('download')}<span>Download</span></button>
      ${ACTIONS.map(([action, name, drawn, fits]) => {
        const fitting = some.filter(fits);
        return html`<button type="button" class=${action === 'delete' ? 'danger' : ''} ?disabled=${!fitting.length} @click=${() => attempt(() => run(action, fitting))}>${icon(drawn)}<span>${name}</span></button>`;
      })}<button type="button" class="plain" aria-label="Clear the selection" @click=${() => { this.#chosen = new Set(); this.requestUpdate(); }}>${icon('close')}</button></div>`;
  }
}

define('ro-tasks', TasksPage);
