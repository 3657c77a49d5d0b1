import { KernelMessage } from '@jupyterlab/services';
import { expect, test } from 'vitest';
import { Fits, TARGET } from '../src/fits';
import { HOSTILE, told } from './told';

function message(
  data: unknown,
  type = 'comm_msg',
  id = `${TARGET}:1`
): KernelMessage.IMessage {
  return {
    header: { msg_type: type },
    content: { comm_id: id, data }
  } as unknown as KernelMessage.IMessage;
}

test('a training is known by what its kernel told last', () => {
  const fits = new Fits(null);
  let changes = 0;
  fits.changed.connect(() => (changes += 1));
  fits.hear(message(told(), 'comm_open'), 'k', 'a.ipynb');
  fits.hear(message(told({ done: 2 })), 'k', 'a.ipynb');
  fits.hear(message(told(), 'comm_open', `${TARGET}:2`), 'k', 'b.ipynb');
  expect(fits.all.map(one => [one.notebook, one.done])).toEqual([
    ['b.ipynb', 1],
    ['a.ipynb', 2]
  ]);
  fits.hear(message({}, 'comm_close'), 'k', 'a.ipynb');
  expect(fits.all.map(one => one.notebook)).toEqual(['b.ipynb']);
  expect(changes).toBe(4);
});

test.each([
  message(told(), 'stream'),
  message(told(), 'comm_msg', 'jupyter.widget:1'),
  message(null),
  message('x'),
  message(told({ phase: 'lost' })),
  message(told({ done: NaN })),
  message(told({ reason: 7 })),
  message(told({ rounds: 'x' })),
  message(told({ rounds: ['x'] })),
  message(told({ rounds: Array.from({ length: 9_000 }, () => 1) })),
  message(told({ lines: [null] })),
  message(told({ lines: [{ metric: 'loss', by: '', values: [1] }] })),
  message(told({ lines: [{ metric: 'loss', by: '', values: ['1', 2] }] })),
  message(told({ lines: [{ metric: {}, by: '', values: [1, 2] }] })),
  message(told({ left_out: [['Bob']] }))
])('what is of no such form is let be', one => {
  const fits = new Fits(null);
  fits.hear(one, 'k', 'a.ipynb');
  expect(fits.all).toEqual([]);
});

test('a kernel that is gone trains no more, and what was done stays so', () => {
  const fits = new Fits(null);
  fits.hear(message(told()), 'k', 'a.ipynb');
  fits.hear(
    message(told({ phase: 'finished' }), 'comm_msg', `${TARGET}:2`),
    'k',
    'a.ipynb'
  );
  fits.lose('other', 'lost');
  expect(fits.all.map(one => one.phase)).toEqual(['finished', 'running']);
  fits.lose('k', 'closed');
  expect(fits.all.map(one => one.phase)).toEqual(['finished', 'closed']);
  fits.lose('k', 'lost');
  expect(fits.all.map(one => one.phase)).toEqual(['finished', 'lost']);
});

test('no more than fifty are remembered', () => {
  const fits = new Fits(null);
  for (let id = 0; id < 60; id += 1) {
    fits.hear(message(told(), 'comm_open', `${TARGET}:${id}`), 'k', HOSTILE[0]);
  }
  expect(fits.all).toHaveLength(50);
  expect(fits.all[0].id).toBe(`${TARGET}:59`);
});
