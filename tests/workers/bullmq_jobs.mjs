// BullMQ's worker, its enqueuer, and who reads results: `bullmq_jobs.mjs worker`, without a word, and `results`.
// What the latter two print is said in enqueuer.py.

import { appendFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(`${process.env.MODULES}/`);
const { Queue, Worker } = require("bullmq");
const { hostname: host, port } = new URL(process.env.ADDRESS);
const connection = { host, port: Number(port) };

const roles = {
  worker() {
    const work = async (job) => {
      appendFileSync("done", `${job.data.number}\n`);
      await sleep(50);
      return job.data.number;
    };
    new Worker("jobs", work, { connection }).on("error", (error) => console.error(`error: ${error.message}`));
  },

  async enqueue() {
    // As BullMQ's guide says for producers: fail at once rather than wait for a connection.
    const queue = new Queue("jobs", { connection: { ...connection, enableOfflineQueue: false } });
    queue.on("error", () => {});
    await queue.waitUntilReady();
    for (let number = 1; ; number += 1) {
      await queue.add("job", { number }).then(
        (job) => console.log(`acked ${number} ${job.id}`),
        (error) => console.log(`refused ${number} ${error.name}: ${error.message.replaceAll("\n", " ")}`),
      );
      await sleep(100);
    }
  },

  async results() {
    const queue = new Queue("jobs", { connection });
    for await (const line of createInterface({ input: process.stdin })) {
      const [number, id] = line.split(" ");
      const job = await queue.getJob(id);
      if (job?.returnvalue !== Number(number)) console.log(number);
    }
    await queue.close();
  },
};

await roles[process.argv[2] ?? "enqueue"]();
