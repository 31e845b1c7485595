// The rules of a new task's form: what may be typed, and what becomes a part of the request. No page, no farm.

/** The built-in types' rules, as the farm checks them (`farm.arguments.TYPES`). */
export const TYPES = {
  file: /^[a-zA-Z0-9_-]+\.[a-zA-Z0-9]{1,4}$/,
  path: /^(\/[a-zA-Z0-9_-]+)+\/?$/,
  extension: /^\.[a-zA-Z0-9]{1,4}$/,
  word: /^[A-Za-z0-9_]+$/,
  sentence: /^[a-zA-Z0-9\s,.!?'-]+$/,
  natural: /^\d+$/,
  integer: /^-?\d+$/,
  real: /^-?\d+(\.\d+)?$/,
};
const EXAMPLES = { file: 'a file name like scene.blend', path: 'a path like /textures/wood', extension: 'an extension like .png', word: 'one word of letters, digits and _', sentence: 'plain text', natural: 'a whole number, 0 or more', integer: 'a whole number', real: 'a number like 0.5' };
const MAX_FRAMES = 100_000; // as in farm/frames.py
const PART = /^(-?\d{1,10})(?:-(-?\d{1,10})(?:([xy:])(-?\d{1,10}))?)?$/;

/** How many frames a range names: a number, or what is wrong with it. */
export function framesOf(text) {
  const found = new Set();
  const parts = text.split(',').map((part) => part.replaceAll(' ', '').replaceAll('..', '-')).filter(Boolean);
  if (!parts.length) return 'Which frames? Like 1-250, 1-100x5 or 1,5,9.';
  for (const part of parts) {
    const match = PART.exec(part);
    if (!match) return `“${part}” is no range. Write 1-250, 1-100x5 (every fifth) or 1,5,9.`;
    const [first, last, way, by] = [Number(match[1]), Number(match[2] ?? match[1]), match[3], Number(match[4] ?? 1)];
    if (by === 0) return 'The step must not be 0.';
    if (Math.abs(last - first) > 2 * MAX_FRAMES) return `A task has at most ${MAX_FRAMES} frames.`;
    const sign = last < first ? -1 : 1;
    const step = Math.abs(by);
    const every = [];
    for (let frame = first; sign * frame <= sign * last; frame += sign) every.push(frame);
    if (way === 'y') every.filter((_, at) => at % step).forEach((frame) => found.add(frame));
    else if (way === ':') for (let stride = step; stride >= 1; stride--) every.filter((_, at) => at % stride === 0).forEach((frame) => found.add(frame));
    else every.filter((_, at) => at % step === 0).forEach((frame) => found.add(frame));
  }
  return found.size > MAX_FRAMES ? `A task has at most ${MAX_FRAMES} frames.` : found.size;
}

/** What is wrong with a value, "" when nothing is. An empty one may mean: as the scene says. */
export function wrongWith(argument, value) {
  if (value === '' && argument.default === '') return '';
  if (argument.choices.length) return argument.choices.includes(value) ? '' : `One of ${argument.choices.join(', ')}.`;
  if (value === '' && argument.default === null) return 'This is needed.';
  const rule = argument.regex ? pattern(argument.regex) : TYPES[argument.type];
  const fits = !rule || (rule.test(value) && /^[\0-\x7f]*$/.test(value) && !/[\n\r]$/.test(value) && value.length <= 4096);
  return fits ? '' : argument.help && argument.regex ? argument.help : `It must be ${EXAMPLES[argument.type] ?? argument.type}.`;
}

function pattern(regex) {
  try { return new RegExp(`^(?:${regex})$`); } catch { return null; } // Python's own syntax: the farm checks it
}

/** How the frames of a plain range follow each other. */
export const ORDERS = {
  forward: ['First to last', (first, last) => `${first}-${last}`],
  coarse: ['Every eighth first, then those between', (first, last) => `${first}-${last}:8`],
  backward: ['Last to first', (first, last) => `${last}-${first}`],
};
export const PLAIN = /^\s*(-?\d+)\s*-\s*(-?\d+)\s*$/;

const WORD = /^[a-z0-9][a-z0-9_.-]{0,49}$/i;
const words = (text) => text.split(/[\s,]+/).filter(Boolean);
const whole = (most) => (text) => (/^\d*$/.test(text) && Number(text) <= most ? '' : `A whole number, at most ${most.toLocaleString('en')}.`);

/**
 * What is asked of machines and of the queue: how it begins, and what is wrong with what one types.
 * @type {Record<string, [string | boolean, (text: string) => string]>}
 */
export const WISHES = {
  tags: ['', (text) => (words(text).length <= 16 && words(text).every((one) => WORD.test(one)) ? '' : 'Words of a-z, 0-9, _ . and -, at most 16.')],
  pool: ['', (text) => (!text || WORD.test(text) ? '' : 'One word of a-z, 0-9, _ . and -.')],
  memory_mib: ['', whole(67_108_864)],
  gpus: ['', whole(64)],
  gpu_memory_mib: ['', whole(67_108_864)],
  engine_version: ['', (text) => (/^(\d{1,6}(\.\d{1,6}){0,5})?$/.test(text) ? '' : 'Numbers with dots between them, such as 4.2 or 5.0.1.')],
  sandbox: ['', () => ''],
  running_limit: ['', whole(100_000)],
  waits_for: ['', (text) => (words(text).length <= 100 && words(text).every((one) => /^\d{1,15}$/.test(one)) ? '' : 'Numbers of tasks, such as 12, 13; at most 100.')],
  names: ['', (text) => (text.length <= 200 ? '' : 'At most 200 letters.')],
  deliver: ['', (text) => (text.length <= 200 ? '' : 'At most 200 letters.')],
  strict: [false, () => ''],
  notify: [false, () => ''],
};

/** The wishes as the request has them; what nobody typed is left out. */
export function wished(form) {
  /** @type {[any, any]} */
  const [needs, request] = [{}, {}];
  for (const name of ['pool', 'engine_version', 'sandbox']) if (form[name]) needs[name] = form[name];
  for (const name of ['memory_mib', 'gpus', 'gpu_memory_mib']) if (Number(form[name])) needs[name] = Number(form[name]);
  if (words(form.tags).length) needs.tags = words(form.tags);
  if (Number(form.running_limit)) request.running_limit = Number(form.running_limit);
  if (words(form.waits_for).length) request.waits_for = words(form.waits_for).map(Number);
  for (const name of ['names', 'deliver']) if (form[name].trim()) request[name] = form[name].trim();
  for (const name of ['strict', 'notify']) if (form[name]) request[name] = true;
  return Object.keys(needs).length ? { ...request, needs } : request;
}

const named = (list) => (list ?? []).map((one) => one.name ?? one);
/** What a scene offers for arguments that name a part of it. */
const OFFERED = { scene: (facts) => named(facts?.scenes), camera: (_facts, within) => named(within?.cameras), view_layer: (_facts, within) => named(within?.view_layers) };

/** What an engine with many arguments is asked for most; the rest is folded away. */
const COMMON = new Set(['format', 'scene', 'camera', 'view_layer', 'samples', 'percent', 'device']);
/** More arguments than this are many. */
const MANY = 9;
/** What only the scene can know. */
const ITS_OWN = new Set(['view']);

/** An engine's arguments as the form has them: those in sight, and those that are folded away. A part of the scene is chosen where there are several. */
export function arranged(all, facts, within) {
  const asked = all.filter((one) => !ITS_OWN.has(one.id));
  const common = (one) => COMMON.has(one.id) && (!(one.id in OFFERED) || OFFERED[one.id](facts, within).length > 1);
  if (asked.length <= MANY) return [asked, []];
  return asked.some(common) ? [asked.filter(common), asked.filter((one) => !common(one))] : [asked.slice(0, MANY), asked.slice(MANY)];
}

/** The values that one may choose for an argument; none: anything that its rule allows. */
export const choicesOf = (argument, facts, within) => (argument.choices.length ? argument.choices : (OFFERED[argument.id]?.(facts, within) ?? []));
