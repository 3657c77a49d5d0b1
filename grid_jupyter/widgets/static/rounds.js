// Accuracy and loss against the round: charts that grow, with zoom, and what was drawn as PNG and CSV.

/** Of a view, whichever front end it is in. */
function lookOf(node) {
  const style = getComputedStyle(node);
  const colour = name => style.getPropertyValue(`--grid-${name}`).trim();
  return {
    palette: ['brand', 'busy', 'good', 'bad', 'info'].map(colour),
    text: colour('text'),
    line: colour('line'),
    page: colour('page'),
    family: style.fontFamily
  };
}

/** One chart, which is made once, and again when its lines or colours are others. */
function chart() {
  const place = h('div', {});
  const said = h('figcaption', { class: 'grid-hidden' });
  const node = h('figure', { class: 'grid-chart' }, place, said);
  let plot = null;
  let form = '';
  let zoomed = false;
  const zoom = on => (zoomed = on);
  const watch = new ResizeObserver(() => plot && place.clientWidth > 0 && plot.setSize(size(place)));
  watch.observe(place);
  return {
    node,
    canvas: () => plot?.ctx.canvas,
    end() {
      watch.disconnect();
      plot?.destroy();
      plot = null;
    },
    draw(unit, rounds, lines) {
      const look = lookOf(place);
      const data = [rounds, ...lines.map(line => line.values)];
      const now = JSON.stringify([unit, lines.map(title), look.text]);
      if (now !== form) {
        form = now;
        zoomed = false;
        plot?.destroy();
        plot = new uPlot(options(place, look, unit, lines, zoom), data, place);
        plot.over.addEventListener('dblclick', () => zoom(false));
      } else {
        plot.setData(data, !zoomed);
        zoomed && plot.redraw();
      }
      said.textContent = caption(unit, rounds, lines);
    }
  };
}

function saved(charts, page) {
  return picture(charts.map(one => one.canvas()).filter(Boolean), lookOf(page.el).page);
}

function draw(state, page) {
  const { own } = page;
  const { unit, rounds } = state;
  if (rounds.length === 0) {
    return empty('Nothing was measured yet.', `The curves begin by themselves with the first ${unit}. So far: ${state.stands}.`);
  }
  const lines = state.lines.filter(line => own.everybody || !line.by);
  const loss = line => isLoss(line.metric);
  const parts = [lines.filter(line => !loss(line)), lines.filter(loss)].filter(some => some.length > 0);
  own.charts ??= [chart(), chart()];
  const charts = own.charts.slice(0, parts.length);
  queueMicrotask(() => charts.forEach((one, index) => one.node.isConnected && one.draw(unit, rounds, parts[index])));
  const save = (key, label, python, click) =>
    h('button', { type: 'button', class: 'grid-button', 'data-key': key, title: python, click }, label);
  return [
    h(
      'div',
      { class: 'grid-buttons' },
      h('span', {}, foreign(state.stands)),
      h('span', { class: 'grid-space' }),
      state.lines.some(line => line.by) &&
        h(
          'label',
          { class: 'grid-each' },
          h('input', {
            type: 'checkbox',
            'data-key': 'each',
            input: event => {
              own.everybody = event.target.checked;
              page.redraw();
            }
          }),
          ' Each participant'
        ),
      save('png', 'PNG', state.python.png, () => download(`${stem(state.node)}.png`, saved(charts, page))),
      save('csv', 'CSV', state.python.csv, () =>
        download(`${stem(state.node)}.csv`, `data:text/csv;charset=utf-8,${encodeURIComponent(csv(state, lines))}`)
      )
    ),
    charts.map(one => one.node),
    h('p', { class: 'grid-quiet grid-small' }, 'Drag over a part to enlarge it; a double click shows all again.')
  ];
}

export default view('Rounds', draw, page => {
  const themes = new MutationObserver(() => page.redraw());
  themes.observe(document.body, { attributeFilter: ['data-jp-theme-name'] });
  return () => {
    themes.disconnect();
    page.own.charts?.forEach(one => one.end());
  };
});
