// The npm package's Firestore emulator on a loopback port: its own start() binds every address.
//
// usage: firestore_emulator.mjs PORT
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { FirestoreServer } = require("@firestore-emulator/server");
const grpc = require("@grpc/grpc-js");

const emulator = new FirestoreServer();
const address = `127.0.0.1:${process.argv[2]}`;
emulator.server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) {
    console.error(error.message);
    process.exit(1);
  }
});
