/** A plan's listing, as a Node writes it: its words, and how it differs from another. */

/** A part of a line, and what kind of word it is. */
export interface IWord {
  kind: 'value' | 'type' | 'operation' | 'section' | 'number' | 'plain';
  text: string;
}

/** A line of a comparison. */
export interface IChange {
  kind: 'same' | 'new' | 'gone';
  text: string;
}

/** Lines of a plan that are compared. */
const LINES = 3000;

const WORD =
  /(%\d+)|\b((?:float|int|uint|bool|bfloat)\w*\[[^\]]*\])|\b([a-z_]\w*)(?=\()|^(takes|does|gives)$|(?<![\w.])(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w.])/gm;

/** A listing in words, so that each kind has a colour. */
export function wordsOf(listing: string): IWord[] {
  const found: IWord[] = [];
  let at = 0;
  for (const match of listing.matchAll(WORD)) {
    const begin = match.index ?? 0;
    if (begin > at) {
      found.push({ kind: 'plain', text: listing.slice(at, begin) });
    }
    const [text, value, type, operation, section] = match;
    const kind = value
      ? 'value'
      : type
        ? 'type'
        : operation
          ? 'operation'
          : section
            ? 'section'
            : 'number';
    found.push({ kind, text });
    at = begin + text.length;
  }
  found.push({ kind: 'plain', text: listing.slice(at) });
  return found;
}

/** What is new in a listing, and what is gone, line by line: by their longest common part. */
export function changesOf(before: string, after: string): IChange[] {
  const old = before.split('\n').slice(0, LINES);
  const now = after.split('\n').slice(0, LINES);
  let begin = 0;
  while (
    begin < Math.min(old.length, now.length) &&
    old[begin] === now[begin]
  ) {
    begin += 1;
  }
  let end = 0;
  while (
    end < Math.min(old.length, now.length) - begin &&
    old[old.length - 1 - end] === now[now.length - 1 - end]
  ) {
    end += 1;
  }
  const a = old.slice(begin, old.length - end);
  const b = now.slice(begin, now.length - end);
  // lengths of the longest common part of what is left from each pair of lines on
  const size = b.length + 1;
  const common = new Uint16Array((a.length + 1) * size);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      common[i * size + j] =
        a[i] === b[j]
          ? common[(i + 1) * size + j + 1] + 1
          : Math.max(common[(i + 1) * size + j], common[i * size + j + 1]);
    }
  }
  const found: IChange[] = old
    .slice(0, begin)
    .map(text => ({ kind: 'same', text }));
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      found.push({ kind: 'same', text: a[i] });
      i += 1;
      j += 1;
    } else if (
      j >= b.length ||
      (i < a.length && common[(i + 1) * size + j] >= common[i * size + j + 1])
    ) {
      found.push({ kind: 'gone', text: a[i] });
      i += 1;
    } else {
      found.push({ kind: 'new', text: b[j] });
      j += 1;
    }
  }
  return [
    ...found,
    ...now
      .slice(now.length - end)
      .map((text): IChange => ({ kind: 'same', text }))
  ];
}
