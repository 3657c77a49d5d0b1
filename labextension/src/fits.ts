/** Trainings of `grid.train` in this page's notebooks, as their kernels tell of them while they run. */

import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { ISignal, Signal } from '@lumino/signaling';
import { ICurves, ILine } from './chart';

/** The comm by which a kernel tells; ids of such comms begin with it. */
export const TARGET = 'grid-jupyter:training';
/** Trainings that are remembered. */
const KEPT = 50;
/** Of a text, and of a list, that a kernel tells. */
const CHARS = 4_000;
const MANY = 5_000;

/** The last two are for this page to say: its kernel is gone, or only its notebook is closed. */
export type Phase =
  'waiting' | 'running' | 'finished' | 'cut' | 'lost' | 'closed';

/** A training over Nodes. */
export interface IFit {
  /** Of the comm. */
  id: string;
  kernel: string;
  notebook: string;
  phase: Phase;
  reason: string;
  done: number;
  asked: number;
  nodes: number;
  /** Who took no part in the last round, and why. */
  leftOut: [string, string][];
  curves: ICurves;
}

export class Fits {
  constructor(notebooks: INotebookTracker | null) {
    notebooks?.forEach(panel => this.attend(panel));
    notebooks?.widgetAdded.connect((_, panel) => this.attend(panel));
  }

  /** The newest first. */
  get all(): IFit[] {
    return [...this.known.values()].reverse();
  }

  get(id: string): IFit | undefined {
    return this.known.get(id);
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** A message of a kernel's; what is none of these is let be. */
  hear(
    message: KernelMessage.IMessage,
    kernel: string,
    notebook: string
  ): void {
    const type = message.header.msg_type;
    if (!['comm_open', 'comm_msg', 'comm_close'].includes(type)) {
      return;
    }
    const { content } = message as
      KernelMessage.ICommMsgMsg | KernelMessage.ICommCloseMsg;
    const id = content.comm_id;
    if (!id.startsWith(`${TARGET}:`)) {
      return;
    }
    if (type === 'comm_close') {
      this.forget(id);
      return;
    }
    const told = read(content.data);
    if (!told) {
      return;
    }
    this.known.set(id, { ...told, id, kernel, notebook });
    for (const old of [...this.known.keys()].slice(0, -KEPT)) {
      this.known.delete(old);
    }
    this._changed.emit();
  }

  /** No more is heard of what a kernel was doing. */
  lose(kernel: string, phase: 'lost' | 'closed'): void {
    for (const fit of this.known.values()) {
      if (fit.kernel === kernel && (going(fit) || fit.phase === 'closed')) {
        this.known.set(fit.id, { ...fit, phase });
      }
    }
    this._changed.emit();
  }

  private forget(id: string): void {
    if (this.known.delete(id)) {
      this._changed.emit();
    }
  }

  /** Listen to a notebook's kernel, whichever it has. */
  private attend(panel: NotebookPanel): void {
    const { sessionContext } = panel;
    let last = '';
    const greet = (kernel: Kernel.IKernelConnection | null | undefined) => {
      last = kernel?.id ?? last;
      if (kernel?.handleComms) {
        // else JupyterLab says in its log that nobody listens
        kernel.registerCommTarget(TARGET, () => undefined);
        void this.ask(kernel);
      }
    };
    greet(sessionContext.session?.kernel);
    sessionContext.kernelChanged.connect((_, change) => {
      if (change.oldValue) {
        this.lose(change.oldValue.id, 'lost');
      }
      greet(change.newValue);
    });
    sessionContext.statusChanged.connect((context, status) => {
      const kernel = context.session?.kernel;
      if (kernel && /restarting|dead|terminating/.test(status)) {
        this.lose(kernel.id, 'lost');
      }
    });
    sessionContext.iopubMessage.connect((context, message) => {
      this.hear(message, context.session?.kernel?.id ?? '', context.name);
    });
    panel.disposed.connect(() => this.lose(last, 'closed'));
  }

  /** Have a kernel tell again what it told before this page was loaded. */
  private async ask(kernel: Kernel.IKernelConnection): Promise<void> {
    try {
      const { content } = await kernel.requestCommInfo({ target_name: TARGET });
      for (const id of 'comms' in content ? Object.keys(content.comms) : []) {
        if (!kernel.isDisposed && !kernel.hasComm(id)) {
          kernel.createComm(TARGET, id).send({});
        }
      }
    } catch (error) {
      console.debug('grid-jupyter: a kernel does not answer', error);
    }
  }

  private readonly known = new Map<string, IFit>();
  private readonly _changed = new Signal<this, void>(this);
}

/** Whether there is more to come. */
export function going(fit: IFit): boolean {
  return fit.phase === 'waiting' || fit.phase === 'running';
}

type Told = Omit<IFit, 'id' | 'kernel' | 'notebook'>;

/** What a message says; null where it is not of this form. */
function read(data: unknown): Told | null {
  const told = (data ?? {}) as { [key: string]: unknown };
  const phase = ['waiting', 'running', 'finished', 'cut'].find(
    one => one === told.phase
  );
  const [done, asked, nodes] = [told.done, told.asked, told.nodes];
  const { rounds, lines, left_out: leftOut } = told;
  if (
    !phase ||
    !isNumber(done) ||
    !isNumber(asked) ||
    !isNumber(nodes) ||
    typeof told.reason !== 'string' ||
    typeof told.unit !== 'string' ||
    !isList(rounds, isNumber) ||
    !isList(leftOut, isPair) ||
    !isList(lines, one => isLine(one, rounds.length))
  ) {
    return null;
  }
  return {
    phase: phase as Phase,
    reason: told.reason.slice(0, CHARS),
    done,
    asked,
    nodes,
    leftOut,
    curves: { unit: told.unit.slice(0, CHARS), rounds, lines }
  };
}

function isNumber(one: unknown): one is number {
  return typeof one === 'number' && Number.isFinite(one);
}

function isList<T>(all: unknown, is: (one: unknown) => one is T): all is T[];
function isList<T>(all: unknown, is: (one: unknown) => boolean): all is T[];
function isList(all: unknown, is: (one: unknown) => boolean): boolean {
  return Array.isArray(all) && all.length <= MANY && all.every(is);
}

function isPair(one: unknown): one is [string, string] {
  return (
    Array.isArray(one) &&
    one.length === 2 &&
    one.every(part => typeof part === 'string' && part.length <= CHARS)
  );
}

function isLine(one: unknown, length: number): one is ILine {
  const line = (one ?? {}) as { [key: string]: unknown };
  return (
    isPair([line.metric, line.by]) &&
    isList(line.values, value => value === null || isNumber(value)) &&
    line.values.length === length
  );
}
