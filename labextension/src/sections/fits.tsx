/** A training of `grid.train` in one of this page's notebooks: how far it is, and what each Node measured. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { Look } from '../curves';
import { going, IFit } from '../fits';
import { Badge, Button, Tone } from '../parts';

export function Fit(props: {
  fit: IFit;
  show: (key: string, name: string, look: Look) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { fit, show, trans } = props;
  const { id, done, asked, leftOut } = fit;
  const [tone, label] = phase(fit, trans);
  const name =
    fit.reason ||
    trans._n('Training at %1 Node', 'Training at %1 Nodes', fit.nodes);
  return (
    <li className="jp-Grid-card" data-testid="grid-fit">
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={name}>
          {name}
        </span>
        <Badge tone={tone} label={label} />
      </div>
      <p className="jp-Grid-note">
        {trans.__(
          'round %1 of %2',
          done.toLocaleString(),
          asked.toLocaleString()
        )}
        {' · '}
        {trans._n('%1 Node', '%1 Nodes', fit.nodes)}
        {' · '}
        {fit.notebook}
      </p>
      {going(fit) && (
        <progress
          className="jp-Grid-progress"
          value={asked > 0 ? done / asked : 0}
          aria-label={trans.__('Progress of the training')}
        />
      )}
      {newest(fit) && <p className="jp-Grid-note">{newest(fit)}</p>}
      {leftOut.length > 0 && (
        <details className="jp-Grid-more">
          <summary>
            {trans._n(
              '%1 Node took no part in the last round',
              '%1 Nodes took no part in the last round',
              leftOut.length
            )}
          </summary>
          <ol className="jp-Grid-log">
            {leftOut.map(([node, why], index) => (
              <li key={index}>
                <bdi className="jp-Grid-quiet">{node}</bdi> {why}
              </li>
            ))}
          </ol>
        </details>
      )}
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Curves')}
          onClick={() =>
            show(id, name, model => model.fits.get(id)?.curves ?? null)
          }
        />
      </div>
    </li>
  );
}

/** What was measured last. */
function newest(fit: IFit): string {
  return fit.curves.lines
    .filter(line => !line.by)
    .map(line => [line.metric, line.values[line.values.length - 1]] as const)
    .filter(([, value]) => typeof value === 'number')
    .map(([metric, value]) => `${metric} ${(value as number).toPrecision(4)}`)
    .join(', ');
}

function phase(fit: IFit, trans: TranslationBundle): [Tone, string] {
  switch (fit.phase) {
    case 'waiting':
      return ['busy', trans.__('Waits for its owners')];
    case 'running':
      return ['good', trans.__('Running')];
    case 'finished':
      return ['good', trans.__('Done')];
    case 'cut':
      return ['bad', trans.__('Ended by an error')];
    case 'closed':
      return ['off', trans.__('Its notebook is closed')];
    default:
      return ['off', trans.__('Its kernel is gone')];
  }
}
