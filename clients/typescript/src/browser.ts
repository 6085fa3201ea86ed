/**
 * Runs coding tasks on a Kage Bunshin coordinator, from a page: over gRPC-Web, which the coordinator
 * serves on its one port. `kage coordinator --web-origin ORIGIN` lets pages of another origin in.
 *
 * It has everything of the Node entry but git: pages send no bases and fetch no results, but
 * `Client.diff` has what a session changed. Nothing here imports from Node.
 */

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { Client } from "./client.js";

export * from "./shared.js";

/**
 * A client of the coordinator at this address, such as `https://coordinator-host:7443`. The browser decides
 * which certificates are trusted. Nothing is sent before the first call.
 */
export function connect(url: string, token: string): Client {
  const authorization = `Bearer ${token.trim()}`;
  const transport = createGrpcWebTransport({
    baseUrl: url,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", authorization);
        return next(request);
      },
    ],
  });
  return new Client(transport);
}
