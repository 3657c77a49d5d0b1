// Searching by tags: who is there, what they have, and the code that opens it.

function offer(one, page) {
  const key = `${one.node}/${one.id}`;
  const copy = event => {
    const button = event.currentTarget;
    navigator.clipboard?.writeText(one.code).then(
      () => (button.textContent = 'Copied'),
      () => (button.textContent = 'Select the text')
    );
  };
  return h(
    'li',
    { class: 'grid-card', 'data-dataset': one.id },
    h(
      'div',
      { class: 'grid-head' },
      h('h3', {}, foreign(one.name || `data set ${one.id}`)),
      h('span', { class: 'grid-quiet' }, [one.kind, one.shape].filter(Boolean).join(' '), ' · ', foreign(one.owner))
    ),
    one.tags.length > 0 &&
      h(
        'p',
        {},
        one.tags.map(tag =>
          h(
            'button',
            {
              type: 'button',
              class: 'grid-tag',
              title: 'Search for this tag as well',
              click: () => {
                const place = page.el.querySelector('[data-key=query]');
                place.value = [...new Set([...place.value.split(/[\s,]+/).filter(Boolean), tag])].join(' ');
                search(page);
              }
            },
            foreign(tag)
          )
        )
      ),
    one.description && h('p', {}, foreign(one.description)),
    one.parts.length > 0 &&
      one.kind !== 'tensor' &&
      h(
        'p',
        { class: 'grid-quiet' },
        one.parts.flatMap(([part, dtype], index) => [index ? ', ' : '', foreign(part), ` ${dtype}`]),
        one.count > one.parts.length && `, … ${one.count} in all`
      ),
    (one.mock || !one.jobs) &&
      h('p', { class: 'grid-quiet' }, [one.mock && 'mock rows: pointer.mock()', !one.jobs && 'no jobs of others'].filter(Boolean).join(' · ')),
    more(
      `${key}/code`,
      'In Python',
      code(`${key}/code/text`, one.code),
      h('div', { class: 'grid-buttons' }, h('button', { type: 'button', class: 'grid-button', 'data-key': `${key}/copy`, click: copy }, 'Copy'))
    ),
    h(
      'div',
      { class: 'grid-buttons' },
      page.button(`${key}/take`, 'Take', `node.pointer(${one.id}); then .pointer of this view`, () =>
        page.ask('take', { node: one.node, dataset: one.id })
      )
    )
  );
}

const search = page =>
  page.ask('search', { tags: page.el.querySelector('[data-key=query]').value.split(/[\s,]+/).filter(Boolean) });

export default view('Browse', (state, page) => {
  const nodes = [...new Set(state.found.map(one => one.node))];
  return [
    h(
      'form',
      { class: 'grid-form grid-search', role: 'search', submit: () => search(page) },
      h('input', {
        'data-key': 'query',
        type: 'text',
        list: `${page.id}-tags`,
        placeholder: 'Tags, such as #ages',
        'aria-label': 'Tags',
        enter: () => search(page)
      }),
      h('datalist', { id: `${page.id}-tags` }, state.tags.map(tag => h('option', { value: tag }))),
      h('button', { class: 'grid-button grid-accept', 'data-key': 'search', title: 'grid.search(*tags)', disabled: page.busy() }, 'Search')
    ),
    h('p', { class: 'grid-quiet' }, state.nodes.length === 1 ? 'One Node is there: ' : `${state.nodes.length} Nodes are there: `, foreign(state.nodes.join(', '))),
    state.found.length === 0
      ? state.query.length
        ? empty('Nothing carries all of these tags.', 'Try fewer. A Node that does not let you in, or does not answer, is left out.')
        : empty('No data yet.', 'Owners publish with public tags, or start their Node with --public-tags.')
      : nodes.map(node => [
          h('h3', {}, foreign(node)),
          h('ul', { class: 'grid-list' }, state.found.filter(one => one.node === node).map(one => offer(one, page)))
        ]),
    state.more > 0 && h('p', { class: 'grid-quiet' }, `and ${state.more} more: add a tag`)
  ];
});
