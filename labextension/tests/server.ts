/** A Jupyter server at the outermost edge: answers what it was told to, and speaks by a WebSocket. */

import { ServerConnection } from '@jupyterlab/services';

type Answer = (url: URL) => unknown;

export class Server {
  /** What was asked, as "GET datasets". */
  readonly asked: string[] = [];
  /** What was said with it, in this order. */
  readonly bodies: unknown[] = [];
  /** Where the panel listened, the newest last. */
  readonly sockets: Socket[] = [];

  readonly settings = ServerConnection.makeSettings({
    baseUrl: 'http://127.0.0.1:1/user/x/',
    wsUrl: 'ws://127.0.0.1:1/user/x/',
    token: 'secret/&',
    appendToken: true,
    WebSocket: this.socketClass() as unknown as typeof WebSocket,
    fetch: (input: RequestInfo) =>
      Promise.resolve().then(() => this.fetch(new Request(input)))
  });

  answer(method: string, path: string, answer: Answer): void {
    this.answers.set(`${method} ${path}`, answer);
  }

  /** Tell the panel that something is another. */
  tell(told: unknown): void {
    this.sockets[this.sockets.length - 1].onmessage({
      data: JSON.stringify(told)
    });
  }

  /** The connection is lost. */
  leave(): void {
    this.sockets[this.sockets.length - 1].onclose();
  }

  private async fetch(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const path = url.pathname.split('/grid/api/')[1];
    this.asked.push(`${request.method} ${path}`);
    const body = await request.text();
    if (body) {
      this.bodies.push(JSON.parse(body));
    }
    const answer = this.answers.get(`${request.method} ${path}`);
    return answer
      ? Response.json(answer(url))
      : Response.json({ message: 'no such thing' }, { status: 404 });
  }

  private socketClass() {
    const { sockets } = this;
    return class extends Socket {
      constructor(url: string) {
        super(url);
        sockets.push(this);
      }
    };
  }

  private readonly answers = new Map<string, Answer>();
}

class Socket {
  constructor(readonly url: string) {}
  onmessage: (event: { data: string }) => void = () => undefined;
  onclose: () => void = () => undefined;
  closed = false;

  close(): void {
    this.closed = true;
    this.onclose();
  }
}
