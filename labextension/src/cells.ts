/** Cells that the panel writes into a notebook. */

import { INodeOffers, IOffer } from './api';
import { call, isName, literal, quoted } from './python';

/** A comment, of which nothing can end. */
function comment(text: string): string {
  return `# ${quoted(text.slice(0, 80)).slice(1, -1).replace(/\\"/g, '"')}`;
}

/** A name for the variable of a data set. */
export function variableOf(offer: IOffer): string {
  const plain = (offer.name || offer.tags[0] || '')
    .normalize('NFKD')
    .replace(/[^A-Za-z0-9]+/g, '_')
    .replace(/^_+|_+$/g, '')
    .toLowerCase()
    .slice(0, 30);
  return isName(plain)
    ? plain
    : plain && isName(`_${plain}`)
      ? `data_${plain}`
      : 'data';
}

/** Lines that open the pointer to a data set. */
export function opening(
  node: INodeOffers,
  offer: IOffer,
  variable: string
): string[] {
  return [
    'import grid_jupyter as sy',
    '',
    connecting(node),
    `${variable} = node.pointer(${offer.id})  ${comment(offer.name || offer.tags.join(' '))}`
  ];
}

function connecting(node: INodeOffers): string {
  return `node = ${call(
    'sy.NodeClient',
    [quoted(node.address)],
    [['user', node.user ? quoted(node.user) : null]]
  )}  ${comment(node.name)}`;
}

/** What is asked of a job on one Node. */
export interface IJobForm {
  model: string;
  loss: string;
  targets: IOffer | null;
  epochs: number;
  batchSize: number;
  lr: number;
  reason: string;
}

/** The cell that submits a job on one Node's data: `node.submit(…)`. */
export function submitting(
  node: INodeOffers,
  rows: IOffer,
  form: IJobForm
): string {
  const x = variableOf(rows);
  const targets = form.targets;
  const y = targets
    ? variableOf(targets) === x
      ? `${x}_targets`
      : variableOf(targets)
    : '';
  const data = [`"x": ${x}`, ...(y ? [`"y": ${y}`] : [])].join(', ');
  return [
    ...opening(node, rows, x),
    ...(targets
      ? [`${y} = node.pointer(${targets.id})  ${comment(targets.name)}`]
      : []),
    `job = ${call(
      'node.submit',
      [form.model],
      [
        ['loss', `torch.nn.${form.loss}()`],
        ['data', `{${data}}`],
        ['optimizer', `sy.SGD(lr=${literal(form.lr)})`],
        ['epochs', literal(form.epochs)],
        ['batch_size', literal(form.batchSize)],
        ['reason', form.reason ? quoted(form.reason) : null]
      ]
    )}`,
    'job'
  ]
    .join('\n')
    .replace(
      'import grid_jupyter as sy\n',
      'import torch\n\nimport grid_jupyter as sy\n'
    );
}

/** What is asked of a training at all Nodes. */
export interface ITrainForm {
  model: string;
  loss: string;
  rows: string[];
  targets: string[];
  rounds: number;
  epochs: number;
  batchSize: number;
  lr: number;
  reason: string;
}

/** The cell that trains at all Nodes with data of these tags: `grid.train(…)`. */
export function training(
  network: string,
  user: string,
  form: ITrainForm
): string {
  const searching = (tags: string[]) =>
    `grid.search(${tags.map(quoted).join(', ')})`;
  return [
    'import torch',
    '',
    'import grid_jupyter as sy',
    '',
    `grid = ${call(
      'sy.PublicGridNetwork',
      [quoted(network)],
      [['user', user ? quoted(user) : null]]
    )}`,
    `fit = ${call(
      'grid.train',
      [form.model, `torch.nn.${form.loss}()`],
      [
        ['data', `(${searching(form.rows)}, ${searching(form.targets)})`],
        ['rounds', literal(form.rounds)],
        ['optimizer', `sy.SGD(lr=${literal(form.lr)})`],
        ['local_epochs', literal(form.epochs)],
        ['batch_size', literal(form.batchSize)],
        ['reason', form.reason ? quoted(form.reason) : null]
      ]
    )}`,
    'fit.history'
  ].join('\n');
}
