/** The sidebar panel "Grid": its sections, and when they ask for news. */

import { ServerConnection } from '@jupyterlab/services';
import { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget, SidePanel } from '@jupyterlab/ui-components';
import { Message } from '@lumino/messaging';
import { Poll } from '@lumino/polling';
import React from 'react';
import { gridIcon } from './icon';
import { fetchStatus, IStatus } from './status';
import { NodeView } from './view';

/** Time between two questions while the panel can be seen, in milliseconds. */
const REFRESH_MS = 3000;
/** The same after repeated failures, at most, in milliseconds. */
const REFRESH_MAX_MS = 15000;

export class GridPanel extends SidePanel {
  constructor(settings: ServerConnection.ISettings, translator: ITranslator) {
    super({ translator });
    const trans = translator.load('grid_jupyter');
    this.id = 'grid-jupyter-panel';
    this.title.icon = gridIcon;
    this.title.caption = trans.__('Grid');
    this.addClass('jp-GridPanel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('Grid'));
    this.addWidget(new NodeSection(settings, trans));
  }
}

/** "My Node": asks while it is visible, and only then. */
class NodeSection extends ReactWidget {
  constructor(
    settings: ServerConnection.ISettings,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.title.label = trans.__('My Node');
    this.addClass('jp-GridNode');
    this.poll = new Poll<IStatus, Error>({
      auto: false,
      name: 'grid-jupyter:status',
      factory: () => fetchStatus(settings),
      frequency: { interval: REFRESH_MS, backoff: true, max: REFRESH_MAX_MS },
      standby: () => (this.isVisible ? 'when-hidden' : true)
    });
    this.poll.ticked.connect(this.onTick, this);
  }

  dispose(): void {
    this.poll.dispose();
    super.dispose();
  }

  render(): JSX.Element {
    return (
      <NodeView status={this.status} error={this.error} trans={this.trans} />
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    void this.poll.refresh();
  }

  protected onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    if (this.isVisible) {
      void this.poll.refresh();
    }
  }

  private onTick(
    _: unknown,
    tick: { phase: string; payload: IStatus | Error | null }
  ): void {
    if (tick.phase === 'resolved') {
      this.status = tick.payload as IStatus;
      this.error = null;
    } else if (tick.phase === 'rejected') {
      this.error = tick.payload as Error;
    } else {
      return;
    }
    this.update();
  }

  private readonly poll: Poll<IStatus, Error>;
  private status: IStatus | null = null;
  private error: Error | null = null;
}
