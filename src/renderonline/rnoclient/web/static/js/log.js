// The log of an attempt: follows while it is written, searched, a window of lines in the document.

import { fetched } from './api.js';
import { Part, define, empty, html, icon, keyed, nothing, number, unready, word } from './parts.js';

const LINE_PX = 20;
const MOST_LINES = 200_000;
/** So many more are taken before the oldest go: moving them all for each new line would be slow. */
const SPARE_LINES = 20_000;
const AGAIN_MS = 1000;

class Log extends Part {
  static properties = { attempts: {}, wanted: {}, chose: {}, following: { state: true }, search: { state: true }, problem: { state: true } };
  #lines = [];
  #offset = 0;
  #reading = 0;
  #rest = '';
  #at = -1;
  /** Lines that are not kept here any more. */
  #left = 0;
  #stop = null;

  constructor() {
    super();
    this.following = true;
    this.search = '';
    /** @type {any[] | null} */
    this.attempts = null;
    /** The attempt whose log is shown; 0: the one that is most telling. */
    this.wanted = 0;
    /** @type {(id: string) => void} */
    this.chose = () => {};
  }

  connectedCallback() {
    super.connectedCallback();
    this.every(AGAIN_MS, () => { if (this.#attempt && !this.#over) this.#read(); });
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#stop?.abort();
  }

  /** What is wanted, or else what failed last, what runs, or the newest. */
  get #attempt() {
    const all = this.attempts ?? [];
    return all.find((one) => one.attempt_id === this.wanted) ?? all.find((one) => one.outcome && one.outcome !== 'succeeded' && one.outcome !== 'canceled') ?? all.find((one) => !one.outcome) ?? all[0];
  }

  #of = 0;
  #over = false;

  willUpdate() {
    const attempt = this.#attempt;
    if (!attempt || attempt.attempt_id === this.#of) return;
    this.#stop?.abort();
    this.following = true;
    this.#of = attempt.attempt_id;
    this.#lines = [];
    this.#left = 0;
    this.#at = -1;
    this.#searched = { wanted: '', upto: 0, found: [] };
    this.#rest = '';
    this.#offset = 0;
    this.#over = false;
    this.#reading = 0;
    this.load();
  }

  load() { this.problem = null; this.#read(); }

  async #read() {
    if (this.#reading) return;
    const id = (this.#reading = this.#of);
    const ended = Boolean(this.#attempt.outcome);
    this.#stop = new AbortController();
    try {
      const answer = await fetched(`/attempts/${id}/log?offset=${this.#offset}`, { signal: this.#stop.signal });
      const text = await answer.text();
      if (id !== this.#of) return;
      const end = Number(answer.headers.get('X-Log-Size') ?? this.#offset);
      const nothingNew = end === this.#offset;
      this.#offset = end;
      const lines = (this.#rest + text).split('\n');
      this.#rest = lines.pop();
      for (const line of lines) this.#lines.push(line.split('\r').findLast(Boolean) ?? '');
      if (this.#lines.length > MOST_LINES + SPARE_LINES) {
        this.#left += this.#lines.length - MOST_LINES;
        this.#lines.splice(0, this.#lines.length - MOST_LINES);
        this.#searched = { wanted: '', upto: 0, found: [] };
      }
      this.#over = ended && nothingNew;
      if (!nothingNew) this.#show();
      else this.requestUpdate();
    } catch (error) {
      if (error.name !== 'AbortError' && id === this.#of && !this.#lines.length) { this.problem = error; this.#over = true; }
    } finally {
      if (this.#reading === id) this.#reading = 0;
    }
  }

  async #show() {
    this.requestUpdate();
    await this.updateComplete;
    const list = /** @type {any} */ (this.querySelector('ro-windowed'));
    await list?.updateComplete;
    if (list && this.following) list.scrollTop = list.scrollHeight;
  }

  /** Whoever scrolls up wants to read. */
  #scrolled(event) {
    const list = event.currentTarget;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 3 * LINE_PX;
    if (atEnd !== this.following) this.following = atEnd;
  }

  #searched = { wanted: '', upto: 0, found: [] };

  /** Numbers of the lines that have what is searched; only lines that are new are looked at. */
  #found() {
    const wanted = this.search.toLowerCase();
    if (!wanted) return [];
    if (this.#searched.wanted !== wanted) this.#searched = { wanted, upto: 0, found: [] };
    const known = this.#searched;
    for (; known.upto < this.#lines.length; known.upto++) if (this.#lines[known.upto].toLowerCase().includes(wanted)) known.found.push(known.upto);
    return known.found;
  }

  #find(way) {
    const found = this.#found();
    if (!found.length) return;
    const at = way > 0 ? found.find((one) => one > this.#at) : found.findLast((one) => one < this.#at);
    this.#at = at ?? (way > 0 ? found[0] : found.at(-1));
    this.following = false;
    /** @type {any} */ (this.querySelector('ro-windowed')).reveal(this.#at);
    this.requestUpdate();
  }

  #save() {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([this.#lines.join('\n'), '\n'], { type: 'text/plain' }));
    link.download = `attempt-${this.#of}.log`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  render() {
    if (!this.attempts) return unready(this);
    const attempt = this.#attempt;
    if (!attempt) return empty('No log yet', 'It begins when a machine begins.', nothing, 'queued');
    const found = this.#found();
    return html`<div class="log-head"><label><span class="visually-hidden">Attempt</span><select @change=${(event) => this.chose(event.target.value)}>${this.attempts.map((one) => html`<option value=${one.attempt_id} ?selected=${one === attempt}>${one.frames ? `Frames ${one.frames}` : 'Whole'} on ${one.machine || 'a machine that is gone'} – ${word(one.outcome ?? one.state)}</option>`)}</select></label>
        <span class="grow"></span>
        <label class="search">${icon('search')}<span class="visually-hidden">Find in the log</span><input type="search" placeholder="Find" .value=${this.search} @input=${(event) => { this.search = event.target.value; this.#at = -1; if (this.search) this.#find(1); }}
          @keydown=${(event) => { if (event.key === 'Enter') this.#find(event.shiftKey ? -1 : 1); }}></label>
        ${this.search ? html`<span class="soft" role="status">${found.length ? `${this.#at >= 0 ? found.indexOf(this.#at) + 1 : 0} of ${number(found.length)}` : 'not found'}</span>` : nothing}
        <label class="check"><input type="checkbox" .checked=${this.following} @change=${(event) => { this.following = event.target.checked; if (this.following) this.#show(); }}> Follow</label>
        <button type="button" @click=${this.#save}>${icon('download')}Save</button></div>
      ${attempt.reason ? html`<p class="problem">${icon('failed')}${attempt.reason}</p>` : nothing}
      ${this.problem ? unready(this) : keyed(this.#of, html`<ro-windowed own class="log" tabindex="0" role="region" aria-label="Log" kind="presentation" .count=${this.#lines.length} .height=${LINE_PX}
        @scroll=${this.#scrolled} .draw=${(index) => this.#line(index)}></ro-windowed>`)}
      ${!this.problem && !this.#lines.length ? html`<p class="help">${this.#over ? 'It wrote nothing.' : 'Nothing has been written yet.'}</p>` : nothing}`;
  }

  #line(index) {
    const line = this.#lines[index] ?? '';
    const at = this.search ? line.toLowerCase().indexOf(this.search.toLowerCase()) : -1;
    return html`<div class="row ${index === this.#at ? 'here' : ''}"><i>${index + 1 + this.#left}</i><span>${at < 0 ? line : html`${line.slice(0, at)}<mark>${line.slice(at, at + this.search.length)}</mark>${line.slice(at + this.search.length)}`}</span></div>`;
  }
}

define('ro-log', Log);
