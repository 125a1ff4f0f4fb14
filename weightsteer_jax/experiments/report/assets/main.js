// Puts the controls to work.

function fillControls() {
  const option = (label, value) => {
    const node = make('option', '', label);
    node.value = value;
    return node;
  };
  boxes.task.append(...tasks.map((task, number) => option(`${task.name} (${task.role})`, number)));
  for (const box of [boxes.a, boxes.b]) {
    for (const arm of data.arms) {
      const group = make('optgroup');
      group.label = arm;
      columns.forEach(([name, alpha], column) => {
        const note = alpha === 0 ? ' base' : isPicked(column) ? ' picked' : '';
        const several = data.arms.length > 1 ? `${arm} ` : '';
        if (name === arm) group.append(option(`${several}${alphaName(alpha)}${note}`, column));
      });
      box.append(group);
    }
  }
  boxes.sort.append(...Object.entries(ORDERS).map(([name, {label}]) => option(label, name)));
}

function listen() {
  for (const name of ['task', 'a', 'b']) boxes[name].addEventListener('change', () => choose({[name]: Number(boxes[name].value)}));
  boxes.sort.addEventListener('change', () => choose({sort: boxes.sort.value}));
  // A pause in typing: many files may have to be read.
  let typed;
  boxes.search.addEventListener('input', () => {
    clearTimeout(typed);
    typed = setTimeout(() => choose({search: boxes.search.value.trim()}), 150);
  });
  find('swap').addEventListener('click', () => choose({a: state.b, b: state.a}));
  find('download').addEventListener('click', download);
  window.addEventListener('hashchange', () => {
    if (follow(location.hash)) update().then(() => find('browser').scrollIntoView());
  });
  document.addEventListener('keydown', press);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === 'Escape' && typing) return event.target.blur();
  if (typing) return;
  const place = shown.indexOf(state.example);
  const turnTask = step => choose({task: (state.task + step + tasks.length) % tasks.length});
  const actions = {
    j: () => go(place + 1),
    k: () => go(place - 1),
    '[': () => turnTask(-1),
    ']': () => turnTask(1),
    ',': () => turnStrength(-1),
    '.': () => turnStrength(1),
    '/': () => boxes.search.focus(),
  };
  const inList = list.contains(event.target);
  if (inList) Object.assign(actions, {ArrowDown: actions.j, ArrowUp: actions.k});
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
  if (inList && event.key !== '/') list.querySelector('[aria-current="true"]')?.focus({preventScroll: true});
}

if (tasks.length) {
  fillControls();
  preset();
  listen();
  const linked = follow(location.hash);
  update().then(() => {
    if (linked) find('browser').scrollIntoView();
  });
}
