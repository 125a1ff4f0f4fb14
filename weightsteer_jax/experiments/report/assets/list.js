// Which examples are listed, and in which order.

// 1 above the middle of the task's scale, 0 below, null without a value or a middle.
const sideOf = (task, value) => value === null || task.middle === null ? null : value > task.middle ? 1 : 0;

// What each filter keeps, given the sides at A and B and whether one of the two failed.
const FILTERS = {
  all: {label: 'All', keep: () => true},
  flips: {label: 'Changed sides', keep: (a, b) => a !== null && b !== null && a !== b},
  up: {label: 'Up', keep: (a, b) => a === 0 && b === 1},
  down: {label: 'Down', keep: (a, b) => a === 1 && b === 0},
  failed: {label: 'Not ok', keep: (a, b, failed) => failed},
};

// The number to sort by: finer than 0 and 1 where choices have log-odds.
function finest(index, example, column) {
  const margin = index.margins[example][column];
  return margin === null ? index.values[example][column] : margin;
}

const difference = (index, example, a, b) => {
  const before = finest(index, example, a);
  const after = finest(index, example, b);
  return before === null || after === null ? null : after - before;
};

const ORDERS = {
  order: {label: 'as in the task'},
  rise: {label: 'largest rise from A to B', sign: -1, number: difference},
  fall: {label: 'largest fall from A to B', sign: 1, number: difference},
  high: {label: 'highest at B', sign: -1, number: (index, example, a, b) => finest(index, example, b)},
  low: {label: 'lowest at B', sign: 1, number: (index, example, a, b) => finest(index, example, b)},
};

// {filter: examples it keeps}, each in the order of the task.
function filtered(task, index, a, b) {
  const kept = Object.fromEntries(Object.keys(FILTERS).map(name => [name, []]));
  index.values.forEach((values, example) => {
    const failed = index.failed[example].includes(a) || index.failed[example].includes(b);
    const before = sideOf(task, values[a]);
    const after = sideOf(task, values[b]);
    for (const name in FILTERS) if (FILTERS[name].keep(before, after, failed)) kept[name].push(example);
  });
  return kept;
}

function sorted(examples, index, order, a, b) {
  const {sign, number} = ORDERS[order];
  if (!number) return examples;
  const keyed = examples.map(example => [number(index, example, a, b), example]);
  // Examples without a number stand last, whichever way the others go.
  keyed.sort(([x, i], [y, j]) => (x === null) - (y === null) || sign * (x - y) || i - j);
  return keyed.map(([, example]) => example);
}

const wordsOf = search => search.toLowerCase().split(/\s+/).filter(Boolean);

function matches(example, words) {
  const texts = [example.id, ...example.messages.map(message => message[1]), ...example.choices];
  for (const [, , , status, completion, , further] of example.rows) {
    texts.push(status, completion || '', further?.thought || '');
  }
  const all = texts.join('\n').toLowerCase();
  return words.every(word => all.includes(word));
}

// The examples of a task with all the words, told again after each part: searching many files takes a while.
async function search(taskNumber, index, words, tell) {
  const hits = new Set();
  for (let at = 0; at < index.starts.length; at++) {
    const examples = await part(`${taskNumber}/${at}`);
    examples.forEach((example, number) => {
      if (matches(example, words)) hits.add(index.starts[at] + number);
    });
    if (!tell(hits, at + 1, index.starts.length)) return;
  }
}
