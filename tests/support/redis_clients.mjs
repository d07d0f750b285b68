// ioredis and node-redis as their users use them, through a door: `redis_clients.mjs SOCKET live|outage|after CLIENT`.
// Whatever is not as it should be ends it with an assertion.

import assert from "node:assert/strict";

const [socket, phase, which] = process.argv.slice(2);
const key = `${which}:`;

async function withIoredis() {
  const { default: Redis } = await import("ioredis");
  const client = new Redis(socket, { retryStrategy: () => 50, maxRetriesPerRequest: 3 });
  const phases = {
    async live() {
      assert.equal(await client.set(key + "name", "ada"), "OK");
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.get(key + "none"), null);
      assert.equal(await client.incr(key + "count"), 1);
      await client.hset(key + "hash", { a: 1 });
      assert.deepEqual({ ...(await client.hgetall(key + "hash")) }, { a: "1" });
      const piped = await client.pipeline().set(key + "p", 1).get(key + "p").exec();
      assert.deepEqual(piped, [[null, "OK"], [null, "1"]]);
      const done = await client.multi().incr(key + "count").incr(key + "count").exec();
      assert.deepEqual(done, [[null, 2], [null, 3]]);
      client.defineCommand("add", { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], ARGV[1])" });
      assert.equal(await client.add(key + "count", 4), 7);
      const waiter = client.duplicate();
      const popped = waiter.blpop(key + "jobs", 5);
      await client.rpush(key + "jobs", "job");
      assert.deepEqual(await popped, [key + "jobs", "job"]);
      waiter.disconnect();
      const subscriber = client.duplicate();
      const heard = new Promise((resolve) => subscriber.on("message", (_, text) => resolve(text)));
      await subscriber.subscribe(key + "news");
      assert.equal(await client.publish(key + "news", "hi"), 1);
      assert.equal(await heard, "hi");
      subscriber.disconnect();
    },
    async outage() {
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.get(key + "none"), null);
      assert.equal(await client.set(key + "name", "grace"), "OK");
      assert.equal(await client.get(key + "name"), "grace");
      await assert.rejects(client.incr(key + "count"), /^ReplyError: LOADING fusebox: .*not executed/);
    },
    async after() {
      assert.equal(await client.get(key + "name"), "grace");
      assert.equal(await client.get(key + "count"), "7");
    },
  };
  await phases[phase]();
  client.disconnect();
}

async function withNodeRedis() {
  const { createClient } = await import("redis");
  const client = createClient({ socket: { path: socket } });
  client.on("error", () => {});
  await client.connect();
  const phases = {
    async live() {
      assert.equal(await client.set(key + "name", "ada"), "OK");
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.incr(key + "count"), 1);
      await client.hSet(key + "hash", { a: "1" });
      assert.deepEqual({ ...(await client.hGetAll(key + "hash")) }, { a: "1" });
      const done = await client.multi().incr(key + "count").get(key + "count").exec();
      assert.deepEqual(done, [2, "2"]);
      const all = await Promise.all(Array.from({ length: 200 }, (_, n) => client.set(key + n, String(n))));
      assert.ok(all.every((told) => told === "OK"));
      const subscriber = client.duplicate();
      subscriber.on("error", () => {});
      await subscriber.connect();
      const heard = new Promise((resolve) => subscriber.subscribe(key + "news", resolve));
      let reached = 0;
      while (reached === 0) reached = await client.publish(key + "news", "hi");
      assert.equal(await heard, "hi");
      subscriber.destroy();
    },
    async outage() {
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.set(key + "name", "grace"), "OK");
      assert.equal(await client.get(key + "name"), "grace");
      await assert.rejects(client.incr(key + "count"), /LOADING fusebox: .*not executed/);
    },
    async after() {
      assert.equal(await client.get(key + "name"), "grace");
      assert.equal(await client.get(key + "count"), "2");
    },
  };
  await phases[phase]();
  client.destroy();
}

await { ioredis: withIoredis, node_redis: withNodeRedis }[which]();
console.log("ok");
