/** "Network": which data others have, found by tags; the code that opens it, and jobs on it. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { INetwork, INodeOffers, IOffer } from '../api';
import { opening, variableOf } from '../cells';
import { GridModel } from '../model';
import {
  Button,
  Empty,
  explain,
  Failure,
  Tags,
  useAction,
  words
} from '../parts';
import { TagField } from '../tags';
import { IRow, Windowed } from '../windowed';

/** Heights of rows, in pixels: the style has the same. */
const NODE_PX = 34;
const OFFER_PX = 124;

/** On what a job is launched. */
export interface ILaunch {
  node: INodeOffers;
  offer: IOffer;
  /** The Network's address, and who searches there; "" is a guest. */
  network: string;
  user: string;
}

/** What is done with what was found. */
export interface IDeeds {
  insert: (code: string) => void;
  launch: (job: ILaunch) => void;
}

export function NetworkView(props: {
  model: GridModel;
  deeds: IDeeds;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, deeds, trans } = props;
  const joined = model.status?.node?.network;
  const [network, setNetwork] = React.useState<INetwork | null>(null);
  const [failed, setFailed] = React.useState('');
  const [text, setText] = React.useState('');
  const [user, setUser] = React.useState('');
  const [found, setFound] = React.useState<INodeOffers[] | null>(null);
  const action = useAction(trans);

  const look = () => {
    setFailed('');
    model.api
      .network()
      .then(got => {
        setNetwork(got);
        setUser(before =>
          got.users.includes(before) ? before : (got.users[0] ?? '')
        );
      })
      .catch((error: unknown) => setFailed(explain(error, trans)));
  };
  React.useEffect(look, [model, joined?.address, joined?.state]);

  const search = () =>
    action.run(async () => setFound(await model.api.search(user, words(text))));
  const rows = React.useMemo(
    () =>
      found
        ? rowsOf(found, trans, {
            insert: deeds.insert,
            launch: (node, offer) =>
              deeds.launch({
                node,
                offer,
                network: network?.address ?? '',
                user
              })
          })
        : [],
    [found]
  );

  if (failed || network?.error) {
    return (
      <>
        <Failure text={failed || network?.error || ''} />
        <div className="jp-Grid-buttons">
          <Button label={trans.__('Try again')} onClick={look} />
        </div>
      </>
    );
  }
  if (!network) {
    return <Empty text={trans.__('Asking for the Network…')} />;
  }
  if (!network.address) {
    return (
      <Empty
        text={trans.__('No Network yet.')}
        hint={trans.__(
          'A Network lists the Nodes of many owners. Ask whoever runs one for an invite, and start Jupyter with it:'
        )}
        code={
          'GRID_JUPYTER_INVITE=… \\\n  jupyter lab \\\n  --GridExtension.network_url=…'
        }
      />
    );
  }
  const offers = (found ?? []).reduce((sum, one) => sum + one.offers.length, 0);
  return (
    <>
      <p className="jp-Grid-quiet">
        {trans._n(
          '%1 Node at %2',
          '%1 Nodes at %2',
          network.nodes.length,
          network.address
        )}
      </p>
      <form
        className="jp-Grid-form"
        onSubmit={event => {
          event.preventDefault();
          search();
        }}
      >
        <TagField
          label={trans.__('Search by tags')}
          hint={trans.__('all that there is')}
          value={text}
          known={network.tags}
          set={setText}
        />
        <label className="jp-Grid-field">
          <span>{trans.__('As')}</span>
          <select
            className="jp-mod-styled"
            value={user}
            onChange={event => setUser(event.target.value)}
          >
            {network.users.map(one => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
            <option value="">{trans.__('a guest')}</option>
          </select>
        </label>
        <div className="jp-Grid-buttons">
          <Button
            label={action.busy ? trans.__('Searching…') : trans.__('Search')}
            kind="accept"
            disabled={action.busy}
            onClick={search}
          />
        </div>
        <Failure text={action.failed} />
      </form>
      {found && (
        <div className="jp-Grid-found">
          <p className="jp-Grid-quiet" role="status">
            {trans._n(
              '%2 data set',
              '%2 data sets',
              offers,
              offers.toLocaleString()
            )}
          </p>
          {rows.length === 0 ? (
            <Empty
              text={trans.__('Nothing carries all of these tags.')}
              hint={trans.__(
                'Tags are shown to a Network only where their owner says so; search with fewer of them, or ask the owner.'
              )}
            />
          ) : (
            <Windowed rows={rows} label={trans.__('What was found')} />
          )}
        </div>
      )}
    </>
  );
}

interface IRowDeeds {
  insert: (code: string) => void;
  launch: (node: INodeOffers, offer: IOffer) => void;
}

function rowsOf(
  found: INodeOffers[],
  trans: TranslationBundle,
  deeds: IRowDeeds
): IRow[] {
  const rows: IRow[] = [];
  found.forEach((node, place) => {
    rows.push({
      key: `${place}`,
      height: NODE_PX,
      draw: () => <NodeRow node={node} trans={trans} />
    });
    for (const offer of node.offers) {
      rows.push({
        key: `${place}/${offer.id}`,
        height: OFFER_PX,
        draw: () => (
          <OfferRow node={node} offer={offer} deeds={deeds} trans={trans} />
        )
      });
    }
  });
  return rows;
}

function NodeRow(props: {
  node: INodeOffers;
  trans: TranslationBundle;
}): JSX.Element {
  const { node, trans } = props;
  return (
    <div className="jp-Grid-node">
      <span className="jp-Grid-name" title={node.address}>
        {node.name}
      </span>
      <span
        className={`jp-Grid-quiet${node.error ? ' jp-mod-bad' : ''}`}
        title={node.error}
      >
        {node.error ||
          (node.user ? trans.__('as %1', node.user) : trans.__('as a guest'))}
      </span>
    </div>
  );
}

function OfferRow(props: {
  node: INodeOffers;
  offer: IOffer;
  deeds: IRowDeeds;
  trans: TranslationBundle;
}): JSX.Element {
  const { node, offer, deeds, trans } = props;
  const name = offer.name || trans.__('Data set %1', offer.id);
  const parts = offer.parts
    .map(([part, dtype]) => `${part}: ${dtype}`)
    .join(', ');
  return (
    <div className="jp-Grid-card jp-Grid-offer" data-testid="grid-offer">
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={name}>
          {name}
        </span>
        <span className="jp-Grid-quiet">{shapeOf(offer, trans)}</span>
      </div>
      <Tags tags={offer.tags} />
      <p className="jp-Grid-line" title={offer.description || parts}>
        {offer.description || parts}
      </p>
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Insert code')}
          onClick={() =>
            deeds.insert(opening(node, offer, variableOf(offer)).join('\n'))
          }
        />
        {offer.jobs && (
          <Button
            label={trans.__('Launch job…')}
            onClick={() => deeds.launch(node, offer)}
          />
        )}
      </div>
    </div>
  );
}

/** How large a data set is, in the fewest words. */
export function shapeOf(offer: IOffer, trans: TranslationBundle): string {
  const [first] = offer.parts;
  if (offer.kind === 'table') {
    const rows = first?.[2][0];
    return rows === undefined
      ? trans._n('%1 column', '%1 columns', offer.count)
      : `${rows.toLocaleString()} × ${offer.count.toLocaleString()}`;
  }
  if (offer.count === 1 && first) {
    return first[2].map(size => size.toLocaleString()).join(' × ');
  }
  return trans._n('%1 array', '%1 arrays', offer.count);
}
