/** "My Node": how it is, where it is, who is there; starting and stopping it. */

import { Clipboard, Dialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { checkIcon, copyIcon } from '@jupyterlab/ui-components';
import React from 'react';
import { IDevice, INode, IStatus } from '../api';
import { GridModel } from '../model';
import { Badge, Button, bytes, Fact, Failure, Tone, useAction } from '../parts';

/** How long the copy button shows that it has copied, in milliseconds. */
const COPIED_MS = 2000;

/** The section "My Node". */
export function NodeView(props: {
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, trans } = props;
  const { status } = model;
  if (model.offline) {
    return (
      <Notice
        tone="bad"
        title={trans.__('No answer')}
        text={trans.__(
          'The Jupyter server does not answer, or lets you see nothing of its Node. If it has stopped, start it again; this panel reconnects by itself.'
        )}
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
      <>
        <Notice
          tone={tone}
          title={title}
          text={status.detail || text}
          next={
            status.state === 'failed'
              ? trans.__(
                  "Mend it, then start it again. Jupyter's log says more."
                )
              : ''
          }
        />
        {model.off && <Control model={model} running={false} trans={trans} />}
      </>
    );
  }
  return (
    <>
      <NodeDetails
        node={status.node}
        detail={status.detail}
        through={status.public ?? null}
        trans={trans}
      />
      {!status.attached && <Control model={model} running trans={trans} />}
    </>
  );
}

/** Where others reach the Node through this Jupyter server: as it was told, or else as this page was opened. */
function Through(props: {
  through: NonNullable<IStatus['public']>;
  trans: TranslationBundle;
}): JSX.Element {
  const { through, trans } = props;
  const url = through.address || new URL(through.path, document.baseURI).href;
  return (
    <Fact
      label={trans.__('Open to others at')}
      value={
        <span className="jp-Grid-address">
          <span
            className="jp-Grid-url"
            data-testid="grid-node-public"
            title={url}
          >
            {url}
          </span>
          <CopyButton text={url} trans={trans} />
        </span>
      }
      note={trans.__(
        'Through this Jupyter server, with credentials of the Node'
      )}
    />
  );
}

function NodeDetails(props: {
  node: INode;
  detail: string;
  through: IStatus['public'] | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { node, detail, through, trans } = props;
  const storage = bytes(node.storage_bytes);
  return (
    <>
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" data-testid="grid-node-name">
          {node.name}
        </span>
        <Badge
          tone="good"
          label={trans.__('Running')}
          testid="grid-node-status"
        />
      </div>
      <div className="jp-Grid-address">
        <span
          className="jp-Grid-url"
          data-testid="grid-node-address"
          title={node.address}
        >
          {node.address}
        </span>
        <CopyButton text={node.address} trans={trans} />
      </div>
      {detail && <p className="jp-Grid-text">{detail}</p>}
      <dl className="jp-Grid-facts">
        {through && <Through through={through} trans={trans} />}
        <Fact
          label={trans.__('Network')}
          value={networkText(node, trans)}
          note={node.network.detail || node.network.address || ''}
        />
        <Fact label={trans.__('Isolation')} value={sentence(node.isolation)} />
        <Fact
          label={trans.__('Device')}
          value={node.device ? sentence(node.device) : trans.__('Not known')}
          note={(node.devices ?? []).map(one => device(one, trans)).join('; ')}
        />
        <Fact
          label={trans.__('Data sets')}
          value={node.datasets.toLocaleString()}
        />
        <Fact
          label={trans.__('Storage')}
          value={trans.__('%1 used', storage)}
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
          label={trans.__('Connected')}
          value={
            node.connected && node.connected.length > 0
              ? node.connected
                  .map(name => name || trans.__('guests'))
                  .join(', ')
              : trans.__('Nobody')
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

function Control(props: {
  model: GridModel;
  running: boolean;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, running, trans } = props;
  const action = useAction(trans);
  const halt = async (verb: 'stop' | 'restart') => {
    const answer = await showDialog({
      title:
        verb === 'stop'
          ? trans.__('Stop this Node?')
          : trans.__('Restart this Node?'),
      body: trans.__(
        'Sessions on it end. What is published stays, and jobs go on from their last epoch when it runs again.'
      ),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Let it run') }),
        Dialog.warnButton({
          label: verb === 'stop' ? trans.__('Stop') : trans.__('Restart')
        })
      ]
    });
    if (answer.button.accept) {
      action.run(() => model.api.node(verb));
    }
  };
  return (
    <>
      <div className="jp-Grid-buttons">
        {running ? (
          <>
            <Button
              label={trans.__('Restart…')}
              disabled={action.busy}
              onClick={() => void halt('restart')}
            />
            <Button
              label={trans.__('Stop…')}
              kind="warn"
              disabled={action.busy}
              onClick={() => void halt('stop')}
            />
          </>
        ) : (
          <Button
            label={trans.__('Start')}
            kind="accept"
            disabled={action.busy}
            onClick={() => action.run(() => model.api.node('start'))}
          />
        )}
      </div>
      <Failure text={action.failed} />
    </>
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
      <Badge tone={props.tone} label={props.title} testid="grid-node-status" />
      <p className="jp-Grid-text" data-testid="grid-node-detail">
        {props.text}
      </p>
      {props.next && <p className="jp-Grid-text">{props.next}</p>}
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
      className="jp-Grid-copy"
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

function device(one: IDevice, trans: TranslationBundle): string {
  return trans._n(
    '%2: %3, for %1 Worker at once',
    '%2: %3, for %1 Workers at once',
    one.shares.length,
    one.label || one.name,
    bytes(one.memory_bytes)
  );
}

function sentence(text: string): string {
  return text.replace(/^(cpu\b|.)/u, begin => begin.toUpperCase());
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
        trans.__('Reconnecting'),
        trans.__('The Node ended, and is being started again…')
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
