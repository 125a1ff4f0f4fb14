// Elements of the page. Text reaches them through textContent only, never as markup.

const find = id => document.getElementById(id);

function make(tag, className, ...content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content);
  return node;
}

// Foreign text as it was written: line breaks kept, its own direction.
function text(content, tag = 'p') {
  const node = make(tag, 'text', content);
  node.dir = 'auto';
  return node;
}

function button(label, className, act) {
  const node = make('button', className, label);
  node.type = 'button';
  node.addEventListener('click', act);
  return node;
}

// A square filled by a value's place between the lowest and the highest of its task.
function square(task, value) {
  const node = make('i', value === null ? 'none' : '');
  const share = (value - task.low) / ((task.high - task.low) || 1);
  if (value !== null) node.style.setProperty('--v', Math.max(0, Math.min(1, share)).toFixed(3));
  return node;
}

const chip = (task, value) => make('span', 'chip', square(task, value), short(value));
