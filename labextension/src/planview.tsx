/** A plan as its owner reads it: as code, as a graph, and beside the last version that was approved. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { IRequest } from './api';
import { GridModel } from './model';
import { Badge, Failure, explain } from './parts';
import { changesOf, wordsOf } from './plan';

type View = 'code' | 'graph' | 'difference';

export function PlanView(props: {
  request: IRequest;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, model, trans } = props;
  const [view, setView] = React.useState<View>('code');
  const plan = String(request.shown.plan);
  const views: [View, string][] = [
    ['code', trans.__('Code')],
    ['graph', trans.__('Graph')],
    ['difference', trans.__('Difference')]
  ];
  return (
    <>
      <div className="jp-Grid-switch" role="tablist">
        {views.map(([one, label]) => (
          <button
            key={one}
            type="button"
            role="tab"
            aria-selected={view === one}
            onClick={() => setView(one)}
          >
            {label}
          </button>
        ))}
      </div>
      {view === 'code' && <Code text={plan} />}
      {view === 'graph' && (
        <Graph picture={request.shown.graph} trans={trans} />
      )}
      {view === 'difference' && (
        <Difference request={request} model={model} trans={trans} />
      )}
    </>
  );
}

function Code(props: { text: string }): JSX.Element {
  const words = React.useMemo(() => wordsOf(props.text), [props.text]);
  return (
    <pre className="jp-Grid-code" tabIndex={0}>
      {words.map((word, index) =>
        word.kind === 'plain' ? (
          word.text
        ) : (
          <span key={index} className={`jp-mod-${word.kind}`}>
            {word.text}
          </span>
        )
      )}
    </pre>
  );
}

/** The picture that the Node draws: an image, so that nothing in it can run. */
function Graph(props: {
  picture: unknown;
  trans: TranslationBundle;
}): JSX.Element {
  const { picture, trans } = props;
  return typeof picture === 'string' && picture ? (
    <div
      className="jp-Grid-graph"
      tabIndex={0}
      role="group"
      aria-label={trans.__('The graph of the plan')}
    >
      <img
        alt={trans.__('The graph of the plan')}
        src={`data:image/svg+xml,${encodeURIComponent(picture)}`}
      />
    </div>
  ) : (
    <p className="jp-Grid-text">
      {trans.__('This plan is too large to be drawn: read its code.')}
    </p>
  );
}

type Before = { plan: string; of: IRequest } | 'none' | null;

function Difference(props: {
  request: IRequest;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, model, trans } = props;
  const [before, setBefore] = React.useState<Before>(null);
  const [failed, setFailed] = React.useState('');
  React.useEffect(() => {
    let wanted = true;
    Promise.all([model.api.requests('approved'), model.api.requests('used')])
      .then(([approved, used]) => {
        const found = last(request, [...approved, ...used]);
        if (wanted) {
          setBefore(
            found ? { plan: String(found.shown.plan), of: found } : 'none'
          );
        }
      })
      .catch((error: unknown) => wanted && setFailed(explain(error, trans)));
    return () => {
      wanted = false;
    };
  }, [request.id]);
  if (failed) {
    return <Failure text={failed} />;
  }
  if (before === null) {
    return <Badge tone="busy" label={trans.__('Looking for it…')} />;
  }
  if (before === 'none') {
    return (
      <p className="jp-Grid-text">
        {trans.__(
          'No job of %1 on this data was approved before: all of it is new.',
          request.asker
        )}
      </p>
    );
  }
  const changes = changesOf(before.plan, String(request.shown.plan));
  const changed = changes.filter(one => one.kind !== 'same').length;
  return (
    <>
      <p className="jp-Grid-text">
        {changed
          ? trans._n(
              '%1 line differs from request %2, which was approved.',
              '%1 lines differ from request %2, which was approved.',
              changed,
              before.of.id
            )
          : trans.__(
              'The same plan as in request %1, which was approved.',
              before.of.id
            )}
      </p>
      <pre className="jp-Grid-code" tabIndex={0}>
        {changes.map((one, index) => (
          <span key={index} className={`jp-mod-${one.kind}`}>
            {`${{ same: ' ', new: '+', gone: '−' }[one.kind]} ${one.text}\n`}
          </span>
        ))}
      </pre>
    </>
  );
}

/** The newest job of the same asker on the same data sets. */
function last(request: IRequest, others: IRequest[]): IRequest | null {
  const data = (one: IRequest) =>
    one.data
      .map(part => part.dataset)
      .sort((a, b) => a - b)
      .join();
  const alike = others.filter(
    one =>
      one.id !== request.id &&
      one.kind === 'job' &&
      one.asker === request.asker &&
      typeof one.shown.plan === 'string' &&
      data(one) === data(request)
  );
  return alike.sort((a, b) => b.id - a.id)[0] ?? null;
}
