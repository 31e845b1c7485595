// Who may use the farm and how much, and what it renders with.

import { call, get } from './api.js';
import { Part, attempt, copied, define, dialog, empty, html, icon, nothing, number, stateOf, sure, unready } from './parts.js';

const PARTS = [['users', 'People'], ['subscriptions', 'Subscriptions'], ['engines', 'Engines']];
const ROLES = { artist: 'Artist: own tasks', operator: 'Operator: all tasks and machines', admin: 'Administrator: everything' };

class Admin extends Part {
  static properties = { part: {}, me: {}, problem: { state: true }, found: { state: true } };

  willUpdate(changed) {
    if (changed.has('part')) { this.found = null; this.load(); }
  }

  async load() {
    if (!this.me.permissions.includes('users')) return;
    this.problem = null;
    const part = this.part;
    try {
      const [rows, subscriptions] = await Promise.all([get(`/${part}`), part === 'users' ? get('/subscriptions') : null]);
      if (part === this.part) this.found = { rows: rows.items, subscriptions: subscriptions?.items ?? [] };
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
    let made = null;
    await this.#form('Add a person', this.#userFields({}), async (of) => { made = await call('POST', '/users', { ...of, subscription_id: Number(of.subscription_id) }); }, 'Add');
    if (made) await this.#token(made, made.token);
  }

  #changeUser(user) {
    return this.#form(user.email, html`${this.#userFields(user)}<label class="check"><input type="checkbox" name="is_active" ?checked=${user.is_active}> May log in</label>
      <button type="button" @click=${() => this.#newToken(user)}>${icon('key')}New token</button>`,
      (of) => call('PATCH', `/users/${user.user_id}`, { ...of, subscription_id: Number(of.subscription_id), is_active: of.is_active === 'on' }));
  }

  async #newToken(user) {
    if (!(await sure(`New token for ${user.email}?`, 'The old one ends at once, with all its sessions.', 'New token'))) return;
    await attempt(async () => this.#token(user, (await call('POST', `/users/${user.user_id}/token`)).token));
  }

  #subscription(one) {
    const fields = html`<label>Name <input name="name" required maxlength="50" .value=${one?.name ?? ''}></label>
      <label>Tasks in the queue at once <input name="queue_limit" type="number" min="0" max="1000000" required .value=${String(one?.queue_limit ?? 10)}></label>
      <label>Share <input name="share" type="number" min="1" max="1000000" required .value=${String(one?.share ?? 1)}><span class="help">Among people with tasks of the same priority.</span></label>`;
    const save = (of) => call(one ? 'PATCH' : 'POST', one ? `/subscriptions/${one.subscription_id}` : '/subscriptions', { name: of.name, queue_limit: Number(of.queue_limit), share: Number(of.share) });
    return this.#form(one ? one.name : 'Add a subscription', fields, save);
  }

  #addEngine() {
    return this.#form('Add an engine', html`<label>Definition (TOML) <textarea name="definition" required maxlength="65536" spellcheck="false" placeholder='name = "…"'></textarea></label>`, (of) => call('POST', '/engines', of), 'Add');
  }

  #engine(one) {
    return dialog(one.label, (box) => html`<dl>${[['Name', one.name], ['Files', one.extensions.join(', ')], ['Cut into', one.split], ['Results go to', one.download_path]].map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      ${one.problem ? html`<p class="problem">${one.problem}</p>` : nothing}
      ${one.arguments.length ? html`<h3>Arguments</h3><dl>${one.arguments.map((argument) => html`<div><dt>${argument.label || argument.id}</dt><dd>${argument.type}${argument.default === null ? ', needed' : `, ${argument.default || 'empty'} by default`}</dd></div>`)}</dl>` : nothing}
      <div class="buttons end"><button type="button" class="primary" autofocus @click=${() => box.close()}>Close</button></div>`, { wide: true });
  }

  async #switch(one) {
    await attempt(() => call('PATCH', `/engines/${one.engine_id}`, { is_enabled: !one.is_enabled }), `${one.label} is ${one.is_enabled ? 'off' : 'on'}.`);
    this.load();
  }

  render() {
    if (!this.me.permissions.includes('users')) return html`<div class="head"><h1>Administration</h1></div>${empty('Not for your account', 'Only administrators change people, subscriptions and engines.', html`<a class="button" href="/">All tasks</a>`, 'canceled')}`;
    const add = { users: ['Add a person', this.#addUser], subscriptions: ['Add a subscription', () => this.#subscription(null)], engines: ['Add an engine', this.#addEngine] }[this.part];
    return html`<div class="head"><h1>Administration</h1>${this.found && add ? html`<button type="button" class="primary" @click=${add[1].bind(this)}>${icon('plus')}${add[0]}</button>` : nothing}</div>
      <nav class="tabs" aria-label="Administration">${PARTS.map(([name, title]) => html`<a href="/admin/${name}" aria-current=${this.part === name ? 'page' : nothing}>${title}</a>`)}</nav>
      ${this.found ? this.#rows() : unready(this)}`;
  }

  #rows() {
    const { rows, subscriptions } = this.found;
    const named = new Map(subscriptions.map((one) => [one.subscription_id, one.name]));
    const shape = {
      users: [['Person', 'Role', 'Subscription', 'State'], (one) => [html`<strong>${[one.first_name, one.last_name].join(' ').trim() || one.email}</strong><small>${one.email}</small>`, one.role, named.get(one.subscription_id) ?? '', one.is_active ? stateOf('succeeded', 'Active') : stateOf('disabled')], (one) => this.#changeUser(one)],
      subscriptions: [['Name', 'Tasks at once', 'Share', 'Parts at once'], (one) => [html`<strong>${one.name}</strong>`, number(one.queue_limit), number(one.share), one.running_limit ? number(one.running_limit) : 'any number'], (one) => this.#subscription(one)],
      engines: [['Engine', 'Files', 'Cut into', 'State'], (one) => [html`<strong>${one.label}</strong><small>${one.name}</small>`, one.extensions.join(', '), one.split, html`<button type="button" aria-pressed=${one.is_enabled} @click=${() => this.#switch(one)}>${one.is_enabled ? 'On' : 'Off'}</button>`], (one) => this.#engine(one)],
    }[this.part];
    if (!shape) return empty('Nothing here', 'There is no such list.', html`<a class="button" href="/admin">People</a>`, 'search');
    const [heads, cells, open] = shape;
    if (!rows.length) return empty('Nothing yet', 'Add the first one.', nothing, 'plus');
    return html`<div class="table plain-rows" role="table" aria-label=${PARTS.find(([name]) => name === this.part)[1]}><div role="rowgroup" class="header"><div role="row">${heads.map((head) => html`<span role="columnheader">${head}</span>`)}<span role="columnheader"><span class="visually-hidden">Open</span></span></div></div>
      <div role="rowgroup">${rows.map((one) => html`<div role="row">${cells(one).map((cell) => html`<span role="cell">${cell}</span>`)}<span role="cell"><button type="button" class="plain" aria-label="Open ${one.email ?? one.label ?? one.name}" @click=${() => open(one)}>${this.part === 'engines' ? 'Show' : 'Change'}</button></span></div>`)}</div></div>`;
  }
}

define('ro-admin', Admin);
