// What the page knows at once, and the parts of the examples, read when they are looked at.

const data = JSON.parse(document.getElementById('data').textContent);
const {tasks, columns} = data;
// Parts kept in memory; the one used last is last.
const KEPT = 40;
const parts = new Map();
const waiting = new Map();

// Files beside the page call this with their content: a page opened from a disk cannot fetch.
window.weightsteer = (name, content) => waiting.get(name)?.(content);

// A promise of a part: an index as '0/index', or a list of examples as '0/3'.
function part(name) {
  const known = parts.get(name) || read(name);
  parts.delete(name);
  parts.set(name, known);
  if (parts.size > KEPT) parts.delete(parts.keys().next().value);
  return known;
}

function read(name) {
  const inside = document.getElementById(`part-${name}`);
  if (inside) return Promise.resolve(JSON.parse(inside.textContent));
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    const end = settle => content => {
      waiting.delete(name);
      script.remove();
      settle(content);
    };
    waiting.set(name, end(resolve));
    script.addEventListener('error', end(() => {
      parts.delete(name);
      reject(new Error(`${data.files[name]} is not beside this page: copy the whole folder of the report.`));
    }));
    script.src = data.files[name];
    document.head.append(script);
  });
}

// Number of the part that holds an example: parts begin at ascending examples.
function partOf(index, example) {
  let low = 0;
  let high = index.starts.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (index.starts[middle] <= example) low = middle;
    else high = middle - 1;
  }
  return low;
}

async function exampleOf(task, index, number) {
  const at = partOf(index, number);
  const examples = await part(`${task}/${at}`);
  return examples[number - index.starts[at]];
}

const alphaName = alpha => (alpha > 0 ? '+' : '') + Number(alpha.toPrecision(6));
const short = value => value === null ? '–' : String(Number(value.toPrecision(3)));
const isPicked = column => (data.picked[columns[column][0]] || []).includes(columns[column][1]);

// A strength in an address, as weights@-0.5.
const nameOf = column => columns[column].join('@');

function columnOf(name) {
  const at = name.lastIndexOf('@');
  const arm = name.slice(0, at);
  const alpha = Number(name.slice(at + 1));
  return columns.findIndex(column => column[0] === arm && column[1] === alpha);
}

// The unsteered model of an arm: its strength nearest to zero.
function baseOf(arm) {
  let base = -1;
  columns.forEach(([name, alpha], number) => {
    if (name === arm && (base < 0 || Math.abs(alpha) < Math.abs(columns[base][1]))) base = number;
  });
  return base;
}
