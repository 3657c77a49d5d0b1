/** "Curves": a tab with what was measured against the round, which grows while it is measured. */

import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import React from 'react';
import uPlot from 'uplot';
import {
  caption,
  csv,
  download,
  ICurves,
  ILine,
  ILook,
  isLoss,
  options,
  picture,
  size,
  stem,
  title
} from './chart';
import { gridIcon } from './icon';
import { GridModel } from './model';
import { Button, Empty } from './parts';

/** Finds what is drawn; null where there is nothing, or nothing any more. */
export type Look = (model: GridModel) => ICurves | null;

export class CurvesTab extends ReactWidget {
  constructor(
    private readonly model: GridModel,
    private readonly name: string,
    private readonly look: Look,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-GridTab');
    this.title.icon = gridIcon;
    this.title.closable = true;
    this.title.label = trans.__('Curves of %1', name);
    model.changed.connect(this.update, this);
  }

  dispose(): void {
    this.model.changed.disconnect(this.update, this);
    super.dispose();
  }

  render(): JSX.Element {
    return (
      <div role="region" aria-label={this.trans.__('Curves')}>
        <Curves
          name={this.name}
          curves={this.look(this.model)}
          trans={this.trans}
        />
      </div>
    );
  }
}

function Curves(props: {
  name: string;
  curves: ICurves | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { name, curves, trans } = props;
  const [everybody, setEverybody] = React.useState(false);
  const charts = React.useRef<(uPlot | null)[]>([null, null]);
  if (!curves || curves.rounds.length === 0) {
    return (
      <div className="jp-GridTab-body">
        <h1>{name}</h1>
        <Empty
          text={trans.__('Nothing was measured yet.')}
          hint={trans.__(
            'The curves begin by themselves with the first round.'
          )}
        />
      </div>
    );
  }
  const lines = curves.lines.filter(line => everybody || !line.by);
  const losses = lines.filter(line => isLoss(line.metric));
  const others = lines.filter(line => !isLoss(line.metric));
  return (
    <div className="jp-GridTab-body">
      <div className="jp-Grid-head">
        <h1 title={name}>{name}</h1>
        <div className="jp-Grid-buttons">
          {curves.lines.some(line => line.by) && (
            <label className="jp-Grid-tick">
              <input
                type="checkbox"
                checked={everybody}
                onChange={event => setEverybody(event.target.checked)}
              />
              <span>{trans.__('Each participant')}</span>
            </label>
          )}
          <Button
            label={trans.__('PNG')}
            onClick={() => download(`${stem(name)}.png`, drawn(charts.current))}
          />
          <Button
            label={trans.__('CSV')}
            onClick={() =>
              download(
                `${stem(name)}.csv`,
                `data:text/csv;charset=utf-8,${encodeURIComponent(csv(curves, lines))}`
              )
            }
          />
        </div>
      </div>
      <p className="jp-Grid-quiet">
        {trans.__(
          'Drag over a part to enlarge it; a double click shows all again.'
        )}
      </p>
      {[others, losses].map(
        (some, index) =>
          some.length > 0 && (
            <Chart
              key={index}
              unit={curves.unit}
              rounds={curves.rounds}
              lines={some}
              keep={chart => (charts.current[index] = chart)}
            />
          )
      )}
    </div>
  );
}

function Chart(props: {
  unit: string;
  rounds: number[];
  lines: ILine[];
  keep: (chart: uPlot | null) => void;
}): JSX.Element {
  const { unit, rounds, lines, keep } = props;
  const place = React.useRef<HTMLDivElement>(null);
  const chart = React.useRef<uPlot | null>(null);
  const zoomed = React.useRef(false);
  const [theme, setTheme] = React.useState(0);
  const names = lines.map(title);
  const data = [rounds, ...lines.map(line => line.values)] as uPlot.AlignedData;

  React.useEffect(() => {
    const watch = new MutationObserver(() => setTheme(before => before + 1));
    watch.observe(document.body, { attributeFilter: ['data-jp-theme-name'] });
    return () => watch.disconnect();
  }, []);
  React.useEffect(() => {
    const node = place.current;
    if (!node) {
      return;
    }
    const zoom = (on: boolean) => (zoomed.current = on);
    zoom(false);
    const made = new uPlot(
      options(node, lookOf(node), unit, lines, zoom),
      data,
      node
    );
    made.over.addEventListener('dblclick', () => zoom(false));
    chart.current = made;
    keep(made);
    const watch = new ResizeObserver(() => made.setSize(size(node)));
    watch.observe(node);
    return () => {
      watch.disconnect();
      made.destroy();
      chart.current = null;
      keep(null);
    };
  }, [theme, unit, names.join('\n')]);
  React.useEffect(() => {
    const { current } = chart;
    if (current) {
      current.setData(data, !zoomed.current);
      if (zoomed.current) {
        current.redraw();
      }
    }
  }, [rounds.length, lines]);
  return (
    <figure className="jp-Grid-chart" data-testid="grid-chart">
      <div ref={place} />
      <figcaption className="jp-Grid-hidden">
        {caption(unit, rounds, lines)}
      </figcaption>
    </figure>
  );
}

function drawn(charts: (uPlot | null)[]): string {
  const shown = charts.filter((chart): chart is uPlot => chart !== null);
  const canvases = shown.map(chart => chart.ctx.canvas);
  return picture(canvases, lookOf(document.body).page);
}

/** Of JupyterLab's theme. */
function lookOf(node: HTMLElement): ILook {
  const style = getComputedStyle(node);
  const found = (name: string) => style.getPropertyValue(`--jp-${name}`).trim();
  return {
    palette: ['brand', 'warn', 'success', 'error', 'info'].map(one =>
      found(`${one}-color1`)
    ),
    text: found('ui-font-color1'),
    line: found('border-color2'),
    page: found('layout-color1'),
    family: found('ui-font-family')
  };
}
