/** "Launch job…": asks what to run on a data set, and writes the cell that submits it. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import React from 'react';
import { IOffer } from './api';
import { submitting, training } from './cells';
import { Field } from './fields';
import { isName } from './python';
import { ILaunch } from './sections/network';

const LOSSES = ['CrossEntropyLoss', 'MSELoss', 'BCEWithLogitsLoss', 'L1Loss'];
/** Targets that can be chosen from. */
const CHOICES = 500;

/** The code to insert; null where the user thought better of it. */
export async function askForJob(
  job: ILaunch,
  trans: TranslationBundle
): Promise<string | null> {
  const answer = await showDialog({
    title: trans.__('Launch a Job'),
    body: new LaunchForm(job, trans),
    buttons: [
      Dialog.cancelButton(),
      Dialog.okButton({ label: trans.__('Insert the cell') })
    ]
  });
  return answer.button.accept ? answer.value : null;
}

interface IAsked {
  everywhere: boolean;
  model: string;
  loss: string;
  targets: string;
  rounds: string;
  epochs: string;
  batchSize: string;
  lr: string;
  reason: string;
}

class LaunchForm extends ReactWidget implements Dialog.IBodyWidget<string> {
  constructor(
    private readonly job: ILaunch,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-Grid-launch');
    const { node, offer } = job;
    const wanted = beside(offer.tags).join(' ');
    this.choices = node.offers
      .filter(one => one.id !== offer.id && one.jobs)
      .slice(0, CHOICES);
    const targets = this.choices.find(one => one.tags.join(' ') === wanted);
    this.asked = {
      everywhere: false,
      model: 'model',
      loss: LOSSES[0],
      targets: targets ? String(targets.id) : '',
      rounds: '10',
      epochs: '1',
      batchSize: '32',
      lr: '0.1',
      reason: ''
    };
  }

  getValue(): string {
    const { asked } = this;
    const common = {
      model: isName(asked.model) ? asked.model : 'model',
      loss: asked.loss,
      epochs: whole(asked.epochs),
      batchSize: whole(asked.batchSize),
      lr: Number(asked.lr) > 0 ? Number(asked.lr) : 0.1,
      reason: asked.reason
    };
    if (asked.everywhere) {
      return training(this.job.network, this.job.user, {
        ...common,
        rows: this.job.offer.tags,
        targets: beside(this.job.offer.tags),
        rounds: whole(asked.rounds)
      });
    }
    const targets = this.choices.find(one => String(one.id) === asked.targets);
    return submitting(this.job.node, this.job.offer, {
      ...common,
      targets: targets ?? null
    });
  }

  render(): JSX.Element {
    const { asked, trans } = this;
    const set = (change: Partial<IAsked>) => {
      Object.assign(asked, change);
      this.update();
    };
    const everywhere = this.job.offer.tags.length > 0;
    return (
      <div className="jp-Grid-form">
        <p className="jp-Grid-text">
          {trans.__(
            'A cell is inserted into the notebook in front; the job is submitted when you run it, and starts when the owner lets it.'
          )}
        </p>
        {everywhere && (
          <label className="jp-Grid-field">
            <span>{trans.__('Where')}</span>
            <select
              className="jp-mod-styled"
              value={asked.everywhere ? 'all' : 'one'}
              onChange={event =>
                set({ everywhere: event.target.value === 'all' })
              }
            >
              <option value="one">
                {trans.__('At %1: one job', this.job.node.name)}
              </option>
              <option value="all">
                {trans.__('At all Nodes with these tags: one model, in rounds')}
              </option>
            </select>
          </label>
        )}
        <Field
          label={trans.__('Variable of your model')}
          value={asked.model}
          set={model => set({ model })}
        />
        {!isName(asked.model) && (
          <p className="jp-Grid-failure" role="alert">
            {trans.__(
              'This is no name of Python\'s; "model" is written instead.'
            )}
          </p>
        )}
        <label className="jp-Grid-field">
          <span>{trans.__('Loss')}</span>
          <select
            className="jp-mod-styled"
            value={asked.loss}
            onChange={event => set({ loss: event.target.value })}
          >
            {LOSSES.map(loss => (
              <option key={loss}>{loss}</option>
            ))}
          </select>
        </label>
        {asked.everywhere ? (
          <Field
            label={trans.__('Rounds')}
            kind="number"
            value={asked.rounds}
            set={rounds => set({ rounds })}
          />
        ) : (
          <label className="jp-Grid-field">
            <span>{trans.__('Targets')}</span>
            <select
              className="jp-mod-styled"
              value={asked.targets}
              onChange={event => set({ targets: event.target.value })}
            >
              <option value="">
                {trans.__('none: the model needs only rows')}
              </option>
              {this.choices.map(one => (
                <option key={one.id} value={one.id}>
                  {one.name || one.tags.join(' ') || String(one.id)}
                </option>
              ))}
            </select>
          </label>
        )}
        <div className="jp-Grid-row">
          <Field
            label={trans.__('Epochs')}
            kind="number"
            value={asked.epochs}
            set={epochs => set({ epochs })}
          />
          <Field
            label={trans.__('Batch size')}
            kind="number"
            value={asked.batchSize}
            set={batchSize => set({ batchSize })}
          />
          <Field
            label={trans.__('Learning rate')}
            value={asked.lr}
            set={lr => set({ lr })}
          />
        </div>
        <Field
          label={trans.__('Reason, which the owner reads')}
          value={asked.reason}
          set={reason => set({ reason })}
        />
      </div>
    );
  }

  private readonly asked: IAsked;
  private readonly choices: IOffer[];
}

/** The tags of the targets beside rows of these tags, as `grid.train` has it. */
function beside(tags: string[]): string[] {
  const pairs = new Map([
    ['#X', '#Y'],
    ['#data', '#target']
  ]);
  return tags.map(tag => pairs.get(tag) ?? tag);
}

function whole(text: string): number {
  return Math.max(1, Math.round(Number(text) || 1));
}
