// The browser of examples. All that a reader has chosen stands in the address, so a link brings it back.

const PAGE = 100;
const boxes = {task: find('task'), a: find('a'), b: find('b'), sort: find('sort'), search: find('search')};
const list = find('list');
const view = find('view');
const count = find('count');

// What is shown: numbers of the task, of the strengths A and B, of the example, and words for the rest.
const state = {task: 0, a: 0, b: 0, show: 'all', sort: 'order', search: '', example: null, all: false};
// What follows from it: the task's index, the examples of each filter, and those listed.
let index = null;
let kept = {};
let hits = null;
let shown = [];
// Counts the changes, so that what arrives late for an earlier one is dropped.
let turn = 0;

function preset() {
  const arm = data.arms[0];
  const picked = (data.picked[arm] || []).at(-1);
  const last = columns.findLastIndex(column => column[0] === arm);
  state.a = baseOf(arm);
  state.b = picked === undefined ? last : columnOf(`${arm}@${picked}`);
}

// The address of what is shown.
function address() {
  const words = {task: tasks[state.task].name, a: nameOf(state.a), b: nameOf(state.b)};
  if (state.show !== 'all') words.show = state.show;
  if (state.sort !== 'order') words.sort = state.sort;
  if (state.search) words.search = state.search;
  if (state.all) words.all = '1';
  if (index && state.example !== null) words.example = index.names[state.example];
  return `#${new URLSearchParams(words)}`;
}

// Takes over what an address says; true if it says anything. The example is found once the index is there.
function follow(hash) {
  const words = new URLSearchParams(hash.slice(1));
  const task = tasks.findIndex(each => each.name === words.get('task'));
  if (task < 0) return false;
  state.task = task;
  const b = columnOf(words.get('b') || '');
  if (b >= 0) state.b = b;
  const a = columnOf(words.get('a') || '');
  // A point of a curve names its strength only: the other side is the base of its arm.
  if (a >= 0) state.a = a;
  else if (b >= 0) state.a = baseOf(columns[b][0]);
  state.show = words.get('show') in FILTERS ? words.get('show') : 'all';
  state.sort = words.get('sort') in ORDERS ? words.get('sort') : 'order';
  state.search = words.get('search') || '';
  state.all = words.get('all') === '1';
  state.wanted = words.get('example');
  return true;
}

// Draws everything anew for what is chosen.
async function update() {
  const mine = ++turn;
  const task = tasks[state.task];
  index = null;
  try {
    const read = await part(`${state.task}/index`);
    if (mine !== turn) return;
    index = read;
  } catch (error) {
    return complain(error);
  }
  if (state.wanted !== undefined) {
    const wanted = index.names.indexOf(state.wanted);
    state.example = wanted < 0 ? null : wanted;
    delete state.wanted;
  }
  hits = null;
  kept = filtered(task, index, state.a, state.b);
  drawControls();
  const words = wordsOf(state.search);
  if (!words.length) return drawList();
  hits = new Set();
  try {
    await search(state.task, index, words, (found, done, of) => {
      if (mine !== turn) return false;
      hits = found;
      drawList(done < of ? `, ${done} of ${of} files searched` : '');
      return true;
    });
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  count.textContent = error.message;
  list.replaceChildren();
  view.replaceChildren();
}

function drawControls() {
  const task = tasks[state.task];
  boxes.task.value = state.task;
  boxes.a.value = state.a;
  boxes.b.value = state.b;
  boxes.sort.value = state.sort;
  if (boxes.search.value.trim() !== state.search) boxes.search.value = state.search;
  find('about').textContent = task.description;
  const chips = Object.entries(FILTERS).map(([name, {label}]) => {
    const each = button(label, 'filter', () => choose({show: name}));
    each.append(' ', make('b', '', kept[name].length.toLocaleString('en')));
    each.setAttribute('aria-pressed', name === state.show);
    // Without a middle there are no sides to change.
    each.hidden = task.middle === null && ['flips', 'up', 'down'].includes(name);
    return each;
  });
  find('filters').replaceChildren(...chips);
}

// The examples listed, the page of the list that holds the chosen one, and the chosen one itself.
function drawList(note = '') {
  const examples = kept[state.show].filter(example => !hits || hits.has(example));
  shown = sorted(examples, index, state.sort, state.a, state.b);
  if (!shown.includes(state.example)) state.example = firstToShow();
  const place = Math.max(0, shown.indexOf(state.example));
  const first = place - place % PAGE;
  list.replaceChildren(...shown.slice(first, first + PAGE).map(line));
  if (!shown.length) list.append(make('p', 'empty', 'Nothing matches.'));
  drawPager(first);
  const whole = tasks[state.task].examples.toLocaleString('en');
  count.textContent = `${shown.length.toLocaleString('en')} of ${whole} examples${note}`;
  bringIntoList();
  drawExample();
}

// Scrolls the list only: scrollIntoView would move the page under the reader.
function bringIntoList() {
  const each = list.querySelector(`[data-example="${state.example}"]`);
  if (!each) return;
  if (each.offsetTop < list.scrollTop) list.scrollTop = each.offsetTop;
  const bottom = each.offsetTop + each.offsetHeight;
  if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
}

// The first listed example that changed sides, which says most; else the first listed.
function firstToShow() {
  const flips = new Set(kept.flips);
  return shown.find(example => flips.has(example)) ?? shown[0] ?? null;
}

function line(example) {
  const task = tasks[state.task];
  const values = index.values[example];
  const arm = columns[state.b][0];
  const strip = make('span', 'strip');
  columns.forEach((column, number) => {
    if (column[0] === arm) strip.append(square(task, values[number]));
  });
  const pair = make('span', 'pair', chip(task, values[state.a]), '→', chip(task, values[state.b]));
  const each = button('', '', () => go(shown.indexOf(example)));
  each.append(text(index.questions[example], 'span'), make('span', 'foot', strip, pair));
  each.dataset.example = example;
  return each;
}

function drawPager(first) {
  const pager = find('pager');
  pager.hidden = shown.length <= PAGE;
  const last = Math.min(first + PAGE, shown.length);
  const turnTo = place => button(place < first ? 'Earlier' : 'Later', '', () => go(place));
  const before = turnTo(first - PAGE);
  const after = turnTo(first + PAGE);
  before.disabled = first === 0;
  after.disabled = last >= shown.length;
  const words = `${(first + 1).toLocaleString('en')} to ${last.toLocaleString('en')}`;
  pager.replaceChildren(before, make('span', 'soft', words), after);
}

async function drawExample() {
  const number = state.example;
  const mine = turn;
  history.replaceState(null, '', address());
  for (const each of list.querySelectorAll('button')) {
    each.setAttribute('aria-current', Number(each.dataset.example) === number);
  }
  if (number === null) return view.replaceChildren();
  let example;
  try {
    example = await exampleOf(state.task, index, number);
  } catch (error) {
    return complain(error);
  }
  // Somebody may have gone on meanwhile.
  if (mine !== turn || number !== state.example) return;
  const task = tasks[state.task];
  const place = shown.indexOf(number);
  const head = make('div', 'head', make('h3', '', `${(place + 1).toLocaleString('en')} of ${shown.length.toLocaleString('en')}`));
  const link = make('a', '', 'Link to this');
  link.href = address();
  const name = make('span', 'soft name', example.id);
  name.title = example.id;
  const before = button('←', '', () => go(place - 1));
  const after = button('→', '', () => go(place + 1));
  before.setAttribute('aria-label', 'Previous example');
  after.setAttribute('aria-label', 'Next example');
  head.append(name, link, make('span', 'turn', before, after));
  const chooseB = column => choose({b: column});
  const strip = strengths(task, index.values[number], columns[state.b][0], state, chooseB);
  const pair = make('div', 'sides', card(task, example, state.a, 'A'), card(task, example, state.b, 'B', state.a));
  view.replaceChildren(head, prompt(example.messages), strip, pair, everyStrength(task, example));
  // A keyboard scrolls only what it can reach.
  for (const each of view.querySelectorAll('.prompt, .sides .text')) {
    if (each.scrollHeight > each.clientHeight) each.tabIndex = 0;
  }
}

function everyStrength(task, example) {
  const node = make('details', 'every', make('summary', '', `At all ${columns.length} strengths`));
  const cards = make('div', 'cards');
  const fill = () => cards.replaceChildren(...columns.flatMap((_, column) => rowsAt(example, column).length ? [card(task, example, column)] : []));
  node.append(cards);
  node.open = state.all;
  if (state.all) fill();
  node.addEventListener('toggle', () => {
    if (node.open === state.all) return;
    state.all = node.open;
    if (node.open && !cards.children.length) fill();
    history.replaceState(null, '', address());
  });
  return node;
}

// Goes to a place in the list.
function go(place) {
  if (!shown.length) return;
  const number = shown[Math.max(0, Math.min(place, shown.length - 1))];
  state.example = number;
  if (!list.querySelector(`[data-example="${number}"]`)) return drawList();
  bringIntoList();
  drawExample();
}

// Chooses something else to show.
function choose(changes) {
  Object.assign(state, changes);
  if ('task' in changes) {
    state.example = null;
    list.scrollTop = 0;
  }
  return update();
}

// The next strength of B's arm, up or down.
function turnStrength(step) {
  const next = state.b + step;
  if (columns[next] && columns[next][0] === columns[state.b][0]) choose({b: next});
}

// The list as a file: values of A and B beside the questions.
function download() {
  // A program for tables would compute a text that begins like a formula.
  const safe = value => typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value ?? '';
  const quoted = value => `"${String(safe(value)).replaceAll('"', '""')}"`;
  const lines = [['task', 'example', 'question', nameOf(state.a), nameOf(state.b), 'not ok']];
  for (const example of shown) {
    const failed = index.failed[example].includes(state.a) || index.failed[example].includes(state.b);
    lines.push([
      tasks[state.task].name, index.names[example], index.questions[example],
      index.values[example][state.a], index.values[example][state.b], failed ? 1 : 0,
    ]);
  }
  const content = lines.map(cells => cells.map(quoted).join(',')).join('\r\n');
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([content], {type: 'text/csv'}));
  link.download = `${tasks[state.task].name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}
