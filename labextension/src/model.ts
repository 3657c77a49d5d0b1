/** What the panel knows of the Node: told over one WebSocket, which says what to ask for anew. */

import { URLExt } from '@jupyterlab/coreutils';
import { ISignal, Signal } from '@lumino/signaling';
import { Fits } from './fits';
import { GridApi, IDataset, IJob, IRequest, IStatus, ITraining } from './api';

/** Waits before the WebSocket is opened again, in milliseconds: they double. */
const RETRY_MS = 500;
const RETRY_MAX_MS = 8000;

interface IChanged {
  status: IStatus;
  /** The topics to ask for anew. */
  changed: string[];
}

export class GridModel {
  constructor(
    readonly api: GridApi,
    /** Trainings in this page's notebooks. */
    readonly fits: Fits = new Fits(null)
  ) {
    fits.changed.connect(this.redraw, this);
    this.connect();
  }

  /** The last word about the Node; null before the first one. */
  status: IStatus | null = null;
  /** Whether the Jupyter server tells nothing at the moment. */
  offline = false;
  /** Each is null before its first answer, and while the Node is off. */
  datasets: IDataset[] | null = null;
  requests: IRequest[] | null = null;
  approved: IRequest[] | null = null;
  jobs: IJob[] | null = null;
  trainings: ITraining[] | null = null;

  /** Whether the Node does not run, and nobody starts it. */
  get off(): boolean {
    const { status } = this;
    return (
      status !== null &&
      !status.node &&
      (status.state === 'stopped' || status.state === 'failed')
    );
  }

  /** Something above is another. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** A request came that was not there before; how many of them. */
  get arrived(): ISignal<this, number> {
    return this._arrived;
  }

  dispose(): void {
    this.disposed = true;
    window.clearTimeout(this.timer);
    this.socket?.close();
    Signal.clearData(this);
  }

  /** Something that is drawn of it, and not kept here, is another. */
  redraw(): void {
    if (!this.disposed) {
      this._changed.emit();
    }
  }

  /** Ask for some topics anew; a failure leaves what was known. */
  async refresh(topics: string[]): Promise<void> {
    const asked: Promise<void>[] = [];
    if (topics.includes('datasets')) {
      asked.push(this.take(this.api.datasets(), got => (this.datasets = got)));
    }
    if (topics.includes('requests')) {
      asked.push(
        this.take(this.api.requests(), got => {
          const before = this.requests;
          this.requests = got;
          const known = new Set((before ?? []).map(one => one.id));
          const fresh = got.filter(one => !known.has(one.id)).length;
          if (before && fresh) {
            this._arrived.emit(fresh);
          }
        }),
        this.take(this.api.requests('approved'), got => (this.approved = got))
      );
    }
    if (topics.includes('jobs')) {
      asked.push(this.take(this.api.jobs(), got => (this.jobs = got)));
    }
    if (topics.includes('trainings')) {
      asked.push(
        this.take(this.api.trainings(), got => (this.trainings = got.reverse()))
      );
    }
    await Promise.all(asked);
  }

  private async take<T>(
    answer: Promise<T>,
    keep: (got: T) => void
  ): Promise<void> {
    try {
      const got = await answer;
      if (this.off) {
        return; // it ended in between
      }
      keep(got);
    } catch (error) {
      // The Node ends or the server is gone: the next event says so.
      console.debug('grid-jupyter: no answer', error);
      return;
    }
    if (!this.disposed) {
      this._changed.emit();
    }
  }

  private connect(): void {
    const { settings } = this.api;
    let url = URLExt.join(settings.wsUrl, 'grid', 'api', 'events');
    if (settings.appendToken && settings.token !== '') {
      url += `?token=${encodeURIComponent(settings.token)}`;
    }
    const socket = new settings.WebSocket(url);
    this.socket = socket;
    socket.onmessage = (event: MessageEvent) => {
      this.failures = 0;
      this.hear(JSON.parse(event.data as string) as IChanged);
    };
    socket.onclose = () => {
      if (this.disposed || this.socket !== socket) {
        return;
      }
      this.offline = true;
      this._changed.emit();
      const wait = Math.min(RETRY_MS * 2 ** this.failures, RETRY_MAX_MS);
      this.failures += 1;
      this.timer = window.setTimeout(() => this.connect(), wait);
    };
  }

  private hear(told: IChanged): void {
    this.offline = false;
    this.status = told.status;
    if (this.off) {
      this.datasets = this.requests = this.approved = null;
      this.jobs = this.trainings = null;
    }
    this._changed.emit();
    void this.refresh(told.changed);
  }

  private socket: WebSocket | null = null;
  private failures = 0;
  private timer = 0;
  private disposed = false;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _arrived = new Signal<this, number>(this);
}
