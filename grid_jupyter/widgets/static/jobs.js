// Jobs: how far they are, what they say, and an end to them.

const STATES = {
  waiting: ['busy', 'Waits for a decision'],
  queued: ['busy', 'In the queue'],
  running: ['busy', 'Running'],
  held: ['busy', 'Result held'],
  done: ['good', 'Done'],
  denied: ['bad', 'Denied'],
  cancelled: ['off', 'Cancelled'],
  failed: ['bad', 'Failed'],
  expired: ['off', 'Expired'],
  lost: ['bad', 'Its Node does not answer']
};

function job(one, page) {
  const [tone, label] = STATES[one.state] ?? ['off', one.state];
  return h(
    'li',
    { class: 'grid-card', 'data-job': one.id },
    h('div', { class: 'grid-head' }, h('h3', {}, foreign(one.by)), badge(tone, label)),
    one.reason && h('blockquote', {}, foreign(one.reason)),
    one.said && h('p', {}, foreign(one.said)),
    h(
      'p',
      { class: 'grid-quiet' },
      `${one.rows.toLocaleString()} rows of `,
      foreign(one.owners),
      ` · at `,
      foreign(one.node),
      ` · ${one.turn} · ${moment(one.created)}`
    ),
    !one.over &&
      one.progress !== null &&
      h('progress', { value: one.progress, 'aria-label': 'Progress of the job' }),
    one.newest.length > 0 &&
      h(
        'p',
        { class: 'grid-figures' },
        one.newest.map(([metric, value]) => h('span', {}, foreign(metric), ' ', h('b', {}, figure(value))))
      ),
    more(
      `${one.id}/log`,
      'Log',
      h(
        'ol',
        { class: 'grid-log' },
        one.log.map(([at, text]) => h('li', {}, h('span', { class: 'grid-quiet' }, moment(at)), ' ', foreign(text)))
      )
    ),
    h(
      'div',
      { class: 'grid-buttons' },
      !one.over &&
        page.button(
          `${one.id}/cancel`,
          'Cancel',
          `${one.python}.cancel()`,
          () => page.ask('cancel', { job: one.id }),
          'grid-warn'
        ),
      h('code', { class: 'grid-quiet' }, one.python)
    )
  );
}

export default view('Jobs', (state, page) => [
  state.jobs.length === 0
    ? empty(
        'No job yet.',
        'A job is a plan that somebody sends to your data; it runs when you, or the rules of the data set, say so.'
      )
    : h('ul', { class: 'grid-list' }, state.jobs.map(one => job(one, page))),
  state.more > 0 && h('p', { class: 'grid-quiet' }, `and ${state.more} older ones: node.jobs()`)
]);
