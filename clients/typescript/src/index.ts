/**
 * Runs coding tasks on a Kage Bunshin coordinator, from Node. Begin with {@link connect}.
 *
 * Every message of the protocol is in `@kage-bunshin/client/v1/*`; those a client needs
 * are also here.
 */

export { connect, type ConnectOptions, NodeClient } from "./node.js";
export * from "./shared.js";
