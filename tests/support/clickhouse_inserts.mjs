// @clickhouse/client's inserts through a door that queues: `clickhouse_inserts.mjs PORT live|outage|restarted|one`.
// Each phase inserts rows that no other one does. Whatever is not as it should be ends it with an assertion.

import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { createClient } from "@clickhouse/client";

const [port, phase] = process.argv.slice(2);
const first = ["live", "outage", "restarted", "one"].indexOf(phase) * 1_000_000;
// This client does not send the name `default`: the server takes its own. After a restart nobody knows which.
const database = phase === "restarted" ? "local" : "default";
const all = [{ request: true, response: true }, { request: true }, undefined];
const ways = phase === "one" ? all.slice(0, 1) : all;
for (const [number, compression] of ways.entries()) {
  const client = createClient({ url: `http://127.0.0.1:${port}`, database, compression });
  for (let part = 0; part < (phase === "one" ? 1 : 3); part++) {
    const begin = first + number * 100_000 + part * 10_000;
    const values = Array.from({ length: 500 }, (_, n) => ({ n: begin + n, s: "x".repeat(100) }));
    // The last as a stream of objects.
    const sent = part === 2 ? Readable.from(values) : values;
    const done = await client.insert({ table: "js", values: sent, format: "JSONEachRow" });
    assert.equal(done.executed, true);
    assert.ok(done.query_id);
    assert.equal(done.summary.written_rows, phase === "live" ? "500" : "0");
  }
  await client.close();
}
console.log("ok");
