// Runs the scripted cases in a runtime with a file system, and prints the result as JSON.
import { readFile } from "node:fs/promises";
import process from "node:process";
import { Topic } from "../../../clients/javascript/topicsvc-client.js";
import { run } from "./scripted.js";

const path = new URL("../../../clients/scripted_servers.json", import.meta.url);
const result = await run(JSON.parse(await readFile(path, "utf8")), Topic);
console.log(JSON.stringify(result));
process.exitCode = result.failures.length ? 1 : 0;
