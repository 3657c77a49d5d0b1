/** Fields of forms, and what an owner says of a data set as one form has it. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { IJobPolicy } from './api';
import { words } from './parts';

/** What an owner says of a data set, as it is written. */
export interface IRules {
  tags: string;
  description: string;
  everybody: boolean;
  computing: string;
  reading: string;
  publicTags: boolean;
  allowJobs: boolean;
  automatic: string;
  allowValues: boolean;
}

/** What the Node is told of them. */
export interface ITold {
  tags: string[];
  description: string;
  allowed_users: string[];
  compute_users: string[] | null;
  public_tags: boolean;
  jobs: IJobPolicy;
}

export function told(rules: IRules, before: IJobPolicy): ITold {
  return {
    tags: words(rules.tags),
    description: rules.description,
    allowed_users: words(rules.reading),
    compute_users: rules.everybody ? null : words(rules.computing),
    public_tags: rules.publicTags,
    jobs: {
      ...before,
      jobs: rules.allowJobs,
      values: rules.allowValues,
      automatic: rules.allowJobs ? words(rules.automatic) : []
    }
  };
}

/** The fields of all that an owner says of a data set. */
export function RuleFields(props: {
  rules: IRules;
  set: (rules: IRules) => void;
  trans: TranslationBundle;
}): JSX.Element {
  const { rules, trans } = props;
  const set = (change: Partial<IRules>) => props.set({ ...rules, ...change });
  return (
    <>
      <Field
        label={trans.__('Tags')}
        value={rules.tags}
        set={tags => set({ tags })}
        hint={trans.__('#labels to find it by')}
      />
      <label className="jp-Grid-field">
        <span>{trans.__('Description')}</span>
        <textarea
          className="jp-mod-styled"
          rows={3}
          value={rules.description}
          onChange={event => set({ description: event.target.value })}
        />
      </label>
      <Tick
        label={trans.__('Everybody whom this Node lets in may compute')}
        value={rules.everybody}
        set={everybody => set({ everybody })}
      />
      {!rules.everybody && (
        <Field
          label={trans.__('Who may compute')}
          value={rules.computing}
          set={computing => set({ computing })}
          hint={trans.__('nobody but you')}
        />
      )}
      <Field
        label={trans.__('Who may read values')}
        value={rules.reading}
        set={reading => set({ reading })}
        hint={trans.__('nobody but you')}
      />
      <Tick
        label={trans.__('Show the tags to everybody')}
        value={rules.publicTags}
        set={publicTags => set({ publicTags })}
      />
      <Tick
        label={trans.__('Others may submit jobs')}
        value={rules.allowJobs}
        set={allowJobs => set({ allowJobs })}
      />
      {rules.allowJobs && (
        <Field
          label={trans.__('Whose jobs run without asking you')}
          value={rules.automatic}
          set={automatic => set({ automatic })}
          hint={trans.__("nobody's")}
        />
      )}
      <Tick
        label={trans.__('Others may ask for single values')}
        value={rules.allowValues}
        set={allowValues => set({ allowValues })}
      />
    </>
  );
}

export function Field(props: {
  label: string;
  value: string;
  set: (text: string) => void;
  hint?: string;
  kind?: 'text' | 'number';
}): JSX.Element {
  return (
    <label className="jp-Grid-field">
      <span>{props.label}</span>
      <input
        type={props.kind ?? 'text'}
        min={props.kind === 'number' ? 0 : undefined}
        className="jp-mod-styled"
        placeholder={props.hint}
        value={props.value}
        onChange={event => props.set(event.target.value)}
      />
    </label>
  );
}

export function Tick(props: {
  label: string;
  value: boolean;
  set: (value: boolean) => void;
}): JSX.Element {
  return (
    <label className="jp-Grid-tick">
      <input
        type="checkbox"
        checked={props.value}
        onChange={event => props.set(event.target.checked)}
      />
      <span>{props.label}</span>
    </label>
  );
}
