/** The Node in JupyterLab's status bar: its name, how it is, and how many requests wait. */

import { GroupItem, TextItem } from '@jupyterlab/statusbar';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';
import React from 'react';
import { gridIcon } from './icon';
import { GridModel } from './model';

export class StatusItem extends ReactWidget {
  constructor(
    private readonly model: GridModel,
    private readonly open: () => void,
    private readonly trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-GridStatus');
    model.changed.connect(this.update, this);
  }

  dispose(): void {
    this.model.changed.disconnect(this.update, this);
    super.dispose();
  }

  render(): JSX.Element {
    const { model, trans } = this;
    const waiting = model.requests?.length ?? 0;
    const told = this.told();
    const text = waiting
      ? trans._n('%2, %1 request', '%2, %1 requests', waiting, told)
      : told;
    return (
      <button
        type="button"
        title={trans.__('Grid: %1. Open the panel', text)}
        aria-label={trans.__('Grid: %1. Open the panel', text)}
        onClick={this.open}
      >
        <GroupItem spacing={4}>
          <gridIcon.react tag="span" width="14px" aria-hidden="true" />
          <TextItem source={text} />
        </GroupItem>
      </button>
    );
  }

  private told(): string {
    const { model, trans } = this;
    const node = model.status?.node;
    if (model.offline) {
      return trans.__('no answer');
    }
    if (node) {
      return node.name;
    }
    switch (model.status?.state) {
      case undefined:
        return trans.__('connecting');
      case 'starting':
      case 'restarting':
        return trans.__('starting');
      case 'stopped':
        return trans.__('stopped');
      case 'failed':
        return trans.__('failed');
      default:
        return trans.__('busy');
    }
  }
}
