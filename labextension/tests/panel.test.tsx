import { KernelMessage } from '@jupyterlab/services';
import { nullTranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import axe from 'axe-core';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { GridApi } from '../src/api';
import { CurvesTab } from '../src/curves';
import { Fits, TARGET } from '../src/fits';
import { GridModel } from '../src/model';
import { GridPanel } from '../src/panel';
import { explain } from '../src/parts';
import { Server } from './server';
import {
  dataset,
  HOSTILE,
  job,
  node,
  offer,
  request,
  status,
  told,
  training
} from './told';

const trans = nullTranslator.load('');
let server: Server;
let model: GridModel;
let fits: Fits;
let panel: GridPanel;
let ran: [string, object | undefined][];

beforeEach(() => {
  server = new Server();
  server.answer('GET', 'network', () => NETWORK);
  fits = new Fits(null);
  model = new GridModel(new GridApi(server.settings), fits);
  ran = [];
  panel = new GridPanel(
    model,
    () => undefined,
    { execute: (id, args) => ran.push([id, args]) },
    nullTranslator
  );
  Widget.attach(panel, document.body);
});

afterEach(() => {
  panel.dispose();
  model.dispose();
});

const NETWORK = {
  address: 'http://127.0.0.1:5000',
  users: ['Ana'],
  nodes: ['ward7'],
  tags: ['#ages'],
  error: ''
};

/** Look again and again, until it does not fail. */
function eventually(look: () => unknown): Promise<unknown> {
  return vi.waitFor(look, { timeout: 20_000 });
}

/** A section of the panel, by its heading. */
function section(name: string): HTMLElement {
  return panel.node.querySelector(`section[aria-label="${name}"]`)!;
}

function press(label: string, within: HTMLElement = panel.node): void {
  [...within.querySelectorAll('button')]
    .find(button => button.textContent === label)!
    .click();
}

/** A kernel tells of a training. */
function hear(change: object, notebook = 'a.ipynb'): void {
  fits.hear(
    {
      header: { msg_type: 'comm_msg' },
      content: { comm_id: `${TARGET}:1`, data: told(change) }
    } as unknown as KernelMessage.IMessage,
    'kernel',
    notebook
  );
}

/** All that React and texts of others could have done wrong. */
function harmless(within: Element, text: string): void {
  const made = within.querySelectorAll(
    'script, iframe, object, a, b, [onerror], [data-commandlinker-command], img:not([src^="data:image/svg+xml,"])'
  );
  expect([...made]).toEqual([]);
  expect(within.textContent).toContain(text);
  expect((window as { stolen?: unknown }).stolen).toBeUndefined();
}

describe.each(HOSTILE)('%j', text => {
  test('stays a text in every section', async () => {
    server.answer('GET', 'datasets', () => ({ datasets: [dataset(text)] }));
    server.answer('GET', 'requests', () => ({ requests: [request(text)] }));
    server.answer('GET', 'jobs', () => ({ jobs: [job(text)] }));
    server.answer('GET', 'trainings', () => ({
      trainings: [
        training({ name: text, version: text, owner: text, problem: text })
      ]
    }));
    server.answer('GET', 'network', () => ({
      ...NETWORK,
      address: text,
      users: [text],
      nodes: [text],
      tags: [text]
    }));
    server.answer('POST', 'network/search', () => ({
      nodes: [
        node({ name: text, error: text }),
        node({
          name: text,
          offers: [
            offer({ name: text, tags: [text], description: text, owner: text })
          ]
        })
      ]
    }));
    hear({ reason: text, left_out: [[text, text]] }, text);
    server.tell({
      status: status(text),
      changed: ['datasets', 'requests', 'jobs', 'trainings']
    });
    await eventually(() => press('Search', section('Network')));
    const search = section('Network');
    await eventually(() =>
      expect(search.querySelector('[data-testid=grid-offer]')).not.toBeNull()
    );
    for (const name of [
      'My Node',
      'Inbox',
      'Datasets',
      'Network',
      'Jobs & cycles'
    ]) {
      harmless(section(name), text);
    }
    press('Graph');
    await eventually(() =>
      expect(panel.node.querySelector('img')).not.toBeNull()
    );
    harmless(panel.node, text);
    press('Insert code', search);
    expect(ran[0][0]).toBe('grid-jupyter:insert');
  });

  test('stays a text where something failed', async () => {
    server.answer('GET', 'network', () => ({ ...NETWORK, error: text }));
    server.tell({ status: status('Bob'), changed: [] });
    await eventually(() => harmless(section('Network'), text));
    server.tell({
      status: { state: 'failed', detail: text, node: null },
      changed: []
    });
    await eventually(() => harmless(section('My Node'), text));
  });

  test('stays a text above curves', async () => {
    const tab = new CurvesTab(model, text, () => null, trans);
    Widget.attach(tab, document.body);
    await eventually(() => harmless(tab.node, text));
    expect(tab.title.label).toContain(text);
    tab.dispose();
  });
});

test('roles, names and labels are as readers of the screen need them', async () => {
  server.answer('GET', 'datasets', () => ({ datasets: [dataset('ages')] }));
  server.answer('GET', 'requests', () => ({ requests: [request('Ana')] }));
  server.answer('GET', 'jobs', () => ({ jobs: [job('running')] }));
  server.answer('GET', 'trainings', () => ({ trainings: [training()] }));
  server.answer('POST', 'network/search', () => ({
    nodes: [node({ offers: [offer()] })]
  }));
  server.tell({
    status: status('Bob'),
    changed: ['datasets', 'requests', 'jobs', 'trainings']
  });
  await eventually(() => press('Search', section('Network')));
  await eventually(() => press('Edit…', section('Datasets')));
  await eventually(() => press('Deny…', section('Inbox')));
  await eventually(() =>
    expect(panel.node.querySelector('[role=list]')).not.toBeNull()
  );
  const { violations } = await axe.run(panel.node, {
    // jsdom lays nothing out: colours are looked at in the browser
    rules: { 'color-contrast': { enabled: false } }
  });
  expect(
    violations.map(one => [one.id, one.nodes.map(node => node.html)])
  ).toEqual([]);
});

test('the icon counts what waits, to ninety-nine', async () => {
  const count = () => panel.title.dataset['grid-waiting'];
  server.answer('GET', 'requests', () => ({
    requests: Array.from({ length: 3 }, (_, id) => request('Ana', id))
  }));
  server.tell({ status: status('Bob'), changed: ['requests'] });
  await eventually(() => expect(count()).toBe('3'));
  server.answer('GET', 'requests', () => ({
    requests: Array.from({ length: 120 }, (_, id) => request('Ana', id))
  }));
  server.tell({ status: status('Bob'), changed: ['requests'] });
  await eventually(() => expect(count()).toBe('99+'));
  server.answer('GET', 'requests', () => ({ requests: [] }));
  server.tell({ status: status('Bob'), changed: ['requests'] });
  await eventually(() => expect(count()).toBeUndefined());
});

test('what leads to the Inbox opens it', async () => {
  const button = () => section('Inbox').querySelector('h2 button')!;
  await eventually(() => expect(button()).not.toBeNull());
  press('Inbox', section('Inbox'));
  await eventually(() =>
    expect(button().getAttribute('aria-expanded')).toBe('false')
  );
  const shown = vi.fn();
  Object.assign(section('Inbox'), { scrollIntoView: shown });
  panel.showInbox();
  await eventually(() =>
    expect(button().getAttribute('aria-expanded')).toBe('true')
  );
  panel.showInbox();
  expect(button().getAttribute('aria-expanded')).toBe('true');
  expect(shown).toHaveBeenCalledTimes(2);
});

test('of ten thousand results only those in sight are drawn', async () => {
  const offers = Array.from({ length: 10_000 }, (_, id) =>
    offer({ id, name: `set ${id}` })
  );
  server.answer('POST', 'network/search', () => ({
    nodes: [node({ offers })]
  }));
  server.tell({ status: status('Bob'), changed: [] });
  await eventually(() => press('Search', section('Network')));
  const search = section('Network');
  const drawn = () => [
    ...search.querySelectorAll('[data-testid=grid-offer] .jp-Grid-name')
  ];
  await eventually(() => expect(drawn()[0]?.textContent).toBe('set 0'));
  expect(drawn().length).toBeLessThan(20);
  const list = search.querySelector('.jp-Grid-window')!;
  list.scrollTop = 10_000 * 124;
  list.dispatchEvent(new Event('scroll'));
  await eventually(() => expect(drawn().pop()?.textContent).toBe('set 9999'));
  expect(drawn().length).toBeLessThan(20);
  const [row] = search.querySelectorAll('[aria-posinset="10001"]');
  expect(row.getAttribute('aria-setsize')).toBe('10001');
});

test('what a section shows is kept while the server is away', async () => {
  server.answer('GET', 'datasets', () => ({ datasets: [dataset('ages')] }));
  server.tell({ status: status('Bob'), changed: ['datasets'] });
  await eventually(() =>
    expect(section('Datasets').textContent).toContain('ages')
  );
  server.leave();
  await eventually(() =>
    expect(section('My Node').textContent).toContain('does not answer')
  );
  expect(section('Datasets').textContent).toContain('ages');
});

test('while the Node is off, every section says so and can start it', async () => {
  const topics = ['datasets', 'requests', 'jobs', 'trainings'];
  for (const topic of topics) {
    server.answer('GET', topic, () => ({ [topic]: [] }));
  }
  server.answer('POST', 'node/start', () => ({}));
  server.answer('GET', 'requests', () => ({ requests: [request('Ana')] }));
  server.tell({ status: status('Bob'), changed: topics });
  const sections = ['Inbox', 'Datasets', 'Jobs & cycles'];
  await eventually(() => expect(section('Inbox').textContent).toContain('Ana'));
  server.tell({
    status: { state: 'stopped', detail: '', node: null },
    changed: []
  });
  for (const name of sections) {
    await eventually(() =>
      expect(section(name).textContent).toContain('does not run')
    );
    press('Start', section(name));
  }
  await eventually(() =>
    expect(server.asked.filter(one => one === 'POST node/start').length).toBe(3)
  );
  expect(panel.title.dataset['grid-waiting']).toBeUndefined();
  server.tell({
    status: { state: 'starting', detail: '', node: null },
    changed: []
  });
  for (const name of sections) {
    await eventually(() =>
      expect(section(name).textContent).toContain('starting')
    );
  }
  server.tell({ status: status('Bob'), changed: topics });
  await eventually(() =>
    expect(section('Datasets').textContent).toContain('No data yet')
  );
});

test('a Node that comes back is reconnected to, and what was known stays in sight', async () => {
  server.answer('GET', 'datasets', () => ({ datasets: [dataset('ages')] }));
  server.tell({ status: status('Bob'), changed: ['datasets'] });
  await eventually(() =>
    expect(section('Datasets').textContent).toContain('ages')
  );
  server.tell({
    status: { state: 'restarting', detail: '', node: null },
    changed: []
  });
  await eventually(() =>
    expect(section('My Node').textContent).toContain('Reconnecting')
  );
  expect(section('Datasets').textContent).toContain('ages');
  server.tell({ status: status('Bob'), changed: [] });
  await eventually(() =>
    expect(section('My Node').textContent).toContain('Running')
  );
});

test('a training that failed says why, and can be deleted and not ended', async () => {
  server.answer('GET', 'trainings', () => ({
    trainings: [training({ phase: 'failed', problem: 'its file is gone' })]
  }));
  server.answer('GET', 'jobs', () => ({ jobs: [] }));
  server.answer('POST', 'trainings', () => ({ status: 'success' }));
  server.tell({ status: status('Bob'), changed: ['jobs', 'trainings'] });
  const jobs = section('Jobs & cycles');
  await eventually(() => expect(jobs.textContent).toContain('Failed'));
  expect(jobs.textContent).toContain('its file is gone');
  expect(jobs.textContent).not.toContain('End…');
  press('Delete…', jobs);
  await eventually(() =>
    press('Delete', document.querySelector<HTMLElement>('.jp-Dialog')!)
  );
  await eventually(() =>
    expect(server.bodies).toEqual([
      { name: 'ward 7', version: '1.0', delete: true }
    ])
  );
});

test('a training of a notebook is shown while no Node runs, with what is needed to judge it', async () => {
  hear({});
  server.tell({
    status: { state: 'stopped', detail: '', node: null },
    changed: []
  });
  const jobs = section('Jobs & cycles');
  await eventually(() => {
    for (const text of [
      'for ward 7',
      'Running',
      'round 1 of 20 · 2 Nodes · a.ipynb',
      'accuracy 0.7500',
      '1 Node took no part in the last round',
      'The Node does not run.'
    ]) {
      expect(jobs.textContent).toContain(text);
    }
  });
  hear({ phase: 'finished', done: 20 });
  await eventually(() => expect(jobs.textContent).toContain('Done'));
});

test('a refusal says what to do', async () => {
  const refused = await model.api.datasets().catch((error: unknown) => error);
  expect(explain(refused, trans)).toBe('no such thing');
  const lost = new GridModel(
    new GridApi({
      ...server.settings,
      fetch: () => Promise.reject(new TypeError('connection refused'))
    })
  );
  const away = await lost.api.datasets().catch((error: unknown) => error);
  expect(explain(away, trans)).toContain('start it again');
  lost.dispose();
});
