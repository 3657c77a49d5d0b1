/** "Publish to Grid": a tab where the owner looks at a file or a variable, says what others may do with it, and publishes. */

import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import React from 'react';
import { IPreview, IPublication, IVariable } from './api';
import { Field, IRules, RuleFields, told } from './fields';
import { gridIcon } from './icon';
import * as kernels from './kernel';
import { GridModel } from './model';
import {
  Badge,
  Button,
  bytes,
  Empty,
  explain,
  Failure,
  useAction
} from './parts';
import { call, literal, quoted } from './python';

/** Where data comes from: a file by its path in the file browser, or the notebook in front. */
export type Source = { path: string } | { kernel: Kernel };
type Kernel = Parameters<typeof kernels.run>[0];

const ENDINGS = ['.csv', '.parquet', '.pq', '.npz', '.safetensors'];
const ASK_ALWAYS = {
  automatic: [],
  jobs: true,
  values: true,
  min_rows: 1,
  min_steps: 1,
  epoch_metrics: false,
  full_isolation: false
};

/** Whether a file of this name can be published. */
export function canPublish(name: string): boolean {
  return ENDINGS.some(ending => name.toLowerCase().endsWith(ending));
}

export class PublishTab extends ReactWidget {
  constructor(
    private readonly model: GridModel,
    private readonly source: Source,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-GridTab');
    this.title.icon = gridIcon;
    this.title.closable = true;
    this.title.label =
      'path' in source
        ? trans.__('Publish %1', leaf(source.path))
        : trans.__('Publish a Variable');
    this.title.caption = 'path' in source ? source.path : '';
    model.changed.connect(this.update, this);
  }

  dispose(): void {
    this.model.changed.disconnect(this.update, this);
    super.dispose();
  }

  render(): JSX.Element {
    return (
      <div role="region" aria-label={this.trans.__('Publish to Grid')}>
        <Publish
          model={this.model}
          source={this.source}
          trans={this.trans}
          close={() => this.close()}
        />
      </div>
    );
  }
}

type Looked = { preview: IPreview } | { failed: string } | null;

function Publish(props: {
  model: GridModel;
  source: Source;
  trans: TranslationBundle;
  close: () => void;
}): JSX.Element {
  const { model, source, trans, close } = props;
  const path = 'path' in source ? source.path : '';
  const [choices, setChoices] = React.useState<IVariable[] | null>(null);
  const [variable, setVariable] = React.useState('');
  const [looked, setLooked] = React.useState<Looked>(null);
  const [name, setName] = React.useState(path ? stem(path) : '');
  const [mock, setMock] = React.useState('');
  const [rules, setRules] = React.useState<IRules>({
    tags: '',
    description: '',
    everybody: true,
    computing: '',
    reading: '',
    publicTags: false,
    allowJobs: true,
    automatic: '',
    allowValues: true
  });
  const [published, setPublished] = React.useState('');
  const action = useAction(trans);

  React.useEffect(() => {
    if ('path' in source) {
      return;
    }
    kernels
      .variables(source.kernel)
      .then(found => {
        setChoices(found);
        if (found.length) {
          setVariable(found[0].name);
          setName(found[0].name);
        }
      })
      .catch((error: unknown) => setLooked({ failed: inKernel(error, trans) }));
  }, [source]);

  React.useEffect(() => {
    if (!path && !variable) {
      return;
    }
    let wanted = true;
    setLooked(null);
    const answer =
      'path' in source
        ? model.api.preview(source.path)
        : kernels.preview(source.kernel, variable);
    answer
      .then(preview => wanted && setLooked({ preview }))
      .catch(
        (error: unknown) =>
          wanted && setLooked({ failed: explain(error, trans) })
      );
    return () => {
      wanted = false;
    };
  }, [source, variable]);

  const said: IPublication = {
    name,
    ...told(rules, ASK_ALWAYS),
    mock: Math.max(0, Math.round(Number(mock) || 0))
  };
  const code = python(
    path ? quoted(path) : variable,
    said,
    model.status?.node?.name ?? ''
  );
  const publish = () =>
    action.run(async () => {
      if ('path' in source) {
        await model.api.publish(source.path, said);
      } else {
        await kernels.run(source.kernel, code);
      }
      setPublished(name || path || variable);
      await model.refresh(['datasets']);
    });

  if (published) {
    return (
      <div className="jp-GridTab-body">
        <h1>{trans.__('Published')}</h1>
        <p className="jp-Grid-text">
          <b>{published}</b>{' '}
          {trans.__(
            'is on your Node now. The panel shows it under Datasets, where you change or take back what you said.'
          )}
        </p>
        <div className="jp-Grid-buttons">
          <Button label={trans.__('Close')} kind="accept" onClick={close} />
        </div>
      </div>
    );
  }
  if (choices && choices.length === 0) {
    return (
      <div className="jp-GridTab-body">
        <h1>{trans.__('Publish a Variable')}</h1>
        <Empty
          text={trans.__(
            'This notebook has no variable that can be published.'
          )}
          hint={trans.__(
            'A pandas DataFrame or a torch tensor can: run the cell that makes it, and try again.'
          )}
        />
      </div>
    );
  }
  const ready = looked !== null && 'preview' in looked;
  return (
    <div className="jp-GridTab-body">
      <h1>{trans.__('Publish to Grid')}</h1>
      <p className="jp-Grid-text">
        {trans.__(
          'The values stay on your Node. Others see name, tags, description and form; they compute where you let them, and read what you release.'
        )}
      </p>
      <div className="jp-GridTab-columns">
        <section aria-label={trans.__('Preview')}>
          <h2>{trans.__('Preview, for you alone')}</h2>
          {choices && (
            <label className="jp-Grid-field">
              <span>{trans.__('Variable')}</span>
              <select
                className="jp-mod-styled"
                value={variable}
                onChange={event => {
                  setVariable(event.target.value);
                  setName(event.target.value);
                }}
              >
                {choices.map(one => (
                  <option key={one.name} value={one.name}>
                    {`${one.name} · ${one.kind} ${one.shape.join(' × ')}`}
                  </option>
                ))}
              </select>
            </label>
          )}
          {path && <p className="jp-Grid-path">{path}</p>}
          {looked === null ? (
            <Badge tone="busy" label={trans.__('Reading…')} />
          ) : 'failed' in looked ? (
            <Failure text={looked.failed} />
          ) : (
            <Preview preview={looked.preview} trans={trans} />
          )}
        </section>
        <section aria-label={trans.__('What others may do')}>
          <h2>{trans.__('What others may do')}</h2>
          <form
            className="jp-Grid-form"
            onSubmit={event => {
              event.preventDefault();
              if (ready && !action.busy) {
                publish();
              }
            }}
          >
            <Field label={trans.__('Name')} value={name} set={setName} />
            <RuleFields rules={rules} set={setRules} trans={trans} />
            <Field
              label={trans.__(
                'Random mock rows, for others to try their code on'
              )}
              value={mock}
              set={setMock}
              hint={trans.__('none')}
              kind="number"
            />
            <details className="jp-Grid-more" open={!path}>
              <summary>{trans.__('The same in Python')}</summary>
              <pre
                className="jp-Grid-code"
                tabIndex={0}
                data-testid="grid-python"
              >
                {code}
              </pre>
            </details>
            <Failure text={action.failed} />
            <div className="jp-Grid-buttons">
              <Button
                label={
                  action.busy ? trans.__('Publishing…') : trans.__('Publish')
                }
                kind="accept"
                disabled={action.busy || !ready}
                onClick={publish}
              />
              <Button
                label={trans.__('Cancel')}
                disabled={action.busy}
                onClick={close}
              />
            </div>
          </form>
        </section>
      </div>
    </div>
  );
}

function Preview(props: {
  preview: IPreview;
  trans: TranslationBundle;
}): JSX.Element {
  const { preview, trans } = props;
  const table = preview.kind === 'table';
  const left = preview.count - preview.parts.length;
  return (
    <>
      <p className="jp-Grid-text" data-testid="grid-preview-form">
        {form(preview, trans)}
      </p>
      <div className="jp-GridTab-table" tabIndex={0}>
        <table>
          <thead>
            {table ? (
              <tr>
                {preview.parts.map(([column, dtype], index) => (
                  <th key={index} title={column} scope="col">
                    {column}
                    <span className="jp-Grid-note">{dtype}</span>
                  </th>
                ))}
              </tr>
            ) : (
              <tr>
                <th scope="col">{trans.__('Array')}</th>
                <th scope="col">{trans.__('Type')}</th>
                <th scope="col">{trans.__('Shape')}</th>
              </tr>
            )}
          </thead>
          <tbody>
            {(table ? preview.first : preview.parts).map((row, index) => (
              <tr key={index}>
                {row.map((cell, column) => (
                  <td
                    key={column}
                    className={cell === null ? 'jp-mod-missing' : ''}
                  >
                    {cell ?? trans.__('missing')}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {left > 0 && (
        <p className="jp-Grid-note">
          {trans._n('and %1 more', 'and %1 more', left)}
        </p>
      )}
    </>
  );
}

function form(preview: IPreview, trans: TranslationBundle): string {
  const size = preview.nbytes ? ` · ${bytes(preview.nbytes)}` : '';
  if (preview.kind !== 'table') {
    return trans._n('%1 array', '%1 arrays', preview.count) + size;
  }
  const columns = trans._n('%1 column', '%1 columns', preview.count);
  return preview.rows === null
    ? trans.__('%1; the first rows, and types as these have them', columns) +
        size
    : `${trans._n('%1 row', '%1 rows', preview.rows)}, ${columns}${size}`;
}

/** `node.publish(…)` that does what the button does. */
export function python(data: string, said: IPublication, node: string): string {
  const policy = said.jobs;
  const jobs =
    !policy.jobs && policy.values
      ? '"denied"'
      : policy.automatic.length || !policy.values
        ? call(
            'sy.JobPolicy',
            [],
            [
              [
                'automatic',
                policy.automatic.length ? literal(policy.automatic) : null
              ],
              ['jobs', policy.jobs ? null : 'False'],
              ['values', policy.values ? null : 'False']
            ]
          )
        : null;
  const list = (names: string[]) => (names.length ? literal(names) : null);
  const published = call(
    'node.publish',
    [data],
    [
      ['name', said.name ? quoted(said.name) : null],
      ['tags', list(said.tags)],
      ['description', said.description ? quoted(said.description) : null],
      ['allowed_users', list(said.allowed_users)],
      ['compute_users', said.compute_users && literal(said.compute_users)],
      ['public_tags', literal(said.public_tags)],
      ['jobs', jobs],
      ['mock', said.mock ? String(said.mock) : null]
    ]
  );
  return [
    'import grid_jupyter as sy',
    '',
    `node = sy.owner(${node ? quoted(node) : ''})`,
    published
  ].join('\n');
}

function inKernel(error: unknown, trans: TranslationBundle): string {
  return trans.__(
    "The notebook's kernel could not be asked: %1 It needs grid_jupyter, and must not be busy.",
    error instanceof Error ? `${error.message}.` : ''
  );
}

function leaf(path: string): string {
  return path.split('/').pop() ?? path;
}

function stem(path: string): string {
  return leaf(path).replace(/\.[^.]*$/, '');
}
