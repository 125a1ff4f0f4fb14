// One example: its prompt, two strengths side by side, and all strengths below.

function prompt(messages) {
  const node = make('div', 'prompt');
  for (const [role, content] of messages) node.append(make('h4', '', role), text(content));
  return node;
}

// Probabilities among the choices: their log-probabilities, normalised to add up to one.
function choices(example, logprobs) {
  const known = logprobs.filter(value => value !== null);
  const top = Math.max(...known);
  const weights = logprobs.map(value => value === null ? 0 : Math.exp(value - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
  return example.choices.map((choice, number) => {
    const share = weights[number] / total;
    const isTarget = number === example.target;
    const fill = make('i');
    fill.style.width = `${100 * share}%`;
    const line = make('div', '', text((isTarget ? '\u2713 ' : '') + choice, 'span'), make('span', '', share.toFixed(2)));
    return make('div', isTarget ? 'choice target' : 'choice', line, make('div', 'meter', fill));
  });
}

function thought(further, status) {
  const notes = (status === 'thought_cut' ? ', cut' : '') + (further.leaked ? ', outside of its place' : '');
  return make('details', 'thought', make('summary', '', `Thought${notes}`), text(further.thought));
}

// Log-odds of the target against the best other choice, in nats.
function logOdds(example, logprobs) {
  if (logprobs.length < 2 || logprobs.includes(null) || !(example.target in logprobs)) return null;
  const others = logprobs.filter((_, number) => number !== example.target);
  return logprobs[example.target] - Math.max(...others);
}

// Longer texts are not compared: the table below grows with the product of their words.
const COMPARED_WORDS = 600;

// A text with the words marked that another text does not have in that order.
function compared(content, other) {
  const words = content.split(/(\s+)/);
  const others = other.split(/(\s+)/);
  const node = text('');
  if (Math.max(words.length, others.length) > 2 * COMPARED_WORDS) return text(content);
  // common[i][j]: length of the longest common subsequence of the words from i and the others from j.
  const common = Array.from({length: words.length + 1}, () => new Uint16Array(others.length + 1));
  for (let i = words.length - 1; i >= 0; i--) {
    for (let j = others.length - 1; j >= 0; j--) {
      common[i][j] = words[i] === others[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  let j = 0;
  words.forEach((word, i) => {
    while (j < others.length && word !== others[j] && common[i][j + 1] >= common[i + 1][j]) j++;
    const isShared = j < others.length && word === others[j];
    if (isShared) j++;
    node.append(isShared || !word.trim() ? word : make('mark', '', word));
  });
  return node;
}

function answer(task, example, row, several, other) {
  const [, sample, value, status, completion, logprobs, further = {}] = row;
  const node = make('div', 'answer');
  if (several) node.append(make('p', 'soft', `sample ${sample} `, chip(task, value)));
  if (status !== 'ok') node.append(make('p', 'status', status));
  if (further.messages) {
    const own = make('details', '', make('summary', '', 'Asked in other words'), prompt(further.messages));
    node.append(own);
  }
  if (logprobs) {
    node.append(...choices(example, logprobs));
    const odds = logOdds(example, logprobs);
    if (odds !== null) node.append(make('p', 'soft', `log-odds ${odds > 0 ? '+' : ''}${odds.toFixed(2)} nats`));
  }
  if (further.thought) node.append(thought(further, status));
  // A cut thought has no answer, not even an empty one.
  if (completion !== null && status !== 'thought_cut') {
    const words = completion === '' ? '(empty)' : completion;
    node.append(typeof other === 'string' ? compared(words, other) : text(words));
  }
  for (const [judge, purpose, score, outcome] of further.judged || []) {
    node.append(make('p', 'soft', `${purpose}: ${score === null ? outcome : short(score)} (${judge})`));
  }
  return node;
}

const rowsAt = (example, column) => example.rows.filter(row => row[0] === column);

function meanOf(rows) {
  const values = rows.map(row => row[2]).filter(value => value !== null);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

// The answers at one strength, on side B with what is new against side A marked.
function card(task, example, column, side = '', against = null) {
  const [arm, alpha] = columns[column];
  const rows = rowsAt(example, column);
  const node = make('section', `card${isPicked(column) ? ' picked' : ''} ${side.toLowerCase()}`);
  const note = alpha === 0 ? 'base' : isPicked(column) ? 'picked' : '';
  const name = make('h4', '', `${side ? `${side}: ` : ''}${data.arms.length > 1 ? `${arm} ` : ''}${alphaName(alpha)}`);
  node.append(make('header', '', name, make('span', 'soft', note), chip(task, meanOf(rows))));
  if (!rows.length) node.append(make('p', 'soft', 'Not asked at this strength.'));
  // The answer of the same sample on the other side.
  const others = new Map(against === null ? [] : rowsAt(example, against).map(row => [row[1], row[4]]));
  node.append(...rows.map(row => answer(task, example, row, rows.length > 1, others.get(row[1]))));
  return node;
}

// The strengths of an arm, as buttons that put a strength on side B.
function strengths(task, values, arm, chosen, choose) {
  const node = make('div', 'strengths');
  columns.forEach(([name, alpha], column) => {
    if (name !== arm) return;
    const side = column === chosen.b ? ' b' : column === chosen.a ? ' a' : '';
    const each = button('', `strength${side}`, () => choose(column));
    each.append(square(task, values[column]), alphaName(alpha));
    each.setAttribute('aria-pressed', column === chosen.b);
    each.title = `alpha ${alphaName(alpha)}: ${values[column] === null ? 'no value' : short(values[column])}`;
    node.append(each);
  });
  return node;
}
