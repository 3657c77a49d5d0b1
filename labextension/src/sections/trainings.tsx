/** A model-centric training that this Node hosts: which cycle it is in, and who has reported. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { ITraining } from '../api';
import { Look } from '../curves';
import { keyOf, measuredOf } from '../measured';
import { GridModel } from '../model';
import { Badge, Button, Fact, Failure, Tone, useAction } from '../parts';

export function Training(props: {
  training: ITraining;
  model: GridModel;
  show: (key: string, name: string, look: Look) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { training, model, show, trans } = props;
  const action = useAction(trans);
  const failed = training.phase === 'failed';
  const end = async () => {
    const answer = await showDialog({
      title: failed
        ? trans.__('Delete this training?')
        : trans.__('End this training?'),
      body: failed
        ? trans.__(
            'It does not go on. All of it is forgotten: its checkpoints, plans, devices and metrics.'
          )
        : trans.__(
            'Devices are told that it is over; reports that are under way are late. Its checkpoints stay.'
          ),
      buttons: [
        Dialog.cancelButton({
          label: failed ? trans.__('Keep it') : trans.__('Let it run')
        }),
        Dialog.warnButton({
          label: failed ? trans.__('Delete') : trans.__('End')
        })
      ]
    });
    if (answer.button.accept) {
      action.run(async () => {
        await (failed ? model.api.forget(training) : model.api.end(training));
        await model.refresh(['trainings']);
      });
    }
  };
  const [tone, label] = phase(training, trans);
  return (
    <li className="jp-Grid-card" data-testid="grid-training">
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={training.name}>
          {training.name}
        </span>
        <Badge tone={tone} label={label} />
      </div>
      <p className="jp-Grid-text">
        {trans.__('version %1, hosted by %2', training.version, training.owner)}
      </p>
      {training.num_cycles > 0 && (
        <progress
          className="jp-Grid-progress"
          value={training.completed / Math.max(1, training.num_cycles)}
          aria-label={trans.__('Progress of the training')}
        />
      )}
      <dl className="jp-Grid-facts">
        <Fact
          label={trans.__('Cycle')}
          value={
            training.num_cycles === 0
              ? String(training.cycle)
              : trans.__(
                  '%1 of %2',
                  Math.min(training.cycle, training.num_cycles),
                  training.num_cycles
                )
          }
          note={
            training.timeout !== null && training.phase === 'open'
              ? trans.__('ends within %1 s', Math.ceil(training.timeout))
              : ''
          }
        />
        {training.phase !== 'over' && (
          <>
            <Fact
              label={trans.__('Devices')}
              value={trans._n(
                '%1 has a place',
                '%1 have a place',
                training.workers
              )}
            />
            <Fact
              label={trans.__('Reports')}
              value={trans.__('%1 in this cycle', training.reports)}
            />
          </>
        )}
        <Fact
          label={trans.__('Checkpoint')}
          value={String(training.checkpoint)}
        />
      </dl>
      {training.problem && (
        <p className="jp-Grid-warning">{training.problem}</p>
      )}
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Curves')}
          onClick={() =>
            show(keyOf(training), training.name, measuredOf(training, trans))
          }
        />
        {training.phase !== 'over' && (
          <Button
            label={failed ? trans.__('Delete…') : trans.__('End…')}
            kind="warn"
            disabled={action.busy}
            onClick={() => void end()}
          />
        )}
      </div>
      <Failure text={action.failed} />
    </li>
  );
}

function phase(training: ITraining, trans: TranslationBundle): [Tone, string] {
  switch (training.phase) {
    case 'gathering':
      return ['busy', trans.__('Waits for devices')];
    case 'open':
      return ['good', trans.__('Running')];
    case 'closing':
      return ['busy', trans.__('Making a checkpoint')];
    case 'failed':
      return ['bad', trans.__('Failed')];
    default:
      return ['off', trans.__('Over')];
  }
}
