// The first steps of a new farm: what there is already, and where the rest is done.

import { get } from './api.js';
import { Part, define, html, icon, nothing } from './parts.js';

class Guide extends Part {
  static properties = { me: {}, machines: { state: true }, engines: { state: true } };

  constructor() {
    super();
    /** @type {any} */
    this.me = null;
    /** @type {any[] | null} */
    this.machines = null;
    /** @type {any[]} */
    this.engines = [];
  }

  connectedCallback() {
    super.connectedCallback();
    this.follow('machine resync', () => this.load());
    this.every(10_000, () => this.load(!this.machines));
    this.load();
  }

  /** @param {boolean} [anew] whether the engines are asked for too: they are many bytes and seldom change */
  async load(anew = true) {
    try {
      const [machines, engines] = await Promise.all([get('/machines'), anew ? get('/engines') : null]);
      if (engines) this.engines = engines.items.filter((one) => one.is_enabled);
      this.machines = machines.items.filter((one) => one.status !== 'offline');
    } catch { /* the next look asks again; nobody needs the guide */ }
  }

  /** Engines that are switched on and that a machine has. */
  #usable() {
    const offered = new Set(this.machines.flatMap((one) => one.engines.map((offer) => offer.name.toLowerCase())));
    return this.engines.filter((one) => offered.has(one.name.toLowerCase()));
  }

  render() {
    if (!this.machines) return nothing;
    const usable = this.#usable();
    const admin = this.me.permissions.includes('engines');
    const steps = [
      [this.machines.length > 0, 'A machine joins', this.machines.length ? `${this.machines.map((one) => one.name).slice(0, 3).join(', ')}${this.machines.length > 3 ? ` and ${this.machines.length - 3} more` : ''}` : 'Any computer with a renderer, also the one that you sit at.', html`<a class="button" href="/farm">Add a machine</a>`],
      [usable.length > 0, 'It has a renderer', usable.length ? usable.map((one) => one.label).join(', ') : 'Install one there. Each engine says whether it is ready.', admin ? html`<a class="button" href="/admin/engines">Engines</a>` : nothing],
      [false, 'Somebody submits a scene', 'Its frames appear here as they are rendered.', html`<a class="button" href="/submit">New task</a>`],
    ];
    return html`<section class="card guide" aria-labelledby="guide"><h2 id="guide">First steps</h2><ol class="rows">${steps.map(([done, title, told, action], at) => html`<li class=${done ? 'done' : ''}>
      <span class="step">${done ? icon('succeeded', 'Done') : at + 1}</span><span><strong>${title}</strong><small>${told}</small></span>${done ? nothing : action}</li>`)}</ol></section>`;
  }
}

define('ro-guide', Guide);
