/** The plugin: puts the panel into JupyterLab's left sidebar and its command into the palette. */

import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { gridIcon } from './icon';
import { GridPanel } from './panel';

const OPEN = 'grid-jupyter:open';

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'grid-jupyter:plugin',
  description: "A panel that shows this notebook server's Node.",
  autoStart: true,
  // All optional: the panel also loads where a front end lacks one of them.
  optional: [ITranslator, ILayoutRestorer, ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null
  ) => {
    const language = translator ?? nullTranslator;
    const trans = language.load('grid_jupyter');
    const panel = new GridPanel(app.serviceManager.serverSettings, language);
    app.shell.add(panel, 'left', { rank: 510, type: 'Grid' });
    restorer?.add(panel, panel.id);
    app.commands.addCommand(OPEN, {
      label: trans.__('Show the Grid Panel'),
      icon: args => (args.isPalette ? undefined : gridIcon),
      execute: () => app.shell.activateById(panel.id)
    });
    palette?.addItem({
      command: OPEN,
      category: trans.__('Grid'),
      args: { isPalette: true }
    });
  }
};

export default plugin;
