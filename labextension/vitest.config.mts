/** How the panel's parts are tested: in Node.js, with a document of jsdom. */

import { readFileSync } from 'node:fs';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [
    {
      name: 'svg-as-text',
      enforce: 'pre',
      load: id =>
        id.endsWith('.svg')
          ? `export default ${JSON.stringify(readFileSync(id, 'utf8'))}`
          : null
    }
  ],
  test: {
    // Modules that name others without the ending that Node.js wants.
    server: { deps: { inline: [/@jupyter/, /@lumino/, /@rjsf/] } },
    environment: 'jsdom',
    testTimeout: 30_000,
    setupFiles: ['tests/browser.ts'],
    isolate: false, // JupyterLab's modules take seconds to load: once is enough
    poolOptions: { forks: { singleFork: true } },
    include: ['tests/**/*.test.{ts,tsx}']
  }
});
