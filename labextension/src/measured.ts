/** What devices measured in a training, fetched as it comes, and as curves: means weighted by samples, and each device. */

import { TranslationBundle } from '@jupyterlab/translation';
import { IMeasured, ITraining } from './api';
import { ICurves, ILine } from './chart';
import { Look } from './curves';
import { GridModel } from './model';

/** Devices that get a line of their own. */
const DEVICES = 50;

/** What tells a training from all others of its Node. */
export function keyOf(training: ITraining): string {
  return JSON.stringify([training.name, training.version]);
}

/** What finds the curves of a training: asks for what is new whenever the training moves. */
export function measuredOf(
  training: ITraining,
  trans: TranslationBundle
): Look {
  const rows: IMeasured[] = [];
  let after = 0;
  let seen: ITraining | undefined;
  let asking = false;
  let drawn: ICurves | null = null;
  return (model: GridModel) => {
    const now = model.trainings?.find(one => keyOf(one) === keyOf(training));
    if (now && now !== seen && !asking) {
      asking = true;
      seen = now; // told anew: something of it is another
      void (async () => {
        try {
          let more = true;
          while (more) {
            const got = await model.api.measured(training, after);
            rows.push(...got.metrics);
            ({ next: after, more } = got);
          }
          drawn = curves(rows, trans);
        } catch (error) {
          console.debug('grid-jupyter: no metrics', error);
        } finally {
          asking = false;
          model.redraw();
        }
      })();
    }
    return drawn;
  };
}

/** Σ nᵢ·vᵢ / Σ nᵢ over the devices of a cycle, and the devices by themselves. */
function curves(rows: IMeasured[], trans: TranslationBundle): ICurves {
  const rounds = [...new Set(rows.map(row => row.cycle))].sort((a, b) => a - b);
  const place = new Map(rounds.map((round, index) => [round, index]));
  const sums = new Map<string, { sum: number; samples: number }[]>();
  const each = new Map<string, ILine>();
  for (const row of rows) {
    const index = place.get(row.cycle) as number;
    for (const [metric, value] of Object.entries(row.values)) {
      let all = sums.get(metric);
      if (!all) {
        all = rounds.map(() => ({ sum: 0, samples: 0 }));
        sums.set(metric, all);
      }
      all[index].sum += value * row.samples;
      all[index].samples += row.samples;
      if (row.worker <= DEVICES) {
        const key = `${row.worker}/${metric}`;
        let line = each.get(key);
        if (!line) {
          line = {
            metric,
            by: trans.__('device %1', row.worker),
            values: rounds.map(() => null)
          };
          each.set(key, line);
        }
        line.values[index] = value;
      }
    }
  }
  return {
    unit: trans.__('cycle'),
    rounds,
    lines: [
      ...[...sums].map(([metric, all]) => ({
        metric,
        by: '',
        values: all.map(one => (one.samples ? one.sum / one.samples : null))
      })),
      ...each.values()
    ]
  };
}
