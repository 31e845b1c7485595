// Files on their way to the farm: each from its beginning on, several at once. They go on after a cut, a pause and a
// restart of the farm by themselves, on every page; after a reload when the same files are chosen again.

import { Problem, V2, call, get, problemOf } from './api.js';

const PIECE = 32 * 1024 * 1024;
/** Files that travel at the same time: browsers allow a page about six connections, one of them is for events. */
const AT_ONCE = 3;
const RETRY_MS = [300, 1000, 2000, 5000];
/** Answers after which the same is worth trying again by itself. */
const PASSING = new Set([0, 408, 429, 500, 502, 503, 504]);
const SPEED_MS = 4000;
const LOGGED_OUT = 'Log in to go on.';
const KEPT = 'renderonline-uploads';
const KEPT_DAYS = 7;

/**
 * @typedef {{ name: string, file: File }} Chosen
 * @typedef {{ name: string, file: File, size: number, sent: number, index: number }} Sent
 * @typedef {{ id: string, email: string, mark: string, name: string, size: number, at: number, draft?: any }} Kept
 */

const wait = (ms) => new Promise((go) => setTimeout(go, ms));

/** What systems and programs leave in folders, and nobody renders. */
const UNWANTED = /(^|\/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini|[^/]+\.blend\d+)(\/|$)/i;

/** Files with the names that the farm gets: a single folder around all of them is left out. @param {Chosen[]} found */
function tidy(found) {
  const wanted = found.filter((one) => !UNWANTED.test(one.name));
  const files = wanted.length ? wanted : found;
  const around = files[0]?.name.split('/')[0];
  const inside = files.length && files.every((one) => one.name.startsWith(`${around}/`));
  return inside ? files.map((one) => ({ ...one, name: one.name.slice(around.length + 1) })) : files;
}

/** What an input of files has. @param {FileList} list */
export const picked = (list) => tidy([...list].map((file) => ({ name: file.webkitRelativePath || file.name, file })));

/** What was dropped, with all that is in folders; to be called while the event happens. @param {DataTransfer} data */
export async function dropped(data) {
  const entries = [...data.items].filter((item) => item.kind === 'file').map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
  /** @type {Chosen[]} */
  const found = [];
  const take = async (entry, folder) => {
    if (entry instanceof File) { found.push({ name: entry.name, file: entry }); return; }
    const name = folder + entry.name;
    if (entry.isFile) {
      found.push({ name, file: await new Promise((done, failed) => { entry.file(done, failed); }) });
    } else {
      const reader = entry.createReader();
      for (;;) { // a reader gives a hundred at a time
        const some = await new Promise((done, failed) => { reader.readEntries(done, failed); });
        if (!some.length) break;
        for (const one of some) await take(one, `${name}/`);
      }
    }
  };
  for (const entry of entries) await take(entry, '');
  return tidy(found);
}

/** The same for the same files, another one when anything of them changed. @param {Chosen[]} files */
function markOf(files) {
  let [high, low] = [0xdeadbeef, 0x41c6ce57];
  const text = files.map(({ name, file }) => `${name}\t${file.size}\t${file.lastModified}`).sort().join('\n');
  for (let at = 0; at < text.length; at++) {
    high = Math.imul(high ^ text.charCodeAt(at), 2654435761);
    low = Math.imul(low ^ text.charCodeAt(at), 1597334677);
  }
  return `${files.length}-${(high >>> 0).toString(36)}${(low >>> 0).toString(36)}`;
}

/** Uploads that this browser began and no task has taken. @returns {Kept[]} */
function kept() {
  try {
    const oldest = Date.now() - KEPT_DAYS * 86_400_000;
    return JSON.parse(localStorage.getItem(KEPT) ?? '[]').filter((one) => one.at > oldest);
  } catch { return []; }
}

function keep(/** @type {string} */ id, /** @type {Kept | null} */ one) {
  const others = kept().filter((other) => other.id !== id);
  try { localStorage.setItem(KEPT, JSON.stringify(one ? [one, ...others].slice(0, 20) : others)); } catch { /* full, or not allowed: it only goes on while the page stays */ }
}

/** One upload. `state`: starting, sending, paused, waiting (for a farm that does not answer), complete, refused, stopped. */
export class Upload extends EventTarget {
  /** @param {Chosen[]} chosen @param {string} email whose it is */
  constructor(chosen, email) {
    super();
    this.id = '';
    this.email = email;
    this.mark = markOf(chosen);
    /** @type {Sent[]} */
    this.files = chosen.map(({ name, file }, index) => ({ name, file, size: file.size, sent: 0, index }));
    this.size = this.files.reduce((sum, one) => sum + one.size, 0);
    this.state = 'starting';
    this.problem = '';
    /** Bytes that were there when it began: of an earlier try. */
    this.before = 0;
    /** What the form says, so that it is there again after a reload. @type {any} */
    this.draft = null;
    /** Called once everything is there, when a task is wanted of it. @type {(() => Promise<void>) | null} */
    this.then = null;
    /** Why the farm did not take it as a task. */
    this.refusal = '';
    /** @type {Set<XMLHttpRequest>} */
    this.travelling = new Set();
    /** @type {[number, number][]} */
    this.samples = [];
    this.round = 0;
  }

  /** What it is called: its only file, or the folder's first. */
  get name() { return this.files.length === 1 ? this.files[0].name : `${this.files[0].name} and ${this.files.length - 1} more`; }
  get sent() { return this.files.reduce((sum, one) => sum + one.sent, 0); }
  get busy() { return this.state === 'starting' || this.state === 'sending' || this.state === 'waiting'; }

  /** Bytes a second, lately. */
  get speed() {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    return this.samples.length < 2 || last[0] - first[0] < 250 ? 0 : Math.max(0, (1000 * (last[1] - first[1])) / (last[0] - first[0]));
  }

  say(state = this.state) {
    this.state = state;
    this.dispatchEvent(new Event('change'));
    uploads.dispatchEvent(new Event('change'));
  }

  /** Begin, or go on with what an earlier try of the same files has left on the farm. */
  async start() {
    const round = ++this.round;
    this.problem = '';
    this.samples = [];
    this.say(this.id ? 'sending' : 'starting');
    for (let tries = 0; round === this.round; tries++) {
      try {
        await this.#meet(round);
        if (round !== this.round) return;
        this.say('sending');
        await this.#everything(round);
        if (round === this.round) this.#there();
        return;
      } catch (error) {
        if (round !== this.round) return;
        if (error.status === 401) { this.problem = LOGGED_OUT; this.say('paused'); return; }
        if (error.status === 404 && error.code === 'not_found' && this.id) { this.#forget(); tries = 0; continue; }
        if (error.code === 'busy' || error.code === 'wrong_offset') { await wait(RETRY_MS[0]); continue; }
        if (!PASSING.has(error.status)) { this.problem = error.message; this.say('refused'); return; }
        this.problem = error.message;
        this.say('waiting');
        await wait(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
      }
    }
  }

  pause() { this.#halt(); this.say('paused'); }

  /** Give it up: the farm forgets what it has of it. */
  async stop() {
    this.#halt();
    this.then = null;
    const { id } = this;
    this.#forget();
    uploads.remove(this);
    this.say('stopped');
    if (id) await call('DELETE', `/uploads/${id}`).catch(() => {}); // it goes by itself after some days
  }

  /** Make a task of it; the farm checks the request as it always does. */
  async submit(request, key) {
    const task = await call('POST', '/tasks', { ...request, upload: this.id }, { headers: { 'Idempotency-Key': key } });
    this.#forget();
    uploads.remove(this);
    return task;
  }

  /** Remember it, for after a reload. */
  keep() {
    if (this.id) keep(this.id, { id: this.id, email: this.email, mark: this.mark, name: this.name, size: this.size, at: Date.now(), draft: this.draft ?? undefined });
  }

  #forget() {
    if (this.id) keep(this.id, null);
    this.id = '';
    for (const one of this.files) one.sent = 0;
  }

  #halt() {
    this.round++;
    for (const one of this.travelling) one.abort();
  }

  /** Ask what is there, or say what is to come. */
  async #meet(round) {
    this.id ||= kept().find((one) => one.mark === this.mark && one.email === this.email)?.id ?? '';
    const fresh = !this.id;
    const found = fresh ? await call('POST', '/uploads', { files: this.files.map(({ name, size }) => ({ name, size })) }) : await get(`/uploads/${this.id}`);
    if (round !== this.round) return;
    if (found.files.length !== this.files.length) throw new Problem(404, 'not_found', '');
    this.id = found.upload_id;
    const there = new Map(found.files.map((one, index) => [one.name, { ...one, index }]));
    for (const one of this.files) {
      const { offset, size, index } = there.get(one.name) ?? {};
      if (size !== one.size) throw new Problem(404, 'not_found', '');
      Object.assign(one, { sent: offset, index });
    }
    if (!this.samples.length) this.before = this.sent;
    if (fresh) this.keep();
  }

  async #everything(round) {
    const rest = this.files.filter((one) => one.sent < one.size);
    this.samples = [[performance.now(), this.sent]];
    const work = async () => {
      for (let one = rest.shift(); one; one = rest.shift()) {
        while (one.sent < one.size && round === this.round) one.sent = await this.#piece(one, round);
      }
    };
    const workers = Array.from({ length: AT_ONCE }, work);
    try { await Promise.all(workers); } finally {
      rest.length = 0;
      for (const one of this.travelling) one.abort();
      await Promise.allSettled(workers);
    }
  }

  /** Send a piece of a file; gives how much of the file is there. @param {Sent} one @param {number} round */
  #piece(one, round) {
    const from = one.sent;
    return new Promise((done, failed) => {
      const sending = new XMLHttpRequest(); // `fetch` does not tell how far a body is
      this.travelling.add(sending);
      sending.open('PATCH', `${V2}/uploads/${this.id}/files/${one.index}`);
      sending.setRequestHeader('X-RenderOnline', '1');
      sending.setRequestHeader('Upload-Offset', String(from));
      sending.setRequestHeader('Content-Type', 'application/octet-stream');
      sending.upload.onprogress = (event) => { if (this.travelling.has(sending) && round === this.round) { one.sent = from + event.loaded; this.#sample(); } };
      sending.onloadend = () => this.travelling.delete(sending);
      sending.onload = () => {
        if (sending.status === 204) done(Number(sending.getResponseHeader('Upload-Offset') ?? from + Math.min(PIECE, one.size - from)));
        else failed(problemOf(sending.status, sending.responseText));
      };
      sending.onerror = () => failed(new Problem(0, 'offline', 'The connection was cut. It goes on by itself.'));
      sending.onabort = () => failed(new Problem(0, 'aborted', ''));
      sending.send(one.file.slice(from, from + PIECE));
    });
  }

  #sample() {
    const now = performance.now();
    this.samples.push([now, this.sent]);
    while (this.samples.length > 2 && this.samples[0][0] < now - SPEED_MS) this.samples.shift();
    this.say('sending');
  }

  async #there() {
    this.problem = '';
    this.say('complete');
    await this.then?.();
  }
}

/** All uploads of this page that no task has taken yet. */
class Uploads extends EventTarget {
  constructor() {
    super();
    /** @type {Upload[]} */
    this.all = [];
    /** The one that the form is for. @type {Upload | null} */
    this.draft = null;
  }

  /** @param {Chosen[]} chosen @param {string} email */
  add(chosen, email) {
    const upload = new Upload(chosen, email);
    const same = this.all.find((one) => one.mark === upload.mark && one.email === email);
    if (same) return same;
    this.all.push(upload);
    upload.start();
    return upload;
  }

  /** @param {Upload} upload */
  remove(upload) {
    this.all = this.all.filter((one) => one !== upload);
    if (this.draft === upload) this.draft = null;
    this.dispatchEvent(new Event('change'));
  }

  /** Somebody has logged in: what waited for that goes on; what is somebody else's is let go. @param {string} email */
  entered(email) {
    for (const one of [...this.all]) {
      if (one.email !== email) { one.pause(); this.remove(one); } else if (one.problem === LOGGED_OUT) one.start();
    }
  }

  /** What an earlier visit began and has not finished, with how far it is. @param {string} email */
  async unfinished(email) {
    const here = new Set(this.all.map((one) => one.id));
    const found = [];
    for (const one of kept().filter((other) => other.email === email && !here.has(other.id))) {
      try {
        const { files } = await get(`/uploads/${one.id}`);
        found.push({ ...one, sent: files.reduce((sum, file) => sum + file.offset, 0), count: files.length });
      } catch (error) { if (error.status === 404) keep(one.id, null); }
    }
    return found;
  }

  /** What the form said for the same files before a reload. @param {Upload} upload */
  draftOf(upload) { return kept().find((one) => one.mark === upload.mark && one.email === upload.email)?.draft; }

  /** Give up one of an earlier visit. @param {string} id */
  async discard(id) {
    keep(id, null);
    await call('DELETE', `/uploads/${id}`).catch(() => {});
  }
}

export const uploads = new Uploads();
