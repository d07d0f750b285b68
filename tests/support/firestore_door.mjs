// Google's Firestore client for Node at the Firestore door, which is all that it knows of fusebox.
//
// usage: firestore_door.mjs PROJECT live|outage|still|after
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const require = createRequire(import.meta.url);
const { Firestore, FieldValue, AggregateField } = require("@google-cloud/firestore");

const [project, phase] = process.argv.slice(2);
// An outage is reported at once, and not after the client has tried for minutes.
const AT_ONCE = 3_000;
const PATIENCE = 30_000;
const database = new Firestore({ projectId: project });
const people = database.collection("crew");
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

/** Ends soon, with an answer. */
async function within(what, call) {
  const began = Date.now();
  const answer = await call();
  const took = Date.now() - began;
  assert(took < AT_ONCE, `${what} took ${took} ms`);
  return answer;
}

const kept = people.where("kept", "==", true);

/** Leaves behind what an outage begins with, and looks at it. */
async function known() {
  const batch = database.batch();
  for (let n = 0; n < 5; n += 1) batch.set(people.doc(`kept${n}`), { kept: true });
  await batch.commit();
  assert((await ada.get()).exists);
  assert.equal((await kept.get()).size, 5);
  assert.equal((await kept.count().get()).data().count, 5);
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
    await known();
  },
  async outage() {
    const seen = await within("get", () => ada.get());
    assert([7, 9].includes(seen.get("n")) && seen.updateTime && seen.createTime && seen.readTime);
    const told = await within("set", () => ada.set({ n: 100 }));
    assert(told.writeTime.valueOf() > seen.updateTime.valueOf());
    assert.deepEqual((await within("get", () => ada.get())).data(), { n: 100 });
    await within("update", () => ada.update({ n: 101, "b.c": [1, null] }));
    await within("increment", () => ada.update({ n: FieldValue.increment(1) }));
    const batch = database.batch();
    batch.set(people.doc("new"), { at: FieldValue.serverTimestamp(), nan: NaN });
    batch.delete(people.doc("kept0"));
    assert.equal((await within("batch", () => batch.commit())).length, 2);
    await phases.still();
    assert.equal((await within("query", () => kept.get())).size, 5);
    assert.equal((await within("count", () => kept.count().get())).data().count, 5);
    await refused("get of what was never seen", () => people.doc("never").get());
    await refused("query that was never asked", () => people.limit(3).get());
    await refused("create", () => people.doc("made").create({}));
    // Left alone, this client begins a transaction five times over, whatever ends it.
    await refused("transaction", () => increment({ maxAttempts: 1 }));
  },
  /** What was acknowledged in an outage is what is read. */
  async still() {
    const found = await within("get", () => ada.get());
    assert.deepEqual(found.data(), { n: 102, b: { c: [1, null] } });
    const [gone, made] = await within("getAll", () =>
      database.getAll(people.doc("kept0"), people.doc("new")),
    );
    assert(!gone.exists && Number.isNaN(made.get("nan")) && made.get("at"));
  },
  async after() {
    await phases.still();
    await ada.set({ n: 1 });
    assert.equal(await increment(), 2);
    await watched(() => ada.update({ n: 9 }), 9);
    await known();
  },
};

await phases[phase]();
await database.terminate();
console.log("ok");
// A stream that its server does not end would keep it alive.
process.exit(0);
