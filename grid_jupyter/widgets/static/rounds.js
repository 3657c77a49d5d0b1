// Accuracy and loss against the round: charts that grow, with zoom, and what was drawn as PNG and CSV.

const HEIGHT = 240;
const isLoss = line => /loss|error|mse|mae/i.test(line.metric);
const titled = line => (line.by ? `${line.metric} · ${line.by}` : line.metric);
const stem = text => text.replace(/[^\p{L}\p{N}._-]+/gu, '-').slice(0, 60) || 'curves';
/** Where nothing is pointed at, the legend tells of the last round. */
const latest = drawn =>
  typeof drawn.cursor.idx !== 'number' && drawn.setLegend({ idx: drawn.data[0].length - 1 });

/** Of lines of the same colour: what one participant measured. */
const DASHES = [[], [6, 4], [2, 3]];

/** Neighbours differ, however many there are: the golden angle. */
const colourOf = number => `hsl(${(280 + number * 137.5) % 360}, 65%, 50%)`;

function options(node, unit, lines, zoomed) {
  const style = getComputedStyle(node);
  const colour = name => style.getPropertyValue(`--grid-${name}`).trim();
  const palette = ['brand', 'busy', 'good', 'bad', 'info'].map(colour);
  const axis = {
    stroke: colour('text'),
    font: `12px ${style.fontFamily}`,
    labelFont: `12px ${style.fontFamily}`,
    grid: { stroke: colour('line'), width: 1 },
    ticks: { stroke: colour('line'), width: 1 }
  };
  const metrics = [...new Set(lines.map(line => line.metric))];
  const people = [...new Set(lines.map(line => line.by).filter(Boolean))];
  return {
    width: Math.max(240, node.clientWidth),
    height: HEIGHT,
    scales: { x: { time: false } },
    axes: [
      { ...axis, label: unit, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000, 100000] },
      { ...axis, size: 56 }
    ],
    cursor: { drag: { x: true, y: false } },
    hooks: {
      ready: [latest],
      setCursor: [latest],
      setData: [latest],
      setSelect: [drawn => drawn.select.width > 0 && zoomed(true)]
    },
    series: [
      { label: unit },
      ...lines.map(line => ({
        label: titled(line),
        stroke: line.by ? colourOf(people.indexOf(line.by)) : palette[metrics.indexOf(line.metric) % palette.length],
        alpha: line.by ? 0.7 : 1,
        width: line.by ? 1 : 2,
        dash: line.by ? DASHES[metrics.indexOf(line.metric) % DASHES.length] : [],
        spanGaps: true,
        points: { show: line.values.length < 40 && !line.by }
      }))
    ]
  };
}

/** One chart, which is made once, and again when its lines or colours are others. */
function chart() {
  const place = h('div', {});
  const caption = h('figcaption', { class: 'grid-hidden' });
  const node = h('figure', { class: 'grid-chart' }, place, caption);
  let plot = null;
  let form = '';
  let zoomed = false;
  const zoom = on => (zoomed = on);
  const watch = new ResizeObserver(
    () => plot && place.clientWidth > 0 && plot.setSize({ width: Math.max(240, place.clientWidth), height: HEIGHT })
  );
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
      const data = [rounds, ...lines.map(line => line.values)];
      const now = JSON.stringify([unit, lines.map(titled), getComputedStyle(place).getPropertyValue('--grid-text')]);
      if (now !== form) {
        form = now;
        zoomed = false;
        plot?.destroy();
        plot = new uPlot(options(place, unit, lines, zoom), data, place);
        plot.over.addEventListener('dblclick', () => zoom(false));
      } else {
        plot.setData(data, !zoomed);
        zoomed && plot.redraw();
      }
      const last = rounds.length - 1;
      caption.textContent = `${unit} ${rounds[last]}: ${lines.map(line => `${titled(line)} ${line.values[last] ?? '–'}`).join(', ')}`;
    }
  };
}

function picture(charts, page) {
  const drawn = charts.map(one => one.canvas()).filter(Boolean);
  const whole = document.createElement('canvas');
  whole.width = Math.max(1, ...drawn.map(one => one.width));
  whole.height = Math.max(1, drawn.reduce((sum, one) => sum + one.height, 0));
  const context = whole.getContext('2d');
  context.fillStyle = getComputedStyle(page.el).getPropertyValue('--grid-page').trim() || '#ffffff';
  context.fillRect(0, 0, whole.width, whole.height);
  drawn.reduce((top, one) => {
    context.drawImage(one, 0, top);
    return top + one.height;
  }, 0);
  return whole.toDataURL('image/png');
}

function csv(unit, rounds, lines) {
  // a text that a spreadsheet would take for a formula gets an apostrophe
  const cell = text => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;
  const head = [unit, ...lines.map(titled)].map(cell).join(',');
  const rows = rounds.map((round, index) => [round, ...lines.map(line => line.values[index] ?? '')].join(','));
  return `data:text/csv;charset=utf-8,${encodeURIComponent([head, ...rows, ''].join('\n'))}`;
}

function download(name, url) {
  const link = h('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function draw(state, page) {
  const { own } = page;
  const { unit, rounds } = state;
  if (rounds.length === 0) {
    return empty('Nothing was measured yet.', `The curves begin by themselves with the first ${unit}. So far: ${state.stands}.`);
  }
  const lines = state.lines.filter(line => own.everybody || !line.by);
  const parts = [lines.filter(line => !isLoss(line)), lines.filter(isLoss)].filter(some => some.length > 0);
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
      save('png', 'PNG', state.python.png, () => download(`${stem(state.node)}.png`, picture(charts, page))),
      save('csv', 'CSV', state.python.csv, () => download(`${stem(state.node)}.csv`, csv(unit, rounds, lines)))
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
