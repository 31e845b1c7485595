// How the page speaks to the farm: calls of /renderapi/v2, uploads, pictures, and one stream of events.

export const V2 = '/renderapi/v2';
/** No page of another origin can send this header along with the session's cookie. */
const OURS = { 'X-RenderOnline': '1' };

/** What went wrong: `code` is stable, `message` says what to do. */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const OFFLINE = 'The farm does not answer. Check the network, or ask whoever runs it.';

/** Told when a call says that nobody is logged in any more. */
export const session = new EventTarget();

export function problemOf(status, text) {
  let told = {};
  try { told = JSON.parse(text); } catch { /* a proxy's own page */ }
  if (status === 401) session.dispatchEvent(new Event('ended'));
  return new Problem(status, told.code ?? 'error', told.detail ?? `The farm answered with status ${status}.`);
}

async function send(method, path, body, more = {}) {
  const headers = { ...OURS, ...more.headers };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(V2 + path, { method, headers, signal: more.signal, keepalive: more.keepalive, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Problem(0, 'offline', OFFLINE);
  }
  if (!response.ok) throw problemOf(response.status, await response.text());
  return response;
}

/** One call; gives the JSON of its answer, or null. */
export async function call(method, path, body, more) {
  const response = await send(method, path, body, more);
  return response.status === 204 ? null : response.json();
}

export const get = (path, more) => call('GET', path, undefined, more);

/** The answer itself, for pictures and logs. */
export const fetched = (path, more) => send('GET', path, undefined, more);

/** All pages of a list, each handed to `page` as it comes. */
export async function everyPage(path, page, signal) {
  let cursor = null;
  do {
    const mark = path.includes('?') ? '&' : '?';
    const found = await get(`${path}${mark}limit=500${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ''}`, { signal });
    page(found.items);
    cursor = found.next;
  } while (cursor);
}

/** Have the browser download a file: it sends no header of ours, so that it needs a ticket. @param {Record<string, string> | URLSearchParams} asked */
export async function download(path, asked = {}) {
  const { url } = await call('POST', '/session/tickets', { path: V2 + path });
  const more = new URLSearchParams(asked).toString();
  const link = document.createElement('a');
  link.href = more ? `${url}&${more}` : url;
  link.download = '';
  document.body.append(link);
  link.click();
  link.remove();
}

const RETRY_MS = [500, 1000, 2000, 4000];
/** Longer than the farm is ever silent (it says something every 15 s). */
const SILENCE_MS = 40_000;

/**
 * The farm's events as DOM events `task`, `result`, `progress`, `machine`; `resync` when what is known may be old;
 * `state` when the connection comes or goes. While nobody looks at the page it rests: browsers allow few connections.
 */
class Live extends EventTarget {
  connected = false;
  /** When the farm was last heard. */
  heard = null;
  #last = '';
  #stop = null;

  #wanted = false;

  constructor() {
    super();
    addEventListener('offline', () => { this.rest(); this.#say(false); });
    addEventListener('online', () => { if (this.#wanted) this.start(); });
  }

  start() {
    this.#wanted = true;
    if (this.#stop) return;
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#wanted = false;
    this.#stop?.abort();
    this.#stop = null;
    this.#last = '';
    this.#say(false);
  }

  /** Let go of the connection, and take it up again later from the last event. */
  rest() {
    this.#stop?.abort();
    this.#stop = null;
  }

  async #run(signal) {
    for (let tries = 0; !signal.aborted; tries++) {
      try {
        await this.#read(signal, () => { tries = 0; });
      } catch (error) {
        if (signal.aborted || error.status === 401) return;
        if (error.status === 429) { // the account has no stream left: ask for everything now and then
          this.#last = '';
          this.heard = new Date();
          this.dispatchEvent(new CustomEvent('resync'));
          tries = RETRY_MS.length;
        }
      }
      if (signal.aborted) return;
      this.#say(false);
      await new Promise((go) => setTimeout(go, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]));
    }
  }

  async #read(signal, begun) {
    const quiet = new AbortController();
    let watch = setTimeout(() => quiet.abort(), SILENCE_MS);
    const headers = this.#last ? { 'Last-Event-ID': this.#last } : {};
    const response = await fetched('/events', { headers, signal: AbortSignal.any([signal, quiet.signal]) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const first = !this.#last;
    let rest = '';
    begun();
    this.#say(true);
    if (first) this.dispatchEvent(new CustomEvent('resync')); // what was read before the stream began may be old
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => quiet.abort(), SILENCE_MS);
      this.heard = new Date();
      const blocks = (rest + value).split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) this.#take(block);
    }
  }

  #take(block) {
    const fields = {};
    for (const line of block.split('\n')) {
      const at = line.indexOf(': ');
      if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
    }
    if (fields.id) this.#last = fields.id;
    if (fields.event) this.dispatchEvent(new CustomEvent(fields.event, { detail: JSON.parse(fields.data) }));
  }

  #say(connected) {
    if (connected) this.heard = new Date();
    if (connected === this.connected) return;
    this.connected = connected;
    this.dispatchEvent(new CustomEvent('state'));
  }
}

export const live = new Live();
