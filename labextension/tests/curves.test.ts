import { nullTranslator } from '@jupyterlab/translation';
import { expect, test, vi } from 'vitest';
import { GridApi, IMeasured } from '../src/api';
import { csv, ICurves, isLoss, stem } from '../src/chart';
import { measuredOf } from '../src/measured';
import { GridModel } from '../src/model';
import { training } from './told';
import { Server } from './server';

const CURVES: ICurves = {
  unit: 'round',
  rounds: [1, 2],
  lines: [
    { metric: 'loss', by: '', values: [0.5, null] },
    { metric: 'loss', by: 'Bob, "the" builder', values: [0.5, 0.25] }
  ]
};

test('a table has a row a round, and nothing where nothing was measured', () => {
  expect(csv(CURVES, CURVES.lines)).toBe(
    '"round","loss","loss · Bob, ""the"" builder"\n1,0.5,0.5\n2,,0.25\n'
  );
});

test.each(['=1+1', '+1', '-1', '@x', '\tx'])(
  '%j is no formula of a spreadsheet',
  metric => {
    const lines = [{ metric, by: '', values: [1] }];
    const [head] = csv({ unit: 'round', rounds: [1], lines }, lines).split(
      '\n'
    );
    expect(head).toBe(`"round","'${metric}"`);
  }
);

test('a file is named by letters, numbers and nothing that leads elsewhere', () => {
  expect(stem('../a b/c"<x>')).toBe('..-a-b-c-x-');
  expect(stem('größe 患者')).toBe('größe-患者');
  expect(stem('')).toBe('curves');
  expect(stem('x'.repeat(1000))).toHaveLength(60);
});

test('losses are drawn apart from what should grow', () => {
  expect(['loss', 'val_loss', 'MSE', 'accuracy'].map(isLoss)).toEqual([
    true,
    true,
    true,
    false
  ]);
});

test('what devices measured is averaged by their samples, page by page', async () => {
  const row = (
    cycle: number,
    worker: number,
    samples: number,
    loss: number
  ): IMeasured => ({ cycle, worker, samples, values: { loss } });
  const pages = new Map([
    ['0', { metrics: [row(1, 1, 10, 1)], next: 1, more: true }],
    [
      '1',
      { metrics: [row(1, 2, 30, 0), row(2, 1, 5, 2)], next: 3, more: false }
    ]
  ]);
  const server = new Server();
  server.answer('GET', 'trainings/metrics', url =>
    pages.get(url.searchParams.get('after') ?? '')
  );
  const model = new GridModel(new GridApi(server.settings));
  const told = training({ completed: 1, reports: 0 });
  model.trainings = [told];
  const look = measuredOf(told, nullTranslator.load(''));
  const drawn = new Promise<void>(done => {
    model.changed.connect(() => look(model) && done());
  });
  expect(look(model)).toBeNull();
  await drawn;
  expect(look(model)).toEqual({
    unit: 'cycle',
    rounds: [1, 2],
    lines: [
      { metric: 'loss', by: '', values: [0.25, 2] },
      { metric: 'loss', by: 'device 1', values: [1, 2] },
      { metric: 'loss', by: 'device 2', values: [0, null] }
    ]
  });
  expect(server.asked).toHaveLength(2);
  look(model);
  expect(server.asked).toHaveLength(2); // nothing is another
  pages.set('3', { metrics: [row(2, 2, 5, 0)], next: 4, more: false });
  model.trainings = [{ ...told }]; // metrics came, and no report
  look(model);
  await vi.waitFor(() =>
    expect(look(model)?.lines[0].values).toEqual([0.25, 1])
  );
  model.dispose();
});
