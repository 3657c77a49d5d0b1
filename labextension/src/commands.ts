/** The commands: what the palette, menus and buttons call. */

import { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, ICommandPalette, showDialog } from '@jupyterlab/apputils';
import {
  FileDialog,
  IDefaultFileBrowser,
  IFileBrowserFactory
} from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker, NotebookActions } from '@jupyterlab/notebook';
import { TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { gridIcon } from './icon';
import { kernelInFront } from './kernel';
import { GridModel } from './model';
import { askForJob } from './launch';
import { INSERT, LAUNCH, PUBLISH } from './panel';
import { canPublish, PublishTab, Source } from './publish';
import { ILaunch } from './sections/network';

export const OPEN = 'grid-jupyter:open';
export const PUBLISH_FILE = 'grid-jupyter:publish-file';
export const PUBLISH_VARIABLE = 'grid-jupyter:publish-variable';

/** What the commands work with; a front end may lack some of it. */
export interface IPlaces {
  app: JupyterFrontEnd;
  model: GridModel;
  panel: Widget;
  trans: TranslationBundle;
  palette: ICommandPalette | null;
  browsers: IFileBrowserFactory | null;
  browser: IDefaultFileBrowser | null;
  notebooks: INotebookTracker | null;
  launcher: ILauncher | null;
}

export function addCommands(places: IPlaces): void {
  const {
    app,
    model,
    panel,
    trans,
    palette,
    browsers,
    browser,
    notebooks,
    launcher
  } = places;
  const { commands } = app;

  const openTab = (source: Source) => {
    const tab = new PublishTab(model, source, trans);
    tab.id = `grid-jupyter-publish-${(numbered += 1)}`;
    app.shell.add(tab, 'main');
    app.shell.activateById(tab.id);
  };
  let numbered = 0;
  const local = (path: string) => app.serviceManager.contents.localPath(path);
  const selected = () => {
    const found = browsers?.tracker.currentWidget ?? browser;
    const items = found ? [...found.selectedItems()] : [];
    return items.length === 1 && canPublish(items[0].name) ? items[0] : null;
  };

  commands.addCommand(OPEN, {
    label: trans.__('Show the Grid Panel'),
    caption: trans.__("Show this notebook server's Node and its data"),
    icon: args => (args.isPalette ? undefined : gridIcon),
    execute: () => app.shell.activateById(panel.id)
  });

  commands.addCommand(PUBLISH_FILE, {
    label: args =>
      args.isMenu ? trans.__('Publish to Grid') : trans.__('Publish a File…'),
    icon: args => (args.isPalette ? undefined : gridIcon),
    isVisible: args => !args.isMenu || selected() !== null,
    execute: async args => {
      const item = args.isMenu ? selected() : null;
      if (item) {
        openTab({ path: local(item.path) });
        return;
      }
      const manager = browser?.model.manager;
      if (!manager) {
        return;
      }
      const answer = await FileDialog.getOpenFiles({
        manager,
        title: trans.__('Publish a File'),
        filter: one =>
          one.type === 'directory' || canPublish(one.name) ? {} : null
      });
      for (const file of answer.button.accept ? (answer.value ?? []) : []) {
        if (file.type !== 'directory') {
          openTab({ path: local(file.path) });
        }
      }
    }
  });

  commands.addCommand(PUBLISH_VARIABLE, {
    label: trans.__('Publish a Variable…'),
    icon: args => (args.isPalette ? undefined : gridIcon),
    isEnabled: () => Boolean(notebooks?.currentWidget),
    execute: async () => {
      const kernel = await kernelInFront(notebooks);
      if (kernel) {
        openTab({ kernel });
        return;
      }
      await showDialog({
        title: trans.__('No kernel of Python'),
        body: trans.__(
          'Open the notebook that has the variable, run the cell that makes it, and try again.'
        ),
        buttons: [Dialog.okButton()]
      });
    }
  });

  commands.addCommand(PUBLISH, {
    label: trans.__('Publish Data…'),
    caption: trans.__('Publish a file or a variable on your Node'),
    icon: gridIcon,
    execute: async () => {
      const notebook = notebooks?.currentWidget;
      if (!notebook) {
        await commands.execute(PUBLISH_FILE);
        return;
      }
      const answer = await showDialog({
        title: trans.__('What do you publish?'),
        body: trans.__(
          'A file that Jupyter serves, or a variable of the notebook %1.',
          notebook.title.label
        ),
        buttons: [
          Dialog.cancelButton(),
          Dialog.createButton({
            label: trans.__('A variable'),
            actions: ['variable'],
            accept: true
          }),
          Dialog.okButton({ label: trans.__('A file') })
        ]
      });
      if (answer.button.accept) {
        const variable = answer.button.actions.includes('variable');
        await commands.execute(variable ? PUBLISH_VARIABLE : PUBLISH_FILE);
      }
    }
  });

  commands.addCommand(INSERT, {
    label: trans.__('Insert Code into the Notebook'),
    isVisible: () => false,
    execute: async args => {
      const code = args.code as string;
      const notebook = notebooks?.currentWidget;
      if (!notebook) {
        const shown = document.createElement('pre');
        shown.className = 'jp-Grid-code';
        shown.textContent = code;
        await showDialog({
          title: trans.__('No notebook is open'),
          body: new Widget({ node: shown }),
          buttons: [Dialog.okButton()]
        });
        return;
      }
      const cell = notebook.content.activeCell;
      const empty =
        cell?.model.type === 'code' && !cell.model.sharedModel.source.trim();
      if (!empty) {
        NotebookActions.insertBelow(notebook.content);
      }
      notebook.content.activeCell?.model.sharedModel.setSource(code);
      app.shell.activateById(notebook.id);
    }
  });

  commands.addCommand(LAUNCH, {
    label: trans.__('Launch a Job…'),
    isVisible: () => false,
    execute: async args => {
      const code = await askForJob(args as unknown as ILaunch, trans);
      if (code !== null) {
        await commands.execute(INSERT, { code });
      }
    }
  });

  for (const command of [OPEN, PUBLISH_FILE, PUBLISH_VARIABLE]) {
    palette?.addItem({
      command,
      category: trans.__('Grid'),
      args: { isPalette: true }
    });
  }
  [OPEN, PUBLISH].forEach((command, rank) =>
    launcher?.add({ command, category: trans.__('Grid'), rank })
  );
  app.contextMenu.addItem({
    command: PUBLISH_FILE,
    args: { isMenu: true },
    selector: '.jp-DirListing-item[data-isdir="false"]',
    rank: 30
  });
}
