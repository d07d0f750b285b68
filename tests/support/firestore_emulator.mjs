// The npm Firestore emulator on one loopback port: node firestore_emulator.mjs PORT
// Its own start() would listen on every address.
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { FirestoreServer } = require('@firestore-emulator/server')
const { ServerCredentials } = createRequire(require.resolve('@firestore-emulator/server'))('@grpc/grpc-js')

const port = Number(process.argv[2])
const { server } = new FirestoreServer()
server.bindAsync(`127.0.0.1:${port}`, ServerCredentials.createInsecure(), (error) => {
  if (error) {
    console.error(error.message)
    process.exit(1)
  }
  console.log(`ready on ${port}`)
})
