/** What the Jupyter server is asked about this notebook server's Node, and what it answers. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** The Node process as its supervisor sees it. */
export type State =
  'starting' | 'running' | 'restarting' | 'stopped' | 'failed';

/** How the Node stands with its Network. */
export type NetworkState = 'joined' | 'connecting' | 'refused' | 'none';

/** What a Node computes with. */
export interface IDevice {
  name: string;
  label: string;
  memory_bytes: number;
  /** Fractions of it: one for each Worker that may run at once. */
  shares: number[];
}

/** The Node's own account of itself. */
export interface INode {
  name: string;
  address: string;
  network: { address: string | null; state: NetworkState; detail: string };
  isolation: string;
  /** In words. */
  device?: string;
  devices?: IDevice[];
  sessions: number;
  /** Who is connected; "" stands for guests. */
  connected?: string[];
  datasets: number;
  storage_bytes: number;
  guests: boolean;
}

/** The answer of `<base_url>/grid/api/status`. */
export interface IStatus {
  state: State;
  /** Why, and what to do about it; empty while all is well. */
  detail: string;
  /** Whether another program runs the Node. */
  attached?: boolean;
  /** Where others reach the Node through this Jupyter server; null where they do not. `address` may be empty. */
  public?: { path: string; address: string } | null;
  /** Absent while the Node does not answer. */
  node: INode | null;
}

/** What the owner of a data set says about jobs and single values. */
export interface IJobPolicy {
  automatic: string[];
  jobs: boolean;
  values: boolean;
  min_rows: number;
  min_steps: number;
  epoch_metrics: boolean;
  full_isolation: boolean;
}

/** A data set as the owner of its Node sees it. */
export interface IDataset {
  info: {
    id: number;
    version: number;
    kind: string;
    name: string;
    tags: string[];
    description: string;
    owner: string;
    tensors: { name: string; dtype: string; shape: number[] }[];
    columns: { name: string; dtype: string }[];
    jobs: IJobPolicy;
    mock: boolean;
  };
  allowed_users: string[];
  /** null: everybody whom the Node lets in. */
  compute_users: string[] | null;
  public_tags: boolean;
  nbytes: number;
  created: number;
  /** How often sessions opened it, how many users, when last. */
  opened: number;
  opened_by: number;
  opened_last: number | null;
}

/** What of a data set is changed; what is left out stays. */
export interface IEdit {
  tags?: string[];
  description?: string;
  allowed_users?: string[];
  compute_users?: string[] | null;
  public_tags?: boolean;
  jobs?: IJobPolicy;
}

/** Data as its owner sees it before it is published; null stands for a missing value. */
export interface IPreview {
  kind: 'table' | 'tensor' | 'arrays';
  /** null where only the first rows were read. */
  rows: number | null;
  count: number;
  /** Name, dtype, shape of columns or arrays. */
  parts: [string, string, string][];
  first: (string | null)[][];
  nbytes: number;
}

/** A variable of a notebook that can be published. */
export interface IVariable {
  name: string;
  kind: string;
  shape: number[];
}

/** What the owner says of a file that is published. */
export interface IPublication {
  name: string;
  tags: string[];
  description: string;
  allowed_users: string[];
  compute_users: string[] | null;
  public_tags: boolean;
  jobs: IJobPolicy;
  /** Random mock rows. */
  mock: number;
}

/** A data set of some Node, as a list shows it. */
export interface IOffer {
  id: number;
  kind: string;
  name: string;
  tags: string[];
  description: string;
  owner: string;
  count: number;
  /** Name, dtype, shape of columns or arrays: the first of them. */
  parts: [string, string, number[]][];
  mock: boolean;
  jobs: boolean;
}

/** What a Node has for this user; `error` says why that is not known. */
export interface INodeOffers {
  name: string;
  address: string;
  user: string;
  offers: IOffer[];
  error: string;
}

/** A Network as this user sees it. */
export interface INetwork {
  /** Empty where there is none. */
  address: string;
  users: string[];
  nodes: string[];
  tags: string[];
  error: string;
}

/** A request for a job or a value. */
export interface IRequest {
  id: number;
  kind: string;
  asker: string;
  reason: string;
  state: string;
  review: boolean;
  created: number;
  expires: number;
  data: { dataset: number; version: number; owner: string }[];
  decisions: { owner: string; state: string; by: string }[];
  dialogue: { at: number; by: string; what: string; text: string }[];
  shown: { [key: string]: unknown };
}

/** A job of this Node. */
export interface IJob {
  id: string;
  state: string;
  by: string;
  reason: string;
  said: string;
  rows: number;
  model_bytes: number;
  data: { [input: string]: { dataset: number } };
  arguments: { epochs: number; rounds: number; batch_size: number };
  created: number;
  began: number | null;
  ended: number | null;
  rounds_done: number;
  /** 0 to 1; null where that is not for the owner to see. */
  progress: number | null;
  log: { at: number; text: string }[];
  /** By round or epoch; null where that is not for the owner to see. */
  history: { [metric: string]: number }[] | null;
}

/** A model-centric training that this Node hosts. */
export interface ITraining {
  owner: string;
  name: string;
  version: string;
  phase: 'gathering' | 'open' | 'closing' | 'over' | 'failed';
  cycle: number;
  completed: number;
  /** 0: without end. */
  num_cycles: number;
  workers: number;
  reports: number;
  checkpoint: number;
  /** Seconds until the cycle ends. */
  timeout: number | null;
  /** Why it does not go on; empty while it does. */
  problem: string;
}

/** What one device measured in one cycle. */
export interface IMeasured {
  cycle: number;
  worker: number;
  samples: number;
  values: { [metric: string]: number };
}

/** The calls, one for each thing that the panel does. */
export class GridApi {
  constructor(readonly settings: ServerConnection.ISettings) {}

  async datasets(): Promise<IDataset[]> {
    return (await this.call<{ datasets: IDataset[] }>('GET', 'datasets'))
      .datasets;
  }

  edit(dataset: number, edit: IEdit): Promise<IDataset> {
    return this.call('PATCH', `datasets/${dataset}`, edit);
  }

  /** What is in a file of the file browser. */
  preview(path: string): Promise<IPreview> {
    return this.call('POST', 'preview', { path });
  }

  publish(path: string, publish: IPublication): Promise<IDataset> {
    return this.call('POST', 'publish', { path, publish });
  }

  unpublish(dataset: number): Promise<unknown> {
    return this.call('DELETE', `datasets/${dataset}`);
  }

  network(): Promise<INetwork> {
    return this.call('GET', 'network');
  }

  async search(user: string, tags: string[]): Promise<INodeOffers[]> {
    return (
      await this.call<{ nodes: INodeOffers[] }>('POST', 'network/search', {
        user,
        tags
      })
    ).nodes;
  }

  /** Those that wait for a decision, or those in a state. */
  async requests(state = ''): Promise<IRequest[]> {
    const query = state ? `?state=${encodeURIComponent(state)}` : '';
    return (
      await this.call<{ requests: IRequest[] }>('GET', `requests${query}`)
    ).requests;
  }

  decide(
    request: number,
    verb: 'approve' | 'deny' | 'ask' | 'revoke',
    body: { text?: string; review?: boolean } = {}
  ): Promise<IRequest> {
    return this.call('POST', `requests/${request}/${verb}`, body);
  }

  async jobs(): Promise<IJob[]> {
    return (await this.call<{ jobs: IJob[] }>('GET', 'jobs')).jobs;
  }

  async trainings(): Promise<ITraining[]> {
    return (await this.call<{ trainings: ITraining[] }>('GET', 'trainings'))
      .trainings;
  }

  /** Training is over; its checkpoints stay. */
  end(training: ITraining): Promise<unknown> {
    const { name, version } = training;
    return this.call('POST', 'trainings', { name, version });
  }

  /** All of it is forgotten, its checkpoints too. */
  forget(training: ITraining): Promise<unknown> {
    const { name, version } = training;
    return this.call('POST', 'trainings', { name, version, delete: true });
  }

  /** What devices measured, behind the row `after`. */
  measured(
    training: ITraining,
    after: number
  ): Promise<{ metrics: IMeasured[]; next: number; more: boolean }> {
    const query = new URLSearchParams({
      name: training.name,
      version: training.version,
      after: String(after)
    });
    return this.call('GET', `trainings/metrics?${query}`);
  }

  cancel(job: string): Promise<IJob> {
    return this.call('DELETE', `jobs/${job}`);
  }

  node(verb: 'start' | 'stop' | 'restart'): Promise<IStatus> {
    return this.call('POST', `node/${verb}`);
  }

  /**
   * Rejects with `ServerConnection.NetworkError` when the Jupyter server does
   * not answer, and with `ServerConnection.ResponseError`, whose message says
   * why, when it or the Node refuses.
   */
  private async call<T>(
    method: string,
    path: string,
    body?: unknown
  ): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'grid', 'api', path);
    const init: RequestInit = { method };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
    }
    const response = await ServerConnection.makeRequest(
      url,
      init,
      this.settings
    );
    if (!response.ok) {
      throw await ServerConnection.ResponseError.create(response);
    }
    return (await response.json()) as T;
  }
}
