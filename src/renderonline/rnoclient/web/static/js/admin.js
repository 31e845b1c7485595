// Who may use the farm and how much, and what it renders with.

import { call, get } from './api.js';
import { Part, attempt, copied, define, dialog, empty, html, icon, nothing, number, stateOf, sure, unready } from './parts.js';

const PARTS = [['users', 'People'], ['subscriptions', 'Subscriptions'], ['engines', 'Engines'], ['argtypes', 'Values']];
const TYPES = ['file', 'path', 'extension', 'word', 'sentence', 'natural', 'integer', 'real'];
const LIMITS = [['running_limit', 'Parts at once', 'Of one person. 0: any number.'], ['keep_days', 'Days a task stays', 'After its end, then it is deleted. 0: for good.'], ['keep_mib', 'Room for files, MiB', 'Of one person, together. 0: as much as there is.']];
const ROLES = { artist: 'Artist: own tasks', operator: 'Operator: all tasks and machines', admin: 'Administrator: everything' };

class Admin extends Part {
  static properties = { list: {}, me: {}, problem: { state: true }, found: { state: true } };

  willUpdate(changed) {
    if (changed.has('list')) { this.found = null; this.load(); }
  }

  constructor() {
    super();
    this.list = 'users';
    /** @type {any} */
    this.me = null;
  }

  async load() {
    if (!this.me.permissions.includes('users')) return;
    this.problem = null;
    const part = this.list;
    try {
      const [rows, subscriptions, machines, engines] = await Promise.all([get(`/${part}`), part === 'users' ? get('/subscriptions') : null, part === 'engines' ? get('/machines') : null, part === 'argtypes' ? get('/engines') : null]);
      if (part === this.list) this.found = { rows: rows.items, subscriptions: subscriptions?.items ?? [], machines: machines?.items ?? [], engines: engines?.items ?? [] };
    } catch (error) { this.problem = error; }
  }

  /** A form in a dialog; `save(values)` may fail, and then the form stays. */
  #form(title, fields, save, yes = 'Save') {
    return dialog(title, (box) => html`<form @submit=${async (event) => {
      event.preventDefault();
      if (await attempt(() => save(Object.fromEntries(new FormData(event.target))))) { box.close('saved'); this.load(); }
    }}>${fields}<div class="buttons end"><button type="button" @click=${() => box.close()}>Close</button><button class="primary">${yes}</button></div></form>`);
  }

  async #token(user, token) {
    await dialog(`Token of ${user.email}`, (box) => html`<p>Give it to ${user.first_name || user.email}; it is shown only now.</p>${copied(token, 'Token')}
      <div class="buttons end"><button type="button" class="primary" autofocus @click=${() => box.close()}>Done</button></div>`);
  }

  #userFields(user) {
    return html`<label>E-mail <input name="email" type="email" required maxlength="255" .value=${user.email ?? ''}></label>
      <label>First name <input name="first_name" maxlength="50" .value=${user.first_name ?? ''}></label><label>Last name <input name="last_name" maxlength="50" .value=${user.last_name ?? ''}></label>
      <label>Role <select name="role">${Object.entries(ROLES).map(([role, told]) => html`<option value=${role} ?selected=${role === (user.role ?? 'artist')}>${told}</option>`)}</select></label>
      <label>Subscription <select name="subscription_id">${this.found.subscriptions.map((one) => html`<option value=${one.subscription_id} ?selected=${one.subscription_id === user.subscription_id}>${one.name}</option>`)}</select></label>`;
  }

  async #addUser() {
    /** @type {any} */
    let made = null;
    await this.#form('Add a person', this.#userFields({}), async (of) => { made = await call('POST', '/users', { ...of, subscription_id: Number(of.subscription_id) }); }, 'Add');
    if (made) await this.#token(made, made.token);
  }

  #changeUser(user) {
    return this.#form(user.email, html`${this.#userFields(user)}<label class="check"><input type="checkbox" name="is_active" ?checked=${user.is_active}> May log in</label>
      <button type="button" @click=${() => this.#newToken(user)}>${icon('key')}New token</button>
      <button type="button" @click=${() => this.#logOut(user)}>${icon('out')}Log out everywhere</button>`,
      (of) => call('PATCH', `/users/${user.user_id}`, { ...of, subscription_id: Number(of.subscription_id), is_active: of.is_active === 'on' }));
  }

  async #newToken(user) {
    if (!(await sure(`New token for ${user.email}?`, 'The old one ends at once, with all its sessions.', 'New token'))) return;
    await attempt(async () => this.#token(user, (await call('POST', `/users/${user.user_id}/token`)).token));
  }

  async #logOut(user) {
    const told = 'Token, logins and event streams end at once. The account can do nothing until you make a new token.';
    if (!(await sure(`Log ${user.email} out everywhere?`, told, 'Log out'))) return;
    await attempt(() => call('POST', `/users/${user.user_id}/logout`));
  }

  #subscription(one) {
    const fields = html`<label>Name <input name="name" required maxlength="50" .value=${one?.name ?? ''}></label>
      <label>Tasks in the queue at once <input name="queue_limit" type="number" min="0" max="1000000" required .value=${String(one?.queue_limit ?? 10)}></label>
      <label>Share <input name="share" type="number" min="1" max="1000000" required .value=${String(one?.share ?? 1)}><span class="help">Among people with tasks of the same priority.</span></label>
      ${LIMITS.map(([name, label, told]) => html`<label>${label} <input name=${name} type="number" min="0" max="1000000" required .value=${String(one?.[name] ?? 0)}><span class="help">${told}</span></label>`)}`;
    const save = ({ name, ...of }) => call(one ? 'PATCH' : 'POST', one ? `/subscriptions/${one.subscription_id}` : '/subscriptions', { name, ...Object.fromEntries(Object.entries(of).map(([key, value]) => [key, Number(value)])) });
    return this.#form(one ? one.name : 'Add a subscription', fields, save);
  }

  #argtype(one) {
    const fields = html`${one ? html`<p class="help">Engines and v1's clients name it in their templates.</p>` : html`<label>Name <input name="argtype_id" required maxlength="50" pattern="[A-Za-z0-9_]+"></label>`}
      <label>Type <select name="type">${TYPES.map((type) => html`<option ?selected=${type === one?.type}>${type}</option>`)}</select></label>
      <label>Rule <input name="regex" maxlength="4096" spellcheck="false" .value=${one?.regex ?? ''}><span class="help">A regular expression in place of the type's own; empty: the type's.</span></label>
      ${one ? html`<button type="button" class="danger" @click=${(event) => this.#removeArgtype(one, event.target.closest('dialog'))}>${icon('remove')}Remove</button>` : nothing}`;
    return this.#form(one ? one.argtype_id : 'Add a value', fields, ({ argtype_id: id = one?.argtype_id, ...of }) => call('PUT', `/argtypes/${encodeURIComponent(id)}`, of));
  }

  async #removeArgtype(one, box) {
    if (!(await sure(`Remove ${one.argtype_id}?`, 'Engines that name it refuse tasks from then on.', 'Remove'))) return;
    if (await attempt(() => call('DELETE', `/argtypes/${encodeURIComponent(one.argtype_id)}`), `${one.argtype_id} was removed.`)) { box.close(); this.load(); }
  }

  #addEngine() {
    return this.#form('Add an engine', html`<label>Definition (TOML) <textarea name="definition" required maxlength="65536" spellcheck="false" placeholder='name = "…"'></textarea></label>`, (of) => call('POST', '/engines', of), 'Add');
  }

  #engine(one) {
    return dialog(one.label, (box) => html`<dl>${[['Name', one.name], ['Files', one.extensions.join(', ')], ['Cut into', one.split], ['Results go to', one.download_path]].map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      ${one.problem ? html`<p class="problem">${one.problem}</p>` : nothing}
      ${this.#readiness(one)}
      ${one.arguments.length ? html`<h3>Arguments</h3><dl>${one.arguments.map((argument) => html`<div><dt>${argument.label || argument.id}</dt><dd>${argument.type}${argument.default === null ? ', needed' : `, ${argument.default || 'empty'} by default`}</dd></div>`)}</dl>` : nothing}
      <div class="buttons end"><button type="button" class="danger" @click=${() => this.#removeEngine(one, box)}>${icon('remove')}Remove</button><button type="button" @click=${() => { box.close(); this.#changeEngine(one); }}>Change the definition</button><button type="button" class="primary" autofocus @click=${() => box.close()}>Close</button></div>`, { wide: true });
  }

  /** Whether the engine can be used now: who has it, in which version. */
  #readiness(one) {
    const name = one.name.toLowerCase();
    const offers = this.found.machines.map((machine) => [machine, machine.engines.find((offer) => offer.name.toLowerCase() === name)]).filter(([, offer]) => offer);
    const on = offers.filter(([machine]) => machine.status !== 'offline');
    return html`<h3>Ready?</h3><ul class="rows test">${[
      [one.problem ? 'failed' : 'succeeded', one.problem ? 'The definition can’t be read.' : 'The definition is read and understood.'],
      [one.is_enabled ? 'succeeded' : 'failed', one.is_enabled ? 'It is switched on.' : 'It is switched off: nobody can submit for it.'],
      [on.length ? 'succeeded' : 'failed', on.length ? `On ${on.map(([machine, offer]) => `${machine.name}${offer.version ? ` (${offer.version})` : ''}`).join(', ')}.` : offers.length ? 'Every machine that has it is offline.' : 'No machine has it. Install it there, or start the machine with --engine NAME=PATH.'],
    ].map(([state, told]) => html`<li>${stateOf(state, told)}</li>`)}</ul>`;
  }

  async #changeEngine(one) {
    await this.#form(one.label, html`<label>Definition (TOML) <textarea name="definition" required maxlength="65536" spellcheck="false" .value=${one.definition ?? ''}></textarea></label>`, (of) => call('PATCH', `/engines/${one.engine_id}`, of));
  }

  async #removeEngine(one, box) {
    if (!(await sure(`Remove ${one.label}?`, 'Nobody can submit for it any more. Switch it off instead if tasks of it are still there.', 'Remove'))) return;
    if (await attempt(() => call('DELETE', `/engines/${one.engine_id}`), `${one.label} was removed.`)) { box.close(); this.load(); }
  }

  async #switch(one) {
    await attempt(() => call('PATCH', `/engines/${one.engine_id}`, { is_enabled: !one.is_enabled }), `${one.label} is ${one.is_enabled ? 'off' : 'on'}.`);
    this.load();
  }

  render() {
    if (!this.me.permissions.includes('users')) return html`<div class="head"><h1>Administration</h1></div>${empty('Not for your account', 'Only administrators change people, subscriptions and engines.', html`<a class="button" href="/">All tasks</a>`, 'canceled')}`;
    const add = { users: ['Add a person', this.#addUser], subscriptions: ['Add a subscription', () => this.#subscription(null)], engines: ['Add an engine', this.#addEngine], argtypes: ['Add a value', () => this.#argtype(null)] }[this.list];
    return html`<div class="head"><h1>Administration</h1>${this.found && add ? html`<button type="button" class="primary" @click=${add[1].bind(this)}>${icon('plus')}${add[0]}</button>` : nothing}</div>
      <nav class="tabs" aria-label="Administration">${PARTS.map(([name, title]) => html`<a href="/admin/${name}" aria-current=${this.list === name ? 'page' : nothing}>${title}</a>`)}</nav>
      ${this.found ? this.#rows() : unready(this)}`;
  }

  #rows() {
    const { rows, subscriptions } = this.found;
    const named = new Map(subscriptions.map((one) => [one.subscription_id, one.name]));
    const shape = {
      users: [['Person', 'Role', 'Subscription', 'State'], (one) => [html`<strong>${[one.first_name, one.last_name].join(' ').trim() || one.email}</strong><small>${one.email}</small>`, one.role, named.get(one.subscription_id) ?? '', one.is_active ? stateOf('succeeded', 'Active') : stateOf('disabled')], (one) => this.#changeUser(one)],
      subscriptions: [['Name', 'Tasks at once', 'Share', 'Parts at once'], (one) => [html`<strong>${one.name}</strong>`, number(one.queue_limit), number(one.share), one.running_limit ? number(one.running_limit) : 'any number'], (one) => this.#subscription(one)],
      engines: [['Engine', 'Files', 'Cut into', 'State'], (one) => [html`<strong>${one.label}</strong><small>${one.name}</small>`, one.extensions.join(', '), one.split, html`<button type="button" aria-pressed=${one.is_enabled} @click=${() => this.#switch(one)}>${one.is_enabled ? 'On' : 'Off'}</button>`], (one) => this.#engine(one)],
      argtypes: [['Name', 'Type', 'Rule', 'Used by'], (one) => [html`<strong>${one.argtype_id}</strong>`, one.type, one.regex ? html`<code>${one.regex}</code>` : 'the type’s own', this.found.engines.filter((engine) => engine.arguments.some((argument) => argument.id === one.argtype_id)).map((engine) => engine.label).join(', ') || '–'], (one) => this.#argtype(one)],
    }[this.list];
    if (!shape) return empty('Nothing here', 'There is no such list.', html`<a class="button" href="/admin">People</a>`, 'search');
    const [heads, cells, open] = shape;
    if (!rows.length) return empty('Nothing yet', 'Add the first one.', nothing, 'plus');
    return html`<div class="table plain-rows" role="table" aria-label=${PARTS.find(([name]) => name === this.list)?.[1]}><div role="rowgroup" class="header"><div role="row">${heads.map((head) => html`<span role="columnheader">${head}</span>`)}<span role="columnheader"><span class="visually-hidden">Open</span></span></div></div>
      <div role="rowgroup">${rows.map((one) => html`<div role="row">${cells(one).map((cell, at) => html`<span role="cell" data-head=${heads[at]}>${cell}</span>`)}<span role="cell"><button type="button" class="plain" aria-label="Open ${one.email ?? one.label ?? one.name ?? one.argtype_id}" @click=${() => open(one)}>${this.list === 'engines' ? 'Show' : 'Change'}</button></span></div>`)}</div></div>`;
  }
}

define('ro-admin', Admin);
