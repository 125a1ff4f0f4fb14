// Points of the curves: their values under the pointer or the focus, and arrow keys between them.

const tip = make('div', 'tip');
tip.hidden = true;
// The same words are each point's own name: a reader that speaks has them already.
tip.setAttribute('aria-hidden', 'true');
document.body.append(tip);

function showTip(point) {
  tip.replaceChildren(...point.dataset.values.split('; ').map(line => make('div', '', line)));
  tip.hidden = false;
  const box = point.getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), wide - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 6) + scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}

for (const drawing of document.querySelectorAll('svg.curve')) {
  const points = [...drawing.querySelectorAll('.point')];
  // One stop of the tab key for each drawing; arrows go on from there.
  const start = points.find(point => point.dataset.alpha === '0.0') || points[0];
  for (const point of points) {
    // The browser's own tooltip comes late and would stand over ours.
    const title = point.querySelector('title');
    point.dataset.values = title.textContent;
    point.setAttribute('aria-label', title.textContent);
    title.remove();
    point.setAttribute('tabindex', point === start ? 0 : -1);
    point.addEventListener('pointerenter', () => showTip(point));
    point.addEventListener('pointerleave', hideTip);
    point.addEventListener('focus', () => showTip(point));
    point.addEventListener('blur', hideTip);
  }
  drawing.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const at = points.indexOf(event.target);
    if (!step || at < 0 || !points[at + step]) return;
    event.preventDefault();
    event.stopPropagation();
    points[at].setAttribute('tabindex', -1);
    points[at + step].setAttribute('tabindex', 0);
    points[at + step].focus();
  });
}
