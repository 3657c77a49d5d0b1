/**
 * How curves are drawn and written: lines of what was measured against the round, without a place to draw them in.
 *
 * The widgets of notebooks draw by this file, too: as grid_jupyter/widgets/static/chart.js, which tests/shared.test.ts
 * makes of it.
 */

import type uPlot from 'uplot';

/** One line: its values stand beside the rounds; null where there is none. */
export interface ILine {
  metric: string;
  /** Who measured it; empty for all together. */
  by: string;
  values: (number | null)[];
}

/** What is drawn. */
export interface ICurves {
  /** What is counted: round, epoch or cycle. */
  unit: string;
  rounds: number[];
  lines: ILine[];
}

/** Colours and letters of the page that a chart is in. */
export interface ILook {
  /** Of the metrics, one after the other. */
  palette: string[];
  text: string;
  /** Of the grid. */
  line: string;
  page: string;
  family: string;
}

/** How large a chart is in a node. */
export function size(node: HTMLElement): { width: number; height: number } {
  return { width: Math.max(200, node.clientWidth), height: 250 };
}

export function options(
  node: HTMLElement,
  look: ILook,
  unit: string,
  lines: ILine[],
  zoom: (on: boolean) => void
): uPlot.Options {
  const { palette } = look;
  const axis: uPlot.Axis = {
    stroke: look.text,
    font: `12px ${look.family}`,
    labelFont: `12px ${look.family}`,
    grid: { stroke: look.line, width: 1 },
    ticks: { stroke: look.line, width: 1 }
  };
  const metrics = [...new Set(lines.map(line => line.metric))];
  const people = [...new Set(lines.map(line => line.by).filter(Boolean))];
  return {
    ...size(node),
    scales: { x: { time: false } },
    axes: [
      {
        ...axis,
        label: unit,
        incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000, 100000]
      },
      { ...axis, size: 56 }
    ],
    cursor: { drag: { x: true, y: false } },
    hooks: {
      ready: [latest],
      setCursor: [latest],
      setData: [latest],
      setSelect: [drawn => drawn.select.width > 0 && zoom(true)]
    },
    series: [
      { label: unit },
      ...lines.map(line => ({
        label: title(line),
        stroke: line.by
          ? colourOf(people.indexOf(line.by))
          : palette[metrics.indexOf(line.metric) % palette.length],
        alpha: line.by ? 0.7 : 1,
        width: line.by ? 1 : 2,
        dash: line.by
          ? DASHES[metrics.indexOf(line.metric) % DASHES.length]
          : [],
        spanGaps: true,
        points: {
          show: (drawn: uPlot) => !line.by && drawn.data[0].length < 40,
          fill: look.page
        }
      }))
    ]
  };
}

/** Of lines of the same colour: what one participant measured. */
const DASHES = [[], [6, 4], [2, 3]];

/** Neighbours differ, however many there are: the golden angle. */
function colourOf(number: number): string {
  return `hsl(${(280 + number * 137.5) % 360}, 65%, 50%)`;
}

/** Where nothing is pointed at, the legend tells of the last round. */
function latest(drawn: uPlot): void {
  if (typeof drawn.cursor.idx !== 'number') {
    drawn.setLegend({ idx: drawn.data[0].length - 1 });
  }
}

export function title(line: ILine): string {
  return line.by ? `${line.metric} · ${line.by}` : line.metric;
}

export function isLoss(metric: string): boolean {
  return /loss|error|mse|mae/i.test(metric);
}

/** The lines as a table; a text that a spreadsheet would take for a formula gets an apostrophe. */
export function csv(curves: ICurves, lines: ILine[]): string {
  const cell = (text: string) =>
    `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;
  const head = [curves.unit, ...lines.map(title)].map(cell).join(',');
  const rows = curves.rounds.map((round, index) =>
    [round, ...lines.map(line => line.values[index] ?? '')].join(',')
  );
  return [head, ...rows, ''].join('\n');
}

/** A file's name without its ending. */
export function stem(name: string): string {
  return name.replace(/[^\p{L}\p{N}._-]+/gu, '-').slice(0, 60) || 'curves';
}

/** What was measured last, in words. */
export function caption(
  unit: string,
  rounds: number[],
  lines: ILine[]
): string {
  const last = rounds.length - 1;
  const told = lines.map(line => `${title(line)} ${line.values[last] ?? '–'}`);
  return `${unit} ${rounds[last]}: ${told.join(', ')}`;
}

/** The charts one below the other, on the colour of the page. */
export function picture(drawn: HTMLCanvasElement[], page: string): string {
  const whole = document.createElement('canvas');
  whole.width = Math.max(1, ...drawn.map(one => one.width));
  whole.height = Math.max(
    1,
    drawn.reduce((sum, one) => sum + one.height, 0)
  );
  const context = whole.getContext('2d');
  if (context) {
    context.fillStyle = page || 'white';
    context.fillRect(0, 0, whole.width, whole.height);
    drawn.reduce((top, one) => {
      context.drawImage(one, 0, top);
      return top + one.height;
    }, 0);
  }
  return whole.toDataURL('image/png');
}

/** Let the browser keep a text or a picture, that is a `data:` address, as a file. */
export function download(name: string, url: string): void {
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  document.body.appendChild(link);
  link.click();
  link.remove();
}
