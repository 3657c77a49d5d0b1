/** A long list of which only the rows in sight are drawn. */

import React from 'react';

/** Rows that are drawn above and below those in sight, in pixels. */
const BEYOND = 400;
/** The list's own height, in pixels, where it has more rows than fit. */
const HEIGHT = 520;

/** A row: how high it is, and what it shows. */
export interface IRow {
  key: string;
  height: number;
  draw: () => React.ReactNode;
}

export function Windowed(props: { rows: IRow[]; label: string }): JSX.Element {
  const { rows, label } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const [top, setTop] = React.useState(0);
  const [height, setHeight] = React.useState(HEIGHT);
  const begins = React.useMemo(() => {
    const found = new Array<number>(rows.length + 1);
    found[0] = 0;
    rows.forEach(
      (row, index) => (found[index + 1] = found[index] + row.height)
    );
    return found;
  }, [rows]);
  React.useLayoutEffect(() => {
    const node = box.current;
    if (!node) {
      return;
    }
    const watch = new ResizeObserver(() => setHeight(node.clientHeight));
    watch.observe(node);
    return () => watch.disconnect();
  }, []);
  React.useLayoutEffect(() => {
    if (box.current) {
      box.current.scrollTop = 0;
    }
    setTop(0);
  }, [rows]);
  const first = at(begins, top - BEYOND);
  const last = Math.min(rows.length, at(begins, top + height + BEYOND) + 1);
  return (
    <div
      ref={box}
      className="jp-Grid-window"
      role="list"
      aria-label={label}
      tabIndex={0}
      style={{ height: Math.min(begins[rows.length], HEIGHT) }}
      onScroll={event => setTop(event.currentTarget.scrollTop)}
    >
      <div style={{ height: begins[rows.length], position: 'relative' }}>
        {rows.slice(first, last).map((row, index) => (
          <div
            key={row.key}
            role="listitem"
            aria-setsize={rows.length}
            aria-posinset={first + index + 1}
            style={{
              position: 'absolute',
              inset: `${begins[first + index]}px 0 auto`,
              height: row.height
            }}
          >
            {row.draw()}
          </div>
        ))}
      </div>
    </div>
  );
}

/** The row that lies at a height. */
function at(begins: number[], height: number): number {
  let low = 0;
  let high = begins.length - 1;
  while (low < high - 1) {
    const middle = (low + high) >> 1;
    if (begins[middle] <= height) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}
