// @grpc/grpc-js: node stock.js PROTOS ADDRESS, the token in SNAKEPIT_TOKEN, for TLS the files in SNAKEPIT_CA, SNAKEPIT_CERT
// and SNAKEPIT_KEY; prints what came of it as one line of JSON.
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protos, address] = process.argv.slice(2);
const read = (name) => (process.env[name] ? fs.readFileSync(process.env[name]) : null);
const credentials = () =>
  process.env.SNAKEPIT_CA
    ? grpc.credentials.createSsl(read("SNAKEPIT_CA"), read("SNAKEPIT_KEY"), read("SNAKEPIT_CERT"))
    : grpc.credentials.createInsecure();
const definition = loader.loadSync("snakepit/v1/bridge.proto", { includeDirs: [protos], keepCase: true });
const { BridgeService } = grpc.loadPackageDefinition(definition).snakepit.v1;
const client = new BridgeService(address.replace(/^tcp:/, ""), credentials());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${process.env.SNAKEPIT_TOKEN}`);

const payload = (value) => ({ encoding: 1, data: Buffer.from(JSON.stringify(value)) });
const value = (message) => JSON.parse(message.payload.data.toString());
const within = () => ({ deadline: Date.now() + 20000 });

const unary = (method, request) =>
  new Promise((resolve) =>
    client[method](request, metadata, within(), (error, answer) =>
      resolve(error ? { code: error.code, details: error.details } : answer),
    ),
  );

const stream = (request, take) =>
  new Promise((resolve) => {
    const call = client.ExecuteStreamingTool(request, metadata, within());
    const chunks = [];
    call.on("data", (chunk) => {
      chunks.push(value(chunk));
      if (chunks.length === take) call.cancel();
    });
    call.on("error", (error) => resolve({ chunks, code: error.code }));
    call.on("end", () => resolve({ chunks }));
  });

(async () => {
  const sum = value(await unary("ExecuteTool", { tool: "add", payload: payload({ a: 1, b: 2 }) }));
  const missing = await unary("ExecuteTool", { tool: "nothing" });
  const all = await stream({ tool: "count", payload: payload({ n: 3 }) });
  const some = await stream({ tool: "count", payload: payload({ n: 100000 }) }, 2);
  console.log(JSON.stringify({ sum, missing, all, some }));
  client.close();
})();
