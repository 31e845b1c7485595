// The tasks that the page knows, kept as they are by the farm's events.

import { everyPage, get, live } from './api.js';

const MOST = 20_000;
/** Requests for single tasks at the same time. */
const ASKING = 4;
const CANCELED_MS = 1000;

/** A task with what is searched and sorted in it made ready: that many keys are made while pages come, not while one types. */
function ready(task) {
  const low = task.name.toLowerCase();
  return Object.assign(task, { low, text: `${low}\n${task.file_name}\n${task.email}\n${task.engine}`.toLowerCase() });
}

class Tasks extends EventTarget {
  /** task_id -> task */
  all = new Map();
  /** null until the first page is there. */
  loaded = null;
  problem = null;
  everybody = true;
  /** Tasks that are deleted in a moment, unless somebody changes their mind: no page shows them. */
  #leaving = new Map();
  #reading = null;
  #wanted = new Set();
  #asking = 0;
  #soon = 0;

  constructor() {
    super();
    live.addEventListener('resync', () => this.load());
    live.addEventListener('task', (/** @type {CustomEvent} */ { detail }) => this.#task(detail));
    live.addEventListener('progress', (/** @type {CustomEvent} */ { detail }) => this.#progress(detail));
  }

  forget() {
    this.#reading?.abort();
    this.all = new Map();
    this.loaded = this.problem = null;
  }

  /** Read all tasks anew; what is shown stays until it is replaced. */
  async load() {
    this.#reading?.abort();
    const reading = (this.#reading = new AbortController());
    const found = new Map();
    const first = this.all.size === 0;
    try {
      await everyPage(`/tasks?all=${this.everybody ? 1 : 0}`, (items) => {
        for (const task of items) if (!this.#leaving.has(task.task_id)) found.set(task.task_id, ready(task));
        if (first) { this.all = found; this.loaded = false; this.#say(); }
        if (found.size >= MOST) throw new RangeError('enough');
      }, reading.signal);
    } catch (error) {
      if (reading.signal.aborted) return;
      if (!(error instanceof RangeError)) { this.problem = error; this.#say(); return; }
    }
    for (const id of this.#leaving.keys()) found.delete(id);
    Object.assign(this, { all: found, loaded: true, problem: null });
    this.#say();
  }

  /** Show these tasks no longer; gives what shows them again. */
  hide(some) {
    for (const task of some) {
      this.#leaving.set(task.task_id, task);
      this.all.delete(task.task_id);
    }
    this.#say();
    return (again = some) => {
      for (const { task_id: id } of some) this.#leaving.delete(id);
      for (const task of again) { this.all.set(task.task_id, task); this.refresh(task.task_id); }
      this.#say();
    };
  }

  /** Take over what a call has answered. */
  put(task) {
    if (this.#leaving.has(task.task_id)) return;
    this.all.set(task.task_id, ready(task));
    this.#say();
  }

  /** Ask for one task soon. */
  refresh(taskId) {
    this.#wanted.add(taskId);
    this.#ask();
  }

  #task(told) {
    const task = this.all.get(told.task_id);
    if (told.status === 'deleted') {
      this.all.delete(told.task_id);
      this.#wanted.delete(told.task_id);
      this.#say();
    } else if (this.#leaving.has(told.task_id)) {
      return;
    } else if (!task || task.status !== told.status) {
      if (task) this.#merge(task, told);
      if (task && told.status === 'canceled') this.#refreshLater(told.task_id);
      else this.refresh(told.task_id);
    } else {
      this.#merge(task, told);
    }
  }

  /** A task that was canceled is perhaps being deleted: then there is nothing to ask for. */
  #refreshLater(taskId) {
    setTimeout(() => { if (this.all.has(taskId)) this.refresh(taskId); }, CANCELED_MS);
  }

  #merge(task, told) {
    const done = told.frames_total ? told.frames_done / told.frames_total : 0;
    const progress = told.status === 'succeeded' ? 1 : Math.max(told.frames_total > 1 ? done : task.progress, done);
    this.all.set(task.task_id, { ...task, ...told, progress });
    this.#say();
  }

  #progress({ task_id: taskId, fraction }) {
    const task = this.all.get(taskId);
    if (!task || task.frames_total > 1 || task.chunks.running + task.chunks.assigned !== 1) return;
    this.all.set(taskId, { ...task, progress: Math.max(task.progress, fraction) });
    this.#say();
  }

  async #ask() {
    while (this.#wanted.size && this.#asking < ASKING) {
      const [taskId] = this.#wanted;
      this.#wanted.delete(taskId);
      this.#asking++;
      get(`/tasks/${taskId}`).then((task) => this.put(task), (error) => {
        if (error.status === 404) { this.all.delete(taskId); this.#say(); }
      }).finally(() => { this.#asking--; this.#ask(); });
    }
  }

  #say() {
    this.#soon ||= setTimeout(() => { this.#soon = 0; this.dispatchEvent(new Event('change')); }, 60);
  }
}

export const tasks = new Tasks();
