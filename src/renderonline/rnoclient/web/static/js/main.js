// The page's frame: who is logged in, which page stands at which address, the connection, files dropped anywhere.

import { OFFLINE, call, get, live, session } from './api.js';
import { Part, attempt, classMap, clock, define, empty, html, icon, mark, note, nothing } from './parts.js';
import { tasks } from './store.js';
import './tasks.js';
import { dropped, uploads } from './uploads.js';

/**
 * Address -> title, the module that has the page, its element. Pages that are not looked at are not fetched.
 * @type {[RegExp, string, () => Promise<any>, (app: App, part?: string) => any][]}
 */
const PAGES = [
  [/^\/$/, 'Tasks', () => import('./tasks.js'), (app) => html`<ro-tasks .me=${app.me}></ro-tasks>`],
  [/^\/submit$/, 'New task', () => import('./submit.js'), (app) => html`<ro-submit .me=${app.me} .files=${app.files}></ro-submit>`],
  [/^\/tasks\/(\d+)$/, 'Task', () => import('./task.js'), (app, id) => html`<ro-task .taskId=${Number(id)} .me=${app.me}></ro-task>`],
  [/^\/farm$/, 'Farm', () => import('./farm.js'), (app) => html`<ro-farm .me=${app.me}></ro-farm>`],
  [/^\/admin(?:\/(\w+))?$/, 'Administration', () => import('./admin.js'), (app, part) => html`<ro-admin .list=${part ?? 'users'} .me=${app.me}></ro-admin>`],
];

class App extends Part {
  static properties = { me: { state: true }, dropping: { state: true } };

  files = null;
  #at = '';
  /** Pages whose module is there: before that their elements would not know what they are given. */
  #there = new Set();

  constructor() {
    super();
    this.me = undefined; // not known yet; null: nobody is logged in
  }

  connectedCallback() {
    super.connectedCallback();
    this.follow('state', () => this.requestUpdate());
    session.addEventListener('ended', () => this.#ended());
    addEventListener('popstate', () => this.#arrive());
    document.addEventListener('click', (event) => this.#clicked(event));
    document.addEventListener('ro-go', (/** @type {CustomEvent} */ event) => this.go(event.detail.to, event.detail));
    document.addEventListener('visibilitychange', () => this.#looked());
    for (const name of ['dragenter', 'dragover', 'dragleave', 'drop']) document.addEventListener(name, (event) => this.#drag(event));
    this.every(10_000, () => { if (!live.connected) this.requestUpdate(); });
    this.#begin();
  }

  async #begin() {
    try {
      const { me } = await get('/session');
      if (me) this.#enter(me);
      else this.#ended();
    } catch (error) {
      note(error.message, 'bad');
      setTimeout(() => this.#begin(), 3000);
    }
  }

  #enter(me) {
    this.me = me;
    tasks.everybody = me.permissions.includes('tasks.all');
    live.start();
    uploads.entered(me.email);
    if (location.pathname === '/login') this.go(new URLSearchParams(location.search).get('to') ?? '/', { replace: true });
    else this.#arrive();
  }

  /** Nobody is logged in any more: ask, and come back to where one was. */
  #ended() {
    const was = this.me;
    this.me = null;
    live.stop();
    tasks.forget();
    for (const box of document.querySelectorAll('dialog')) box.close('');
    if (location.pathname !== '/login') {
      const to = location.pathname + location.search;
      history.replaceState(null, '', `/login${to === '/' ? '' : `?to=${encodeURIComponent(to)}`}`);
    }
    if (was) note('Your session has ended. Log in to go on.', 'bad');
    this.#arrive();
  }

  async leave() {
    await attempt(() => call('DELETE', '/session'));
    this.me = null;
    live.stop();
    tasks.forget();
    this.go('/login', { replace: true });
  }

  /** Show another page. `files` are taken along to the form. */
  go(to, { replace = false, files = null } = {}) {
    const target = new URL(to, location.origin);
    if (target.origin !== location.origin) return;
    this.files = files;
    history[replace ? 'replaceState' : 'pushState'](null, '', target.pathname + target.search);
    this.#arrive();
  }

  async #arrive() {
    const found = PAGES.find(([place]) => place.test(location.pathname));
    const moved = this.#at !== location.pathname;
    this.#at = location.pathname;
    this.requestUpdate();
    try { await found?.[2](); } catch {
      if (moved) note(OFFLINE, 'bad');
      setTimeout(() => { if (this.#at === location.pathname) this.#arrive(); }, 3000);
      return;
    }
    this.#there.add(found);
    this.requestUpdate();
    if (!moved) return;
    document.title = `${found?.[1] ?? 'Log in'} – RenderOnline`;
    await this.updateComplete;
    scrollTo(0, 0);
    /** @type {HTMLElement} */ (this.querySelector('[autofocus]') ?? this.querySelector('main'))?.focus({ preventScroll: true });
  }

  #clicked(event) {
    const link = event.composedPath().find((node) => node instanceof HTMLAnchorElement);
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (link.target || link.hasAttribute('download') || link.origin !== location.origin) return;
    if (!PAGES.some(([place]) => place.test(link.pathname))) return;
    event.preventDefault();
    this.go(link.pathname + link.search);
  }

  #looked() {
    if (!this.me) return;
    if (document.hidden) this.#rest = setTimeout(() => live.rest(), 30_000);
    else { clearTimeout(this.#rest); live.start(); }
  }

  #rest = 0;

  #drag(event) {
    if (!this.me || !event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    this.dropping = event.type === 'dragenter' || event.type === 'dragover' || (event.type === 'dragleave' && event.relatedTarget !== null);
    if (event.type === 'drop') attempt(async () => this.go('/submit', { files: await dropped(event.dataTransfer) }));
  }

  render() {
    if (this.me === undefined) return html`<main class="bare" tabindex="-1"></main>`;
    if (this.me === null) return html`<ro-login .entered=${(me) => this.#enter(me)}></ro-login>`;
    const path = location.pathname;
    const found = PAGES.find(([place]) => place.test(path));
    return html`<a class="skip" href="#main" @click=${(event) => { event.preventDefault(); this.querySelector('main').focus(); }}>Skip to the content</a>
      <header class="top"><a class="brand" href="/">${mark()}<span>RenderOnline</span></a>
        <nav aria-label="Main">${this.#links(path)}</nav>
        ${this.#connection()}
        <details class="account" @toggle=${this.#closeOutside}><summary aria-label="Account of ${this.me.email}"><span class="initial" aria-hidden="true">${this.me.email[0].toUpperCase()}</span></summary>
          <div><strong>${[this.me.first_name, this.me.last_name].join(' ').trim() || this.me.email}</strong><span>${this.me.email}</span><span>${this.me.role}</span>
          <button type="button" @click=${this.leave}>${icon('out')}Log out</button></div></details>
      </header>
      <main id="main" tabindex="-1">${found && !this.#there.has(found) ? nothing : found ? found[3](this, path.match(found[0])[1]) : empty('Nothing here', 'There is no page at this address.', html`<a class="button" href="/">All tasks</a>`, 'search')}</main>
      ${this.dropping ? html`<div class="dropping" aria-hidden="true"><div>${icon('upload')}Drop the scene to make a task of it</div></div>` : nothing}`;
  }

  #links(path) {
    const links = [['/', 'Tasks', 'tasks', path === '/' || path.startsWith('/tasks/')], ['/submit', 'New task', 'plus', path === '/submit']];
    if (this.me.permissions.includes('machines')) links.push(['/farm', 'Farm', 'farm', path === '/farm']);
    if (this.me.permissions.includes('users')) links.push(['/admin', 'Admin', 'admin', path.startsWith('/admin')]);
    return links.map(([to, name, drawn, here]) => html`<a href=${to} aria-current=${here ? 'page' : nothing}>${icon(drawn)}<span>${name}</span></a>`);
  }

  #connection() {
    const said = live.connected ? 'Live' : `Reconnecting${live.heard ? ` – as of ${clock(live.heard)}` : ''}`;
    return html`<span class=${classMap({ connection: true, on: live.connected })} role="status"><i aria-hidden="true"></i><span>${said}</span></span>`;
  }

  #closeOutside(event) {
    const menu = event.target;
    const close = (happened) => {
      if (happened.type === 'keydown' ? happened.key !== 'Escape' : menu.contains(happened.target)) return;
      menu.open = false;
      if (happened.type === 'keydown') menu.querySelector('summary').focus();
      document.removeEventListener('click', close);
      document.removeEventListener('keydown', close);
    };
    if (menu.open) for (const name of ['click', 'keydown']) document.addEventListener(name, close);
  }
}

class Login extends Part {
  static properties = { entered: {}, problem: { state: true }, busy: { state: true } };

  async #submit(event) {
    event.preventDefault();
    const [email, token] = event.target.querySelectorAll('input');
    this.busy = true;
    this.problem = '';
    try {
      const me = await call('POST', '/session', { email: email.value.trim(), token: token.value.trim() });
      this.entered(me);
    } catch (error) {
      this.problem = error.message;
      token.focus();
      token.select();
    } finally {
      this.busy = false;
    }
  }

  constructor() {
    super();
    /** @type {(me: any) => void} */
    this.entered = () => {};
  }

  render() {
    return html`<main class="login" tabindex="-1"><form @submit=${this.#submit} novalidate><div class="brand">${mark()}<span>RenderOnline</span></div>
      <h1>Log in</h1>
      ${this.problem ? html`<p class="problem" role="alert">${icon('failed')}${this.problem}</p>` : nothing}
      <label>E-mail <input name="email" type="email" autocomplete="username" required autofocus></label>
      <label>Token <input name="token" type="password" autocomplete="current-password" required aria-describedby="token-help"></label>
      <p id="token-help" class="help">The farm's administrator gives it to you. Of a new farm it stands in the terminal where the farm was started.</p>
      <button class="primary" ?disabled=${this.busy}>${this.busy ? 'Logging in …' : 'Log in'}</button></form></main>`;
  }
}

define('ro-login', Login);
define('ro-app', App);
document.body.replaceChildren(document.createElement('ro-app'));
