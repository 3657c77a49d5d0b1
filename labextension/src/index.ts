/** The plugin: puts the panel into JupyterLab's left sidebar, its commands where they are looked for, and says what arrived. */

import {
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import {
  IDefaultFileBrowser,
  IFileBrowserFactory
} from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { GridApi } from './api';
import { addCommands, OPEN } from './commands';
import { CurvesTab, Look } from './curves';
import { Fits } from './fits';
import { GridModel } from './model';
import { GridPanel } from './panel';
import { StatusItem } from './status';

/** How long a notice stays in sight, in milliseconds; the list of notices keeps it. */
const NOTICE_MS = 10000;

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'grid-jupyter:plugin',
  description: "A panel that shows this notebook server's Node.",
  autoStart: true,
  // All optional: the panel also loads where a front end lacks one of them.
  optional: [
    ITranslator,
    ILayoutRestorer,
    ICommandPalette,
    IFileBrowserFactory,
    IDefaultFileBrowser,
    INotebookTracker,
    ILauncher,
    IStatusBar,
    ISettingRegistry
  ],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    browsers: IFileBrowserFactory | null,
    browser: IDefaultFileBrowser | null,
    notebooks: INotebookTracker | null,
    launcher: ILauncher | null,
    statusBar: IStatusBar | null,
    registry: ISettingRegistry | null
  ) => {
    const language = translator ?? nullTranslator;
    const trans = language.load('grid_jupyter');
    const model = new GridModel(
      new GridApi(app.serviceManager.serverSettings),
      new Fits(notebooks)
    );
    const show = (key: string, name: string, look: Look) => {
      const id = `grid-jupyter-curves-${key}`;
      const open = [...app.shell.widgets('main')].some(one => one.id === id);
      if (!open) {
        const tab = new CurvesTab(model, name, look, trans);
        tab.id = id;
        app.shell.add(tab, 'main');
      }
      app.shell.activateById(id);
    };
    const panel = new GridPanel(model, show, app.commands, language);
    panel.disposed.connect(() => model.dispose());
    app.shell.add(panel, 'left', { rank: 510, type: 'Grid' });
    restorer?.add(panel, panel.id);
    addCommands({
      app,
      model,
      panel,
      trans,
      palette,
      browsers,
      browser,
      notebooks,
      launcher
    });
    const settings = { notices: true, statusBar: true };
    const status = new StatusItem(
      model,
      () => void app.commands.execute(OPEN),
      trans
    );
    statusBar?.registerStatusItem('grid-jupyter:status', {
      item: status,
      align: 'left',
      rank: 80
    });
    void registry
      ?.load(plugin.id)
      .then(found => {
        const take = () => {
          settings.notices = found.get('notices').composite !== false;
          settings.statusBar = found.get('statusBar').composite !== false;
          status.setHidden(!settings.statusBar);
        };
        take();
        found.changed.connect(take);
      })
      .catch(error => console.warn('grid-jupyter: no settings', error));
    // Who asks and why is told in the panel alone: a notice may be drawn as Markdown.
    model.arrived.connect((_, count) => {
      if (!settings.notices) {
        return;
      }
      Notification.info(
        trans._n(
          'A request waits for your decision.',
          '%1 requests wait for your decision.',
          count
        ),
        {
          autoClose: NOTICE_MS,
          actions: [
            {
              label: trans.__('Open the Inbox'),
              callback: () => {
                app.shell.activateById(panel.id);
                panel.showInbox();
              }
            }
          ]
        }
      );
    });
  }
};

export default plugin;
