// The Inbox: requests, with all that is known of them, and what their owner decides.

const STATES = {
  waiting: ['busy', 'Waits for you'],
  question: ['busy', 'Waits for an answer'],
  approved: ['good', 'Approved']
};

function head(request) {
  const [tone, label] = STATES[request.state] ?? ['off', request.state];
  return [
    h('div', { class: 'grid-head' }, h('h3', {}, foreign(request.asker)), badge(tone, label)),
    h(
      'p',
      { class: 'grid-quiet' },
      request.kind === 'job' ? 'wants to run a job on data of ' : 'asks for a value computed from data of ',
      foreign(request.owners)
    ),
    request.reason && h('blockquote', {}, foreign(request.reason))
  ];
}

function plan(request, page) {
  if (!request.plan) {
    return null;
  }
  const key = `${request.id}/plan`;
  const { compared } = request;
  const label = request.operations === null ? 'The plan' : `The plan: ${request.operations} operations`;
  return more(
    key,
    label,
    code(`${key}/code`, request.plan),
    request.arguments && code(`${key}/arguments`, request.arguments),
    request.graph
      ? more(
          `${key}/graph`,
          'As a graph',
          h(
            'div',
            { class: 'grid-graph', tabindex: '0', 'data-key': `${key}/graph/scroll` },
            // an image, so that nothing in it can run
            h('img', { alt: 'The graph of the plan', src: `data:image/svg+xml,${encodeURIComponent(request.graph)}` })
          )
        )
      : h('p', { class: 'grid-quiet' }, 'This plan is too large to be drawn: read its code.'),
    compared.text
      ? h('p', { class: 'grid-quiet' }, foreign(compared.text))
      : page.button(
          `${key}/compare`,
          'What is new in it',
          "node.requests('approved'), node.requests('used')",
          () => page.ask('compare', { request: request.id })
        ),
    compared.lines &&
      h(
        'pre',
        { class: 'grid-code', tabindex: '0', 'data-key': `${key}/difference` },
        compared.lines
          .split('\n')
          .map(line => h('span', { class: { '+': 'grid-new', '-': 'grid-gone' }[line[0]] ?? '' }, `${line}\n`))
      )
  );
}

const WRITING = {
  deny: ['Reason, which the asker reads', 'Deny', 'grid-warn'],
  ask: ['Question to the asker', 'Ask', '']
};

function decide(request, page) {
  const { id } = request;
  const writing = page.own[id];
  const leave = () => {
    page.own[id] = undefined;
    page.redraw();
  };
  const write = what => {
    page.own[id] = what;
    page.redraw();
    page.el.querySelector(`[data-key="${id}/text"]`)?.focus();
  };
  if (writing) {
    const [label, verb, kind] = WRITING[writing];
    const key = `${id}/text`;
    return h(
      'form',
      {
        class: 'grid-form',
        submit: () => {
          const text = page.el.querySelector(`[data-key="${key}"]`).value.trim();
          if (text) {
            page.ask(writing, { request: id, text }, () => (page.own[id] = undefined));
          }
        }
      },
      h(
        'label',
        {},
        h('span', {}, label),
        h('textarea', { 'data-key': key, rows: '2', maxlength: '2000', required: true })
      ),
      h(
        'div',
        { class: 'grid-buttons' },
        h(
          'button',
          {
            class: `grid-button ${kind || 'grid-accept'}`,
            'data-key': `${id}/send`,
            title: `node.request(${id}).${writing}('…')`,
            disabled: page.busy()
          },
          verb
        ),
        h('button', { type: 'button', class: 'grid-button', 'data-key': `${id}/leave`, click: leave }, 'Back')
      )
    );
  }
  return h(
    'div',
    { class: 'grid-buttons' },
    page.button(
      `${id}/approve`,
      'Approve',
      `node.request(${id}).approve()`,
      () => page.ask('approve', { request: id }),
      'grid-accept'
    ),
    request.kind === 'job' &&
      page.button(`${id}/review`, 'Run, then ask me again', `node.request(${id}).approve(review=True)`, () =>
        page.ask('approve', { request: id, review: true })
      ),
    page.button(`${id}/ask`, 'Ask…', `node.request(${id}).ask('…')`, () => write('ask')),
    page.button(`${id}/deny`, 'Deny…', `node.request(${id}).deny('…')`, () => write('deny'), 'grid-warn')
  );
}

function waiting(request, page) {
  return h(
    'li',
    { class: 'grid-card', 'data-request': request.id },
    head(request),
    facts([...request.facts, ['Until', moment(request.until)]]),
    request.warnings.map(text => h('p', { class: 'grid-warning' }, text)),
    plan(request, page),
    request.computed && more(`${request.id}/how`, 'How it was computed', code(`${request.id}/how/code`, request.computed)),
    request.dialogue.length > 0 &&
      h(
        'ol',
        { class: 'grid-dialogue' },
        request.dialogue.map(one =>
          h('li', {}, h('span', { class: 'grid-quiet' }, foreign(one.by), ` · ${moment(one.at)}`), foreign(one.text))
        )
      ),
    decide(request, page)
  );
}

export default view('Inbox', (state, page) => [
  state.requests.length === 0
    ? empty(
        'Nothing to decide.',
        'When somebody asks for a value, or wants to run a job on your data, it is shown here.'
      )
    : h('ul', { class: 'grid-list' }, state.requests.map(request => waiting(request, page))),
  state.more > 0 && h('p', { class: 'grid-quiet' }, `and ${state.more} more, which follow`),
  state.approved.length > 0 &&
    more(
      'approved',
      state.approved.length === 1
        ? '1 approval that was not taken up yet'
        : `${state.approved.length} approvals that were not taken up yet`,
      h(
        'ul',
        { class: 'grid-list' },
        state.approved.map(request =>
          h(
            'li',
            { class: 'grid-card', 'data-request': request.id },
            head(request),
            h(
              'div',
              { class: 'grid-buttons' },
              page.button(
                `${request.id}/revoke`,
                'Take back',
                `node.request(${request.id}).revoke()`,
                () => page.ask('revoke', { request: request.id }),
                'grid-warn'
              )
            )
          )
        )
      )
    )
]);
