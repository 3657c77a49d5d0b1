/** How curves are drawn and written: lines of what was measured against the round, without a place to draw them in. */

import uPlot from 'uplot';

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

/** How high a chart is, in pixels. */
export const HEIGHT = 260;

export function options(
  node: HTMLElement,
  unit: string,
  lines: ILine[],
  zoom: (on: boolean) => void
): uPlot.Options {
  const style = getComputedStyle(node);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const palette = ['brand', 'warn', 'success', 'error', 'info'].map(one =>
    colour(`--jp-${one}-color1`)
  );
  const axis: uPlot.Axis = {
    stroke: colour('--jp-ui-font-color1'),
    font: `12px ${colour('--jp-ui-font-family')}`,
    grid: { stroke: colour('--jp-border-color2'), width: 1 },
    ticks: { stroke: colour('--jp-border-color2'), width: 1 }
  };
  const metrics = [...new Set(lines.map(line => line.metric))];
  const people = [...new Set(lines.map(line => line.by).filter(Boolean))];
  return {
    width: Math.max(200, node.clientWidth),
    height: HEIGHT,
    scales: { x: { time: false } },
    axes: [
      {
        ...axis,
        label: unit,
        labelFont: axis.font,
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
          fill: colour('--jp-layout-color1')
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
