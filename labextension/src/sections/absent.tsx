/** What a section shows while nothing is known of the Node: why, and what to do about it. */

import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';
import { GridModel } from '../model';
import { Button, Empty, Failure, useAction } from '../parts';

export function Absent(props: {
  model: GridModel;
  /** What is being asked for, while the Node runs. */
  asking: string;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, asking, trans } = props;
  if (model.offline) {
    return (
      <Empty
        text={trans.__('The Jupyter server does not answer.')}
        hint={trans.__('This panel reconnects by itself.')}
      />
    );
  }
  if (model.off) {
    return <Off model={model} trans={trans} />;
  }
  return (
    <Empty
      text={
        model.status && !model.status.node
          ? trans.__('Waiting for the Node, which is starting…')
          : asking
      }
    />
  );
}

function Off(props: {
  model: GridModel;
  trans: TranslationBundle;
}): JSX.Element {
  const { model, trans } = props;
  const action = useAction(trans);
  return (
    <>
      <Empty
        text={trans.__('The Node does not run.')}
        hint={trans.__(
          'What it keeps is not lost, and is shown here when it runs again.'
        )}
      />
      <div className="jp-Grid-buttons">
        <Button
          label={trans.__('Start')}
          disabled={action.busy}
          onClick={() => action.run(() => model.api.node('start'))}
        />
      </div>
      <Failure text={action.failed} />
    </>
  );
}
