// A worker in Node with @grpc/grpc-js: `npm install`, then
//
//     async with sp.open_pool(command=["node", "worker.js", "path/to/protos"]) as pool: ...
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const protos = process.argv[2] ?? path.join(__dirname, "../../protos");
const options = { keepCase: true, enums: String, longs: Number, defaults: true, includeDirs: [protos] };
const { snakepit } = grpc.loadPackageDefinition(loader.loadSync("snakepit/v1/worker.proto", options));

const schema = (properties) =>
  JSON.stringify({ type: "object", properties, required: Object.keys(properties) });
const number = { type: "number" };

// A tool gets its parameters and a signal that says that nobody waits any more; a generator is a streaming tool.
const tools = {
  add: { schema: schema({ a: number, b: number }), run: async ({ a, b }) => a + b },
  length: { schema: schema({ text: { type: "string" } }), run: async ({ text }) => text.length },
  boom: {
    schema: schema({ message: { type: "string" } }),
    run: async ({ message }) => {
      throw new RangeError(message);
    },
  },
  nap: {
    schema: schema({ seconds: number }),
    run: ({ seconds }, signal) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => resolve(seconds), seconds * 1000);
        signal.addEventListener("abort", () => {
          clearTimeout(timer);
          console.log("nap was cancelled");
          reject(new Error("cancelled"));
        });
      }),
  },
  count: {
    schema: schema({ n: { type: "integer" } }),
    streaming: true,
    run: async function* ({ n }) {
      for (let i = 0; i < n; i++) yield { n: i };
    },
  },
};

const answer = (value) => ({ payload: { encoding: "ENCODING_JSON", data: Buffer.from(JSON.stringify(value ?? null)) } });

const failed = (error) => {
  if (error.code !== undefined) return error;
  // What our ErrorInfo says, a client catches by the type: `except sp.remote("RangeError")`.
  const metadata = new grpc.Metadata();
  const info = { code: "tool_error", remote_types: [error.name], remote_message: error.message, remote_traceback: error.stack };
  metadata.set("snakepit-error-bin", encodeErrorInfo(info));
  return { code: grpc.status.UNKNOWN, details: error.message, metadata };
};

// proto-loader has no encoder to be called by hand; a message of text fields is quickly written.
const fields = { code: 1, message: 2, remote_types: 4, remote_message: 5, remote_traceback: 6 };
function encodeErrorInfo(info) {
  const parts = [];
  for (const [name, values] of Object.entries(info)) {
    for (const value of [].concat(values)) {
      const text = Buffer.from(String(value).slice(0, 2000));
      const size = [];
      let left = text.length;
      for (; left > 127; left >>= 7) size.push((left & 127) | 128);
      parts.push(Buffer.from([(fields[name] << 3) | 2, ...size, left]), text);
    }
  }
  return Buffer.concat(parts);
}

const token = Buffer.from(`Bearer ${fs.readFileSync(process.env.SNAKEPIT_TOKEN_FILE, "utf8").trim()}`);
function check(call) {
  const given = Buffer.from(String(call.metadata.get("authorization")[0] ?? ""));
  if (given.length !== token.length || !crypto.timingSafeEqual(given, token)) {
    throw Object.assign(new Error("the token is missing or wrong"), { code: grpc.status.UNAUTHENTICATED });
  }
}

// Request id -> a promise that is settled when the call runs no longer.
const running = new Map();
async function underWay(call, work) {
  check(call);
  const { request_id: id, tool: name, payload } = call.request;
  const tool = tools[name];
  if (!tool) throw Object.assign(new Error(`there is no tool ${name}`), { code: grpc.status.NOT_FOUND });
  const aborter = new AbortController();
  call.on("cancelled", () => aborter.abort());
  const run = (async () => work(tool, JSON.parse(payload.data), aborter.signal))();
  running.set(id, run.catch(() => {}));
  try {
    return await run;
  } finally {
    running.delete(id);
  }
}

const service = {
  Handshake(call, done) {
    try {
      check(call);
    } catch (error) {
      return done(error);
    }
    done(null, {
      protocol_version: 1,
      pid: process.pid,
      tools: Object.entries(tools).map(([name, tool]) => ({
        name,
        parameters_schema: tool.schema,
        streaming: tool.streaming ?? false,
      })),
      capabilities: ["json", "health", "settle"],
      backend: "node",
      implementation: "@grpc/grpc-js",
      threads: Number(process.env.SNAKEPIT_THREADS),
    });
  },

  Execute(call, done) {
    underWay(call, (tool, params, signal) => tool.run(params, signal)).then(
      (result) => done(null, answer(result)),
      (error) => done(failed(error)),
    );
  },

  ExecuteStream(call) {
    let wake = () => {};
    call.on("drain", () => wake());
    underWay(call, async (tool, params, signal) => {
      signal.addEventListener("abort", () => wake());
      for await (const chunk of tool.run(params, signal)) {
        if (signal.aborted) return;
        // false: the reader is slow, and we wait for it.
        if (!call.write(answer(chunk))) await new Promise((resolve) => (wake = resolve));
      }
    }).then(
      () => call.end(),
      (error) => call.emit("error", failed(error)),
    );
  },

  // The host has cancelled a call, and asks when it has stopped.
  Settle(call, done) {
    Promise.resolve(running.get(call.request.request_id)).then(() => done(null, {}));
  },
};

// grpc.health.v1 is two messages of one field; SERVING is 1.
const health = {
  Check: {
    path: "/grpc.health.v1.Health/Check",
    requestStream: false,
    responseStream: false,
    requestDeserialize: (data) => data,
    responseSerialize: (data) => data,
  },
};

const longest = Number(process.env.SNAKEPIT_MAX_PAYLOAD) + 65536; // The library's own limit is 4 MiB.
const server = new grpc.Server({ "grpc.max_receive_message_length": longest, "grpc.max_send_message_length": longest });
server.addService(snakepit.v1.WorkerService.service, service);
server.addService(health, { Check: (call, done) => done(null, Buffer.from([8, 1])) });
const listen = process.env.SNAKEPIT_LISTEN; // unix:PATH or tcp:HOST:PORT
server.bindAsync(listen.replace(/^tcp:/, ""), grpc.ServerCredentials.createInsecure(), (error, port) => {
  const line = error ? `error: ${error.message}` : listen.startsWith("unix:") ? listen : `tcp:127.0.0.1:${port}`;
  fs.writeFileSync(process.env.SNAKEPIT_READY_FILE, `${line}\n`);
  if (error) process.exit(1);
});
// The host's wish for an orderly end; calls are over by then.
process.on("SIGTERM", () => server.tryShutdown(() => process.exit(0)));
process.on("SIGINT", () => {});
