/** The sidebar panel "Grid": its sections, one below the other, over one model of the Node. */

import { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import {
  caretDownIcon,
  caretRightIcon,
  ReactWidget
} from '@jupyterlab/ui-components';
import React from 'react';
import { gridIcon } from './icon';
import { GridModel } from './model';
import { DatasetsView } from './sections/datasets';
import { InboxView } from './sections/inbox';
import { JobsView, ShowCurves } from './sections/jobs';
import { IDeeds, NetworkView } from './sections/network';
import { NodeView } from './sections/node';

/** Lumino writes it into the panel's tab as an attribute, and the style shows it there. */
const WAITING = 'grid-waiting';

/** The commands that the sections call. */
export const PUBLISH = 'grid-jupyter:publish';
export const INSERT = 'grid-jupyter:insert';
export const LAUNCH = 'grid-jupyter:launch';

/** What runs a command. */
export interface ICommands {
  execute(id: string, args?: object): unknown;
}

export class GridPanel extends ReactWidget {
  constructor(
    private readonly model: GridModel,
    private readonly openCurves: ShowCurves,
    private readonly commands: ICommands,
    translator: ITranslator
  ) {
    super();
    this.trans = translator.load('grid_jupyter');
    this.id = 'grid-jupyter-panel';
    this.title.icon = gridIcon;
    this.title.caption = this.trans.__('Grid');
    this.addClass('jp-GridPanel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', this.trans.__('Grid'));
    model.changed.connect(this.onChanged, this);
  }

  dispose(): void {
    this.model.changed.disconnect(this.onChanged, this);
    super.dispose();
  }

  render(): JSX.Element {
    const { model, trans } = this;
    const waiting = model.requests?.length ?? 0;
    return (
      <>
        <Section label={trans.__('My Node')}>
          <NodeView model={model} trans={trans} />
        </Section>
        <Section label={trans.__('Inbox')} name="inbox" count={waiting}>
          <InboxView model={model} trans={trans} />
        </Section>
        <Section label={trans.__('Datasets')}>
          <DatasetsView
            model={model}
            publish={() => void this.commands.execute(PUBLISH)}
            trans={trans}
          />
        </Section>
        <Section label={trans.__('Network')}>
          <NetworkView model={model} deeds={this.deeds} trans={trans} />
        </Section>
        <Section label={trans.__('Jobs & cycles')}>
          <JobsView model={model} show={this.openCurves} trans={trans} />
        </Section>
      </>
    );
  }

  /** Bring the Inbox into sight, opened. */
  showInbox(): void {
    const inbox = this.node.querySelector('[data-section=inbox]');
    inbox?.querySelector<HTMLElement>('button[aria-expanded=false]')?.click();
    inbox?.scrollIntoView();
  }

  private onChanged(): void {
    const waiting = this.model.requests?.length ?? 0;
    const dataset = { ...this.title.dataset };
    delete dataset[WAITING];
    if (waiting) {
      dataset[WAITING] = waiting > 99 ? '99+' : String(waiting);
    }
    this.title.dataset = dataset;
    this.update();
  }

  private readonly trans: TranslationBundle;
  private readonly deeds: IDeeds = {
    insert: code => void this.commands.execute(INSERT, { code }),
    launch: job => void this.commands.execute(LAUNCH, { ...job })
  };
}

/** A heading that opens and closes what stands below it. */
function Section(props: {
  label: string;
  name?: string;
  count?: number;
  children: React.ReactNode;
}): JSX.Element {
  const [open, setOpen] = React.useState(true);
  const Caret = open ? caretDownIcon : caretRightIcon;
  return (
    <section
      className="jp-GridSection"
      aria-label={props.label}
      data-section={props.name}
    >
      <h2>
        <button
          type="button"
          aria-expanded={open}
          onClick={() => setOpen(!open)}
        >
          <Caret.react tag="span" width="16px" aria-hidden="true" />
          {props.label}
          {props.count ? (
            <span className="jp-Grid-count">{props.count}</span>
          ) : null}
        </button>
      </h2>
      <div className="jp-GridSection-body" hidden={!open}>
        {props.children}
      </div>
    </section>
  );
}
