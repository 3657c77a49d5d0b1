/** "Datasets": what is published here, who may do what with it, and changing that. */

import { Dialog, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { IDataset } from '../api';
import { IRules, RuleFields, told } from '../fields';
import { GridModel } from '../model';
import {
  Button,
  bytes,
  Empty,
  Fact,
  Failure,
  moment,
  Tags,
  useAction
} from '../parts';
import { Absent } from './absent';

/** Columns of a data set that are listed. */
const SHOWN = 500;

export function DatasetsView(props: {
  model: GridModel;
  publish: () => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, publish, trans } = props;
  if (!model.datasets) {
    return (
      <Absent
        model={model}
        asking={trans.__('Asking the Node for its data sets…')}
        trans={trans}
      />
    );
  }
  if (model.datasets.length === 0) {
    return (
      <>
        <Empty
          text={trans.__('No data yet: publish your first data set.')}
          hint={trans.__(
            'Right-click a CSV, Parquet, NPZ or safetensors file in the file browser, or take a variable of a notebook. Nobody reads values but those whom you name.'
          )}
        />
        <div className="jp-Grid-buttons">
          <Button
            label={trans.__('Publish…')}
            kind="accept"
            onClick={publish}
          />
        </div>
      </>
    );
  }
  return (
    <>
      <div className="jp-Grid-buttons jp-mod-above">
        <Button label={trans.__('Publish…')} onClick={publish} />
      </div>
      <ul className="jp-Grid-list">
        {model.datasets.map(dataset => (
          <Dataset
            key={dataset.info.id}
            dataset={dataset}
            model={model}
            trans={trans}
          />
        ))}
      </ul>
    </>
  );
}

function Dataset(props: {
  dataset: IDataset;
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { dataset, model, trans } = props;
  const { info } = dataset;
  const [editing, setEditing] = React.useState(false);
  const action = useAction(trans);
  const name = info.name || trans.__('Data set %1', info.id);
  const unpublish = async () => {
    const answer = await showDialog({
      title: trans.__('Unpublish this data set?'),
      body: (
        <p className="jp-Grid-dialog">
          <b>{name}</b>{' '}
          {trans.__(
            'and all its versions are removed from this Node. Sessions that have it open end, and so do requests and jobs on it. This cannot be undone.'
          )}
        </p>
      ),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Keep it') }),
        Dialog.warnButton({ label: trans.__('Unpublish') })
      ]
    });
    if (answer.button.accept) {
      action.run(async () => {
        await model.api.unpublish(info.id);
        await model.refresh(['datasets']);
      });
    }
  };
  return (
    <li className="jp-Grid-card" data-testid="grid-dataset">
      <div className="jp-Grid-head">
        <span className="jp-Grid-name" title={name}>
          {name}
        </span>
        <span className="jp-Grid-quiet">{shape(dataset, trans)}</span>
      </div>
      <Tags tags={info.tags} />
      {info.description && <p className="jp-Grid-text">{info.description}</p>}
      {editing ? (
        <EditForm
          dataset={dataset}
          model={model}
          trans={trans}
          done={() => setEditing(false)}
        />
      ) : (
        <>
          <dl className="jp-Grid-facts">
            <Fact
              label={trans.__('Compute')}
              value={
                dataset.compute_users === null
                  ? trans.__('Everybody whom this Node lets in')
                  : names(dataset.compute_users, info.owner, trans)
              }
            />
            <Fact
              label={trans.__('Read')}
              value={names(dataset.allowed_users, info.owner, trans)}
            />
            <Fact label={trans.__('Jobs')} value={jobs(dataset, trans)} />
            <Fact
              label={trans.__('Tags')}
              value={
                dataset.public_tags
                  ? trans.__('Shown to everybody')
                  : trans.__('Shown to those who may compute')
              }
            />
            <Fact
              label={trans.__('Size')}
              value={bytes(dataset.nbytes)}
              note={trans.__('Version %1', info.version)}
            />
            <Fact
              label={trans.__('Used')}
              value={use(dataset, trans)}
              note={jobsOn(model, info.id, trans)}
            />
          </dl>
          <Parts dataset={dataset} trans={trans} />
          <div className="jp-Grid-buttons">
            <Button
              label={trans.__('Edit…')}
              onClick={() => setEditing(true)}
              disabled={action.busy}
            />
            <Button
              label={trans.__('Unpublish…')}
              kind="warn"
              onClick={() => void unpublish()}
              disabled={action.busy}
            />
          </div>
        </>
      )}
      <Failure text={action.failed} />
    </li>
  );
}

/** The columns of a table, or the arrays of a file, with what they hold. */
function Parts(props: {
  dataset: IDataset;
  trans: TranslationBundle;
}): JSX.Element | null {
  const { dataset, trans } = props;
  const { kind, columns, tensors } = dataset.info;
  const [open, setOpen] = React.useState(false);
  const parts =
    kind === 'table'
      ? columns.map(one => [one.name, one.dtype])
      : tensors.map(one => [one.name, `${one.dtype} ${one.shape.join(' × ')}`]);
  if (kind === 'tensor' || parts.length === 0) {
    return null;
  }
  return (
    <details
      className="jp-Grid-more"
      onToggle={event => setOpen(event.currentTarget.open)}
    >
      <summary>
        {kind === 'table'
          ? trans._n('%1 column', '%1 columns', parts.length)
          : trans._n('%1 array', '%1 arrays', parts.length)}
      </summary>
      {open && (
        <ul className="jp-Grid-log jp-Grid-parts">
          {parts.slice(0, SHOWN).map(([name, form], index) => (
            <li key={index}>
              <bdi>{name}</bdi> <span className="jp-Grid-quiet">{form}</span>
            </li>
          ))}
          {parts.length > SHOWN && (
            <li>{trans.__('and %1 more', parts.length - SHOWN)}</li>
          )}
        </ul>
      )}
    </details>
  );
}

function EditForm(props: {
  dataset: IDataset;
  model: GridModel;
  trans: TranslationBundle;
  done: () => void;
}): JSX.Element {
  const { dataset, model, trans, done } = props;
  const { info } = dataset;
  const [rules, setRules] = React.useState<IRules>({
    tags: info.tags.join(' '),
    description: info.description,
    everybody: dataset.compute_users === null,
    computing: (dataset.compute_users ?? []).join(', '),
    reading: dataset.allowed_users.join(', '),
    publicTags: dataset.public_tags,
    allowJobs: info.jobs.jobs,
    allowValues: info.jobs.values,
    automatic: info.jobs.automatic.join(', ')
  });
  const action = useAction(trans);
  const save = () =>
    action.run(async () => {
      await model.api.edit(info.id, told(rules, info.jobs));
      await model.refresh(['datasets']);
      done();
    });
  return (
    <form
      className="jp-Grid-form"
      onSubmit={event => {
        event.preventDefault();
        save();
      }}
    >
      <RuleFields rules={rules} set={setRules} trans={trans} />
      <Failure text={action.failed} />
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Save')}
          kind="accept"
          onClick={save}
          disabled={action.busy}
        />
        <Button
          label={trans.__('Cancel')}
          onClick={done}
          disabled={action.busy}
        />
      </div>
    </form>
  );
}

function use(dataset: IDataset, trans: TranslationBundle): string {
  if (!dataset.opened || dataset.opened_last === null) {
    return trans.__('Not yet');
  }
  return trans.__(
    '%1, last %2',
    trans._n(
      'opened %1 time by %2',
      'opened %1 times by %2',
      dataset.opened,
      trans._n('%1 user', '%1 users', dataset.opened_by)
    ),
    moment(dataset.opened_last)
  );
}

function jobsOn(
  model: GridModel,
  dataset: number,
  trans: TranslationBundle
): string {
  const count = (model.jobs ?? []).filter(job =>
    Object.values(job.data).some(part => part.dataset === dataset)
  ).length;
  return count ? trans._n('%1 job', '%1 jobs', count) : '';
}

function names(
  users: string[],
  owner: string,
  trans: TranslationBundle
): string {
  const others = users.filter(user => user !== owner);
  return others.length === 0
    ? trans.__('Only %1', owner)
    : [owner, ...others].join(', ');
}

function jobs(dataset: IDataset, trans: TranslationBundle): string {
  const policy = dataset.info.jobs;
  const said = !policy.jobs
    ? trans.__('None of others')
    : policy.automatic.length === 0
      ? trans.__('Each one asks')
      : trans.__('Each one asks, but those of %1', policy.automatic.join(', '));
  return policy.values
    ? said
    : trans.__('%1; single values are not to be asked for', said);
}

function shape(dataset: IDataset, trans: TranslationBundle): string {
  const { info } = dataset;
  if (info.kind === 'table') {
    const first = info.tensors.find(one => one.name === 'col/0');
    const rows = first?.shape[0];
    const columns = info.columns.length;
    return rows === undefined
      ? trans._n('%1 column', '%1 columns', columns)
      : `${rows.toLocaleString()} × ${columns.toLocaleString()}`;
  }
  if (info.tensors.length === 1) {
    const [only] = info.tensors;
    const dimensions = only.shape.map(size => size.toLocaleString());
    return dimensions.length ? dimensions.join(' × ') : trans.__('a number');
  }
  return trans._n('%1 array', '%1 arrays', info.tensors.length);
}
