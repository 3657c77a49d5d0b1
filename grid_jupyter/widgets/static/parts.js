// What all views have: elements made of text alone, one page that is drawn anew when its state changes, actions.

/** An element. Children are elements or texts; a text is never read as HTML. */
function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) {
      continue;
    }
    if (name === 'click') {
      made.addEventListener('click', value);
    } else if (name === 'input') {
      made.addEventListener('input', value);
    } else if (name === 'enter') {
      made.addEventListener('keydown', event => {
        if (event.key === 'Enter' && !event.isComposing) {
          event.preventDefault();
          event.stopPropagation();
          value(event);
        }
      });
    } else if (name === 'submit') {
      made.addEventListener('submit', event => {
        event.preventDefault();
        value(event);
      });
    } else if (name === 'value') {
      made.value = value;
    } else {
      made.setAttribute(name, value === true ? '' : String(value));
    }
  }
  made.append(...children.flat(Infinity).filter(one => one !== null && one !== undefined && one !== false));
  return made;
}

/** What others wrote: its direction of writing stays within it. */
const foreign = (text, kind = '') => h('bdi', { class: `grid-foreign ${kind}`, dir: 'auto' }, text);

const badge = (tone, label) => h('span', { class: `grid-badge grid-${tone}` }, label);

const empty = (text, hint) =>
  h('div', { class: 'grid-empty' }, h('p', {}, text), hint && h('p', { class: 'grid-quiet' }, hint));

const facts = rows =>
  h(
    'dl',
    { class: 'grid-facts' },
    rows.flatMap(([label, text]) => [h('dt', {}, label), h('dd', {}, foreign(text))])
  );

/** Something longer behind a word; `key` is by which it stays open. */
const more = (key, label, ...inside) =>
  h('details', { class: 'grid-more', 'data-key': key }, h('summary', { 'data-key': `${key}/s` }, label), ...inside);

const code = (key, text, kind = '') =>
  h('pre', { class: `grid-code ${kind}`, 'data-key': key, tabindex: '0' }, text);

const moment = seconds =>
  seconds === null ? '' : new Date(seconds * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });

const figure = value => (value === null ? '–' : String(Number(value.toPrecision(4))));

/** Put new elements in the place of the old ones; what was open, written, or in focus stays so. */
function replace(root, nodes) {
  const before = new Map([...root.querySelectorAll('[data-key]')].map(one => [one.dataset.key, one]));
  const focus = root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = new Map([...before].map(([key, one]) => [key, [one.scrollTop, one.scrollLeft]]));
  const written = before.get(focus);
  const selection = written && 'selectionStart' in written ? [written.selectionStart, written.selectionEnd] : null;
  root.replaceChildren(...nodes);
  for (const one of root.querySelectorAll('[data-key]')) {
    const old = before.get(one.dataset.key);
    if (!old || old === one) {
      continue;
    }
    if (one instanceof HTMLDetailsElement) {
      one.open = old.open;
    } else if (one instanceof HTMLInputElement && (one.type === 'checkbox' || one.type === 'radio')) {
      one.checked = old.checked;
    } else if ('value' in one && one.tagName !== 'BUTTON' && one.tagName !== 'PROGRESS') {
      one.value = old.value;
    }
    [one.scrollTop, one.scrollLeft] = scrolled.get(one.dataset.key);
  }
  const again = focus && root.querySelector(`[data-key="${CSS.escape(focus)}"]`);
  if (again) {
    again.focus({ preventScroll: true });
    if (selection && selection[0] !== null) {
      again.setSelectionRange(...selection);
    }
  }
}

/** How long a page waits for the kernel before it says that there is no answer, in milliseconds. */
const PATIENCE_MS = 8000;
/** How often a page that is looked at says that it is there; unanswered, so many times less often. */
const BEAT_MS = 20000;
const UNANSWERED = 15;
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), one => one.toString(16).padStart(2, '0')).join('');

/** One page of a view: `draw(state, page)` gives its elements, `title` its name. */
function view(title, draw, begin = () => undefined) {
  return {
    render({ model, el }) {
      const id = random();
      let waiting = '';
      let timer = 0;
      let silent = false;
      let last = '';
      let gone = false;
      let owed = 0;
      const page = {
        /** What this page alone knows, such as what is being written. */
        own: {},
        id,
        el,
        model,
        busy: () => waiting !== '',
        redraw: () => show(),
        send(message) {
          try {
            model.send(message);
          } catch (error) {
            silent = true;
          }
        },
        /** Ask the kernel to do something; `then` is called when it was done. */
        ask(action, what = {}, then = () => undefined) {
          if (waiting) {
            return;
          }
          waiting = random();
          page.then = then;
          timer = setTimeout(() => {
            waiting = '';
            silent = true;
            show();
          }, PATIENCE_MS);
          page.send({ action, call: waiting, ...what });
          show();
        },
        /** A button that asks; `python` is the same in Python. */
        button(key, label, python, click, kind = '') {
          return h(
            'button',
            { type: 'button', class: `grid-button ${kind}`, 'data-key': key, title: python, disabled: page.busy(), click },
            label
          );
        }
      };
      const show = () => {
        if (gone) {
          return;
        }
        const state = model.get('state');
        const done = state.done ?? {};
        if (waiting && state.begun === waiting) {
          clearTimeout(timer); // the kernel is at it, however long that takes
        }
        if (waiting && done.call === waiting) {
          clearTimeout(timer);
          waiting = '';
          last = done.call;
          if (!done.failed) {
            page.then();
          }
        }
        const mine = done.call && done.call === last;
        replace(el, [
          h(
            'section',
            { class: 'grid-page', 'aria-label': title },
            h(
              'header',
              {},
              h('h2', {}, title),
              state.node && foreign(state.node, 'grid-quiet'),
              h('span', { class: 'grid-space' }),
              silent
                ? badge('bad', 'No answer')
                : !state.ready
                  ? badge('busy', 'Asking…')
                  : state.trouble
                    ? badge('bad', 'Not there')
                    : waiting
                      ? badge('busy', 'Working…')
                      : badge('good', 'Live')
            ),
            silent &&
              h(
                'p',
                { class: 'grid-trouble', role: 'alert' },
                'The kernel does not answer: it is busy, or it was restarted. Wait for it, or run the cell again.'
              ),
            !silent &&
              state.trouble &&
              h('p', { class: 'grid-trouble', role: 'alert' }, foreign(state.trouble), ' ', state.remedy ?? ''),
            !state.ready
              ? state.trouble || silent
                ? null
                : empty('Asking…')
              : h('div', { class: state.trouble || silent ? 'grid-body grid-stale' : 'grid-body' }, draw(state, page)),
            h(
              'footer',
              { role: 'status' },
              mine && done.failed && h('p', { class: 'grid-trouble' }, foreign(done.failed)),
              mine &&
                !done.failed &&
                done.python &&
                h('p', { class: 'grid-quiet' }, 'Done. In Python: ', h('code', {}, foreign(done.python)))
            )
          )
        ]);
      };
      const heard = () => {
        silent = false;
        show();
      };
      const told = content => {
        owed = 0;
        if (!content.here || silent) {
          page.hear?.(content);
          heard();
        }
      };
      const here = () => page.send({ action: 'shown', page: id });
      const away = () => page.send({ action: 'gone', page: id });
      /** A browser that is closed may say nothing; whoever does not look at a page needs nothing of it. */
      const seen = () => document.visibilityState === 'visible' && here();
      const beat = () => {
        if (document.visibilityState === 'visible') {
          owed % UNANSWERED === 0 && here(); // behind a cell that runs long they would pile up
          owed += 1;
        }
      };
      /** The connection changed: whether there is still a kernel that knows this view, it says itself. */
      const lost = () => {
        silent = true;
        show();
        here();
      };
      el.classList.add('grid-view');
      model.on('change:state', heard);
      model.on('comm_live_update', lost);
      model.on('msg:custom', told);
      const end = begin(page);
      const beats = setInterval(beat, BEAT_MS);
      document.addEventListener('visibilitychange', seen);
      window.addEventListener('pageshow', seen);
      window.addEventListener('pagehide', away);
      here();
      show();
      return () => {
        gone = true;
        clearTimeout(timer);
        model.off('change:state', heard);
        model.off('comm_live_update', lost);
        model.off('msg:custom', told);
        clearInterval(beats);
        document.removeEventListener('visibilitychange', seen);
        window.removeEventListener('pageshow', seen);
        window.removeEventListener('pagehide', away);
        end?.();
        away();
      };
    }
  };
}
