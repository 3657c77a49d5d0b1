/** The Node drawn with React, and only with it: every text from the server is a text node, never HTML. */

import { Clipboard } from '@jupyterlab/apputils';
import { ServerConnection } from '@jupyterlab/services';
import { TranslationBundle } from '@jupyterlab/translation';
import { checkIcon, copyIcon } from '@jupyterlab/ui-components';
import React from 'react';
import { INode, IStatus } from './status';

/** How long the copy button shows that it has copied, in milliseconds. */
const COPIED_MS = 2000;

type Tone = 'good' | 'busy' | 'bad' | 'off';

interface IViewProps {
  /** The last answer; null before the first one. */
  status: IStatus | null;
  /** Why there is no newer answer; null while the Jupyter server answers. */
  error: Error | null;
  trans: TranslationBundle;
}

/** The section "My Node". */
export function NodeView(props: IViewProps): JSX.Element {
  const { status, error, trans } = props;
  if (error) {
    return (
      <Notice
        tone="bad"
        title={trans.__('No answer')}
        text={remedy(error, trans)}
      />
    );
  }
  if (!status) {
    return (
      <Notice
        tone="busy"
        title={trans.__('Connecting')}
        text={trans.__('Asking the Jupyter server about its Node…')}
      />
    );
  }
  if (!status.node) {
    const [tone, title, text] = withoutNode(status, trans);
    return (
      <Notice
        tone={tone}
        title={title}
        text={status.detail || text}
        next={
          status.state === 'failed'
            ? trans.__('Mend it, then restart Jupyter. Its log says more.')
            : ''
        }
      />
    );
  }
  return <NodeDetails node={status.node} detail={status.detail} trans={trans} />;
}

function NodeDetails(props: {
  node: INode;
  detail: string;
  trans: TranslationBundle;
}): JSX.Element {
  const { node, detail, trans } = props;
  const storage = bytes(node.storage_bytes);
  return (
    <>
      <div className="jp-GridNode-head">
        <span className="jp-GridNode-name" data-testid="grid-node-name">
          {node.name}
        </span>
        <Badge tone="good" label={trans.__('Running')} />
      </div>
      <div className="jp-GridNode-address">
        <span
          className="jp-GridNode-url"
          data-testid="grid-node-address"
          title={node.address}
        >
          {node.address}
        </span>
        <CopyButton text={node.address} trans={trans} />
      </div>
      {detail && <p className="jp-GridNode-text">{detail}</p>}
      <dl className="jp-GridNode-facts">
        <Fact
          label={trans.__('Network')}
          value={networkText(node, trans)}
          note={node.network.detail || node.network.address || ''}
        />
        <Fact label={trans.__('Isolation')} value={node.isolation} />
        <Fact
          label={trans.__('Data sets')}
          value={node.datasets.toLocaleString()}
          note={node.storage_bytes > 0 ? trans.__('%1 stored', storage) : ''}
        />
        <Fact
          label={trans.__('Open work')}
          value={
            node.sessions === 0
              ? trans.__('None')
              : trans._n('%1 session', '%1 sessions', node.sessions)
          }
        />
        <Fact
          label={trans.__('Guests')}
          value={node.guests ? trans.__('May compute') : trans.__('Not let in')}
        />
      </dl>
    </>
  );
}

function Fact(props: {
  label: string;
  value: string;
  note?: string;
}): JSX.Element {
  return (
    <div className="jp-GridNode-fact">
      <dt>{props.label}</dt>
      <dd>
        {props.value}
        {props.note && (
          <span className="jp-GridNode-note" title={props.note}>
            {props.note}
          </span>
        )}
      </dd>
    </div>
  );
}

function Badge(props: { tone: Tone; label: string }): JSX.Element {
  return (
    <span
      className={`jp-GridNode-badge jp-mod-${props.tone}`}
      data-testid="grid-node-status"
      role="status"
    >
      {props.label}
    </span>
  );
}

function Notice(props: {
  tone: Tone;
  title: string;
  text: string;
  next?: string;
}): JSX.Element {
  return (
    <>
      <Badge tone={props.tone} label={props.title} />
      <p className="jp-GridNode-text" data-testid="grid-node-detail">
        {props.text}
      </p>
      {props.next && <p className="jp-GridNode-text">{props.next}</p>}
    </>
  );
}

function CopyButton(props: {
  text: string;
  trans: TranslationBundle;
}): JSX.Element {
  const { text, trans } = props;
  const [copied, setCopied] = React.useState(false);
  React.useEffect(() => {
    if (!copied) {
      return;
    }
    const timer = window.setTimeout(() => setCopied(false), COPIED_MS);
    return () => window.clearTimeout(timer);
  }, [copied]);
  const label = copied ? trans.__('Address copied') : trans.__('Copy address');
  const Icon = copied ? checkIcon : copyIcon;
  return (
    <button
      type="button"
      className="jp-GridNode-copy"
      aria-label={label}
      title={label}
      onClick={() => {
        Clipboard.copyToSystem(text);
        setCopied(true);
      }}
    >
      <Icon.react tag="span" width="16px" height="16px" aria-hidden="true" />
    </button>
  );
}

function networkText(node: INode, trans: TranslationBundle): string {
  switch (node.network.state) {
    case 'joined':
      return trans.__('Joined');
    case 'connecting':
      return trans.__('Connecting');
    case 'refused':
      return trans.__('Refused');
    default:
      return trans.__('Not joined');
  }
}

/** How the supervisor's state reads while the Node itself does not answer. */
function withoutNode(
  status: IStatus,
  trans: TranslationBundle
): [Tone, string, string] {
  switch (status.state) {
    case 'starting':
      return ['busy', trans.__('Starting'), trans.__('The Node is starting…')];
    case 'restarting':
      return [
        'busy',
        trans.__('Restarting'),
        trans.__('The Node stopped and is being started again…')
      ];
    case 'running':
      return [
        'busy',
        trans.__('Busy'),
        trans.__('The Node runs but does not answer at the moment.')
      ];
    case 'stopped':
      return ['off', trans.__('Stopped'), trans.__('No Node runs here.')];
    default:
      return [
        'bad',
        trans.__('Failed'),
        trans.__('The Node could not be started.')
      ];
  }
}

function remedy(error: Error, trans: TranslationBundle): string {
  if (error instanceof ServerConnection.NetworkError) {
    return trans.__(
      'The Jupyter server does not answer. If it has stopped, start it again; this panel reconnects by itself.'
    );
  }
  if (error instanceof ServerConnection.ResponseError) {
    switch (error.response.status) {
      case 401:
      case 403:
        return trans.__(
          'The Jupyter server does not let you see its Node. Reload the page and log in again.'
        );
      case 404:
        return trans.__(
          'The server part of the Grid is not switched on. Run "jupyter server extension enable grid_jupyter" and restart Jupyter.'
        );
    }
  }
  return trans.__(
    'The Jupyter server could not say how its Node is; its log says why. (%1)',
    error.message
  );
}

function bytes(count: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && value < 10 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[unit]}`;
}
