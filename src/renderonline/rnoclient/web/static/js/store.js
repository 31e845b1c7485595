// The tasks that the page knows, kept as they are by the farm's events.

import { everyPage, get, live } from './api.js';

const MOST = 20_000;
/** Requests for single tasks at the same time. */
const ASKING = 4;

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
  #reading = null;
  #wanted = new Set();
  #asking = 0;
  #soon = 0;

  constructor() {
    super();
    live.addEventListener('resync', () => this.load());
    live.addEventListener('task', ({ detail }) => this.#task(detail));
    live.addEventListener('progress', ({ detail }) => this.#progress(detail));
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
        for (const task of items) found.set(task.task_id, ready(task));
        if (first) { this.all = found; this.loaded = false; this.#say(); }
        if (found.size >= MOST) throw new RangeError('enough');
      }, reading.signal);
    } catch (error) {
      if (reading.signal.aborted) return;
      if (!(error instanceof RangeError)) { this.problem = error; this.#say(); return; }
    }
    Object.assign(this, { all: found, loaded: true, problem: null });
    this.#say();
  }

  /** Take over what a call has answered. */
  put(task) {
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
    } else if (!task || task.status !== told.status) {
      if (task) this.#merge(task, told);
      this.refresh(told.task_id);
    } else {
      this.#merge(task, told);
    }
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
