/** What jsdom lacks of a browser, for modules to be loaded; nothing of it is drawn. */

class Watch {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
}

Object.assign(globalThis, {
  DragEvent: MouseEvent,
  ResizeObserver: Watch,
  requestIdleCallback: (run: () => void) => window.setTimeout(run),
  cancelIdleCallback: (id: number) => window.clearTimeout(id),
  matchMedia: () => ({
    matches: false,
    addListener: () => undefined,
    addEventListener: () => undefined
  })
});
