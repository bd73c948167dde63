// Prints the bytes of each client as JSON: bundled and minified by esbuild, then gzip -9.
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const client = fileURLToPath(new URL("../../../clients/javascript/", import.meta.url));

/** What an application imports of each. */
const IMPORTS = {
  "topicsvc-client": `export { Topic, send } from ${JSON.stringify(`${client}topicsvc-client.js`)}`,
  partysocket: 'export { WebSocket } from "partysocket"',
  phoenix: 'export { Socket } from "phoenix"',
  "socket.io-client": 'export { io } from "socket.io-client"',
  centrifuge: 'export { Centrifuge } from "centrifuge"',
  mqtt: 'export { default } from "mqtt"',
};

const sizes = {};
for (const [name, contents] of Object.entries(IMPORTS)) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: here },
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    legalComments: "none",
    write: false,
    logLevel: "error",
  });
  const directory = name === "topicsvc-client" ? client : `${here}node_modules/${name}/`;
  const { version } = JSON.parse(await readFile(`${directory}package.json`, "utf8"));
  const [{ contents: bytes }] = outputFiles;
  const gzipped = gzipSync(bytes, { level: 9 });
  sizes[name] = { version, minified: bytes.length, gzipped: gzipped.length };
}
console.log(JSON.stringify(sizes));
