// Charts of the farm, each with the same as a table. uPlot draws them; it is fetched when the first one is looked at.

import { Part, define, html, number } from './parts.js';

let library = null;

/** uPlot, with its style sheet. */
function loaded() {
  library ??= (async () => {
    const base = new URL('../vendor/', import.meta.url);
    const sheet = document.createElement('link');
    Object.assign(sheet, { rel: 'stylesheet', href: new URL('uplot.css', base).href });
    document.head.append(sheet);
    return (await import('../vendor/uplot.js')).default;
  })().catch(() => {
    library = null; // the tables are there; the next drawing asks again
  });
  return library;
}

/**
 * @typedef {object} Spec
 * @property {string} title
 * @property {string} told what it says in a sentence
 * @property {'lines' | 'bars'} kind
 * @property {string} head of the first column
 * @property {number[]} x seconds since 1970, or the place of a bar
 * @property {string[]} names of x in the table (and below bars)
 * @property {{ label: string, values: number[], most?: number }[]} series
 */
class Chart extends Part {
  static properties = { spec: {} };
  #plot = null;
  #sized = new ResizeObserver(([entry]) => this.#plot?.setSize({ width: Math.floor(entry.contentRect.width), height: 190 }));
  #scheme = matchMedia('(prefers-color-scheme: dark)');
  #again = () => this.#draw();

  constructor() {
    super();
    /** @type {Spec} */
    this.spec = null;
  }

  connectedCallback() {
    super.connectedCallback();
    this.#scheme.addEventListener('change', this.#again);
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#scheme.removeEventListener('change', this.#again);
    this.#sized.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
  }

  updated() { this.#draw(); }

  async #draw() {
    const place = /** @type {HTMLElement} */ (this.querySelector('.plot'));
    const { spec } = this;
    if (!place || !spec?.x.length) return;
    const UPlot = await loaded();
    if (!UPlot || !this.isConnected || spec !== this.spec) return;
    const style = getComputedStyle(this);
    const colour = (name) => {
      const probe = document.createElement('i');
      probe.className = `colour-${name}`;
      this.append(probe);
      const found = getComputedStyle(probe).color;
      probe.remove();
      return found;
    };
    const [soft, line, ...colours] = ['soft', 'line', 'accent', 'good'].map(colour);
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: `12px ${style.fontFamily}` };
    const most = Math.max(1, ...spec.series.flatMap((one) => [one.most ?? 0, ...one.values]));
    const bars = spec.kind === 'bars';
    this.#plot?.destroy();
    this.#plot = new UPlot({
      width: place.clientWidth, height: 190, padding: [10, 20, 0, 0], legend: { show: false }, cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: !bars, ...(bars ? { range: [-0.6, spec.x.length - 0.4] } : {}) }, y: { range: [0, most * 1.05] } },
      axes: [{ ...axis, ...(bars ? { splits: () => spec.x, values: () => spec.names, grid: { show: false } } : { values: times }) }, { ...axis, size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000] }],
      series: [{}, ...spec.series.map((one, at) => ({ label: one.label, stroke: colours[at], width: bars ? 0 : 2, fill: bars ? colours[at] : at ? undefined : `color-mix(in srgb, ${colours[at]} 14%, transparent)`, points: { show: false }, ...(bars ? { paths: UPlot.paths.bars({ size: [0.7, 60], radius: 0.15 }) } : {}) }))],
    }, [spec.x, ...spec.series.map((one) => one.values)], place);
    this.#sized.disconnect();
    this.#sized.observe(place);
  }

  render() {
    const { spec } = this;
    if (!spec) return html``;
    const named = spec.series.length > 1;
    return html`<section class="card chart"><h2>${spec.title}</h2><p class="help">${spec.told}</p>
      ${spec.x.length ? html`${named ? html`<p class="legend" aria-hidden="true">${spec.series.map((one) => html`<span>${one.label}</span>`)}</p>` : ''}<div class="plot" role="img" aria-label="${spec.title}: ${spec.told}"></div>
      <details><summary>As a table</summary><div class="twin" tabindex="0" role="region" aria-label="${spec.title} as a table"><table><thead><tr><th scope="col">${spec.head}</th>${spec.series.map((one) => html`<th scope="col">${one.label}</th>`)}</tr></thead>
        <tbody>${spec.x.map((_, at) => html`<tr><th scope="row">${spec.names[at]}</th>${spec.series.map((one) => html`<td>${number(Math.round(10 * one.values[at]) / 10)}</td>`)}</tr>`)}</tbody></table></div></details>` : html`<p class="nothing help">Nothing yet.</p>`}</section>`;
  }
}

/** Clock times below a chart; days where it is a new one. */
const times = (_plot, splits) => splits.map((at, index) => {
  const moment = new Date(1000 * at);
  const day = !index || new Date(1000 * splits[index - 1]).getDate() !== moment.getDate();
  const clock = moment.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' });
  return day && splits.at(-1) - splits[0] > 86_400 ? moment.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' }) : clock;
});

define('ro-chart', Chart);
