// The farm's machines: what they are, what they do now, and whether they may take work.

import { call, get } from './api.js';
import { Part, ago, attempt, bar, copied, define, dialog, empty, html, icon, nothing, number, percent, plural, size, stateOf, sure, unready } from './parts.js';
import './history.js';
import { tasks } from './store.js';

const MIB = 1_048_576;
const BOXES = { bwrap: 'box: bubblewrap', landlock: 'box: Landlock' };
const ORDER = ['busy', 'idle', 'draining', 'disabled', 'offline'];

class Farm extends Part {
  static properties = { me: {}, problem: { state: true }, machines: { state: true } };
  #work = new Map();
  #changed = () => this.changed();

  constructor() {
    super();
    /** @type {any} */
    this.me = null;
  }

  connectedCallback() {
    super.connectedCallback();
    this.follow('resync', () => this.load());
    this.follow('machine', (told) => this.#machine(told));
    this.follow('progress', (told) => { this.#work.set(told.attempt_id, told); this.changed(); });
    this.every(15_000, () => this.load());
    tasks.addEventListener('change', this.#changed);
    if (tasks.loaded === null) tasks.load();
    this.load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    tasks.removeEventListener('change', this.#changed);
  }

  async load() {
    if (!this.me.permissions.includes('machines')) return;
    try {
      this.machines = new Map((await get('/machines')).items.map((one) => [one.machine_id, one]));
      this.problem = null;
    } catch (error) { if (!this.machines) this.problem = error; }
  }

  #machine(told) {
    if (!this.machines) return;
    this.machines.set(told.machine_id, { ...this.machines.get(told.machine_id), ...told });
    this.changed();
  }

  async #wish(machine, wish, done) {
    if (wish === 'disabled' && machine.attempts.length && !(await sure(`Disable ${machine.name}?`, 'It is rendering. What runs there goes on to its end; nothing new starts.', 'Disable'))) return;
    await attempt(async () => this.#machine(await call('PATCH', `/machines/${machine.machine_id}`, { wish, reason: '' })), `${machine.name} ${done}.`);
  }

  async #invite() {
    let uses = 0;
    const said = await dialog('Add a machine', (box) => html`<form @submit=${(event) => { event.preventDefault(); uses = Number(event.target.elements.uses.value); box.close('made'); }}>
      <p>Any computer with a renderer can help. It dials this farm, so it needs no open port, and appears here by itself.</p>
      <label>How many machines <input name="uses" type="number" min="1" max="10000" required autofocus value="1"></label>
      <div class="buttons end"><button type="button" @click=${() => box.close()}>Close</button><button class="primary">Make the line to type</button></div></form>`);
    if (said !== 'made') return;
    /** @type {any} */
    let invited = {};
    if (!(await attempt(async () => { invited = await call('POST', '/machines/invite', { uses }); }))) return;
    const [why, , line] = (invited.first ?? '').split(/(: )(?=renderonline )/);
    await dialog('Add a machine', (box) => html`${why ? html`<div class="alarm">${icon('warning')}<div><p>${why}${line ? ':' : ''}</p>${line ? copied(line, 'First') : nothing}</div></div>` : nothing}
      <p>${line ? 'Until then this line works on this computer only.' : uses === 1 ? 'On the other computer type this line.' : 'On each of the other computers type this line.'} The code works ${uses === 1 ? 'once' : `${number(uses)} times`}, for a day.</p>
      ${copied(invited.command, 'Command')}
      ${invited.install ? html`<p class="help">Is RenderOnline not installed there yet? This installs the version that runs here, in a folder of its own, and joins:</p>
        ${copied(`python3 -m venv renderonline && renderonline/bin/pip install ${invited.install} && renderonline/bin/${invited.command}`, 'Installs and joins')}` : html`<p class="help">RenderOnline must be installed there, in the version that runs here.</p>`}
      <div class="buttons end"><button type="button" class="primary" autofocus @click=${() => box.close()}>Done</button></div>`, { wide: true });
  }

  async #remove(machine) {
    if (!(await sure(`Remove ${machine.name}?`, 'The farm forgets this machine. It needs a new code to join again.', 'Remove'))) return;
    await attempt(async () => { await call('DELETE', `/machines/${machine.machine_id}`); this.load(); }, `${machine.name} was removed.`);
  }

  #look(machine) {
    dialog(machine.name, (box) => html`<ro-machine-history .machine=${machine} @click=${(event) => { if (event.target.closest('a')) box.close(); }}></ro-machine-history>
      <div class="buttons end"><button type="button" class="primary" autofocus @click=${() => box.close()}>Close</button></div>`, { wide: true });
  }

  #edit(machine) {
    const linked = machine.kind === 'linked';
    dialog(machine.name, (box) => html`<form @submit=${async (event) => {
        event.preventDefault();
        const of = /** @type {any} */ (Object.fromEntries(new FormData(event.target)));
        const changes = { name: of.name.trim() || machine.name, tags: of.tags.split(',').map((one) => one.trim()).filter(Boolean), pool: of.pool.trim(), hours: of.hours.trim(), ...(linked && of.slots !== '' ? { slots_allowed: Number(of.slots) } : {}) };
        if (await attempt(async () => this.#machine(await call('PATCH', `/machines/${machine.machine_id}`, changes)), 'Changed.')) box.close();
      }}><label>Name <input name="name" maxlength="100" .value=${machine.name}></label>
      <label>Tags <input name="tags" .value=${(machine.tags ?? []).filter((one) => !machine.own_tags?.includes(one)).join(', ')} placeholder="gpu, fast"></label>
      ${linked ? html`<label>Slots that it may have <input name="slots" type="number" min="0" max="1024" placeholder="${machine.slots_allowed}; 0: four, or its cores if fewer"></label>` : nothing}
      <label>Pool <input name="pool" maxlength="50" .value=${machine.pool ?? ''}></label>
      <label>Working hours <input name="hours" .value=${machine.hours ?? ''} placeholder="always, or Mon-Fri 18:00-08:00, Sat, Sun"></label>
      <div class="buttons end">${linked && machine.status === 'offline' ? html`<button type="button" class="danger" @click=${() => { box.close(); this.#remove(machine); }}>Remove</button>` : nothing}
        <button type="button" @click=${() => box.close()}>Close</button><button class="primary">Save</button></div></form>`);
  }

  render() {
    const add = html`<button type="button" class="primary" @click=${this.#invite}>${icon('plus')}Add a machine</button>`;
    if (!this.me.permissions.includes('machines')) return html`<div class="head"><h1>Farm</h1></div>${empty('Not for your account', 'Operators and administrators look after the machines.', html`<a class="button" href="/">All tasks</a>`, 'canceled')}`;
    // The button stays the same one while the machines come: it may have the focus.
    return html`<div class="head"><h1>Farm</h1>${this.machines?.size === 0 ? nothing : add}</div>${this.machines ? this.#all(add) : unready(this)}`;
  }

  #all(add) {
    const all = [...this.machines.values()].sort((one, other) => ORDER.indexOf(one.status) - ORDER.indexOf(other.status) || one.name.localeCompare(other.name));
    if (!all.length) return html`${empty('No machine yet', 'Machines render the frames. Any computer with a renderer can be one, also the one that you sit at.', add, 'farm')}`;
    const count = Object.groupBy(all, (one) => one.status);
    const slots = all.filter((one) => one.status !== 'offline').reduce((sum, one) => sum + one.slots, 0);
    const used = all.reduce((sum, one) => sum + one.attempts.length, 0);
    const waiting = [...tasks.all.values()].reduce((sum, one) => sum + (one.status === 'running' || one.status === 'queued' ? one.chunks.waiting : 0), 0);
    return html`<div class="figures">${[[plural(all.length, 'machine'), ORDER.filter((one) => count[one]).map((one) => `${count[one].length} ${one}`).join(', ')],
        [slots ? percent(Math.min(1, used / slots)) : '–', `in use: ${used} of ${plural(slots, 'slot')}`], [number(waiting), waiting === 1 ? 'part waits' : 'parts wait']].map(([figure, told]) => html`<div class="card"><strong>${figure}</strong><span>${told}</span></div>`)}</div>
      <div class="machines" role="list">${all.map((machine) => this.#card(machine))}</div>
      <h2 class="part">History</h2><ro-history .slots=${slots}></ro-history>`;
  }

  #card(machine) {
    const on = machine.status !== 'offline';
    const total = machine.memory_mib * MIB;
    const used = machine.memory_mib ? 1 - machine.memory_free_mib / machine.memory_mib : 0;
    const load = machine.cpu_count ? Math.min(1, machine.load / machine.cpu_count) : 0;
    return html`<div class="card machine ${machine.status}" role="listitem" data-machine=${machine.name}><header><h2>${machine.name}</h2>${stateOf(machine.status)}</header>
      ${machine.reason ? html`<p class="reason">${machine.benched ? 'Set aside for a while: ' : ''}${machine.reason}</p>` : nothing}
      ${this.#doing(machine)}
      ${on && machine.cpu_count ? html`<dl class="meters"><div><dt>Processor</dt><dd>${bar(load, `Processor load of ${machine.name}`)}<span>${percent(load)}</span></dd></div>
        ${total ? html`<div><dt>Memory</dt><dd>${bar(used, `Memory of ${machine.name} in use`)}<span>${size(total * used)} of ${size(total)}</span></dd></div>` : nothing}${(machine.cards ?? []).map((one) => this.#graphics(machine, one))}</dl>` : nothing}
      <p class="help">${[machine.platform, machine.cpu_count ? plural(machine.cpu_count, 'core') : '', plural(machine.slots, 'slot') + (machine.slots_claimed > machine.slots ? ` of the ${machine.slots_claimed} it asks for` : ''), ...(machine.cards?.length ? [] : (machine.gpus ?? []).map((one) => one.name ?? one)), BOXES[machine.sandbox]].filter(Boolean).join(' · ')}</p>
      ${this.#box(machine)}
      <p class="engines">${machine.engines.map((one) => html`<span>${one.name} ${one.version}</span>`)}${(machine.tags ?? []).map((one) => html`<span class="tag" title=${machine.own_tags?.includes(one) ? 'The machine says so itself' : nothing}>${one}${machine.own_tags?.includes(one) ? ' (its own word)' : ''}</span>`)}${machine.hours ? html`<span class="tag">${machine.hours}</span>` : nothing}</p>
      ${on ? nothing : html`<p class="help">Last seen ${ago(machine.seen)}</p>`}
      <div class="buttons">${machine.wish === 'active' && !machine.benched
        ? html`<button type="button" @click=${() => this.#wish(machine, 'draining', 'finishes what it has')}>${icon('draining')}Drain</button><button type="button" @click=${() => this.#wish(machine, 'disabled', 'takes nothing new')}>${icon('disabled')}Disable</button>`
        : html`<button type="button" class="primary" @click=${() => this.#wish(machine, 'active', 'takes work again')}>${icon('play')}Enable</button>`}
        <button type="button" class="plain" aria-label="History of ${machine.name}" @click=${() => this.#look(machine)}>History</button><button type="button" class="plain" aria-label="Change ${machine.name}" @click=${() => this.#edit(machine)}>Change</button></div></div>`;
  }

  /** A graphics card: how busy it is, and its memory; or why it gets no work. */
  #graphics(machine, one) {
    const total = one.memory_mib * MIB;
    const told = [one.load === null ? '' : percent(one.load), total ? `${size(one.memory_used_mib * MIB)} of ${size(total)}` : ''].filter(Boolean).join(' · ');
    return html`<div class="graphics"><dt>${one.name || one.id}</dt><dd>${one.usable ? html`${one.load === null ? nothing : bar(one.load, `Load of ${one.name || one.id} in ${machine.name}`)}<span>${told || one.kind}</span>` : html`<span class="bad">Not used: ${one.unusable}</span>`}</dd></div>`;
  }

  /** What keeps its engines to their own tasks could be better, and how. */
  #box(machine) {
    const better = machine.sandbox_advice ? `Better: ${machine.sandbox_advice}` : '';
    if (machine.sandbox === 'none') return html`<p class="reason">No box around its engines: a scene can read and write what their account can. ${better}</p>`;
    return better ? html`<p class="help">${better}</p>` : nothing;
  }

  /** What it renders now: as its progress says, else by the tasks that have a part there. */
  #doing(machine) {
    if (!machine.attempts.length) return nothing;
    const told = machine.attempts.map((id) => this.#work.get(id)).filter(Boolean);
    for (const id of this.#work.keys()) if (this.#work.get(id).machine_id === machine.machine_id && !machine.attempts.includes(id)) this.#work.delete(id);
    if (told.length) return told.map((one) => html`<p class="doing"><a href="/tasks/${one.task_id}">${tasks.all.get(one.task_id)?.name ?? `Task ${one.task_id}`}</a><span>${one.frame === null || one.frame === undefined ? '' : `frame ${one.frame}`}</span>${bar(one.fraction, `Progress on ${machine.name}`)}</p>`);
    const here = [...tasks.all.values()].filter((task) => task.machine_ids.includes(machine.machine_id) && task.status === 'running');
    return here.map((task) => html`<p class="doing"><a href="/tasks/${task.task_id}">${task.name}</a></p>`);
  }
}

define('ro-farm', Farm);
