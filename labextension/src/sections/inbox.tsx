/** "Inbox": what people ask of the data, with all that is known of it, and the owner's decision. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { IRequest } from '../api';
import { GridModel } from '../model';
import {
  Badge,
  Button,
  bytes,
  Empty,
  Fact,
  Failure,
  moment,
  useAction
} from '../parts';
import { PlanView } from '../planview';
import { Absent } from './absent';

export function InboxView(props: {
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, trans } = props;
  if (!model.requests) {
    return (
      <Absent
        model={model}
        asking={trans.__('Asking the Node for requests…')}
        trans={trans}
      />
    );
  }
  const approved = model.approved ?? [];
  return (
    <>
      {model.requests.length === 0 ? (
        <Empty
          text={trans.__('Nothing to decide.')}
          hint={trans.__(
            'When somebody asks for a value, or wants to run a job on your data, it is shown here.'
          )}
        />
      ) : (
        <ul className="jp-Grid-list">
          {model.requests.map(request => (
            <Request
              key={request.id}
              request={request}
              model={model}
              trans={trans}
            />
          ))}
        </ul>
      )}
      {approved.length > 0 && (
        <details className="jp-Grid-more">
          <summary>
            {trans._n(
              '%1 approval that was not taken up yet',
              '%1 approvals that were not taken up yet',
              approved.length
            )}
          </summary>
          <ul className="jp-Grid-list">
            {approved.map(request => (
              <Approved
                key={request.id}
                request={request}
                model={model}
                trans={trans}
              />
            ))}
          </ul>
        </details>
      )}
    </>
  );
}

type Writing = 'deny' | 'ask' | null;

function Request(props: {
  request: IRequest;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, model, trans } = props;
  const [writing, setWriting] = React.useState<Writing>(null);
  const [text, setText] = React.useState('');
  const action = useAction(trans);
  const decide = (
    verb: 'approve' | 'deny' | 'ask',
    body: { text?: string; review?: boolean } = {}
  ) =>
    action.run(async () => {
      await model.api.decide(request.id, verb, body);
      setWriting(null);
      setText('');
      await model.refresh(['requests', 'jobs']);
    });
  return (
    <li className="jp-Grid-card" data-testid="grid-request">
      <Head request={request} trans={trans} />
      <Details request={request} model={model} trans={trans} />
      <Dialogue request={request} trans={trans} />
      {writing ? (
        <div className="jp-Grid-form">
          <label className="jp-Grid-field">
            <span>
              {writing === 'deny'
                ? trans.__('Why not? %1 reads this.', request.asker)
                : trans.__('What do you want to know of %1?', request.asker)}
            </span>
            <textarea
              className="jp-mod-styled"
              rows={3}
              autoFocus
              value={text}
              onChange={event => setText(event.target.value)}
            />
          </label>
          <div className="jp-Grid-buttons">
            <Button
              label={writing === 'deny' ? trans.__('Deny') : trans.__('Ask')}
              kind={writing === 'deny' ? 'warn' : 'accept'}
              disabled={action.busy || text.trim() === ''}
              onClick={() => decide(writing, { text })}
            />
            <Button
              label={trans.__('Back')}
              disabled={action.busy}
              onClick={() => setWriting(null)}
            />
          </div>
        </div>
      ) : (
        <div className="jp-Grid-buttons">
          <Button
            label={trans.__('Approve')}
            kind="accept"
            disabled={action.busy}
            onClick={() => decide('approve')}
          />
          {request.kind === 'job' && !('result' in request.shown) && (
            <Button
              label={trans.__('Run, then ask me')}
              disabled={action.busy}
              onClick={() => decide('approve', { review: true })}
            />
          )}
          <Button
            label={trans.__('Ask…')}
            disabled={action.busy}
            onClick={() => setWriting('ask')}
          />
          <Button
            label={trans.__('Deny…')}
            kind="warn"
            disabled={action.busy}
            onClick={() => setWriting('deny')}
          />
        </div>
      )}
      <Failure text={action.failed} />
    </li>
  );
}

function Approved(props: {
  request: IRequest;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, model, trans } = props;
  const action = useAction(trans);
  return (
    <li className="jp-Grid-card">
      <Head request={request} trans={trans} />
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Take back')}
          kind="warn"
          disabled={action.busy}
          onClick={() =>
            action.run(async () => {
              await model.api.decide(request.id, 'revoke');
              await model.refresh(['requests', 'jobs']);
            })
          }
        />
      </div>
      <Failure text={action.failed} />
    </li>
  );
}

function Head(props: {
  request: IRequest;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, trans } = props;
  return (
    <>
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={request.asker}>
          {request.asker}
        </span>
        <Badge
          tone={request.state === 'approved' ? 'good' : 'busy'}
          label={state(request, trans)}
        />
      </div>
      <p className="jp-Grid-text">
        {request.kind === 'job'
          ? trans.__('wants to run a job on data of %1', data(request))
          : trans.__(
              'asks for a value computed from data of %1',
              data(request)
            )}
      </p>
      {request.reason && (
        <blockquote className="jp-Grid-quote">{request.reason}</blockquote>
      )}
    </>
  );
}

function Details(props: {
  request: IRequest;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { request, model, trans } = props;
  const { shown } = request;
  const names = request.data.map(part => {
    const found = model.datasets?.find(one => one.info.id === part.dataset);
    return found?.info.name || trans.__('data set %1', part.dataset);
  });
  const value = object(shown.value);
  const rows = list(shown.rows).map(object);
  const computed = list(shown.computed).map(String);
  return (
    <>
      <dl className="jp-Grid-facts">
        <Fact label={trans.__('Data')} value={names.join(', ')} />
        {typeof shown.released === 'string' && (
          <Fact label={trans.__('Releases')} value={shown.released} />
        )}
        {value && (
          <Fact
            label={trans.__('Value')}
            value={
              written(value.error) ||
              `${written(value.dtype)} ${list(value.shape).join(' × ')}`
            }
          />
        )}
        {rows.map((one, index) => (
          <Fact
            key={index}
            label={trans.__('Rests on')}
            value={trans.__(
              'at most %1 of %2 rows of %3',
              written(one?.at_most),
              written(one?.of),
              written(one?.dataset)
            )}
          />
        ))}
        {typeof shown.rows === 'number' && (
          <Fact
            label={trans.__('Rows')}
            value={shown.rows.toLocaleString()}
            note={
              typeof shown.steps === 'number'
                ? trans._n('%1 step', '%1 steps', shown.steps)
                : ''
            }
          />
        )}
        {typeof shown.model_bytes === 'number' && (
          <Fact
            label={trans.__('Model')}
            value={bytes(shown.model_bytes)}
            note={
              typeof shown.starting_weights === 'string'
                ? trans.__('starting weights: %1', shown.starting_weights)
                : ''
            }
          />
        )}
        {typeof shown.result === 'string' && !computed.length && (
          <Fact label={trans.__('Result')} value={shown.result} />
        )}
        <Fact label={trans.__('Until')} value={moment(request.expires)} />
      </dl>
      {shown.whole_step === true && (
        <p className="jp-Grid-warning">
          {trans.__(
            'The training step was written by hand. Such a step can copy rows into its "weights": read all of its code.'
          )}
        </p>
      )}
      {typeof shown.plan === 'string' && (
        <details className="jp-Grid-more">
          <summary>
            {typeof shown.operations === 'number'
              ? trans._n(
                  'The plan: %1 operation',
                  'The plan: %1 operations',
                  shown.operations
                )
              : trans.__('The plan')}
          </summary>
          <PlanView request={request} model={model} trans={trans} />
          <p className="jp-Grid-note">
            {trans.__('SHA-256 %1', written(shown.plan_sha256))}
          </p>
          <pre className="jp-Grid-code" tabIndex={0}>
            {JSON.stringify(shown.arguments, null, 1)}
          </pre>
        </details>
      )}
      {computed.length > 0 && (
        <details className="jp-Grid-more">
          <summary>{trans.__('How it was computed')}</summary>
          <pre className="jp-Grid-code" tabIndex={0}>
            {[...computed, `→ ${written(shown.result)}`].join('\n')}
          </pre>
          {Boolean(shown.left_out) && (
            <p className="jp-Grid-note">
              {trans.__(
                'and %1 steps before that are not shown',
                written(shown.left_out)
              )}
            </p>
          )}
        </details>
      )}
      {shown.cut === true && (
        <p className="jp-Grid-warning">
          {trans.__(
            'What the session did before is no longer known: the log of its commands was cut.'
          )}
        </p>
      )}
    </>
  );
}

function Dialogue(props: {
  request: IRequest;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { request, trans } = props;
  const said = request.dialogue.filter(remark => remark.text);
  if (said.length === 0) {
    return null;
  }
  return (
    <ol className="jp-Grid-dialogue">
      {said.map((remark, index) => (
        <li key={index}>
          <span className="jp-Grid-quiet">
            {speaker(remark.by, trans)} · {moment(remark.at)}
          </span>
          {remark.text}
        </li>
      ))}
    </ol>
  );
}

/** The owner's door speaks under a name that no account can have: it begins with a blank. */
function speaker(by: string, trans: TranslationBundle): string {
  if (by === '') {
    return trans.__('The Node');
  }
  return by.startsWith(' ') ? trans.__('You') : by;
}

function state(request: IRequest, trans: TranslationBundle): string {
  switch (request.state) {
    case 'waiting':
      return trans.__('Waits for you');
    case 'question':
      return trans.__('Waits for an answer');
    case 'approved':
      return trans.__('Approved');
    default:
      return request.state;
  }
}

function data(request: IRequest): string {
  return [...new Set(request.data.map(part => part.owner))].join(', ');
}

/** What a Node wrote, where it is a text or a number. */
function written(found: unknown): string {
  return typeof found === 'string' || typeof found === 'number'
    ? String(found)
    : '';
}

function list(found: unknown): unknown[] {
  return Array.isArray(found) ? found : [];
}

function object(found: unknown): { [key: string]: unknown } | null {
  return found !== null && typeof found === 'object' && !Array.isArray(found)
    ? (found as { [key: string]: unknown })
    : null;
}
