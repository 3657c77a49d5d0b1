import { expect, test } from 'vitest';
import { changesOf, wordsOf } from '../src/plan';
import { HOSTILE } from './told';

const PLAN = `takes
  %0 float32[4, 3]
does
  %1 = addmm(%0, 0.5, -2)
gives
  %1`;

test('the words of a listing are the listing', () => {
  for (const text of [PLAN, '', ...HOSTILE]) {
    const words = wordsOf(text);
    expect(words.map(word => word.text).join('')).toBe(text);
  }
});

test('each kind of word is told from the others', () => {
  const kinds = new Map(wordsOf(PLAN).map(word => [word.text, word.kind]));
  expect(kinds.get('takes')).toBe('section');
  expect(kinds.get('float32[4, 3]')).toBe('type');
  expect(kinds.get('%1')).toBe('value');
  expect(kinds.get('addmm')).toBe('operation');
  expect(kinds.get('0.5')).toBe('number');
  expect(kinds.get('-2')).toBe('number');
});

test('what is the same and what is gone is the old plan, what is the same and new the other', () => {
  let seed = 3;
  const random = (below: number) => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return seed % below;
  };
  const listing = () =>
    Array.from({ length: random(12) }, () => 'abcd'[random(4)]).join('\n');
  for (let count = 0; count < 300; count += 1) {
    const [before, after] = [listing(), listing()];
    const changes = changesOf(before, after);
    const of = (kind: string) =>
      changes
        .filter(one => one.kind === 'same' || one.kind === kind)
        .map(one => one.text)
        .join('\n');
    expect(of('gone')).toBe(before);
    expect(of('new')).toBe(after);
  }
});

test('one line that was put in is one difference', () => {
  const after = PLAN.replace('gives', '  %2 = tanh(%1)\ngives');
  const changes = changesOf(PLAN, after).filter(one => one.kind !== 'same');
  expect(changes).toEqual([{ kind: 'new', text: '  %2 = tanh(%1)' }]);
});

test('plans of thousands of lines are compared in a blink', () => {
  const lines = Array.from({ length: 20000 }, (_, index) => `%${index}`);
  const other = [...lines];
  other[10] = 'another';
  const changes = changesOf(lines.join('\n'), other.join('\n'));
  expect(changes.filter(one => one.kind !== 'same')).toEqual([
    { kind: 'gone', text: '%10' },
    { kind: 'new', text: 'another' }
  ]);
});
