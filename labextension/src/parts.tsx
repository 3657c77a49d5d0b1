/** Small pieces that the sections are made of. Every text from the server is a text node, never HTML. */

import { ServerConnection } from '@jupyterlab/services';
import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

export type Tone = 'good' | 'busy' | 'bad' | 'off';

/** A dot and a word. */
export function Badge(props: {
  tone: Tone;
  label: string;
  testid?: string;
}): JSX.Element {
  return (
    <span
      className={`jp-Grid-badge jp-mod-${props.tone}`}
      data-testid={props.testid}
      role="status"
    >
      {props.label}
    </span>
  );
}

/** What is shown where there is nothing yet. */
export function Empty(props: {
  text: string;
  hint?: string;
  code?: string;
}): JSX.Element {
  return (
    <div className="jp-Grid-empty">
      <p>{props.text}</p>
      {props.hint && <p className="jp-Grid-quiet">{props.hint}</p>}
      {props.code && (
        <pre className="jp-Grid-code" tabIndex={0}>
          {props.code}
        </pre>
      )}
    </div>
  );
}

/** Labels of a data set. */
export function Tags(props: { tags: string[] }): JSX.Element | null {
  if (props.tags.length === 0) {
    return null;
  }
  return (
    <ul className="jp-Grid-tags">
      {props.tags.map((tag, index) => (
        <li key={index} title={tag}>
          {tag}
        </li>
      ))}
    </ul>
  );
}

/** One name and its value. */
export function Fact(props: {
  label: string;
  value: React.ReactNode;
  note?: string;
}): JSX.Element {
  return (
    <div className="jp-Grid-fact">
      <dt>{props.label}</dt>
      <dd>
        {props.value}
        {props.note && (
          <span className="jp-Grid-note" title={props.note}>
            {props.note}
          </span>
        )}
      </dd>
    </div>
  );
}

export function Button(props: {
  label: string;
  onClick: () => void;
  kind?: 'accept' | 'warn' | 'plain';
  disabled?: boolean;
  testid?: string;
}): JSX.Element {
  const kind = props.kind ?? 'plain';
  return (
    <button
      type="button"
      className={`jp-Grid-button jp-mod-${kind}`}
      data-testid={props.testid}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      {props.label}
    </button>
  );
}

/** Runs what a button does: one at a time, and says why it failed. */
export function useAction(trans: TranslationBundle): {
  busy: boolean;
  failed: string;
  run: (work: () => Promise<unknown>) => void;
} {
  const [busy, setBusy] = React.useState(false);
  const [failed, setFailed] = React.useState('');
  const alive = React.useRef(true);
  React.useEffect(() => {
    alive.current = true;
    return () => {
      alive.current = false;
    };
  }, []);
  const run = (work: () => Promise<unknown>) => {
    setBusy(true);
    setFailed('');
    work()
      .catch((error: unknown) => {
        if (alive.current) {
          setFailed(explain(error, trans));
        }
      })
      .finally(() => {
        if (alive.current) {
          setBusy(false);
        }
      });
  };
  return { busy, failed, run };
}

/** Why something could not be done, and what to do. */
export function Failure(props: { text: string }): JSX.Element | null {
  return props.text ? (
    <p className="jp-Grid-failure" role="alert">
      {props.text}
    </p>
  ) : null;
}

export function explain(error: unknown, trans: TranslationBundle): string {
  if (error instanceof ServerConnection.NetworkError) {
    return trans.__(
      'The Jupyter server does not answer. If it has stopped, start it again; this panel reconnects by itself.'
    );
  }
  if (
    error instanceof ServerConnection.ResponseError &&
    (error.response.status === 401 || error.response.status === 403)
  ) {
    return trans.__(
      'The Jupyter server does not let you do that. Reload the page and log in again.'
    );
  }
  return error instanceof Error ? error.message : String(error);
}

/** Names that a person wrote, with commas or blanks between them. */
export function words(text: string): string[] {
  return [...new Set(text.split(/[\s,]+/).filter(Boolean))];
}

export function bytes(count: number): string {
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

/** A moment, in UTC seconds, as this browser writes it. */
export function moment(seconds: number): string {
  return new Date(seconds * 1000).toLocaleString(undefined, {
    dateStyle: 'medium',
    timeStyle: 'short'
  });
}
