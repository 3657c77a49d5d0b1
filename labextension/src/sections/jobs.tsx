/** "Jobs & cycles": what this page's notebooks train elsewhere, what runs and ran on this Node's data, what it hosts. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { IJob } from '../api';
import { ICurves } from '../chart';
import { Look } from '../curves';
import { GridModel } from '../model';
import {
  Badge,
  Button,
  Empty,
  Failure,
  moment,
  Tone,
  useAction
} from '../parts';
import { keyOf } from '../measured';
import { Fit } from './fits';
import { Training } from './trainings';
import { Absent } from './absent';

/** States that a job does not leave by itself. */
const ENDED = ['done', 'denied', 'cancelled', 'failed', 'expired'];

/** Opens a tab with curves. */
export type ShowCurves = (key: string, name: string, look: Look) => void;

interface IJobsProps {
  model: GridModel;
  show: ShowCurves;
  trans: TranslationBundle;
}

export function JobsView(props: IJobsProps): JSX.Element {
  const { model, show, trans } = props;
  const fits = model.fits.all;
  return (
    <>
      {fits.length > 0 && (
        <ul className="jp-Grid-list" aria-label={trans.__('My trainings')}>
          {fits.map(fit => (
            <Fit key={fit.id} fit={fit} show={show} trans={trans} />
          ))}
        </ul>
      )}
      <OnThisNode {...props} />
    </>
  );
}

function OnThisNode(props: IJobsProps): JSX.Element | null {
  const { model, show, trans } = props;
  if (!model.jobs || !model.trainings) {
    return (
      <Absent
        model={model}
        asking={trans.__('Asking the Node for its jobs…')}
        trans={trans}
      />
    );
  }
  if (model.jobs.length === 0 && model.trainings.length === 0) {
    return model.fits.all.length > 0 ? null : (
      <Empty
        text={trans.__('No job and no training yet.')}
        hint={trans.__(
          'A job is a plan that somebody sends to your data; it runs when you, or the rules of the data set, say so. A model-centric training is a model that devices train cycle by cycle.'
        )}
      />
    );
  }
  return (
    <ul className="jp-Grid-list">
      {model.trainings.map(training => (
        <Training
          key={keyOf(training)}
          training={training}
          model={model}
          show={show}
          trans={trans}
        />
      ))}
      {model.jobs.map(job => (
        <Job key={job.id} job={job} model={model} show={show} trans={trans} />
      ))}
    </ul>
  );
}

function Job(props: {
  job: IJob;
  model: GridModel;
  show: ShowCurves;
  trans: TranslationBundle;
}): JSX.Element {
  const { job, model, show, trans } = props;
  const action = useAction(trans);
  const ended = ENDED.includes(job.state);
  const progress = job.progress ?? rounds(job);
  const measured = Boolean(job.history?.length);
  return (
    <li className="jp-Grid-card" data-testid="grid-job">
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={job.by}>
          {job.by}
        </span>
        <Badge tone={tone(job)} label={state(job, trans)} />
      </div>
      {job.reason && <p className="jp-Grid-text">{job.reason}</p>}
      {job.said && <p className="jp-Grid-text">{job.said}</p>}
      <p className="jp-Grid-note">
        {trans._n('%1 row', '%1 rows', job.rows)}
        {' · '}
        {turn(job, trans)}
        {' · '}
        {moment(job.created)}
      </p>
      {!ended && job.state !== 'waiting' && progress !== null && (
        <progress
          className="jp-Grid-progress"
          value={progress}
          aria-label={trans.__('Progress of the job')}
        />
      )}
      <details className="jp-Grid-more">
        <summary>{trans.__('Log')}</summary>
        <ol className="jp-Grid-log">
          {job.log.map((line, index) => (
            <li key={index}>
              <span className="jp-Grid-quiet">{moment(line.at)}</span>{' '}
              {line.text}
            </li>
          ))}
        </ol>
      </details>
      {job.history && measured && (
        <p className="jp-Grid-note">{newest(job.history)}</p>
      )}
      {(!ended || measured) && (
        <div className="jp-Grid-buttons">
          {measured && (
            <Button
              label={trans.__('Curves')}
              onClick={() =>
                show(job.id, job.reason || job.by, one =>
                  curvesOf(one, job.id, trans)
                )
              }
            />
          )}
          {!ended && (
            <Button
              label={trans.__('Cancel')}
              kind="warn"
              disabled={action.busy}
              onClick={() =>
                action.run(async () => {
                  await model.api.cancel(job.id);
                  await model.refresh(['jobs', 'requests']);
                })
              }
            />
          )}
        </div>
      )}
      <Failure text={action.failed} />
    </li>
  );
}

/** What was measured last. */
function newest(history: { [metric: string]: number }[]): string {
  return Object.entries(history[history.length - 1])
    .map(([metric, value]) => `${metric} ${value.toPrecision(4)}`)
    .join(', ');
}

function curvesOf(
  model: GridModel,
  id: string,
  trans: TranslationBundle
): ICurves | null {
  const job = model.jobs?.find(one => one.id === id);
  if (!job?.history) {
    return null;
  }
  const history = job.history;
  const metrics = new Set<string>();
  history.forEach(one =>
    Object.keys(one).forEach(metric => metrics.add(metric))
  );
  return {
    unit: job.arguments.rounds > 1 ? trans.__('round') : trans.__('epoch'),
    rounds: history.map((_, index) => index + 1),
    lines: [...metrics].map(metric => ({
      metric,
      by: '',
      values: history.map(one => one[metric] ?? null)
    }))
  };
}

/** How long it is, or how far; a training asks for some rounds more than it needs. */
function turn(job: IJob, trans: TranslationBundle): string {
  if (job.arguments.rounds <= 1) {
    return trans._n('%1 epoch', '%1 epochs', job.arguments.epochs);
  }
  return ENDED.includes(job.state)
    ? trans._n('%1 round', '%1 rounds', job.rounds_done)
    : trans.__('round %1, %2 at most', job.rounds_done, job.arguments.rounds);
}

function rounds(job: IJob): number | null {
  return job.arguments.rounds > 1
    ? job.rounds_done / job.arguments.rounds
    : null;
}

function tone(job: IJob): Tone {
  switch (job.state) {
    case 'done':
      return 'good';
    case 'failed':
    case 'denied':
      return 'bad';
    case 'cancelled':
    case 'expired':
      return 'off';
    default:
      return 'busy';
  }
}

function state(job: IJob, trans: TranslationBundle): string {
  switch (job.state) {
    case 'waiting':
      return trans.__('Waits for a decision');
    case 'queued':
      return trans.__('In the queue');
    case 'running':
      return trans.__('Running');
    case 'held':
      return trans.__('Result held');
    case 'done':
      return trans.__('Done');
    case 'denied':
      return trans.__('Denied');
    case 'cancelled':
      return trans.__('Cancelled');
    case 'failed':
      return trans.__('Failed');
    case 'expired':
      return trans.__('Expired');
    default:
      return job.state;
  }
}
