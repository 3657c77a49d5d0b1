import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { GridApi } from '../src/api';
import { GridModel } from '../src/model';
import { Server } from './server';
import { dataset, request, status } from './told';

let server: Server;
let model: GridModel;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  server = new Server();
  model = new GridModel(new GridApi(server.settings));
});

afterEach(() => {
  model.dispose();
  vi.useRealTimers();
});

/** Tell of topics, and wait until what they were asked for is there. */
async function tell(...changed: string[]): Promise<void> {
  server.tell({ status: status('Bob'), changed });
  await new Promise<void>(done => {
    const messages = new MessageChannel();
    let left = 20;
    messages.port1.onmessage = () => {
      left -= 1;
      if (left) {
        messages.port2.postMessage(null);
      } else {
        messages.port1.close();
        done();
      }
    };
    messages.port2.postMessage(null);
  });
}

test('it listens below the base_url, with its token', () => {
  expect(server.sockets.map(socket => socket.url)).toEqual([
    'ws://127.0.0.1:1/user/x/grid/api/events?token=secret%2F%26'
  ]);
});

test('it asks anew for what is another, and for nothing else', async () => {
  server.answer('GET', 'datasets', () => ({ datasets: [dataset('ages')] }));
  await tell('datasets');
  expect(server.asked).toEqual(['GET datasets']);
  expect(model.datasets?.map(one => one.info.name)).toEqual(['ages']);
  expect(model.status?.node?.name).toBe('Bob');
});

test('what cannot be had leaves what was known', async () => {
  server.answer('GET', 'datasets', () => ({ datasets: [dataset('ages')] }));
  await tell('datasets');
  server.answer('GET', 'datasets', () => {
    throw new Error('gone');
  });
  await tell('datasets');
  expect(model.datasets).toHaveLength(1);
});

test('requests that were there at the beginning do not arrive; later ones do, once', async () => {
  const arrived: number[] = [];
  model.arrived.connect((_, count) => arrived.push(count));
  const waiting = [request('Ana', 1)];
  server.answer('GET', 'requests', url => ({
    requests: url.searchParams.has('state') ? [] : waiting
  }));
  await tell('requests');
  expect(arrived).toEqual([]);
  waiting.push(request('Ana', 2), request('Ana', 3));
  await tell('requests');
  await tell('requests');
  expect(arrived).toEqual([2]);
});

test('a connection that is lost is made again, later and later', async () => {
  const opened = () => server.sockets.length;
  await tell();
  for (const [wait, count] of [
    [500, 2],
    [1000, 3],
    [2000, 4],
    [4000, 5],
    [8000, 6],
    [8000, 7]
  ]) {
    server.leave();
    expect(model.offline).toBe(true);
    await vi.advanceTimersByTimeAsync(wait - 1);
    expect(opened()).toBe(count - 1);
    await vi.advanceTimersByTimeAsync(1);
    expect(opened()).toBe(count);
  }
  await tell();
  expect(model.offline).toBe(false);
  server.leave();
  await vi.advanceTimersByTimeAsync(500);
  expect(opened()).toBe(8);
});

test('a panel that is gone listens no more', async () => {
  model.dispose();
  expect(server.sockets[0].closed).toBe(true);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(server.sockets).toHaveLength(1);
});
