// The fields of a new task's form as they are drawn; what is typed into them the page of the form keeps.

import { html, kept, nothing } from './parts.js';
import { choicesOf } from './rules.js';

const BOXES = [['', 'Whatever there is'], ['landlock', 'Landlock or better'], ['bwrap', 'bubblewrap']];

/**
 * One field: its label, its input, and below it what is wrong, or else a word of help.
 * @param {string} id @param {string} label @param {any} help @param {string} wrong @param {any} input @param {any} more
 */
export const field = (id, label, help, wrong, input, more = nothing) => html`<div><label for=${id}>${label}</label><div class="with">${input}${more}</div>
  ${wrong ? html`<span class="wrong" id="${id}-help" role="alert">${wrong}</span>` : help ? html`<span class="help" id="${id}-help">${help}</span>` : nothing}</div>`;

/**
 * A field of text. `kind` is its input mode.
 * @param {string} id @param {string} label @param {any} help @param {string} wrong @param {string} value
 * @param {(event: any) => void} change @param {any} more
 */
export const text = (id, label, help, wrong, value, change, { kind = 'text', hint = '', more = nothing } = {}) => field(id, label, help, wrong, html`<input id=${id} .value=${kept(value)} placeholder=${hint || nothing}
  inputmode=${kind} autocomplete="off" spellcheck="false" aria-describedby=${wrong || help ? `${id}-help` : nothing} aria-invalid=${wrong ? 'true' : nothing} @input=${change}>`, more);

/** The field of an engine's argument. `facts` and `within`: what the file, and the scene in it that is rendered, say. */
export function argument(one, value, wrong, change, facts, within) {
  const id = `argument-${one.id}`; // which may also be the name of one of the form's own fields
  const choices = choicesOf(one, facts, within);
  const free = one.default === '' || value === '';
  const said = one.fact && within?.[one.fact];
  const hint = free ? `As the scene says${said !== undefined && said !== '' && said !== null ? `: ${said}` : ''}` : '';
  if (!choices.length) return text(id, one.label || one.id, one.help, wrong, value, change, { kind: one.type === 'natural' ? 'numeric' : one.type === 'real' ? 'decimal' : 'text', hint });
  const all = [...new Set(free ? ['', ...choices] : choices)];
  return field(id, one.label || one.id, one.help, wrong, html`<select id=${id} aria-describedby=${wrong || one.help ? `${id}-help` : nothing} @change=${change}>${all.map((choice) => html`<option value=${choice} ?selected=${choice === value}>${choice === '' ? hint : choice}</option>`)}</select>`);
}

/** What a machine must have to get parts of the task. `bad(name)`: what is wrong; `set(name)`: what keeps a value. */
export const machines = (form, bad, set) => html`
  ${text('tags', 'Tags', 'Only machines with all of these.', bad('tags'), form.tags, set('tags'), { hint: 'gpu fast' })}
  ${text('pool', 'Pool', 'Only machines of this pool; empty: those of none.', bad('pool'), form.pool, set('pool'))}
  ${text('gpus', 'Graphics cards', 'So many for each part.', bad('gpus'), form.gpus, set('gpus'), { kind: 'numeric', hint: '0' })}
  ${text('gpu_memory_mib', 'Memory of a card, MiB', 'Of each of them; asks for one.', bad('gpu_memory_mib'), form.gpu_memory_mib, set('gpu_memory_mib'), { kind: 'numeric', hint: '0' })}
  ${text('memory_mib', 'Memory, MiB', 'So much for each part.', bad('memory_mib'), form.memory_mib, set('memory_mib'), { kind: 'numeric', hint: '0' })}
  ${text('engine_version', 'Engine at least', 'A version, such as 4.2.', bad('engine_version'), form.engine_version, set('engine_version'), { hint: 'Any version' })}
  ${field('sandbox', 'Box', 'What is around engines there, at least.', '', html`<select id="sandbox" aria-describedby="sandbox-help" @change=${set('sandbox')}>${BOXES.map(([key, told]) => html`<option value=${key} ?selected=${key === form.sandbox}>${told}</option>`)}</select>`)}`;

/** When the task begins, and how much of it runs at once. */
export const order = (form, bad, set, mails) => html`
  ${text('waits_for', 'After', 'Numbers of tasks that must succeed first.', bad('waits_for'), form.waits_for, set('waits_for'), { hint: '12, 13' })}
  ${text('running_limit', 'Parts at once', 'At most; empty: as many as there are machines.', bad('running_limit'), form.running_limit, set('running_limit'), { kind: 'numeric', hint: 'Any number' })}
  ${mails ? html`<label class="check"><input type="checkbox" .checked=${kept(form.notify)} @change=${set('notify', (input) => input.checked)}> Mail me when it ends</label>` : nothing}`;

/** What the results are called, and what is not taken for good. */
export const results = (form, bad, set) => html`
  ${text('names', 'Results are called', html`Fields such as <code>{scene}/{camera}/{name}_{frame:04}</code>; empty: as your subscription says.`, bad('names'), form.names, set('names'), { hint: '{name}_{frame:04}' })}
  ${text('deliver', 'Deliver to', 'A place that your administrator named, and a folder in it.', bad('deliver'), form.deliver, set('deliver'), { hint: 'projects/film' })}
  <label class="check"><input type="checkbox" .checked=${kept(form.strict)} @change=${set('strict', (input) => input.checked)}> Refuse it when something is missing</label>`;
