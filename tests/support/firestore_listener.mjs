// Listens by Google's Firestore client for Node, and tells each view as a line of JSON, until its input ends.
//
// usage: firestore_listener.mjs PROJECT
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { Firestore } = require("@google-cloud/firestore");

const rooms = new Firestore({ projectId: process.argv[2] }).collection("rooms");
const tell = (said) => console.log(JSON.stringify(said));
const failed = (error) => tell({ error: String(error) });

rooms.onSnapshot((found) => {
  tell({ who: "query", view: Object.fromEntries(found.docs.map((one) => [one.id, one.get("n")])) });
}, failed);
rooms.doc("a").onSnapshot((one) => {
  tell({ who: "document", view: one.exists ? { a: one.get("n") } : {} });
}, failed);
process.stdin.resume();
process.stdin.on("end", () => {
  tell({ who: "end", view: {} });
  process.exit(0);
});
