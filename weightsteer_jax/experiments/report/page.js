'use strict';
// Looks through the embedded examples. Text reaches the page through textContent only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const find = id => document.getElementById(id);
  const taskBox = find('task'), armBox = find('arm'), alphaBox = find('alphas'), searchBox = find('search');
  const list = find('list'), view = find('view'), count = find('count');
  if (!data.tasks.length) return;
  const state = {task: data.tasks[0], shown: [], at: 0};

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  const alphaName = alpha => alpha === 0 ? '0' : (alpha > 0 ? '+' : '') + Number(alpha.toPrecision(6));
  const isPicked = alpha => (data.picked[armBox.value] || []).includes(alpha);
  const scaled = value => (value - state.task.low) / ((state.task.high - state.task.low) || 1);
  const rowsOf = example => example.rows.filter(row => row[0] === armBox.value);

  // {alpha: rows} of an example under the chosen arm, ascending.
  function byAlpha(example) {
    const groups = new Map();
    for (const row of rowsOf(example)) {
      if (!groups.has(row[1])) groups.set(row[1], []);
      groups.get(row[1]).push(row);
    }
    return groups;
  }

  function meanValue(rows) {
    const values = rows.map(row => row[3]).filter(value => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  function paint(node, value) {
    if (value === null) node.classList.add('none');
    else node.style.setProperty('--v', Math.max(0, Math.min(1, scaled(value))).toFixed(3));
  }

  function chip(value) {
    const node = make('span', 'chip', value === null ? 'no value' : String(Number(value.toPrecision(3))));
    paint(node, value);
    if (value !== null && scaled(value) > 0.7) node.classList.add('dense');
    return node;
  }

  // What the user asks last, in one line; the name of an example without messages.
  function question(example) {
    const asked = example.messages.filter(([role]) => role === 'user').at(-1) || example.messages.at(-1);
    const text = asked ? asked[1] : example.choices[0] || '';
    return text.trim().replace(/\s+/g, ' ').slice(0, 200) || example.id;
  }

  function matches(example, words) {
    if (!words) return true;
    const texts = [example.id, ...example.messages.map(message => message[1]), ...example.choices,
                   ...rowsOf(example).flatMap(row => [row[4], row[5] || ''])];
    const all = texts.join('\n').toLowerCase();
    return words.toLowerCase().split(/\s+/).every(word => all.includes(word));
  }

  function drawList() {
    state.shown = state.task.examples.filter(example => rowsOf(example).length && matches(example, searchBox.value.trim()));
    state.at = Math.max(0, Math.min(state.at, state.shown.length - 1));
    list.replaceChildren(...state.shown.map((example, index) => {
      const button = make('button');
      button.type = 'button';
      button.append(make('span', '', question(example)));
      const strip = make('div', 'strip');
      for (const [alpha, rows] of byAlpha(example)) {
        const cell = make('i');
        const value = meanValue(rows);
        cell.title = `alpha ${alphaName(alpha)}: ${value === null ? 'no value' : Number(value.toPrecision(3))}`;
        paint(cell, value);
        strip.append(cell);
      }
      button.append(strip);
      button.addEventListener('click', () => go(index));
      return button;
    }));
    if (!state.shown.length) list.append(make('div', 'empty', 'Nothing matches.'));
    const task = state.task;
    const part = task.examples.length < task.total ? ` (of ${task.total}; the rest is in sweep/rows.jsonl)` : '';
    count.textContent = `${state.shown.length} of ${task.examples.length} embedded examples${part}. ${task.description}`;
    drawExample();
  }

  function drawPrompt(example) {
    const prompt = make('div', 'prompt');
    for (const [role, content] of example.messages) {
      const text = make('p', 'text', content);
      text.dir = 'auto';
      prompt.append(make('h4', '', role), text);
    }
    return prompt;
  }

  // Probabilities among the choices: their log-probabilities, normalised to add up to one.
  function drawChoices(example, logprobs) {
    const known = logprobs.filter(value => value !== null);
    const top = Math.max(...known);
    const weights = logprobs.map(value => value === null ? 0 : Math.exp(value - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
    return example.choices.map((choice, index) => {
      const box = make('div', index === example.target ? 'choice target' : 'choice');
      const line = make('div');
      const text = make('span', 'text', (index === example.target ? '\u2713 ' : '') + choice);
      text.dir = 'auto';
      line.append(text, make('span', '', (weights[index] / total).toFixed(2)));
      const meter = make('div', 'meter'), fill = make('i');
      fill.style.width = `${100 * weights[index] / total}%`;
      meter.append(fill);
      box.append(line, meter);
      return box;
    });
  }

  function drawThought(thought, leaked, status) {
    const folded = make('details', 'thought');
    const notes = (status === 'thought_cut' ? ', cut' : '') + (leaked ? ', outside of its place' : '');
    const text = make('p', 'text', thought);
    text.dir = 'auto';
    folded.append(make('summary', '', 'Thought' + notes), text);
    return folded;
  }

  function drawAnswer(example, row, several) {
    const [, , sample, value, status, completion, logprobs, thought, leaked] = row;
    const answer = make('div', 'answer');
    if (several) answer.append(make('span', 'mark', `sample ${sample} `), chip(value));
    if (status !== 'ok') answer.append(make('div', 'status', status));
    if (logprobs) answer.append(...drawChoices(example, logprobs));
    if (thought) answer.append(drawThought(thought, leaked, status));
    // A cut thought has no answer, not even an empty one.
    if (completion !== null && status !== 'thought_cut') {
      const text = make('p', 'text', completion === '' ? '(empty)' : completion);
      text.dir = 'auto';
      answer.append(text);
    }
    return answer;
  }

  function drawExample() {
    const example = state.shown[state.at];
    list.querySelectorAll('button').forEach((button, index) => button.setAttribute('aria-current', index === state.at));
    if (!example) return view.replaceChildren();
    const cards = make('div', 'cards');
    for (const [alpha, rows] of byAlpha(example)) {
      if (alphaBox.value === 'picked' && alpha !== 0 && !isPicked(alpha)) continue;
      const card = make('section', isPicked(alpha) ? 'card picked' : 'card');
      const header = make('header');
      header.append(make('b', '', alphaName(alpha)), make('span', 'mark', alpha === 0 ? 'base' : isPicked(alpha) ? 'picked' : ''),
                    chip(meanValue(rows)));
      card.append(header, ...rows.map(row => drawAnswer(example, row, rows.length > 1)));
      cards.append(card);
    }
    view.replaceChildren(drawPrompt(example), cards);
  }

  function go(index) {
    if (!state.shown.length) return;
    state.at = Math.max(0, Math.min(index, state.shown.length - 1));
    drawExample();
    const button = list.children[state.at];
    // Scrolls the list only: scrollIntoView would move the page under the reader.
    if (button.offsetTop < list.scrollTop) list.scrollTop = button.offsetTop;
    const bottom = button.offsetTop + button.offsetHeight;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  function turnTask(step) {
    const index = (data.tasks.indexOf(state.task) + step + data.tasks.length) % data.tasks.length;
    taskBox.selectedIndex = index;
    changeTask();
  }

  function changeTask() {
    state.task = data.tasks[taskBox.selectedIndex];
    state.at = 0;
    drawList();
    list.scrollTop = 0;
  }

  taskBox.append(...data.tasks.map(task => make('option', '', `${task.name} (${task.role})`)));
  armBox.append(...data.arms.map(arm => make('option', '', arm)));
  armBox.parentElement.hidden = data.arms.length < 2;
  taskBox.addEventListener('change', changeTask);
  armBox.addEventListener('change', drawList);
  alphaBox.addEventListener('change', drawExample);
  searchBox.addEventListener('input', drawList);
  find('previous').addEventListener('click', () => go(state.at - 1));
  find('next').addEventListener('click', () => go(state.at + 1));
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === 'Escape' && typing) return event.target.blur();
    if (typing) return;
    const inList = list.contains(event.target);
    const actions = {j: () => go(state.at + 1), k: () => go(state.at - 1), '[': () => turnTask(-1), ']': () => turnTask(1),
                     '/': () => searchBox.focus()};
    if (inList) Object.assign(actions, {ArrowDown: actions.j, ArrowUp: actions.k});
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
    if (inList && event.key !== '/' && list.children[state.at]) list.children[state.at].focus({preventScroll: true});
  });
  drawList();
})();
