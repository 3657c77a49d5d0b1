/** The Grid's icon: four Nodes, each joined with its neighbours. */

import { LabIcon } from '@jupyterlab/ui-components';
import svgstr from '../style/grid.svg';

export const gridIcon = new LabIcon({ name: 'grid-jupyter:icon', svgstr });
