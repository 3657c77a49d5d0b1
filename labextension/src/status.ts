/** What the server says about this notebook server's Node, and how it is asked. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** The Node process as its supervisor sees it. */
export type State =
  | 'starting'
  | 'running'
  | 'restarting'
  | 'stopped'
  | 'failed';

/** How the Node stands with its Network. */
export type NetworkState = 'joined' | 'connecting' | 'refused' | 'none';

/** The Node's own account of itself. */
export interface INode {
  name: string;
  address: string;
  network: { address: string | null; state: NetworkState; detail: string };
  isolation: string;
  sessions: number;
  datasets: number;
  storage_bytes: number;
  guests: boolean;
}

/** The answer of `<base_url>/grid/api/status`. */
export interface IStatus {
  state: State;
  /** Why, and what to do about it; empty while all is well. */
  detail: string;
  /** Absent while the Node does not answer. */
  node: INode | null;
}

/**
 * Ask the Jupyter server for the Node's status.
 *
 * Rejects with `ServerConnection.NetworkError` when the Jupyter server does not
 * answer and with `ServerConnection.ResponseError` when it refuses.
 */
export async function fetchStatus(
  settings: ServerConnection.ISettings
): Promise<IStatus> {
  const url = URLExt.join(settings.baseUrl, 'grid', 'api', 'status');
  const response = await ServerConnection.makeRequest(url, {}, settings);
  if (!response.ok) {
    throw await ServerConnection.ResponseError.create(response);
  }
  return (await response.json()) as IStatus;
}
