import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { IOffer } from '../src/api';
import { opening, submitting, training, variableOf } from '../src/cells';
import { call, isName, literal, name, quoted } from '../src/python';
import { HOSTILE, offer, node } from './told';

/** What Python makes of a program that reads JSON from its standard input. */
function python(program: string, told: unknown): unknown {
  const answer = execFileSync('python3', ['-c', program], {
    input: JSON.stringify(told),
    encoding: 'utf8'
  });
  return JSON.parse(answer);
}

const VALUES = `import ast, json, sys
print(json.dumps([ast.literal_eval(one) for one in json.load(sys.stdin)]))`;

/** Of each piece of code: names that it reads or writes, its attributes, and its texts. */
const WORDS = `import ast, json, sys
def words(code):
    nodes = list(ast.walk(ast.parse(code)))
    return {
        "names": sorted({one.id for one in nodes if isinstance(one, ast.Name)}),
        "attributes": sorted({one.attr for one in nodes if isinstance(one, ast.Attribute)}),
        "texts": [one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)],
    }
print(json.dumps([words(code) for code in json.load(sys.stdin)]))`;

interface IWords {
  names: string[];
  attributes: string[];
  texts: string[];
}

function wordsOf(codes: string[]): IWords[] {
  return python(WORDS, codes) as IWords[];
}

describe('literals', () => {
  test('a text is the same text in Python, whatever it is', () => {
    let seed = 7;
    const random = (below: number) => {
      seed = (seed * 1103515245 + 12345) % 2147483648;
      return seed % below;
    };
    const alphabet = [
      ...'"\'\\{}#\n\r\t\0\x1b abcé',
      '\u2028',
      '\u202e',
      '\u00a0',
      '\ud800',
      '\ufeff',
      '😀',
      '\u{e0001}'
    ];
    const texts = [...HOSTILE];
    for (let count = 0; count < 500; count += 1) {
      const length = random(12);
      let text = '';
      for (let at = 0; at < length; at += 1) {
        text += alphabet[random(alphabet.length)];
      }
      texts.push(text);
    }
    expect(python(VALUES, texts.map(quoted))).toEqual(texts);
  });

  test('code shows nothing that cannot be seen or turns the direction of writing', () => {
    const code = quoted('a\u202eb\u200b\u0007\u2029');
    expect(code).toBe('"a\\u202eb\\u200b\\u0007\\u2029"');
  });

  test('values of JSON are the same values in Python', () => {
    const values = [true, false, null, 0.1, -3, 1e21, ['a"', [1]], HOSTILE];
    expect(python(VALUES, values.map(literal))).toEqual(values);
  });

  test('what is no number of JSON is None', () => {
    expect(literal(Number.NaN)).toBe('None');
    expect(literal(Infinity)).toBe('None');
  });
});

describe('names', () => {
  test.each(['model', '_', 'größe', 'x1'])('%s is a name', text => {
    expect(name(text)).toBe(text);
  });

  test.each(['', '1x', 'a b', 'a.b', 'lambda', 'x;y', 'x\n', 'a(b)'])(
    '%j is none',
    text => {
      expect(isName(text)).toBe(false);
      expect(() => name(text)).toThrow('not a name');
    }
  );

  test.each([
    ['Ages of ward 7', 'ages_of_ward_7'],
    ['7 wards', 'data_7_wards'],
    ['Größe', 'gro_e'],
    ['class', 'data_class'],
    ['患者', 'data'],
    ['', 'x']
  ])('the variable of %j is %s', (named, variable) => {
    const found = variableOf(offer({ name: named, tags: ['#X'] }));
    expect(found).toBe(variable);
    expect(isName(found)).toBe(true);
  });
});

test('a call that does not fit into a line has an argument a line', () => {
  expect(call('f', ['a'], [['b', null]])).toBe('f(a)');
  expect(call('f', ['a'], [['b', `"${'x'.repeat(90)}"`]])).toMatch(
    /^f\(\n {4}a,\n {4}b="x+",\n\)$/
  );
});

describe('what others wrote stays a text', () => {
  const hostile = (text: string): IOffer =>
    offer({ name: text, tags: [text], description: text, owner: text });
  const common = { model: 'model', loss: 'MSELoss', epochs: 2, lr: 0.1 };

  test('in the cell that opens a pointer', () => {
    const found = wordsOf(
      HOSTILE.map(text =>
        opening(
          node({ name: text, user: text, address: text }),
          hostile(text),
          variableOf(hostile(text))
        ).join('\n')
      )
    );
    HOSTILE.forEach((text, index) => {
      const variable = variableOf(hostile(text));
      expect(found[index].names).toEqual(['node', 'sy', variable].sort());
      expect(found[index].attributes).toEqual(['NodeClient', 'pointer']);
      expect(found[index].texts).toEqual([text, text]);
    });
  });

  test('in the cell of a job', () => {
    const found = wordsOf(
      HOSTILE.map(text =>
        submitting(node({ user: text }), hostile(text), {
          ...common,
          targets: hostile(text),
          batchSize: 32,
          reason: text
        })
      )
    );
    HOSTILE.forEach((text, index) => {
      const x = variableOf(hostile(text));
      const ours = ['job', 'model', 'node', 'sy', 'torch'];
      expect(found[index].names).toEqual([...ours, x, `${x}_targets`].sort());
      expect(found[index].texts.filter(one => one === text)).toHaveLength(2);
    });
  });

  test('in the cell of a training', () => {
    const found = wordsOf(
      HOSTILE.map(text =>
        training(text, text, {
          ...common,
          rows: [text, '#X'],
          targets: [text, '#Y'],
          rounds: 3,
          batchSize: 32,
          reason: text
        })
      )
    );
    HOSTILE.forEach((text, index) => {
      const ours = ['fit', 'grid', 'model', 'sy', 'torch'];
      expect(found[index].names).toEqual(ours);
      expect(found[index].texts.filter(one => one === text)).toHaveLength(5);
    });
  });
});
