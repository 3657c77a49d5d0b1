// Publishing: what is published, how it looks to its owner alone, and what others may do with it.

const words = text => text.split(/[\s,;]+/).filter(Boolean);

function table(preview) {
  const rows =
    preview.kind === 'table'
      ? `${preview.rows === null ? 'The first rows' : `${preview.rows.toLocaleString()} rows`}, ${preview.count} columns`
      : preview.kind === 'tensor'
        ? 'A tensor'
        : `${preview.count} arrays`;
  const heads =
    preview.kind === 'table'
      ? preview.parts.map(([column, dtype]) =>
          h('th', { scope: 'col' }, foreign(column), h('small', { class: 'grid-quiet' }, dtype))
        )
      : ['Array', 'Type', 'Shape'].map(label => h('th', { scope: 'col' }, label));
  const cells = preview.kind === 'table' ? preview.first : preview.parts;
  return [
    h('p', {}, `${rows}. Only you see this.`),
    h(
      'div',
      { class: 'grid-table', tabindex: '0', 'data-key': 'preview' },
      h(
        'table',
        {},
        h('thead', {}, h('tr', {}, heads)),
        h(
          'tbody',
          {},
          cells.map(row =>
            h(
              'tr',
              {},
              row.map(cell =>
                h('td', {}, cell === null ? h('span', { class: 'grid-quiet' }, 'missing') : foreign(cell))
              )
            )
          )
        )
      )
    )
  ];
}

const field = (key, label, hint = '', kind = 'text') =>
  h(
    'label',
    {},
    h('span', {}, label),
    kind === 'area'
      ? h('textarea', { 'data-key': key, rows: '2', placeholder: hint })
      : h('input', { 'data-key': key, type: kind, placeholder: hint, min: kind === 'number' ? '0' : null })
  );

const choice = (key, label, options, input) =>
  h(
    'label',
    {},
    h('span', {}, label),
    h(
      'select',
      { 'data-key': key, input },
      options.map(([value, text]) => h('option', { value }, text))
    )
  );

function draw(state, page) {
  const { own } = page;
  const at = key => page.el.querySelector(`[data-key="${key}"]`);
  const chosen = state.given ? '' : (at('variable')?.value ?? state.variables[0]?.name ?? '');
  const look = variable => {
    own.looked = variable;
    own.preview = null;
    page.ask('look', { variable });
  };
  if (!state.given && state.variables.length === 0) {
    return empty(
      'No variable here can be published yet.',
      'Make a pandas DataFrame or a tensor in a cell; it is offered as soon as the cell is done. A file is published by widgets.publish("ages.csv").'
    );
  }
  if (!page.busy() && own.looked !== chosen && !state.trouble) {
    queueMicrotask(() => look(chosen));
  }
  const named = at('name');
  if (chosen && own.offered !== chosen && (!named || !named.value || named.value === own.offered)) {
    own.offered = chosen;
    queueMicrotask(() => (at('name').value = chosen));
  }
  const everybody = (at('computing-who')?.value ?? 'all') === 'all';
  const jobs = at('jobs')?.value ?? 'ask';
  const publish = () =>
    page.ask(
      'publish',
      {
        variable: chosen,
        name: at('name').value.trim(),
        tags: words(at('tags').value),
        description: at('description').value.trim(),
        computing: everybody ? null : words(at('computing').value),
        reading: words(at('reading').value),
        public_tags: at('public').checked,
        jobs,
        automatic: jobs === 'automatic' ? words(at('automatic').value) : [],
        mock: Math.max(0, Math.round(Number(at('mock').value) || 0))
      },
      () => (own.done = true)
    );
  return [
    !state.given &&
      choice(
        'variable',
        'Variable',
        state.variables.map(one => [one.name, `${one.name} · ${one.kind} ${one.shape.join(' × ')}`]),
        () => page.redraw()
      ),
    state.given && h('p', {}, foreign(state.given)),
    own.preview ? table(own.preview) : page.busy() && badge('busy', 'Reading…'),
    h(
      'form',
      { class: 'grid-form', 'aria-label': 'What others may do', submit: publish },
      h(
        'div',
        { class: 'grid-columns' },
        field('name', 'Name'),
        field('tags', 'Tags', '#ages, #ward7'),
        choice('computing-who', 'Who may compute', [['all', 'Everybody whom the Node lets in'], ['some', 'These users']], () =>
          page.redraw()
        ),
        !everybody && field('computing', 'Users who may compute', 'Ana, Ben'),
        field('reading', 'Who may read values, besides you', 'nobody'),
        choice(
          'jobs',
          'Jobs of others',
          [
            ['ask', 'Every job asks me'],
            ['automatic', 'Jobs of these users run without asking'],
            ['denied', 'No jobs']
          ],
          () => page.redraw()
        ),
        jobs === 'automatic' && field('automatic', 'Users whose jobs run without asking', 'Ana, Ben'),
        field('mock', 'Random mock rows, for others to try their code on', 'none', 'number')
      ),
      field('description', 'Description', '', 'area'),
      h(
        'label',
        { class: 'grid-tick' },
        h('input', { type: 'checkbox', 'data-key': 'public' }),
        h('span', {}, 'Tags are public: others find it through the Network')
      ),
      h(
        'div',
        { class: 'grid-buttons' },
        h(
          'button',
          { class: 'grid-button grid-accept', 'data-key': 'publish', title: 'node.publish(…)', disabled: page.busy() || !own.preview },
          'Publish'
        )
      )
    ),
    state.published.length > 0 &&
      more(
        'published',
        `${state.published.length + state.more} of your data sets are here`,
        h(
          'ul',
          { class: 'grid-list' },
          state.published.map(one =>
            h(
              'li',
              { class: 'grid-line', 'data-dataset': one.id },
              foreign(one.name || `data set ${one.id}`),
              ' ',
              one.tags.map(tag => foreign(tag, 'grid-tag'))
            )
          )
        )
      )
  ];
}

export default view('Publish', draw, page => {
  page.hear = content => {
    if (content.preview && content.variable === page.own.looked) {
      page.own.preview = content.preview;
    }
  };
});
