/** What a Node may tell: plain things of every kind, and texts that would be something else than texts. */

import {
  IDataset,
  IJob,
  INodeOffers,
  IOffer,
  IRequest,
  IStatus,
  ITraining
} from '../src/api';

export const HOSTILE = [
  '<img src=x onerror="window.stolen=1">',
  "</script><script>window.stolen=1</script><b data-commandlinker-command='x'>",
  '"); import os; os.system("x")#',
  '\n"""\nimport os\n',
  'turned \u202eevil\u2066',
  '%1 %2 {{constructor}} ${window.stolen=1}'
];

export function offer(change: Partial<IOffer> = {}): IOffer {
  return {
    id: 1,
    kind: 'table',
    name: 'ages',
    tags: ['#ages'],
    description: '',
    owner: 'Bob',
    count: 1,
    parts: [['age', 'float32', [3]]],
    mock: false,
    jobs: true,
    ...change
  };
}

export function node(change: Partial<INodeOffers> = {}): INodeOffers {
  return {
    name: 'ward7',
    address: 'http://127.0.0.1:3000',
    user: 'Ana',
    offers: [],
    error: '',
    ...change
  };
}

export function status(text: string): IStatus {
  return {
    state: 'running',
    detail: text,
    node: {
      name: text,
      address: text,
      network: { address: text, state: 'joined', detail: text },
      isolation: text,
      device: text,
      devices: [
        { name: 'cpu', label: text, memory_bytes: 1e9, shares: [0.5, 0.5] }
      ],
      sessions: 1,
      connected: ['', text],
      datasets: 1,
      storage_bytes: 1500,
      guests: false
    }
  };
}

export function dataset(text: string): IDataset {
  return {
    info: {
      id: 1,
      version: 1,
      kind: 'table',
      name: text,
      tags: [text],
      description: text,
      owner: text,
      tensors: [{ name: 'col/0', dtype: 'float32', shape: [3] }],
      columns: [{ name: text, dtype: 'float32' }],
      jobs: {
        automatic: [text],
        jobs: true,
        values: true,
        min_rows: 1,
        min_steps: 1,
        epoch_metrics: false,
        full_isolation: false
      },
      mock: false
    },
    allowed_users: [text],
    compute_users: [text],
    public_tags: false,
    nbytes: 12,
    created: 0,
    opened: 1,
    opened_by: 1,
    opened_last: 0
  };
}

export function request(text: string, id = 1, shown = {}): IRequest {
  return {
    id,
    kind: 'job',
    asker: text,
    reason: text,
    state: 'waiting',
    review: false,
    created: 0,
    expires: 0,
    data: [{ dataset: 1, version: 1, owner: text }],
    decisions: [],
    dialogue: [{ at: 0, by: text, what: 'question', text }],
    shown: {
      plan: `takes\n  %0 float32[3]\ndoes\n  %1 = ${text}(%0)`,
      plan_sha256: text,
      graph: `<svg xmlns="http://www.w3.org/2000/svg"><script>window.stolen=1</script></svg>`,
      arguments: { [text]: text },
      released: text,
      result: text,
      computed: [text],
      value: { error: text },
      rows: [{ at_most: 8, of: 8, dataset: text }],
      ...shown
    }
  };
}

export function job(text: string): IJob {
  return {
    id: 'a',
    state: text,
    by: text,
    reason: text,
    said: text,
    rows: 3,
    model_bytes: 4,
    data: { x: { dataset: 1 } },
    arguments: { epochs: 1, rounds: 3, batch_size: 1 },
    created: 0,
    began: 0,
    ended: null,
    rounds_done: 1,
    progress: null,
    log: [{ at: 0, text }],
    history: [{ [text]: 0.5 }]
  };
}

export function training(change: Partial<ITraining> = {}): ITraining {
  return {
    owner: 'Bob',
    name: 'ward 7',
    version: '1.0',
    phase: 'open',
    cycle: 1,
    completed: 0,
    num_cycles: 3,
    workers: 2,
    reports: 0,
    checkpoint: 1,
    timeout: null,
    problem: '',
    ...change
  };
}

/** What a kernel tells of a training of `grid.train`. */
export function told(change: object = {}): object {
  return {
    phase: 'running',
    reason: 'for ward 7',
    done: 1,
    asked: 20,
    nodes: 2,
    left_out: [['Cleo', 'it was away']],
    unit: 'round',
    rounds: [1, 2],
    lines: [
      { metric: 'accuracy', by: '', values: [0.5, 0.75] },
      { metric: 'loss', by: 'Alma', values: [1.5, null] }
    ],
    ...change
  };
}
