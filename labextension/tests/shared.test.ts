import { readFileSync } from 'node:fs';
import ts from 'typescript';
import { expect, test } from 'vitest';

test('the widgets draw curves as the panel does', async () => {
  const { outputText } = ts.transpileModule(
    readFileSync(`${__dirname}/../src/chart.ts`, 'utf8'),
    {
      compilerOptions: {
        module: ts.ModuleKind.ESNext,
        target: ts.ScriptTarget.ES2020
      }
    }
  );
  // `npx vitest run -u` in labextension/ writes it
  await expect(
    `// Made of labextension/src/chart.ts: change it there.\n${outputText}`
  ).toMatchFileSnapshot('../../grid_jupyter/widgets/static/chart.js');
});
