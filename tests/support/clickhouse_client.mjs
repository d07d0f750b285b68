// @clickhouse/client as its users use it, through a door: `clickhouse_client.mjs PORT live|outage|after`.
// Whatever is not as it should be ends it with an assertion.

import assert from "node:assert/strict";
import { createClient } from "@clickhouse/client";

const [port, phase] = process.argv.slice(2);
const url = `http://127.0.0.1:${port}`;
const connect = (compression) => createClient({ url, database: "default", compression, request_timeout: 10_000 });

async function live(rows) {
  const client = connect();
  assert.equal((await client.ping()).success, true);
  const table = "CREATE TABLE IF NOT EXISTS js (n UInt32, s String) ENGINE = MergeTree ORDER BY n";
  await client.command({ query: table });
  const count = async () => {
    const read = await client.query({ query: "SELECT toUInt32(count()) AS n FROM js", format: "JSONEachRow" });
    return (await read.json())[0].n;
  };
  const before = await count();
  const ways = [undefined, { request: true }, { response: true }, { request: true, response: true }];
  for (const compression of ways) {
    const packed = connect(compression);
    const values = Array.from({ length: rows }, (_, n) => ({ n, s: "x".repeat(100) }));
    await packed.insert({ table: "js", values, format: "JSONEachRow" });
    const read = await packed.query({ query: "SELECT s FROM js ORDER BY n LIMIT 2", format: "JSONEachRow" });
    assert.deepEqual(await read.json(), Array(2).fill({ s: "x".repeat(100) }));
    await packed.close();
  }
  assert.equal(await count(), before + rows * ways.length);
  const session_id = `s${process.pid}`;
  await client.command({ query: "CREATE TEMPORARY TABLE mine (n Int8)", session_id });
  await client.command({ query: "INSERT INTO mine VALUES (7)", session_id });
  const mine = await client.query({ query: "SELECT n FROM mine", format: "JSONEachRow", session_id });
  assert.deepEqual(await mine.json(), [{ n: 7 }]);
  const stream = await client.query({ query: "SELECT number FROM numbers(300000)", format: "JSONEachRow" });
  let seen = 0;
  for await (const part of stream.stream()) seen += part.length;
  assert.equal(seen, 300_000);
  await assert.rejects(client.query({ query: "SELECT nosuch" }), (error) => error.code === "47");
  await client.close();
}

// Each call ends with a clear error, and soon.
async function outage() {
  const client = connect({ request: true, response: true });
  assert.equal((await client.ping()).success, false);
  const calls = [
    () => client.query({ query: "SELECT 1" }),
    () => client.insert({ table: "js", values: [{ n: 1, s: "x" }], format: "JSONEachRow" }),
    () => client.command({ query: "CREATE TABLE no (n Int8) ENGINE = Memory" }),
  ];
  for (const call of calls) {
    const began = performance.now();
    await assert.rejects(call(), (error) => {
      assert.equal(error.code, "210", error);
      assert.match(error.message, /fusebox: clickhouse: .*not executed/);
      return true;
    });
    assert.ok(performance.now() - began < 3_000);
  }
  await client.close();
}

await { live: () => live(2_000), outage, after: () => live(50) }[phase]();
console.log("ok");
