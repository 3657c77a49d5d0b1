/** What the owner's running kernel is asked: which variables can be published, what they look like, and to publish one. */

import { INotebookTracker } from '@jupyterlab/notebook';
import { Kernel } from '@jupyterlab/services';
import { IPreview, IVariable } from './api';
import { name } from './python';

const PREVIEWS = '__import__("grid_jupyter.client.previews", fromlist=["x"])';

/** A kernel said why it could not. */
export class KernelError extends Error {}

/** The kernel of the notebook that is in front; null where there is none, or none of Python's. */
export async function kernelInFront(
  notebooks: INotebookTracker | null
): Promise<Kernel.IKernelConnection | null> {
  const kernel = notebooks?.currentWidget?.sessionContext.session?.kernel;
  if (!kernel) {
    return null;
  }
  const told = await kernel.info;
  return told.language_info.name === 'python' ? kernel : null;
}

/** The variables that can be published. */
export function variables(
  kernel: Kernel.IKernelConnection
): Promise<IVariable[]> {
  return evaluate(kernel, `${PREVIEWS}.variables(globals())`);
}

/** What a variable looks like. */
export function preview(
  kernel: Kernel.IKernelConnection,
  variable: string
): Promise<IPreview> {
  return evaluate(kernel, `${PREVIEWS}.variable(${name(variable)})`);
}

/** Run code, without a place in the notebook's history. Rejects with what went wrong. */
export async function run(
  kernel: Kernel.IKernelConnection,
  code: string
): Promise<void> {
  const future = kernel.requestExecute({
    code,
    silent: false,
    store_history: false,
    stop_on_error: true
  });
  const { content } = await future.done;
  if (content.status !== 'ok') {
    throw new KernelError(why(content));
  }
}

async function evaluate<T>(
  kernel: Kernel.IKernelConnection,
  expression: string
): Promise<T> {
  const future = kernel.requestExecute({
    code: '',
    silent: true,
    store_history: false,
    user_expressions: { grid: expression }
  });
  const { content } = await future.done;
  if (content.status !== 'ok') {
    throw new KernelError(why(content));
  }
  const told = content.user_expressions.grid as {
    status?: string;
    ename?: string;
    evalue?: string;
    data?: { [key: string]: unknown };
  };
  const found = told.data?.['application/json'];
  if (told.status !== 'ok' || found === undefined) {
    throw new KernelError(why(told));
  }
  return found as T;
}

function why(told: {
  status?: string;
  ename?: string;
  evalue?: string;
}): string {
  return told.evalue || told.ename || told.status || '';
}
