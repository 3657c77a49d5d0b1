/** Python that the panel writes for its user: whatever others wrote stays a string in it. */

const KEYWORDS = new Set(
  (
    'False None True and as assert async await break class continue def del elif else except finally for from ' +
    'global if import in is lambda nonlocal not or pass raise return try while with yield'
  ).split(' ')
);

/** Whether this is a name that Python takes for a variable. */
export function isName(text: string): boolean {
  return /^[\p{L}_][\p{L}\p{N}_]*$/u.test(text) && !KEYWORDS.has(text);
}

/** A name as it stands in code. Throws for what is none. */
export function name(text: string): string {
  if (!isName(text)) {
    throw new Error(`${JSON.stringify(text)} is not a name of Python's.`);
  }
  return text;
}

/**
 * A text as a literal of Python. What cannot be seen, or turns the direction of
 * writing, is written as its number, so that the code reads as it runs.
 */
export function quoted(text: string): string {
  let found = '';
  for (const character of text) {
    const code = character.codePointAt(0) as number;
    if (character === '"' || character === '\\') {
      found += `\\${character}`;
    } else if (character === '\n') {
      found += '\\n';
    } else if (character === ' ' || !/[\p{C}\p{Z}]/u.test(character)) {
      found += character;
    } else if (code > 0xffff) {
      found += `\\U${code.toString(16).padStart(8, '0')}`;
    } else {
      found += `\\u${code.toString(16).padStart(4, '0')}`;
    }
  }
  return `"${found}"`;
}

/** A value of JSON as Python writes it. */
export function literal(value: unknown): string {
  if (typeof value === 'string') {
    return quoted(value);
  }
  if (Array.isArray(value)) {
    return `[${value.map(literal).join(', ')}]`;
  }
  if (typeof value === 'boolean') {
    return value ? 'True' : 'False';
  }
  if (typeof value === 'number' && Number.isFinite(value)) {
    return String(value);
  }
  return 'None';
}

/** A call over several lines, with the arguments that are given. */
export function call(
  callee: string,
  first: string[],
  named: [string, string | null][]
): string {
  const given = [
    ...first,
    ...named
      .filter(([, value]) => value !== null)
      .map(([key, value]) => `${key}=${value}`)
  ];
  const short = `${callee}(${given.join(', ')})`;
  if (short.length <= 88) {
    return short;
  }
  return `${callee}(\n${given.map(one => `    ${one},\n`).join('')})`;
}
