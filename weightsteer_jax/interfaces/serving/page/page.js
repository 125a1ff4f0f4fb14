// Chat with the base and the steered model side by side.
'use strict';

const byId = (id) => document.getElementById(id);
const KEPT = 'weightsteer-page';
// The sides, each with the messages of its own conversation.
const chats = {base: [], steered: []};
let served = '';
let abort = null;

function headers() {
  const key = byId('key').value;
  const plain = {'Content-Type': 'application/json'};
  return key ? {...plain, Authorization: `Bearer ${key}`} : plain;
}

async function said(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The model's name, and its directions: the server lists NAME@DIRECTION=1 for each.
async function load() {
  const response = await fetch('/v1/models', {headers: headers()});
  if (!response.ok) {
    byId('model').textContent = await said(response);
    return;
  }
  const names = (await response.json()).data.map((model) => model.id);
  served = names[0];
  const directions = names.slice(1).map((name) => name.slice(served.length + 1, name.lastIndexOf('=')));
  byId('model').textContent = directions.length
    ? `${served}, with ${directions.length === 1 ? 'a direction' : `${directions.length} directions`}`
    : `${served}; the server has no direction: both sides are the base`;
  byId('directions').replaceChildren(...directions.map(slider));
  restore();
}

function slider(name, index) {
  const row = document.createElement('div');
  row.className = 'direction';
  const label = document.createElement('label');
  label.textContent = name;
  label.htmlFor = `direction-${index}`;
  const range = document.createElement('input');
  Object.assign(range, {type: 'range', id: `direction-${index}`, min: -2, max: 2, step: 0.05, value: 0});
  const number = document.createElement('input');
  // Strengths beyond the slider can be typed.
  Object.assign(number, {type: 'number', step: 'any', value: 0});
  number.setAttribute('aria-label', `alpha of ${name}`);
  number.dataset.direction = name;
  range.addEventListener('input', () => { number.value = range.value; keep(); });
  number.addEventListener('input', () => { range.value = number.value; keep(); });
  row.append(label, range, number);
  return row;
}

function strengths() {
  const chosen = {};
  for (const input of document.querySelectorAll('[data-direction]')) {
    chosen[input.dataset.direction] = Number(input.value) || 0;
  }
  return chosen;
}

function keep() {
  const fields = {};
  for (const id of ['system', 'temperature', 'seed', 'tokens', 'prompt']) fields[id] = byId(id).value;
  // A browser may refuse to keep anything; the page works without.
  try {
    localStorage.setItem(KEPT, JSON.stringify({fields, strengths: strengths()}));
  } catch {}
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(KEPT));
  } catch {}
  for (const [id, value] of Object.entries(kept?.fields ?? {})) byId(id).value = value;
  const inputs = document.querySelectorAll('[data-direction]');
  for (const input of inputs) {
    // A first answer that differs shows what the page is for; several directions at once may break.
    const first = inputs.length === 1 ? 1 : 0;
    const value = kept?.strengths?.[input.dataset.direction] ?? first;
    input.value = value;
    input.previousElementSibling.value = value;
  }
}

function show(side, role, text) {
  const item = document.createElement('li');
  item.className = role;
  item.textContent = text;
  byId(side).append(item);
  return item;
}

function labelOf(side) {
  if (side === 'base') return 'alpha 0';
  return Object.entries(strengths()).map(([name, alpha]) => `${name} ${alpha}`).join(', ');
}

// One side's answer, streamed into the page; resolves to its text.
async function answer(side) {
  const item = show(side, 'assistant', '');
  const label = document.createElement('span');
  label.className = 'strength';
  label.textContent = labelOf(side);
  const thought = document.createElement('span');
  thought.className = 'thought';
  thought.hidden = true;
  const text = document.createElement('span');
  item.append(label, thought, text);
  try {
    for await (const delta of deltas(side)) {
      if (delta.reasoning_content) {
        thought.hidden = false;
        thought.textContent += delta.reasoning_content;
      }
      text.textContent += delta.content ?? '';
    }
  } catch (error) {
    item.classList.add('failed');
    text.textContent += error.name === 'AbortError' ? ' (stopped)' : ` ${error.message}`;
    return '';
  }
  return text.textContent;
}

async function* deltas(side) {
  const system = byId('system').value;
  const body = {
    model: served,
    messages: [...(system ? [{role: 'system', content: system}] : []), ...chats[side]],
    stream: true,
    temperature: Number(byId('temperature').value) || 0,
    seed: Number(byId('seed').value) || 0,
    max_tokens: Number(byId('tokens').value) || 256,
    directions: side === 'steered' ? strengths() : {},
  };
  const response = await fetch('/v1/chat/completions', {
    method: 'POST', headers: headers(), body: JSON.stringify(body), signal: abort.signal,
  });
  if (!response.ok) throw new Error(await said(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const events = (rest + value).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      const data = event.slice('data: '.length);
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.choices.length) yield chunk.choices[0].delta;
    }
  }
}

// Both sides answer what was last asked.
async function ask() {
  abort = new AbortController();
  byId('send').disabled = byId('again').disabled = true;
  byId('stop').disabled = false;
  await Promise.all(Object.keys(chats).map(async (side) => {
    const text = await answer(side);
    if (text) chats[side].push({role: 'assistant', content: text});
  }));
  byId('send').disabled = byId('again').disabled = false;
  byId('stop').disabled = true;
}

byId('ask').addEventListener('submit', async (event) => {
  event.preventDefault();
  const prompt = byId('prompt').value;
  if (byId('send').disabled || !prompt.trim()) return;
  for (const side of Object.keys(chats)) {
    chats[side].push({role: 'user', content: prompt});
    show(side, 'user', prompt);
  }
  keep();
  await ask();
});
byId('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId('ask').requestSubmit();
  }
});
// The last question again, at the strengths that are set now.
byId('again').addEventListener('click', async () => {
  for (const side of Object.keys(chats)) {
    if (chats[side].at(-1)?.role === 'assistant') chats[side].pop();
  }
  await ask();
});
byId('stop').addEventListener('click', () => abort?.abort());
byId('clear').addEventListener('click', () => {
  abort?.abort();
  for (const side of Object.keys(chats)) {
    chats[side].length = 0;
    byId(side).replaceChildren();
  }
  byId('again').disabled = true;
});
byId('settings').addEventListener('submit', (event) => event.preventDefault());
byId('settings').addEventListener('input', keep);
byId('prompt').addEventListener('input', keep);
byId('key').addEventListener('change', load);
load();
