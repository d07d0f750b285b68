// Google's Firestore client for Node at the Firestore door, which is all that it knows of fusebox.
//
// usage: firestore_door.mjs PROJECT live|outage|after
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const require = createRequire(import.meta.url);
const { Firestore, FieldValue, AggregateField } = require("@google-cloud/firestore");

const [project, phase] = process.argv.slice(2);
// An outage is told at once, and not after the client has tried for minutes.
const AT_ONCE = 3_000;
const PATIENCE = 30_000;
const database = new Firestore({ projectId: project });
const people = database.collection("people");
const ada = people.doc("grace");

/** Ends soon, with an error that says what it is. */
async function refused(what, call) {
  const began = Date.now();
  let error;
  try {
    await call();
  } catch (caught) {
    error = caught;
  }
  const took = Date.now() - began;
  assert(error, `${what} was answered`);
  assert(took < AT_ONCE, `${what} took ${took} ms: ${error}`);
  assert.match(String(error), /fusebox: firestore/, what);
}

/** A listener hears of a change. */
async function watched(change, expected) {
  let stop = () => {};
  const hears = new Promise((resolve, reject) => {
    let changed = false;
    stop = ada.onSnapshot((snapshot) => {
      if (!changed) {
        changed = true;
        change().catch(reject);
      }
      if (snapshot.get("n") === expected) resolve();
    }, reject);
    setTimeout(() => reject(new Error("the change is not heard")), PATIENCE).unref();
  });
  try {
    await hears;
  } finally {
    stop();
  }
}

function increment(options) {
  return database.runTransaction(async (transaction) => {
    const count = (await transaction.get(ada)).get("n") + 1;
    transaction.update(ada, { n: count });
    return count;
  }, options);
}

const phases = {
  async live() {
    await ada.set({ name: "Grace", n: 0 });
    await ada.update({ born: 1906 });
    assert.deepEqual((await ada.get()).data(), { name: "Grace", n: 0, born: 1906 });
    const batch = database.batch();
    for (let n = 0; n < 50; n += 1) batch.set(people.doc(`q${n}`), { q: n });
    await batch.commit();
    const found = await people.where("q", ">=", 40).get();
    assert.equal(found.size, 10);
    const counted = await people.where("q", ">=", 0).aggregate({ all: AggregateField.count() }).get();
    assert.equal(counted.data().all, 50);
    await ada.update({ n: FieldValue.increment(1) });
    assert.equal(await increment(), 2);
    const [one, none] = await database.getAll(ada, people.doc("none"));
    assert(one.exists && !none.exists);
    await watched(() => ada.update({ n: 7 }), 7);
    await assert.rejects(ada.create({}), { code: 6 });
  },
  async outage() {
    await refused("set", () => ada.set({ n: 1 }));
    await refused("update", () => ada.update({ n: 1 }));
    await refused("get", () => ada.get());
    await refused("query", () => people.limit(1).get());
    // Left alone, this client begins a transaction five times over, whatever ends it.
    await refused("transaction", () => increment({ maxAttempts: 1 }));
  },
  async after() {
    // What may still carry out a write of the outage takes no other one to its document.
    const until = Date.now() + PATIENCE;
    for (let is_set = false; !is_set; ) {
      try {
        await ada.set({ n: 1 });
        is_set = true;
      } catch (error) {
        assert(/an earlier write/.test(String(error)) && Date.now() < until, String(error));
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
    assert.equal(await increment(), 2);
    await watched(() => ada.update({ n: 9 }), 9);
  },
};

await phases[phase]();
await database.terminate();
console.log("ok");
// A stream that its server does not end would keep it alive.
process.exit(0);
