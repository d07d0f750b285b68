// ioredis and node-redis as their users use them, through a door:
// `redis_clients.mjs SOCKET live|outage|after|lives CLIENT`.
// Whatever is not as it should be ends it with an assertion.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

const [socket, phase, which] = process.argv.slice(2);
const key = `${which}:`;
// Every byte there is, also in the name of a key; and five mebibytes of them.
const every = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
const name = Buffer.concat([Buffer.from(key), every]);
const large = Buffer.alloc(5 << 20, every);
const release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

// Sets what each line of the input says, through whatever happens meanwhile, and prints its key.
async function lives(client) {
  for await (const number of createInterface({ input: process.stdin })) {
    const until = Date.now() + 15_000;
    for (;;) {
      try {
        assert.equal(await client.set(key + number, number), "OK");
        assert.equal(await client.get(key + number), number);
        break;
      } catch (error) {
        if (error instanceof assert.AssertionError || Date.now() > until) throw error;
        // The client connects again meanwhile.
        await new Promise(setImmediate);
      }
    }
    console.log(key + number);
  }
}

async function withIoredis() {
  const { default: Redis } = await import("ioredis");
  const client = new Redis(socket, { retryStrategy: () => 50, maxRetriesPerRequest: 3 });
  client.on("error", () => {});
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
      const watcher = client.duplicate();
      await client.set(key + "raced", 1);
      await watcher.watch(key + "raced");
      await client.set(key + "raced", 20);
      assert.equal(await watcher.multi().incr(key + "raced").exec(), null);
      await watcher.watch(key + "raced");
      assert.deepEqual(await watcher.multi().incr(key + "raced").exec(), [[null, 21]]);
      watcher.disconnect();
      assert.equal(await client.set(key + "lock", "me", "PX", 30_000, "NX"), "OK");
      assert.equal(await client.set(key + "lock", "you", "PX", 30_000, "NX"), null);
      assert.equal(await client.eval(release, 1, key + "lock", "you"), 0);
      assert.equal(await client.eval(release, 1, key + "lock", "me"), 1);
      assert.equal(await client.exists(key + "lock"), 0);
      assert.equal(await client.set(name, every), "OK");
      assert.ok(every.equals(await client.getBuffer(name)));
      assert.equal(await client.set(key + "large", large), "OK");
      assert.ok(large.equals(await client.getBuffer(key + "large")));
    },
    async outage() {
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.get(key + "none"), null);
      assert.equal(await client.set(key + "name", "grace"), "OK");
      assert.equal(await client.get(key + "name"), "grace");
      assert.ok(every.equals(await client.getBuffer(name)));
      await assert.rejects(client.incr(key + "count"), /^ReplyError: LOADING fusebox: .*not executed/);
    },
    async after() {
      assert.equal(await client.get(key + "name"), "grace");
      assert.equal(await client.get(key + "count"), "7");
      assert.ok(large.equals(await client.getBuffer(key + "large")));
    },
    lives: () => lives(client),
  };
  await phases[phase]();
  client.disconnect();
}

async function withNodeRedis() {
  const { createClient, RESP_TYPES, WatchError } = await import("redis");
  const client = createClient({ socket: { path: socket } });
  client.on("error", () => {});
  await client.connect();
  const plain = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  const another = async () => {
    const other = client.duplicate();
    other.on("error", () => {});
    await other.connect();
    return other;
  };
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
      const subscriber = await another();
      const heard = new Promise((resolve) => subscriber.subscribe(key + "news", resolve));
      let reached = 0;
      while (reached === 0) reached = await client.publish(key + "news", "hi");
      assert.equal(await heard, "hi");
      subscriber.destroy();
      const waiter = await another();
      const popped = waiter.blPop(key + "jobs", 5);
      await client.rPush(key + "jobs", "job");
      assert.deepEqual({ ...(await popped) }, { key: key + "jobs", element: "job" });
      waiter.destroy();
      const watcher = await another();
      await client.set(key + "raced", "1");
      await watcher.watch(key + "raced");
      await client.set(key + "raced", "20");
      await assert.rejects(watcher.multi().incr(key + "raced").exec(), WatchError);
      await watcher.watch(key + "raced");
      assert.deepEqual(await watcher.multi().incr(key + "raced").exec(), [21]);
      watcher.destroy();
      const once = { condition: "NX", expiration: { type: "PX", value: 30_000 } };
      const releases = (who) => client.eval(release, { keys: [key + "lock"], arguments: [who] });
      assert.equal(await client.set(key + "lock", "me", once), "OK");
      assert.equal(await client.set(key + "lock", "you", once), null);
      assert.equal(await releases("you"), 0);
      assert.equal(await releases("me"), 1);
      assert.equal(await client.exists(key + "lock"), 0);
      assert.equal(await client.set(name, every), "OK");
      assert.ok(every.equals(await plain.get(name)));
      assert.equal(await client.set(key + "large", large), "OK");
      assert.ok(large.equals(await plain.get(key + "large")));
    },
    async outage() {
      assert.equal(await client.get(key + "name"), "ada");
      assert.equal(await client.set(key + "name", "grace"), "OK");
      assert.equal(await client.get(key + "name"), "grace");
      assert.ok(every.equals(await plain.get(name)));
      await assert.rejects(client.incr(key + "count"), /LOADING fusebox: .*not executed/);
    },
    async after() {
      assert.equal(await client.get(key + "name"), "grace");
      assert.equal(await client.get(key + "count"), "2");
      assert.ok(large.equals(await plain.get(key + "large")));
    },
    lives: () => lives(client),
  };
  await phases[phase]();
  client.destroy();
}

await { ioredis: withIoredis, node_redis: withNodeRedis }[which]();
console.log("ok");
